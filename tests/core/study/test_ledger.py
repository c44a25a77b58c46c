"""The ledger knows what was tried: nothing is lost, counted twice or tried in another order, whoever dies."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import kstest  # type: ignore[import-untyped]

from metaopt import plugins, seeds
from metaopt.checkpoint import File
from metaopt.errors import UserError
from metaopt.files import write_json
from metaopt.study import leaderboard
from metaopt.study.crew import LOST
from metaopt.study.file import resolve
from metaopt.study.ledger import ATTEMPTS, Ledger, results
from metaopt.study.space import Params
from metaopt.study.storage import open_storage
from metaopt.study.strategy import Joint
from metaopt.study.trial import INTERRUPTED, Bench, Done, Job, TrialResult

REGISTRY = plugins.load()
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "sinusoid", "n_shot": 5, "n_query": 5},
    "learners": ["reptile", "maml", "finetune"],
    "encoder": {"mlp": {"width": None}},
    "outer": {"lr": None, "sgd_lr": None},
    "budget": {"tasks": 40},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Ledger]:
    """Open the ledger of a study in the same folder again, as a process does that begins or goes on."""

    def open_ledger(folder: str = "a", **changes: Any) -> Ledger:
        bench = Bench(resolve(STUDY | changes, "a.yaml", REGISTRY), REGISTRY, torch.device("cpu"))
        (tmp_path / folder).mkdir(exist_ok=True)
        return Ledger(bench, open_storage(tmp_path / folder), tmp_path / folder)

    return open_ledger


def score(params: Params) -> float:
    """An error that depends on every parameter."""
    return sum(math.sin(float(value) * 10) for value in params.values() if isinstance(value, float)) + len(params)


def done(job: Job, state: Any = "complete", **more: Any) -> Done:
    mean = score(job.params) if state == "complete" else None
    result = TrialResult(job.number, state, job.params["learner"], job.params, job.seed, mean=mean, **more)
    return Done(result, (1.0, 2.0, 4.5) if state == "complete" else ())


def finish(ledger: Ledger, n: int) -> list[Job]:
    jobs = []
    for _ in range(n):
        jobs.append(ledger.ask())
        assert ledger.tell(done(jobs[-1]))
    return jobs


def states(ledger: Ledger) -> list[str]:
    return [trial.state.name for trial in ledger.optuna.get_trials(deepcopy=False)]


# What to try


def test_the_defaults_come_first_in_the_files_order_and_are_never_pruned(ledger: Callable[..., Ledger]) -> None:
    jobs = finish(book := ledger(), 6)
    space = book.bench.study.space
    assert [job.params for job in jobs[:3]] == [space.default(name) for name in ("reptile", "maml", "finetune")]
    assert all(job.reports for job in jobs), "their learning curves are kept"
    assert [job.number for job in jobs] == list(range(6))
    assert all(job.params not in [default.params for default in jobs[:3]] for job in jobs[3:])


def test_a_job_is_the_studys_order(ledger: Callable[..., Ledger]) -> None:
    job = ledger(search_on="test", evaluation={"tasks": 77}, seed=5).ask(deadline=9.0)
    assert (job.pool, job.n_tasks, job.purpose, job.budget.tasks, job.deadline) == ("test", 77, "search", 40, 9.0)
    assert job.seed == seeds.derive(5, "trial", 0)
    assert job.save_to is None


def test_the_seed_makes_the_search(ledger: Callable[..., Ledger]) -> None:
    first, same, other = (
        [job.params for job in finish(ledger(folder, seed=seed), 14)] for folder, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == same
    assert first[:3] == other[:3], "the defaults"
    assert all(one != another for one, another in zip(first[3:], other[3:], strict=True))


def test_a_search_that_dies_in_every_trial_goes_on_as_if_it_had_not(ledger: Callable[..., Ledger]) -> None:
    undisturbed = finish(ledger("a"), 14)
    disturbed = []
    for _ in range(14):
        abandoned = ledger("b").ask()  # the process dies here
        [again] = finish(ledger("b"), 1)
        assert again == abandoned
        disturbed.append(again)
    for one, other in zip(disturbed, undisturbed, strict=True):
        assert isinstance(one.checkpoint, File)
        assert isinstance(other.checkpoint, File)
        assert (one.checkpoint.path.parts[-3], one.checkpoint.path.name) == ("b", other.checkpoint.path.name)
        assert replace(one, checkpoint=None) == replace(other, checkpoint=None), "numbers, seeds and parameters"
    assert states(ledger("b")) == ["COMPLETE"] * 14


def test_the_parameters_of_a_random_trial_are_independent_and_uniform() -> None:
    search = optuna.create_study(sampler=Joint(0))
    trials = [search.ask() for _ in range(300)]
    drawn = np.array([[trial.suggest_float(name, 0, 1) for name in ("a", "b")] for trial in trials])
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 3 / math.sqrt(300)
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 3 / math.sqrt(300), "from trial to trial too"
    for column in drawn.T:
        assert kstest(column, "uniform").pvalue > 0.01


@pytest.mark.parametrize("n_writes", [0, 1, 2, 5])
def test_a_search_that_dies_while_it_chooses_goes_on_as_if_it_had_not(
    ledger: Callable[..., Ledger], tmp_path: Path, n_writes: int
) -> None:
    finish(book := ledger(), 12)
    undisturbed = book.ask()
    journal = tmp_path / "a" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    [*_, begun] = [row for row, line in enumerate(lines) if b'"op_code":4,' in line]  # a trial is created
    assert begun + 1 + n_writes < len(lines)
    journal.write_bytes(b"".join(lines[: begun + 1 + n_writes]))
    again = ledger()
    assert len(again.optuna.trials) == 13
    assert again.ask() == undisturbed


# What came of it


def test_a_finished_trial_is_kept_in_optunas_terms_and_in_ours(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    jobs = [book.ask() for _ in range(3)]
    told = [done(jobs[0]), done(jobs[1], "pruned", reason="hopeless"), done(jobs[2], "failed", reason="it raised")]
    assert all(book.tell(one) for one in told)
    assert states(book) == ["COMPLETE", "PRUNED", "FAIL"]
    assert book.optuna.trials[0].value == told[0].result.mean
    again = ledger()
    assert again.results == book.results == results(book.optuna) == [one.result for one in told]


def test_scores_task_by_task_are_beside_the_storage(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    jobs = [book.ask() for _ in range(2)]
    book.tell(done(jobs[0]))
    book.tell(done(jobs[1], "failed"))
    assert [path.name for path in (book.folder / "scores").iterdir()] == ["00000.npy"]
    scores = np.load(book.folder / "scores" / "00000.npy", allow_pickle=False)
    assert (scores.tolist(), scores.dtype) == ([1.0, 2.0, 4.5], np.float64)


def test_a_study_that_died_between_result_and_state_keeps_the_result(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    job = book.ask()
    result = done(job).result
    book.running[0].set_user_attr("result", asdict(result))  # the process dies here
    again = ledger()
    assert states(again)[0] == "COMPLETE"
    assert again.results == [result]
    assert again.ask().number == 1


# What was lost


def test_a_trial_whose_study_dies_in_it_is_run_so_many_times_and_then_fails(ledger: Callable[..., Ledger]) -> None:
    first = ledger().ask()
    for _ in range(ATTEMPTS - 1):
        assert ledger().ask() == first
    book = ledger()
    [result] = book.results
    assert (result.number, result.state, result.params) == (0, "failed", first.params)
    assert result.reason == f"{LOST}the study died in it {ATTEMPTS} times"
    assert book.ask().number == 1
    assert ledger().results == [result]


def test_a_trial_whose_worker_dies_is_run_so_many_times_and_then_fails(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    for attempt in range(1, ATTEMPTS + 1):
        job = book.ask()
        assert job.number == 0
        assert book.tell(done(job, "failed", reason=f"{LOST}killed")) is (attempt == ATTEMPTS)
    assert [result.reason for result in book.results] == [f"{LOST}killed"]
    assert book.ask().number == 1


def test_both_ways_to_be_lost_count_together(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    assert not book.tell(done(book.ask(), "failed", reason=f"{LOST}killed"))
    for _ in range(ATTEMPTS - 1):
        assert ledger().ask().number == 0
    assert len(ledger().results) == 1


def test_an_interrupted_trial_is_put_back_however_often(ledger: Callable[..., Ledger]) -> None:
    first = ledger().ask()
    for _ in range(2 * ATTEMPTS):
        book = ledger()
        job = book.ask()
        assert job == first
        assert not book.tell(done(job, "pruned", reason=INTERRUPTED))
        assert book.results == []
    assert ledger().ask() == first


def test_several_trials_that_ran_at_once_are_all_taken_up_before_new_ones(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    finish(book, 3)
    jobs = [book.ask() for _ in range(3)]
    book.tell(done(jobs[1]))
    again = ledger()
    assert [again.ask() for _ in range(2)] == [jobs[0], jobs[2]]
    assert again.ask().number == 6


# Warm start


def test_what_earlier_studies_found_is_tried_after_the_defaults_moved_into_the_ranges(
    ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    finish(before := ledger("before", learners=["maml", "anil"]), 2)
    ended = [replace(result, ci95=0.1, median=0.5) for result in before.results]
    board = leaderboard.build(before.bench, ended, [], [], None, 1.0, "interrupted")
    found = board["learners"]["maml"]["params"]
    found |= {"encoder": "conv4", "maml.inner_lr": 1.0, "maml.inner_steps": 4}
    del found["outer.lr"]
    write_json(tmp_path / "before" / leaderboard.FILE, board)
    narrow = {"reptile": None, "maml": {"inner_lr": {"low": 0.01, "high": 0.5}}, "finetune": None}
    jobs = finish(book := ledger(learners=narrow, warm_start=[str(tmp_path / "before")]), 4)
    assert [job.params["learner"] for job in jobs] == ["reptile", "maml", "finetune", "maml"]
    tried, default = jobs[3].params, book.bench.study.space.default("maml")
    assert (tried["maml.inner_lr"], tried["maml.inner_steps"], tried["encoder"]) == (0.5, 4, "mlp")
    assert tried["outer.lr"] == default["outer.lr"], "of which the earlier study said nothing"


def test_a_folder_without_a_leaderboard_is_refused_before_anything_is_written(
    ledger: Callable[..., Ledger], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"warm_start: .* holds no leaderboard\.json"):
        ledger(warm_start=[str(tmp_path)])
    assert not optuna.get_all_study_names(open_storage(tmp_path / "a"))


# Pruning


def curve(book: Ledger, learner: str, at_half: float, end: float) -> bool:
    """Run a trial of a learner with such errors half way and at its end; return whether it was stopped half way."""
    book.optuna.enqueue_trial({"learner": learner})
    job = book.ask()
    assert job.params["learner"] == learner
    stopped = book.report(job.number, 0.5, [at_half] * 5)
    result = TrialResult(job.number, "pruned" if stopped else "complete", learner, job.params, job.seed, mean=end)
    book.tell(Done(replace(result, mean=None if stopped else end)))
    return stopped


def test_a_trial_is_stopped_unless_it_is_in_the_better_third_of_what_all_will_come_to(
    ledger: Callable[..., Ledger],
) -> None:
    book = ledger(trials=100)  # less error is better
    for learner, end in (("reptile", 4.0), ("maml", 1.0), ("finetune", 4.5)):
        job = book.ask()  # the defaults: maml gains 4 from half of its training on, the others 1
        assert not book.report(job.number, 0.5, [5.0 if learner != "finetune" else 5.5] * 5)
        book.tell(Done(TrialResult(job.number, "complete", learner, job.params, job.seed, mean=end)))
    for learner, gain in (("maml", 4.0), ("reptile", 1.0)):
        assert not curve(book, learner, 5.125, 5.125 - gain)
        assert not curve(book, learner, 5.25, 5.25 - gain)
    assert not curve(book, "maml", 4.875, 0.875), "it will come to the best of all"
    assert curve(book, "reptile", 3.875, 0.0), "better by then, but its learner gains little: 2.875"
    assert not curve(book, "maml", 5.0625, 1.0625), "the third of nine"
    assert curve(book, "maml", 5.1875, 0.0), "the fifth of ten"
    estimates = {one.number: one.value for one in book.optuna.get_trials() if one.user_attrs["result"]["estimate"]}
    assert estimates == {8: 2.875, 10: 1.1875}


def test_no_trial_is_stopped_where_its_learner_has_not_finished_three(ledger: Callable[..., Ledger]) -> None:
    book = ledger(trials=100)
    jobs = [book.ask() for _ in range(3)]
    for job in jobs[:2]:
        assert not book.report(job.number, 0.5, [1.0] * 5)
        book.tell(Done(TrialResult(job.number, "complete", job.params["learner"], job.params, job.seed, mean=0.0)))
    assert not curve(book, "maml", 50.0, 40.0)
    assert not curve(book, "maml", 60.0, 50.0)
    assert not curve(book, "finetune", 90.0, 80.0), "its default still runs"
    assert curve(book, "maml", 70.0, 0.0), "three of its own have come to their end"


def test_an_error_that_is_not_finite_stops_nothing(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    finish(book, 6)
    for error in (math.nan, math.inf):
        assert not book.report(book.ask().number, 0.5, [error] * 5)


def test_a_rung_that_an_earlier_attempt_reported_is_not_reported_again(ledger: Callable[..., Ledger]) -> None:
    book = ledger()
    finish(book, 3)
    job = book.ask()
    book.report(job.number, 0.25, 5.0)  # the process dies here
    again = ledger()
    assert again.ask() == job
    assert again.report(job.number, 0.25, 5.0) is False
    assert again.report(job.number, 0.5, 4.0) is False
    assert again.optuna.trials[job.number].intermediate_values == {25: 5.0, 50: 4.0}


# Time


def test_seconds_are_those_in_which_trials_ran_overlaps_once_and_pauses_never(ledger: Callable[..., Ledger]) -> None:
    book, noon = ledger(), datetime(2026, 1, 1, 12)

    def ran(number: int, seconds: float, end: float) -> None:
        trial = FrozenTrial(
            number=number,
            state=TrialState.COMPLETE,
            value=0.0,
            datetime_start=noon - timedelta(days=1),  # begun by a process that died
            datetime_complete=noon + timedelta(seconds=end),
            params={"x": 0.5},
            distributions={"x": FloatDistribution(0, 1)},
            user_attrs={"result": {"seconds": seconds}},
            system_attrs={},
            intermediate_values={},
            trial_id=0,
        )
        book.optuna.add_trial(trial)

    assert book.seconds() == 0.0
    ran(3, seconds=10, end=10)  # 0 to 10
    ran(4, seconds=1, end=9)  # 8 to 9, beside it
    ran(5, seconds=5, end=12)  # 7 to 12, half beside it
    ran(6, seconds=2, end=100)  # after a pause
    assert book.seconds() == pytest.approx(14.0)


# Going on


@pytest.mark.parametrize(
    "changes",
    [{"trials": 99}, {"timeout": "1h"}, {"evaluation": {"finalists": 5, "report_tasks": 50}}, {}],
)
def test_a_study_goes_on_with_more_trials_time_and_finalists(
    ledger: Callable[..., Ledger], changes: dict[str, Any]
) -> None:
    finish(ledger(), 2)
    assert len(ledger(**changes).results) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"budget": {"tasks": 41}}, "budget.tasks = 40, not 41"),
        ({"budget": {"cpu_seconds": 40}}, "budget.cpu_seconds = None, not 40.0"),
        ({"evaluation": {"tasks": 100}}, "evaluation.tasks = 200, not 100"),
        ({"search_on": "test"}, "search_on = validation, not test"),
        ({"executor": "loop"}, "executor = auto, not loop"),
        ({"tasks": {"sampler": "sinusoid", "n_shot": 4, "n_query": 5}}, "tasks.n_shot = 5, not 4"),
        (
            {"tasks": {"sampler": "sinusoid", "n_shot": 5, "n_query": 5, "phase": [0, 1]}},
            "tasks.phase = [0.0, 3.141592653589793], not [0, 1]",
        ),
        ({"encoder": {"mlp": {"width": {"high": 99}}}}, "encoder.mlp.width.high = 1024, not 99"),
        ({"encoder": {"mlp": {"width": 8}}}, "encoder.mlp.width = None, not 8"),
        ({"outer": {"lr": None}}, "outer.sgd_lr.high = 1.0, not None"),
        ({"learners": ["reptile", "maml"]}, "learners = ['reptile', 'maml', 'finetune'], not ['reptile', 'maml']"),
        (
            {"learners": ["maml", "reptile", "finetune"]},
            "learners = ['reptile', 'maml', 'finetune'], not ['maml', 'reptile', 'finetune']",
        ),
        (
            {"learners": {"reptile": None, "maml": {"inner_lr": {"high": 0.5}}, "finetune": None}},
            "learners.maml.inner_lr.high = 1.0, not 0.5",
        ),
    ],
)
def test_a_study_does_not_go_on_with_what_its_trials_do_not_compare_to(
    ledger: Callable[..., Ledger], changes: dict[str, Any], said: str
) -> None:
    finish(ledger(), 2)
    with pytest.raises(UserError) as refused:
        ledger(**changes)
    assert str(refused.value) == (
        f"this study was begun with {said}, and its trials would not compare; set it back, or begin another study with "
        "--output or another name"
    )
    assert len(ledger().results) == 2, "the refusal changed nothing"


def test_a_study_of_optunas_own_is_not_taken_for_ours(ledger: Callable[..., Ledger], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    theirs = optuna.create_study(storage=open_storage(tmp_path / "a"), study_name="s")
    theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(UserError, match=r"^the storage holds a study named 's' that metaopt did not make; set another"):
        ledger()
    assert len(ledger(name="t").results) == 0


@pytest.mark.parametrize("n_lines", [1, 2, 5, 8, 9])
def test_a_study_that_died_while_it_was_created_is_created_to_its_end(
    ledger: Callable[..., Ledger], tmp_path: Path, n_lines: int
) -> None:
    whole = [job.params for job in finish(ledger("b"), 4)]
    ledger()
    journal = tmp_path / "a" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:n_lines]))
    assert [job.params for job in finish(ledger(), 4)] == whole


def test_the_versions_of_what_a_result_depends_on_are_kept(ledger: Callable[..., Ledger]) -> None:
    kept = ledger().optuna.user_attrs["versions"]
    assert kept.keys() >= {"numpy", "optuna", "torch", "metaopt-fewshot"}
    assert kept["torch"] == torch.__version__
    assert kept["optuna"] == optuna.__version__
