"""Sentences of classes never trained on, without any pretrained model: `make clinc`.

Runs studies/clinc150.yaml on five divisions of CLINC150's intents into thirds that share none, and scores each winner,
and the class mean of the fixed features, on the same tasks of five test intents with one example each and with five.
Writes docs/results/clinc150-splits.json, from which the README's table is made.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

import running
from metaopt.files import write_json

FILE = Path(__file__).parent / "results" / "clinc150-splits.json"
STUDY = Path(__file__).parents[1] / "studies" / "clinc150.yaml"
SHOTS = (1, 5)
FIXED = ("learners=[pixels]", "trials=1", "evaluation.finalists=1", "final=null")
"""What leaves the study the features as they are."""


def scored(split: int, changes: tuple[str, ...], run: Path) -> dict[str, Any]:
    """Run the study on a division, as a user would; return its winner's accuracy by the number of shots."""
    board, _ = running.study(STUDY, run, (f"tasks.split_seed={split}", *changes))
    winner = board["finalists"][0]
    found = {"learner": winner["learner"], "params": winner["params"]}
    for shot in SHOTS:
        score = running.evaluated(run, "--shot", str(shot))
        found[f"{shot}-shot"] = {"mean": score["mean"], "ci95": score["ci95"]}
    return found


def both(split: int, folder: Path) -> dict[str, Any]:
    """Return what the study came to on a division, and what the fixed features do."""
    return {
        "split": split,
        "winner": scored(split, (), folder / str(split)),
        "fixed": scored(split, FIXED, folder / f"{split}-fixed"),
    }


def main() -> int:
    """Run every division and write what came of it after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=2, metavar="N", help="studies side by side, a core each")
    parser.add_argument("--output", type=Path, default=Path("runs") / "clinc150-splits")
    parser.add_argument("--json", type=Path, default=FILE)
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(options.at_once) as threads:
        for one in threads.map(lambda split: both(split, options.output), range(options.splits)):
            found.append(one)
            scores = [f"{one[who][f'{shot}-shot']['mean']:.2%}" for shot in SHOTS for who in ("winner", "fixed")]
            running.say(f"division {one['split']}: {one['winner']['learner']} {', '.join(scores)}")
            write_json(options.json, {"date": datetime.now(UTC).date().isoformat(), "splits": found})
    for shot in SHOTS:
        ours, fixed = (mean(one[who][f"{shot}-shot"]["mean"] for one in found) for who in ("winner", "fixed"))
        running.say(f"{shot} shot: {ours:.2%}, the class mean of fixed features {fixed:.2%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
