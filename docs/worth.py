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
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import DEVNULL, Popen, check_output
from typing import Any

from metaopt.files import write_json

FILE = Path(__file__).parent / "results" / "worth.json"
STUDIES = Path(__file__).parents[1] / "studies"
SEARCH = "search"
LEARNERS = ("protonet", "r2d2", "pixels")
TASKS = 600


def ran(run: Path, study: str, *settings: str) -> dict[str, Any]:
    """Run a study with these settings; return its winner, with its score on test tasks and the CPU seconds of all."""
    kept = run / "worth.json"
    if kept.exists():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    options = [part for setting in settings for part in ("--set", setting)]
    metaopt = [sys.executable, "-m", "metaopt", "study", "run", str(STUDIES / study), *options]
    process = Popen([*metaopt, "--output", str(run), "--quiet"], stdout=DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the study in {run} did not come to its end")
    winner = json.loads((run / "leaderboard.json").read_text(encoding="utf-8"))["finalists"][0]
    evaluate = [sys.executable, "-m", "metaopt", "evaluate", str(run / "best"), "--tasks", str(TASKS), "--json"]
    scores = json.loads(check_output(evaluate))
    found = {
        "learner": winner["learner"],
        "test": scores["mean"],
        "ci95": scores["ci95"],
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
    }
    write_json(kept, found)
    return found


def contenders(seed: int, folder: Path) -> Iterator[tuple[str, Path, str, tuple[str, ...]]]:
    """Yield who is held against the search from a seed: a name, the folder for its run, its study and its settings."""
    seconds = ran(folder / f"{SEARCH}-{seed}", "omniglot-pipeline.yaml", f"seed={seed}")["cpu_seconds"]
    alone = ("trials=1", "budget.cpu_seconds=1", "evaluation.tasks=60", "evaluation.finalists=1",
             "evaluation.report_tasks=200", f"final.cpu_seconds={seconds}", f"seed={seed}")  # fmt: skip
    for name in LEARNERS:
        run = folder / f"{name}-{seed}"
        yield name, run, "omniglot-minimal.yaml", (*alone, f"learners=[{name}]", "timeout=null")


def main() -> int:
    """Run every seed, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="runs side by side, a core each")
    parser.add_argument("--output", type=Path, default=Path("runs") / "worth")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.at_once) as threads:
        of_seed = list(threads.map(lambda seed: list(contenders(seed, options.output)), options.seeds))
        jobs = [(seed, job) for seed, all_of in zip(options.seeds, of_seed, strict=True) for job in all_of]
        came = threads.map(lambda job: ran(job[1][1], job[1][2], *job[1][3]), jobs)
        found = [(seed, job[0], one) for (seed, job), one in zip(jobs, came, strict=True)]
    rows = [
        {
            "seed": seed,
            SEARCH: ran(options.output / f"{SEARCH}-{seed}", "omniglot-pipeline.yaml"),
            "others": {name: one for of, name, one in found if of == seed},
        }
        for seed in options.seeds
    ]
    write_json(FILE, {"seeds": rows})
    for row in rows:
        best = max(LEARNERS, key=lambda name: row["others"][name]["test"])
        ahead = row[SEARCH]["test"] - row["others"][best]["test"]
        sys.stdout.write(
            f"seed {row['seed']}: the search is ahead of the best learner at its defaults, {best}, by {ahead:.2%}\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
