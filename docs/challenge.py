"""The Omniglot challenge from five alphabets: `make challenge`.

Runs studies/omniglot-challenge.yaml from several seeds on each of the two official small sets of alphabets, and scores
each winner once on the 20 official runs. `--set final.cpu_seconds=900` trains the winner longer. Writes
docs/results/challenge.json, from which the README's table is made, and prints the mean error at the end.
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import running
from metaopt.files import write_json

FILE = Path(__file__).parent / "results" / "challenge.json"
STUDY = Path(__file__).parents[1] / "studies" / "omniglot-challenge.yaml"
SETS = ("small1", "small2")
PUBLISHED = {"people": 4.5, "BPL": 4.2, "convolutional network": 23.2, "ProtoNet": 30.1, "modified Hausdorff": 38.8}
"""Errors in % after the two sets, mean (Lake, Salakhutdinov & Tenenbaum, 2019, arXiv:1902.03477); people saw more."""


def scored(small: str, seed: int, folder: Path, changes: list[str]) -> dict[str, Any]:
    """Run one study, as a user would, and score its winner on the official runs."""
    run = folder / f"{small}-{seed}"
    background = f"images_background_{small}"
    settings = [
        f"tasks.train=[{background}]", f"tasks.test=[images_background, -{background}]", f"seed={seed}", *changes,
    ]  # fmt: skip
    began = time.monotonic()
    board, cpu_seconds = running.study(STUDY, run, settings)
    seconds = time.monotonic() - began
    on_runs, winner = running.evaluated(run, "--on", "omniglot-challenge"), board["finalists"][0]
    return {
        "set": small,
        "seed": seed,
        "learner": winner["learner"],
        "params": winner["params"],
        "folds": winner["search"]["mean"],
        "other_alphabets": winner["report"]["mean"],
        "trained_tasks": winner["final"]["trained_tasks"],
        **{key: on_runs[key] for key in ("error", "low", "high", "wrong", "queries")},
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def main() -> int:
    """Run and score every study that is asked for, and write what came of it after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--set", action="append", default=[], help="of the study, as for metaopt study run")
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="studies side by side, a core each")
    parser.add_argument("--output", type=Path, default=Path("runs") / "challenge")
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    studies: list[dict[str, Any]] = []
    asked = [(small, seed) for seed in range(options.seeds) for small in options.sets]
    with ThreadPoolExecutor(options.at_once) as threads:
        for found in threads.map(lambda one: scored(*one, options.output, options.set), asked):
            studies.append(found)
            running.say(
                f"{found['set']}, seed {found['seed']}: {found['learner']}, error {found['error']:.2%} on the runs "
                f"({found['low']:.2%} to {found['high']:.2%}), {1 - found['other_alphabets']:.2%} on other alphabets; "
                f"{found['cpu_seconds'] / 60:.1f} CPU minutes, {found['seconds'] / 60:.1f} by the clock"
            )
            write_json(options.json, {"date": datetime.now(UTC).date().isoformat(), "settings": options.set,
                                      "published": PUBLISHED, "studies": studies})  # fmt: skip
    for small in options.sets:
        errors = [found["error"] for found in studies if found["set"] == small]
        running.say(
            f"{small}: mean error {mean(errors):.2%}, each seed {', '.join(f'{error:.2%}' for error in errors)}"
        )
    running.say(f"mean error {100 * mean(found['error'] for found in studies):.1f} % over {options.seeds} seeds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
