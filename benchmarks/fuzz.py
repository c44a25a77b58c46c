"""Give metaopt's readers inputs that coverage leads to (atheris, libFuzzer): each is read, or refused in a sentence.

`python benchmarks/fuzz.py --seconds 60` fuzzes every target so long and prints how many inputs each was given; `--json`
adds that to what earlier runs came to. It needs the package atheris. What found new ways through the code is kept in
tests/fuzz, one archive a target, which the tests replay. An input that ends otherwise is written to build/fuzz and
named.
"""

import argparse
import contextlib
import datetime
import functools
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

KEPT = Path(__file__).parents[1] / "tests" / "fuzz"
FOUND = Path("build") / "fuzz"
LARGEST = 2**14  # bytes of an input
MANY = 300  # inputs kept of a target
OURS = ["metaopt", "metaopt_tasks", "yaml", "csv", "json", "argparse", "zipfile", "PIL", "numpy.lib"]
"""Modules whose ways are counted."""
STUDY = """\
name: s
tasks: {sampler: gaussian, features: 4, n_way: 3, n_shot: 1, n_query: 3}
learners: {protonet: {temperature: {low: 0.1, high: 1}}}
encoder: {mlp: {width: 8, depth: 1}}
outer: {lr: 1e-3, schedule: [constant, cosine]}
trials: 1
budget: {tasks: 8}
evaluation: {tasks: 10, finalists: 1, report_tasks: 20}
"""
ROWS = [(f"{label}{shift}", 3 * shift + row, label) for shift, label in enumerate("abcdef") for row in range(3)]
Target = Callable[[bytes], object]


def targets(root: Path) -> dict[str, Target]:  # noqa: PLR0915 - one after another
    """Return what is fuzzed by name; each takes an input, and works in a folder of its own under `root`."""
    import torch
    from PIL import Image

    from metaopt import checkpoint, cli, plugins
    from metaopt.errors import UserError
    from metaopt.study.file import load as load_study
    from metaopt.study.file import resolve
    from metaopt.study.model import CONFIG, WEIGHTS, load

    torch.set_num_threads(1)
    Image.init()  # its formats come in here, where they are instrumented
    root.mkdir(exist_ok=True)
    os.environ["METAOPT_CACHE"] = str(root / "cache")
    registry, cpu = plugins.load(), torch.device("cpu")
    parser = functools.cache(cli._parser)  # making it anew takes most of the time of a line that is refused

    def file(name: str, content: bytes) -> Path:
        path = root / name
        path.write_bytes(content)
        return path

    def refused_in_a_sentence(read: Callable[[], object]) -> None:
        try:
            read()
        except UserError as error:
            said = str(error)
            assert said, "an error without a word"
            assert len(said.splitlines()) == 1, said

    def study(content: bytes) -> None:
        path = file("study.yaml", content)
        refused_in_a_sentence(lambda: load_study(path, registry))

    def mapping(content: bytes) -> None:
        """Go past YAML, which takes most of the time."""
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError):
            return
        if isinstance(raw, dict):
            refused_in_a_sentence(lambda: resolve(raw, "the study", registry))

    def sampler(name: str, suffix: str, **settings: str) -> Target:
        cls = registry.task_sampler(name)

        def read(content: bytes) -> None:
            config = cls.Config(file=str(file(f"{name}{suffix}", content)), **settings)
            refused_in_a_sentence(lambda: cls(config))

        return read

    def picture(content: bytes) -> None:
        from metaopt_tasks.images import _picture

        with contextlib.suppress(Exception):  # the reader names the picture, whatever Pillow raises
            _picture(content, 3, 20, "stretch")

    def model(content: bytes) -> None:
        """The first byte says which of the two files the rest is."""
        folder = root / "model"
        folder.mkdir(exist_ok=True)
        whole = saved_model(root)
        for name in (CONFIG, WEIGHTS):
            (folder / name).write_bytes(whole[name])
        (folder / (CONFIG if content[:1] != b"w" else WEIGHTS)).write_bytes(content[1:])
        refused_in_a_sentence(lambda: load(folder, registry, cpu))

    def kept_on_the_way(content: bytes) -> None:
        """Whatever it holds, its trial begins anew or goes on. Its checksum, at which most would end, always fits."""
        file("7.safetensors", content)
        with torch.random.fork_rng(devices=[]), patch.object(checkpoint, "_crc", return_value="0"):
            checkpoint.Checkpoint(checkpoint.File(root / "7.safetensors"), {}).resume(moving(0))

    def arguments(content: bytes) -> None:
        words = content.decode("utf-8", "replace").replace("\0", "").split("\n")[:8]  # no process can be given zeros
        if any(word.startswith(("/", "~")) or ".." in word or "=/" in word for word in words):
            return  # it would write there
        if {"run", "dashboard", "preview", "new", "check"} & {*words}:  # which take their time, or write a project
            return
        (root / "empty").mkdir(exist_ok=True)
        os.chdir(root / "empty")
        with (
            patch.object(cli, "_parser", parser),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()) as said,
        ):
            try:
                code: Any = cli.main(words)
            except SystemExit as end:
                code = end.code
        os.environ.pop("METAOPT_DISABLE_PLUGINS", None)
        assert code in {0, 1, 2}, code
        assert "Traceback" not in said.getvalue(), said.getvalue()

    return {
        "study": study,
        "mapping": mapping,
        "csv": sampler("table", ".csv"),
        "jsonl": sampler("text", ".jsonl"),
        "npz": sampler("arrays", ".npz"),
        "picture": picture,
        "model": model,
        "checkpoint": kept_on_the_way,
        "arguments": arguments,
    }


