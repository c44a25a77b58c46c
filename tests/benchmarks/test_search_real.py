"""The comparison on real tasks answers what it is for, and gives every contender the same."""

from typing import Any

import torch

import search_real
from metaopt import plugins
from metaopt.study.file import resolve
from metaopt.study.trial import Bench

STUDY: dict[str, Any] = {
    "name": "clouds",
    "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 4},
    "learners": ["pixels", "protonet"],
    "encoder": {"mlp": {"width": [8, 16], "depth": 1}},
    "outer": {"lr": None},
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 20},
}


def entry(cpu_seconds: float, test: float) -> dict[str, Any]:
    return {"cpu_seconds": cpu_seconds, "test": test}


def came(contender: str, *best: tuple[float, float], direction: str = "maximize") -> dict[str, Any]:
    return {"contender": contender, "seed": 0, "cpu_seconds": 100.0, "direction": direction, "trials": 4,
            "best": [entry(*one) for one in best]}  # fmt: skip


def test_the_time_to_the_final_score_of_plain_optuna_is_that_of_the_first_model_as_good_on_test() -> None:
    ours = came(search_real.OURS, (10, 0.5), (20, 0.8), (90, 0.9))
    plain = came(search_real.PLAIN, (30, 0.6), (80, 0.7))
    defaults = came("defaults of maml", (105, 0.75))
    said = list(search_real.answers([ours, plain, defaults]))
    assert "final 0.7000 after 80 s; metaopt: after 20 s, 4.0 times as fast" in said[0]
    assert "defaults of maml for the whole time 0.7500; the search is ahead by +0.1500" in said[1]
    errors = [came(name, *((at, -test) for at, test in best), direction="minimize") for name, best in (
        (search_real.OURS, [(10, -5.0), (20, -1.0)]), (search_real.PLAIN, [(40, -0.5)]))]  # fmt: skip
    assert "not reached" in next(iter(search_real.answers(errors)))


def test_a_score_counts_from_when_it_was_reached() -> None:
    lines = list(
        search_real.table([came(search_real.OURS, (10, 0.5), (50, 0.8)), came("defaults of maml", (105, 0.75))])
    )
    assert [cell for cell in lines[1].split() if cell.startswith("0.")] == ["0.5000", "0.5000", "0.8000", "0.8000"]
    assert [cell for cell in lines[2].split() if cell.startswith("0.")] == ["0.7500"]


def test_every_contender_runs_for_its_time_and_is_scored_on_the_same_test_tasks() -> None:
    registry = plugins.load()
    bench = Bench(resolve(STUDY, "clouds", registry), registry, torch.device("cpu"))
    search_real.run("defaults of protonet", bench, 0.1, 30)  # what a process imports for its first trial takes a second
    found = {
        name: search_real.run(name, bench, 2.0, 30)
        for name in (search_real.OURS, search_real.PLAIN, search_real.RANDOM, "defaults of pixels")
    }
    for one in found.values():
        assert one["trials"] >= 1
        scores = [best["search"] for best in one["best"]]
        assert scores == sorted(scores), "only what scored best so far is kept"
        assert all(0 < best["test"] <= 1 for best in one["best"])
    first = found[search_real.OURS]["best"][0]
    assert first["learner"] == "pixels", "the defaults come first"
    assert first["test"] == found["defaults of pixels"]["best"][0]["test"]
