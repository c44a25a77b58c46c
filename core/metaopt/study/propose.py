"""A study for data that come without a study file: who reads them, which sizes they can give, time shared out."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.plugins import Registry
from metaopt.study.file import resolve
from metaopt.task import POOLS, ClassPool, TaskSampler

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet", ".npz", ".npy", ".safetensors", ".zip")
"""Files that are data; a study file is YAML, which JSON is too."""
DEFAULT_WAY, DEFAULT_SHOT, DEFAULT_MINUTES = 5, 1, 10.0
ENOUGH = 5
"""Queries a class for the sake of which small classes are left out first."""
QUERIES = (15, 10, 5, 3, 2, 1)
"""Queries a class, the most that the smallest class has room for."""
LEARNERS: Mapping[str, float] = {
    "pixels": 0, "pretrain": 0, "protonet": 0, "matching": 5, "r2d2": 5, "anil": 10, "maml": 30,
}  # fmt: skip
"""Learners, with the minutes from which they have a chance; baselines first."""
TRAIN_QUERY = 5
"""Queries a class of train tasks, at most: the fewer, the more tasks in the same time."""
LONG = 5.0
"""Minutes from which scores are on as many tasks as in a study file that does not say."""


def propose(path: Path, registry: Registry, *, n_way: int, n_shot: int, minutes: float) -> dict[str, Any]:
    """Return the study file, as a mapping, of a study on the data at `path`. The same data give the same one.

    Raises UserError where no sampler reads them, or they cannot give such tasks, with numbers that would work.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"there is no {path}; give a folder of pictures, a table, a file of texts, or a study file")
    found = {
        name: keys
        for name, cls in registry.task_samplers.items()
        if (keys := cls.recognise(path.resolve())) is not None
    }
    if not found:
        raise UserError(
            f"{path} is nothing that an installed task sampler reads; give a folder or zip file with a folder of "
            "pictures for each class, a table with a column of labels (CSV, Parquet), texts with labels (CSV, JSON "
            "Lines) or X and y in a .npz file, or write a study file"
        )
    if len(found) > 1:
        raise UserError(f"{path} is read by {' and '.join(sorted(found))}; write a study file that names one of them")
    [(sampler, keys)] = found.items()
    learners = [name for name, least in LEARNERS.items() if name in registry.learners and minutes >= least]
    shares = 2 * len(learners) + 4  # of the time: every learner, the best ones again, the finalists
    study: dict[str, Any] = {
        "name": re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).strip("-._")[:60] or "data",
        **keys,
        "tasks": {"sampler": sampler, **keys["tasks"], "n_way": n_way, "n_shot": n_shot},
        "learners": learners,
        "outer": {"lr": {"low": 5e-4, "high": 1e-2}, "schedule": ["constant", "cosine"]},
        "trials": 200,
        "timeout": f"{minutes:g}m",
        "budget": {"cpu_seconds": max(1.0, round(60 * minutes / shares, 1))},
        "evaluation": {} if minutes >= LONG else {"tasks": 100, "finalists": 2, "report_tasks": 400},
    }
    study["tasks"] = _that_work(path, study, registry)
    return study


def about(study: Mapping[str, Any], path: Path, sampler: TaskSampler) -> str:
    """Say in a sentence what was found at `path` and what will be done with it."""
    tasks = study["tasks"]
    pools = {pool: held for pool, held in getattr(sampler, "pools", {}).items() if isinstance(held, ClassPool)}
    sizes = [f"{len(held):,} {'test' if pool == 'test' else pool}" for pool, held in pools.items()]
    total = sum(len(held) for held in pools.values())
    by = "whole groups apart" if tasks.get("split_by") == "group" else "apart"
    counted = f"{total:,} classes, {by} ({', '.join(sizes)})" if pools else "tasks"
    return (
        f"{path} reads as {tasks['sampler']}: {counted}; {tasks['n_way']}-way {tasks['n_shot']}-shot, "
        f"{tasks['n_query']} queries a class, learners {', '.join(study['learners'])}"
    )


def _that_work(path: Path, study: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the keys of `tasks` with sizes and a split that every pool can give. UserError where there are none."""
    given = study["tasks"]
    n_way, n_shot = given["n_way"], given["n_shot"]
    for least in (1, n_shot + ENOUGH, n_shot + 1):  # the fewest examples of a class that is not left out
        total = 0
        for split in ("proposed", "by class", "just enough"):
            if split == "just enough" and total < 3 * n_way:
                continue
            tried = dict(given) | ({"min_examples": least} if least > 1 else {})
            if split != "proposed":
                tried.pop("split_by", None)
            if split == "just enough":
                tried["split"] = f"{total - 2 * n_way}/{n_way}/{n_way}"
            try:
                sampler = _sampler({**study, "tasks": tried}, registry)
            except UserError as error:
                if least == 1:
                    raise UserError(f"{path}: {error}") from None
                continue  # so few classes are left that there is nothing to fit to
            total = sum(map(len, getattr(sampler, "classes", {}).values()))
            if (n_query := _queries(sampler, n_way, n_shot)) is not None:
                return {**tried, "n_query": n_query, "train_query": min(n_query, TRAIN_QUERY)}
    smaller = f"give --way {total // 3} or less, or " if total >= 6 else ""
    raise UserError(
        f"{path}: {n_way}-way {n_shot}-shot tasks need {3 * n_way} classes of {n_shot + 1} examples or more, {n_way} "
        f"in each of three pools, and there are {total}; {smaller}add classes or examples"
    )


def _sampler(study: Mapping[str, Any], registry: Registry) -> TaskSampler:
    resolved = resolve(study, "the study", registry)
    return registry.task_sampler(resolved.tasks.sampler)(resolved.tasks.config)


def _queries(sampler: TaskSampler, n_way: int, n_shot: int) -> int | None:
    """Return the most queries a class, of those tried, that all pools can give; None where they cannot give one."""
    for n_query in QUERIES:
        try:
            for pool in POOLS:
                sampler.check(pool, sampler.spec(n_way, n_shot, n_query))
        except UserError:
            continue
        return n_query
    return None