@functools.cache
def saved_model(root: Path) -> dict[str, bytes]:
    """Return the files of a small model, made once."""
    from metaopt.cli import main
    from metaopt.study.model import CONFIG, WEIGHTS

    best = root / "run" / "best"
    if not best.exists():
        (root / "s.yaml").write_text(STUDY)
        with contextlib.redirect_stdout(io.StringIO()):
            assert main(["study", "run", str(root / "s.yaml"), "--output", str(root / "run"), "--quiet"]) == 0
    return {name: (best / name).read_bytes() for name in (CONFIG, WEIGHTS)}


def moving(steps: int = 1) -> Any:
    """Return what meta-training of a small network would change, after so many steps."""
    import torch

    from metaopt.checkpoint import Moving
    from metaopt.executor import Traced

    learner: Any = torch.nn.Linear(2, 1)
    optimizer = torch.optim.Adam(learner.parameters())
    for _ in range(steps):
        learner(torch.ones(2)).backward()
        optimizer.step()
    average = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    return Moving(learner, optimizer, average, torch.Generator(), Traced())


def seeds(name: str, root: Path) -> Iterable[bytes]:
    """Return a few inputs of a target that are read without complaint, to begin with."""
    import numpy as np
    from PIL import Image

    match name:
        case "study":
            yield STUDY.encode()
            yield from (path.read_bytes() for path in (KEPT.parents[1] / "studies").glob("*.yaml"))
        case "mapping":
            import yaml

            for text in (STUDY, *(path.read_text() for path in (KEPT.parents[1] / "studies").glob("*.yaml"))):
                yield json.dumps(yaml.safe_load(text)).encode()
        case "csv":
            yield "\n".join(["x,n,label", *(f"{x},{n},{label}" for x, n, label in ROWS)]).encode()
        case "jsonl":
            yield "\n".join(json.dumps({"text": x, "label": label}) for x, _, label in ROWS).encode()
            yield json.dumps([[x, label] for x, _, label in ROWS]).encode()
        case "npz":
            content, x = io.BytesIO(), np.arange(12.0).reshape(6, 2).repeat(3, 0)
            np.savez(content, X=x + np.arange(18)[:, None], y=np.array([label for _, _, label in ROWS]))
            yield content.getvalue()
        case "picture":
            for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
                content = io.BytesIO()
                Image.new("RGB", (5, 4), "red").save(content, kind)
                yield content.getvalue()
        case "model":
            (config, weights) = saved_model(root).values()
            yield b"c" + config
            yield b"w" + weights
        case "checkpoint":
            from metaopt import checkpoint

            place = checkpoint.File(root / "kept" / "7.safetensors")
            one = checkpoint.Checkpoint(place, {})
            one.due = 0.0
            with patch.object(checkpoint, "_crc", return_value="0"):
                one.keep(moving(), {"tasks": 3, "planned": 8})
            yield place.path.read_bytes()
        case "arguments":
            for line in (
                "study list", "study show runs", "study space quickstart", "plugin list", "plugin show maml", "--help",
                "evaluate runs --tasks 3", "export runs best", "predict m --support a --query b", "compare a b --json",
                "study report runs", "study audit runs --json", "--plugin no:maml plugin list",
            ):  # fmt: skip
                yield line.replace(" ", "\n").encode()


def kept(name: str) -> dict[str, bytes]:
    """Return the inputs of a target that were kept, by name."""
    with ZipFile(KEPT / f"{name}.zip") as archive:
        return {one: archive.read(one) for one in sorted(archive.namelist())}


