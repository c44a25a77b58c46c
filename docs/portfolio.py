"""The portfolio that comes with metaopt: `make portfolio`.

Runs small studies on the built-in samplers, of each learner alone, so that it has as many trials as any other, and of
trials of several lengths where tasks are quick. What each found best for its tasks it writes to
core/metaopt/portfolio.json, for `warm_start: builtin`. Omniglot is left out where METAOPT_DATA has none. A study may be
run on its own (`--only glyphs-400`): it takes its old place in the file.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.process import on_one_core
from metaopt.study import portfolio, search
from metaopt.study.file import resolve
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

CLASSIFYING: dict[str, Any] = {
    "protonet": {"temperature": {"low": 0.1, "high": 100}},
    "matching": None,
    "r2d2": None,
    "simpleshot": None,
    "maml": {"inner_lr": {"low": 0.02, "high": 0.5}, "inner_steps": {"low": 1, "high": 3},
             "test_steps": {"low": 1, "high": 5}},
    "anil": {"inner_steps": {"low": 1, "high": 5}, "test_steps": {"low": 1, "high": 10}},
    "reptile": {"inner_optimizer": "adam", "inner_steps": {"low": 2, "high": 5}, "test_steps": {"low": 3, "high": 10}},
    "pretrain": None,
}  # fmt: skip
REGRESSING: dict[str, Any] = {
    "maml": {"inner_steps": {"low": 1, "high": 3}, "test_steps": {"low": 1, "high": 5}},
    "anil": {"inner_steps": {"low": 1, "high": 5}, "test_steps": {"low": 1, "high": 10}},
    "reptile": {"test_steps": {"low": 3, "high": 10}},
    "hyperhead": None,
    "finetune": {"steps": {"low": 1, "high": 10}},
}
PICTURES = {"conv4": {"width": [32, 64], "pool": "stride"}}
VECTORS = {"mlp": {"width": [32, 64, 128], "depth": {"low": 1, "high": 3}}}
KINDS: dict[str, dict[str, Any]] = {
    "glyphs": {"tasks": {"n_way": 5, "n_shot": 1, "n_query": 5}, "learners": CLASSIFYING, "encoder": PICTURES},
    "omniglot": {
        "tasks": {"split": "splits/vinyals", "n_way": 5, "n_shot": 1, "n_query": 5},
        "learners": CLASSIFYING,
        "encoder": PICTURES,
    },
    "gaussian": {
        "tasks": {"n_way": 5, "n_shot": 5, "features": 16},
        "learners": {name: CLASSIFYING[name] for name in CLASSIFYING if name not in {"simpleshot", "pretrain"}},
        "encoder": VECTORS,  # its classes are drawn anew for each task, and those two learn from lasting ones
    },
    "digits": {
        "tasks": {"sampler": "sklearn_data", "n_way": 3, "n_shot": 1}, "learners": CLASSIFYING, "encoder": VECTORS,
    },
    "sinusoid": {
        "tasks": {"n_shot": 5, "train_shot": 10, "train_query": 10}, "learners": REGRESSING, "encoder": VECTORS,
    },
    "curves": {"tasks": {"n_shot": 10, "train_query": 10}, "learners": REGRESSING, "encoder": VECTORS},
}  # fmt: skip
STUDIES = {
    f"{name}-{tasks}": {**study, "budget": {"tasks": tasks}}
    for name, study in KINDS.items()
    for tasks in ((400,) if study["encoder"] is PICTURES else (400, 2000))
}
"""By what they are called in the portfolio: their tasks, and how many of them a trial is trained on."""
SHARED: dict[str, Any] = {
    "outer": {"lr": {"low": 3e-4, "high": 3e-2}, "schedule": ["constant", "cosine"]},
    "trials": 16,
    "evaluation": {"tasks": 200, "finalists": 1, "report_tasks": 20},
}


def found(name: str, study: dict[str, Any]) -> portfolio.Earlier:
    """Run a study of each learner and return what they add. Raises UserError where its data are not there."""
    registry, alone = plugins.load(), list[portfolio.Earlier]()
    for learner, ranges in study["learners"].items():
        raw = {"name": name, **SHARED, **study, "learners": {learner: ranges}}
        raw["tasks"] = {"sampler": name.partition("-")[0], **study["tasks"]}
        bench = Bench(resolve(raw, name, registry), registry, torch.device("cpu"))
        bench.check()
        with TemporaryDirectory() as folder:
            alone.append(portfolio.of_study(bench, search.run(bench, Path(folder) / name, Quiet())))
    sign = 1 if bench.objective.direction == "maximize" else -1
    best = sorted((had for one in alone for had in one.learners), key=lambda had: -sign * had.mean)
    return replace(alone[0], learners=tuple(best))


def main() -> int:
    """Run the studies that are asked for, and add what each found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="*", default=list(STUDIES), choices=list(STUDIES), metavar="STUDY")
    parser.add_argument("--to", type=Path, default=portfolio.SHIPPED)
    options = parser.parse_args()
    on_one_core()
    if options.only == list(STUDIES):
        options.to.unlink(missing_ok=True)
    for name in options.only:
        began = time.process_time()
        try:
            one = found(name, STUDIES[name])
        except UserError as error:
            sys.stdout.write(f"{name}: left out: {error}\n")
            continue
        portfolio.add(options.to, [one])
        best = ", ".join(f"{had.learner} {had.mean:.3f}" for had in one.learners)
        sys.stdout.write(f"{name}: {best}; {time.process_time() - began:.0f} CPU seconds\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
