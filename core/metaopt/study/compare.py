"""Compare saved winners on the same tasks: each one's score, and by how much each differs from the first."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from metaopt.errors import UserError
from metaopt.plugins import Registry
from metaopt.study import leaderboard, model
from metaopt.study.statistics import LEVEL, holm, paired
from metaopt.task import Pool

TRAINING = ("train_way", "train_shot", "train_query", "train_within", "train_same_source", "train_turns", "resolution")
"""Keys of `tasks:` that say how learners were meta-trained, and may differ."""


def compare(
    folders: Sequence[Path], registry: Registry, device: torch.device, *, pool: Pool, n_tasks: int, seed: int
) -> dict[str, Any]:
    """Score the winners of run folders, or models, on the same fresh tasks of the first one's study.

    Differences are the model's score minus the first one's, paired task by task, p-values Holm-corrected. Raises
    UserError where a model was made for other tasks, or judged by another objective.
    """
    loaded = [model.load_with_bench(folder, registry, device) for folder in folders]
    _, bench, _ = loaded[0]
    for folder, (_, other, _) in zip(folders[1:], loaded[1:], strict=True):
        _refuse_others(folders[0], bench.study.to_dict(), folder, other.study.to_dict())
    for folder, (_, other, _) in zip(folders, loaded, strict=True):
        if pool == "validation" and other.study.final:
            raise UserError(f"{folder} was meta-trained on the classes of the validation pool, too (final); "
                            "compare it with --pool test")  # fmt: skip
    bench.check()
    scores = [bench.decided(bench.score(learner, pool, f"compare {seed}", n_tasks)) for learner, _, _ in loaded]
    values = [bench.decisive.contributions(one.per_task) for one in scores]
    differences = [paired(one, values[0]) for one in values[1:]]
    p_values = holm([difference.p for difference in differences])
    models = [
        {
            "model": str(folder),
            "learner": config["params"]["learner"],
            "trial": config["trial"],
            "transductive": config["transductive"],
            **leaderboard.score(one, pool),
            "difference": None,
        }
        for folder, (_, _, config), one in zip(folders, loaded, scores, strict=True)
    ]
    for entry, difference, p in zip(models[1:], differences, p_values, strict=True):
        entry["difference"] = {"mean": difference.mean, "ci95": difference.ci95, "p": p, "told_apart": p < LEVEL}
    return {
        "objective": bench.study.objective,
        "direction": bench.decisive.direction,
        "pool": pool,
        "tasks": n_tasks,
        "seed": seed,
        "models": models,
    }


def _refuse_others(first: Path, wanted: dict[str, Any], folder: Path, given: dict[str, Any]) -> None:
    for key in sorted(wanted["tasks"].keys() | given["tasks"].keys()):
        if key not in TRAINING and wanted["tasks"].get(key) != given["tasks"].get(key):
            raise UserError(
                f"{folder} was made for tasks of {key} {given['tasks'].get(key)} and {first} for {key} "
                f"{wanted['tasks'].get(key)}; compare models of the same tasks"
            )
    if wanted["objective"] != given["objective"]:
        raise UserError(
            f"{folder} was judged by {given['objective']} and {first} by {wanted['objective']}; compare models of the "
            "same objective"
        )