def keep(name: str, folder: Path) -> None:
    """Keep a folder's inputs, the smallest of them where they are many, in an archive that is the same each time."""
    KEPT.mkdir(exist_ok=True)
    chosen = sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name))[:MANY]
    with ZipFile(KEPT / f"{name}.zip", "w") as archive:
        for path in sorted(chosen, key=lambda path: path.name):
            archive.writestr(ZipInfo(path.name), path.read_bytes(), ZIP_DEFLATED)


def fuzz(name: str, root: Path, flags: list[str]) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=OURS):
        target = targets(root)[name]
    if name == "model":
        saved_model(root)
    import sklearn  # type: ignore[import-untyped] # it says nothing of its types

    sklearn.set_config(skip_parameter_validation=True)  # of what we give it, not of what is read
    logging.disable(logging.CRITICAL)  # what readers warn of, they warn of a thousand times a second
    atheris.Setup([sys.argv[0], *flags], target)
    atheris.Fuzz()


def child(name: str, root: Path, *flags: str | Path) -> str:
    """Run libFuzzer on a target in another process; return what it said. A crash is told where it is found."""
    command = [sys.executable, __file__, "--target", name, "--root", str(root), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        print(f"{name}: see {FOUND}\n{done.stdout[-3000:]}\n{done.stderr[-1000:]}", file=sys.stderr)
    return done.stderr


@dataclass(frozen=True)
class Row:
    """What came of fuzzing a target."""

    target: str
    executions: int
    ways: int
    """Edges of our code, and of what it reads with, that were gone."""
    unexpected: int
    """Ends that are neither an answer nor an error in a sentence."""
    seconds: float


def add(path: Path, row: Row) -> None:
    """Add what a run of a target came to, to what earlier ones came to."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    before = found.get(row.target, {"executions": 0, "seconds": 0, "unexpected": 0, "runs": 0})
    found[row.target] = {
        "executions": before["executions"] + row.executions,
        "seconds": round(before["seconds"] + row.seconds),
        "unexpected": before["unexpected"] + row.unexpected,
        "runs": before["runs"] + 1,
        "last": str(datetime.date.today()),
    }
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def run(name: str, seconds: int, *, keeping: bool) -> Row:
    """Fuzz a target in another process."""
    FOUND.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        root, corpus = Path(temporary) / "root", Path(temporary) / "corpus"
        corpus.mkdir()
        if (KEPT / f"{name}.zip").exists():
            for one, content in kept(name).items():
                (corpus / one).write_bytes(content)
        root.mkdir()
        for number, content in enumerate(seeds(name, root)):
            (corpus / f"seed-{number}").write_bytes(content)
        before, began = len(list(FOUND.iterdir())), time.monotonic()
        limits = [
            "-timeout=300",
            "-report_slow_units=300",
            "-rss_limit_mb=4096",
            f"-max_len={LARGEST}",
            f"-artifact_prefix={FOUND}/{name}-",
        ]
        said = child(name, root, f"-max_total_time={seconds}", *limits, corpus)
        times = max(map(int, re.findall(r"^(?:Done |#)(\d+)", said, re.M)), default=0)
        ways = max(map(int, re.findall(r"cov: (\d+)", said)), default=0)
        if keeping:
            for seed in corpus.glob("seed-*"):
                seed.unlink()  # which are made anew
            keep(name, corpus)
        return Row(name, times, ways, len(list(FOUND.iterdir())) - before, time.monotonic() - began)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default: 60)")
    parser.add_argument("--only", nargs="*", help="names of targets (default: all)")
    parser.add_argument("--json", type=Path, help="add the figures to those there")
    parser.add_argument("--keep", action="store_true", help="keep in tests/fuzz what found new ways")
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options, flags = parser.parse_known_args()
    if options.target:
        fuzz(options.target, options.root, flags)
        return 0
    with tempfile.TemporaryDirectory() as root:
        names = options.only or list(targets(Path(root)))
    print(f"{datetime.date.today()}, {options.seconds} s each\n")
    print("| target | inputs | a second | ways | other ends |\n|---|---|---|---|---|")
    found = 0
    for name in names:
        row = run(name, options.seconds, keeping=options.keep)
        found += row.unexpected
        rate = row.executions / row.seconds
        print(f"| {name} | {row.executions:,} | {rate:,.0f} | {row.ways} | {row.unexpected} |", flush=True)
        if options.json:
            add(options.json, row)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
