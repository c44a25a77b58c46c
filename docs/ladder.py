"""What each part of the Omniglot challenge's pipeline is worth: `make ladder`.

Takes the default pipeline of studies/omniglot-challenge.yaml apart. Each part is removed from the whole, and added
alone to what is left without any. All are meta-trained on the five alphabets of images_background_small1 for the same
CPU seconds, and scored on the same tasks of the other background alphabets, never on the official runs. Writes
docs/results/ladder.json, from which the README's table is made: errors in %, and by how much they are above the whole's
or below the bare one's, with 95 % intervals of the difference on the same tasks, the mean over seeds. With `--parts`
only those are measured, beside a whole and a bare one of the same run, and the others' rows are kept.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from metaopt import plugins
from metaopt.files import write_json
from metaopt.process import on_one_core
from metaopt.study.file import load
from metaopt.study.trial import Bench, Job
from metaopt.train import Budget

FILE = Path(__file__).parent / "results" / "ladder.json"
STUDY = Path(__file__).parents[1] / "studies" / "omniglot-challenge.yaml"
PARTS: dict[str, tuple[str, ...]] = {
    "turned alphabets": ("augment.turn=none", "augment.test_turns=1"),
    "answers in all turns": ("augment.test_turns=1",),
    "joined characters": ("augment.join=0",),
    "slant and stretch": ("augment.slant=0", "augment.stretch=0"),
    "jitter": ("augment.rotate=0", "augment.scale=0", "augment.shift=0"),
    "elastic noise": ("augment.elastic=0",),
    "stroke width": ("augment.stroke=0",),
    "examples in turn": ("tasks.train_turns=false",),
    "the same drawers": ("tasks.train_same_source=0",),
    "tasks within an alphabet": ("tasks.train_within=0",),
    "temperature": ("learners.protonet.temperature=1",),
    "larger pictures": ("tasks.resolution=28", "encoder.pyramid.depth=4"),  # which cannot be halved a fifth time
    "a wide pyramid": ("encoder={conv4: }",),
    "averaged weights": ("outer.averaging=0",),
    "cosine and warm-up": ("outer.schedule=constant", "outer.warmup=0"),
    "bfloat16": ("precision=float32",),
}
"""By what each is removed."""
BARE = tuple(change for changes in PARTS.values() for change in changes)


def scored(changes: Sequence[str], seed: int, seconds: float, tasks: int) -> list[float]:
    """Meta-train the changed study's default pipeline; return its errors on so many tasks, the same for all."""
    on_one_core()
    registry = plugins.load()
    bench = Bench(load(STUDY, registry, list(changes)), registry, torch.device("cpu"))
    params = bench.study.space.default("protonet")
    done = bench.run(Job(0, params, seed, Budget(cpu_seconds=seconds), "test", "ladder", tasks, final=True))
    if not done.per_task:
        raise RuntimeError(f"{list(changes)}: {done.result.reason}")
    return [1 - accuracy for accuracy in done.per_task]


def entry(part: str, way: str, errors: list[list[float]], beside: list[list[float]]) -> dict[str, Any]:
    """Return a row: its mean error over seeds and tasks, and the difference from the pipeline it stands beside."""
    apart = (torch.tensor(errors) - torch.tensor(beside)).mean(0)  # (n_tasks,): the seeds' tasks are the same
    return {
        "part": part,
        "way": way,
        "error": torch.tensor(errors).mean().item(),
        "difference": apart.mean().item(),
        "ci95": 1.96 * apart.std().item() / len(apart) ** 0.5,
    }


def main() -> int:
    """Run every rung and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="of CPU time, in which each is meta-trained")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=400, help="of the other alphabets, on which each is scored")
    parser.add_argument("--at-once", type=int, default=os.cpu_count(), metavar="N", help="trainings side by side")
    parser.add_argument("--json", type=Path, default=FILE)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    options = parser.parse_args()
    setting = {"cpu_seconds": options.seconds, "seeds": options.seeds, "tasks": options.tasks}
    kept: list[dict[str, Any]] = []
    if options.parts != list(PARTS):
        before = json.loads(options.json.read_text(encoding="utf-8"))
        if {name: before[name] for name in setting} != setting:
            parser.error(f"{options.json} was not measured with {setting}; give what it was measured with")
        kept = [row for row in before["rows"] if row["part"] not in options.parts and row["part"] in PARTS]
    rungs = {("all", "whole"): (), ("none", "bare"): BARE}
    for part, changes in PARTS.items():
        if part not in options.parts:
            continue
        rungs[part, "removed"] = changes
        rungs[part, "added"] = tuple(change for change in BARE if change not in changes)
    with ProcessPoolExecutor(options.at_once) as processes:
        running = {
            key: [
                processes.submit(scored, changes, seed, options.seconds, options.tasks) for seed in range(options.seeds)
            ]
            for key, changes in rungs.items()
        }
        found: dict[tuple[str, str], list[list[float]]] = {}
        rows = []
        for (part, way), trainings in running.items():
            try:
                found[part, way] = [training.result() for training in trainings]
            except RuntimeError:
                processes.shutdown(cancel_futures=True)  # else the others were run, and lost
                raise
            whole = found["all", "whole"]
            beside = {"removed": whole, "bare": whole, "added": found.get(("none", "bare"), whole)}.get(way, whole)
            rows.append(row := entry(part, way, found[part, way], beside))
            sys.stdout.write(
                f"{part}, {way}: {row['error']:.1%} errors, {100 * row['difference']:+.1f} ± {100 * row['ci95']:.1f}\n"
            )
            sys.stdout.flush()
            write_json(
                options.json,
                {"date": datetime.now(UTC).date().isoformat(), **setting, "rows": rows[:2] + kept + rows[2:]},
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
