"""Is the search worth its time? `make worth`: a study of whole pipelines beside each learner at its defaults.

studies/omniglot-pipeline.yaml is run as a user would run it, from several seeds. Then each learner is meta-trained at
its defaults on the tasks of studies/omniglot-minimal.yaml, which are the same, from the same seed, for as many CPU
seconds as that whole study took, its trials, finalists and evaluations included; what it costs to score it is not
counted against it. At last all winners are scored once more, on as many tasks of the alphabet that none was shown.

What a contender came to is kept in its folder, and not measured again. Writes docs/results/worth.json, from which the
README's table is made.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import running
from metaopt.files import write_json

FILE = Path(__file__).parent / "results" / "worth.json"
STUDIES = Path(__file__).parents[1] / "studies"
LEARNERS = ("protonet", "r2d2", "pixels")
BEHIND = ("maml",)
"""Far behind these, and so not measured from every seed but from the first alone."""
TASKS = 600


def ran(study: str, run: Path, *settings: str) -> dict[str, Any]:
    """Run a study with these settings; return its winner, with its score on test tasks and the CPU seconds of all."""
    kept = run / "worth.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    board, cpu_seconds = running.study(STUDIES / study, run, settings)
    scores = running.evaluated(run, "--tasks", str(TASKS))
    found = {
        "learner": board["finalists"][0]["learner"],
        "test": scores["mean"],
        "ci95": scores["ci95"],
        "cpu_seconds": round(cpu_seconds),
    }
    write_json(kept, found)
    return found


def searched(seed: int, folder: Path) -> dict[str, Any]:
    """Return what the search came to from a seed."""
    return ran("omniglot-pipeline.yaml", folder / f"search-{seed}", f"seed={seed}")


def at_defaults(learner: str, seed: int, cpu_seconds: int, folder: Path) -> dict[str, Any]:
    """Return what a learner at its defaults came to in so many seconds of meta-training."""
    return ran(
        "omniglot-minimal.yaml", folder / f"{learner}-{seed}", f"learners=[{learner}]", f"seed={seed}", "timeout=null",
        "trials=1", "budget.cpu_seconds=1", "evaluation.tasks=60", "evaluation.finalists=1",
        "evaluation.report_tasks=200", f"final.cpu_seconds={cpu_seconds}",
    )  # fmt: skip


def main() -> int:
    """Run every seed, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="runs side by side, a core each")
    parser.add_argument("--output", type=Path, default=Path("runs") / "worth")
    options = parser.parse_args()
    folder, asked = options.output, [*product(options.seeds, LEARNERS), *product(options.seeds[:1], BEHIND)]
    with ThreadPoolExecutor(options.at_once) as threads:
        found = dict(zip(options.seeds, threads.map(lambda seed: searched(seed, folder), options.seeds), strict=True))
        came = threads.map(lambda one: at_defaults(one[1], one[0], found[one[0]]["cpu_seconds"], folder), asked)
        others = dict(zip(asked, came, strict=True))
    rows = [
        {"seed": seed, "search": found[seed], "others": {one: others[seed, one] for of, one in asked if of == seed}}
        for seed in options.seeds
    ]
    write_json(FILE, {"seeds": rows})
    for seed in options.seeds:
        best = max((others[of, one]["test"], one) for of, one in asked if of == seed)
        ahead = 100 * (found[seed]["test"] - best[0])
        running.say(f"seed {seed}: {ahead:.2f} points ahead of the best learner at its defaults, {best[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
