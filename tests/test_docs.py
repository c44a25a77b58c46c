"""The documents say what is so: each block of docs/plugins.md is run, and docs/reference.md is what docstrings give.

A block of code whose first line is a comment with a file's name is written to that file. In a block of console output
each command is run, and must print what stands below it, where … stands for anything, lines included.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import reference

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_reference_is_what_the_docstrings_give() -> None:
    assert reference.FILE.read_text(encoding="utf-8") == reference.text(), "run `make readme`"


def test_every_hook_is_documented_with_what_it_returns() -> None:
    text = reference.FILE.read_text(encoding="utf-8")
    hooks = reference.hooks()
    assert {"register_learners", "register_task_samplers", "trial_finished"} <= hooks.keys()
    for name, hook in hooks.items():
        assert hook.__doc__, name
        assert re.search(rf"^### `{name}\(.*\) -> .*`\n\n{re.escape(hook.__doc__.splitlines()[0])}", text, re.MULTILINE)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", (DOCS / "plugins.md").read_text(encoding="utf-8")))
def test_linked_files_exist(target: str) -> None:
    assert (DOCS / target).exists()


def test_every_test_that_the_page_of_faults_names_is_there() -> None:
    names = set(re.findall(r"`(test_\w+)`", (DOCS / "faults.md").read_text(encoding="utf-8")))
    files = (ROOT / "tests" / "core").rglob("test_*.py")
    there = {name for file in files for name in re.findall(r"^def (test_\w+)\(", file.read_text("utf-8"), re.M)}
    assert len(names) > 20
    assert names <= there, names - there


def test_every_block_of_the_plugin_guide_runs_and_prints_what_it_shows(tmp_path: Path) -> None:
    environment, folder = fresh_environment(tmp_path), tmp_path
    blocks = BLOCK.findall((DOCS / "plugins.md").read_text(encoding="utf-8"))
    assert len(blocks) >= 15
    for language, text in blocks:
        if language != "console":
            first, _, _ = text.partition("\n")
            assert re.fullmatch(r"# [\w./]+\.(py|yaml)", first), f"which file is this?\n{text}"
            (folder / first.removeprefix("# ")).write_text(text, encoding="utf-8")
            continue
        for shown in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, expected = shown.partition("\n")
            if command.startswith("cd "):
                folder = (folder / command.removeprefix("cd ")).resolve()
                assert folder.is_dir()
            else:
                printed = run(command, folder, environment)
                assert matches(expected, printed), f"$ {command}\n{printed}\n--- is not ---\n{expected}"


def test_what_is_shown_is_compared_line_by_line() -> None:
    assert matches("a\nb\n", "a\nb\n")
    assert not matches("a\nb\n", "a\nc\nb\n")
    assert matches("a\n…\nb …\n", "a\nc\nd\nb 3\n")
    assert matches("a\n…\nb\n", "a\nb\n")
    assert not matches("a\n", "a\nb\n")
    assert not matches("…\nb …\n", "a\nc 3\n")
    assert not matches("b …\n", "b 3\nc\n")


def fresh_environment(folder: Path) -> dict[str, str]:
    """Make an environment of its own for what is installed, over the packages of this one, and return its variables."""
    venv = folder / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    paths = sysconfig.get_paths("venv", {"base": str(venv), "platbase": str(venv)})
    editable = [str(ROOT / "core"), str(ROOT / "plugins")]  # where this metaopt is, if it is installed as editable
    (Path(paths["purelib"]) / "beneath.pth").write_text("\n".join([sysconfig.get_path("purelib"), *editable]))
    for name in ("metaopt", "pytest"):  # of this environment, run by that one
        script = venv / "bin" / name
        module = "metaopt" if name == "metaopt" else "pytest"
        script.write_text(f'#!/bin/sh\nexec "{venv}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "METAOPT_", "PIP_"))}
    return kept | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "METAOPT_CACHE": str(folder / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",  # they lie beneath
        "PIP_NO_BUILD_ISOLATION": "0",  # which is how pip spells that there is to be none
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    """Run a command and return what it prints, and its exit code where that is not 0."""
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    printed = "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n" if done.stdout else ""
    return printed + (f"[exit code {done.returncode}]\n" if done.returncode else "")


def matches(expected: str, printed: str) -> bool:
    pattern = re.escape(expected).replace("…\\\n", "…\n")
    pattern = re.sub(r"^…\n", "(?:.*\n)*?", pattern.replace("\\\n", "\n"), flags=re.MULTILINE)
    return re.fullmatch(pattern.replace("…", ".*"), printed) is not None
