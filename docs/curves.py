"""Still rising, or wrong? Learning curves of the learners that are far from their papers: `make curves`.

Of studies/zoo-omniglot.yaml at 5 ways, and at 20, whoever is below `pixels` in the board kept in docs/results, or makes
more than three times its paper's errors (docs/published.yaml), is meta-trained once more, at its defaults, for eight
times as long (four times at 20 ways), and on its way scored on the same test tasks: when it has had the share of its
tasks that each of the seconds is of the last. Whoever is below `pixels` even then is run once more and for longer, all
tasks of a step at once, as that is faster for such learners. What a learner came to is kept in a file of its own in
DIR, and not run again. Writes the curves*.json of docs/results, from which the README's tables are made, and .svg.
"""

import argparse
import json
import math
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import yaml

from drawing import svg
from metaopt import plugins, seeds
from metaopt.files import write_json, write_text
from metaopt.process import on_one_core
from metaopt.study.file import load
from metaopt.study.space import section
from metaopt.study.trial import Bench
from metaopt.train import Budget, Outer, Training, meta_train
from running import say

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"
ZOO = ROOT / "studies" / "zoo-omniglot.yaml"
TOO_MANY = 3
"""Times the errors of a learner's paper."""
COLOURS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#393b79", "#637939", "#8c6d31", "#843c39", "#7b4173",
)  # fmt: skip


@dataclass(frozen=True)
class Zoo:
    """A run of studies/zoo-omniglot.yaml, and the longer ones of those that are far from their papers in it."""

    board: str
    """In docs/results, and of the published figures in docs/published.yaml."""
    title: str
    seconds: tuple[int, ...]
    """Of meta-training, after which a learner is scored."""
    settings: tuple[str, ...] = ()
    after: str = ""
    """Shorter runs: those below `pixels` at their end are run again. If none, those far from their papers."""


ZOOS = {
    "curves": Zoo("zoo-omniglot", "accuracy, 5-way 1-shot", (20, 40, 80, 160, 320)),
    "curves-20w": Zoo(
        "zoo-omniglot-20w", "accuracy, 20-way 1-shot", (10, 20, 40, 80), ("tasks.n_way=20", "evaluation.tasks=50")
    ),
    "curves-long": Zoo(
        "zoo-omniglot", "accuracy, 5-way 1-shot", (80, 160, 320, 640), ("executor=traced",), after="curves"
    ),
    "curves-20w-long": Zoo(
        "zoo-omniglot-20w",
        "accuracy, 20-way 1-shot",
        (80, 160, 320, 640),
        ("tasks.n_way=20", "evaluation.tasks=50", "executor=traced"),
        after="curves-20w",
    ),
}
"""By the name of what is written in docs/results."""


def longer(zoo: Zoo) -> list[str]:
    """Return the learners of which this longer run is asked, best first."""
    learners = _result(zoo.board)["learners"]
    least = learners["pixels"]["search"]["mean"]
    if zoo.after:
        return [name for name, one in _result(zoo.after).items() if one["points"][-1]["mean"] < least]
    published = yaml.safe_load((ROOT / "docs" / "published.yaml").read_text(encoding="utf-8"))[zoo.board]
    found = []
    for name, entry in learners.items():
        mean, paper = entry["search"]["mean"], published.get(name)
        if mean < least or (paper and 1 - mean > TOO_MANY * (1 - paper["accuracy"] / 100)):
            found.append(name)
    return found


def _result(name: str) -> dict[str, Any]:
    """Return what docs/results keeps under that name."""
    kept: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return kept


def curve(name: str, zoo: Zoo) -> dict[str, Any]:
    """Meta-train a learner at its defaults for the longest time; return its scores after each, and its tasks."""
    registry = plugins.load()
    study = load(ZOO, registry, [f"learners=[{name}]", *zoo.settings])
    bench = Bench(study, registry, torch.device("cpu"))
    bench.check()
    params, seed = study.space.default(name), seeds.derive(study.seed, "trial", 0)
    learner, left, points = bench.build(params, seed), list(zoo.seconds), []

    def score(after: int, tasks: int) -> None:
        scores = bench.score(learner, study.search_on, "search", study.evaluation.tasks)
        points.append({"after": after, "tasks": tasks, "mean": scores.mean, "ci95": scores.ci95})
        say(f"{name}: {scores.mean:.4f} ± {scores.ci95:.4f} after {tasks:,} tasks")

    def at(training: Training) -> None:
        if training.progress >= left[0] / max(zoo.seconds) and len(left) > 1:
            score(left.pop(0), training.tasks)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(seed, "train"))
        outer, budget = Outer(**section(params, "outer")), Budget(cpu_seconds=max(zoo.seconds))
        executor, device = bench.executor(learner), bench.device
        done = meta_train(learner, bench.sampler, outer, budget, executor, seed=seed, device=device, at=at)
    score(max(zoo.seconds), done.tasks)
    return {"learner": name, "points": points}


def keep(name: str, zoo: Zoo, folder: Path) -> None:
    """Write a learner's curve into its file."""
    write_json(folder / f"{name}.json", curve(name, zoo))


def plot(found: Mapping[str, Mapping[str, Any]], zoo: Zoo) -> str:
    """Return the curves as an SVG picture: accuracy by CPU seconds, which double from mark to mark."""
    left, top, width, height = 60, 20, 480, 330
    first, last = math.log2(min(zoo.seconds)), math.log2(max(zoo.seconds))

    def place(seconds: float, mean: float) -> tuple[float, float]:
        return left + width * (math.log2(seconds) - first) / (last - first), top + height * (1 - mean)

    parts = []
    for mean in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        _, y = place(max(zoo.seconds), mean)
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{mean:g}</text>')
    for seconds in zoo.seconds:
        x, _ = place(seconds, 0)
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{seconds}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle">'
                 "CPU seconds of meta-training</text>")  # fmt: skip
    parts.append(f'<text transform="translate(14 {top + height / 2}) rotate(-90)" text-anchor="middle">'
                 f"{zoo.title}</text>")  # fmt: skip
    ends = []
    for (name, one), colour in zip(found.items(), cycle(COLOURS)):
        shown = [place(point["after"], point["mean"]) for point in one["points"]]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in shown)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        ends.append((shown[-1][1], name, colour))
    lowest = 0.0
    for y, name, colour in sorted(ends):  # names beside the plot do not overlap
        lowest = max(y, lowest + 15)
        parts.append(f'<text x="{left + width + 8}" y="{lowest + 4:.1f}" fill="{colour}">{name}</text>')
    return svg(left + width + 130, top + height + 50, parts)


def main() -> None:
    """Measure those that are asked for, and write what is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--of", nargs="+", choices=ZOOS, default=list(ZOOS))
    parser.add_argument("--only", nargs="+", metavar="LEARNER", help="instead of all of which a longer run is asked")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="learners side by side, a core each")
    parser.add_argument("--output", type=Path, default=ROOT / "runs", metavar="DIR")
    options = parser.parse_args()
    for result in options.of:
        zoo, folder = ZOOS[result], options.output / result
        folder.mkdir(parents=True, exist_ok=True)
        asked = options.only or longer(zoo)
        left = [name for name in asked if not (folder / f"{name}.json").exists()]
        with ProcessPoolExecutor(options.at_once, initializer=on_one_core) as processes:
            for running in [processes.submit(keep, name, zoo, folder) for name in left]:
                running.result()
        every = _result(result) if (FOLDER / f"{result}.json").exists() else {}  # the others stay as they were measured
        every |= {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")}
        found = dict(sorted(every.items(), key=lambda one: -one[1]["points"][-1]["mean"]))
        write_json(FOLDER / f"{result}.json", found)
        write_text(FOLDER / f"{result}.svg", plot(found, zoo))


if __name__ == "__main__":
    main()
