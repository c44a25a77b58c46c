"""A portfolio leads a new study to what did best on like tasks, and can neither harm it nor change it afterwards."""

import json
import logging
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import portfolio, search
from metaopt.study.file import resolve
from metaopt.study.ledger import Ledger
from metaopt.study.portfolio import Description, Earlier, Found, describe, distance, read, starts
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

REGISTRY = plugins.load()
STUDY: dict[str, Any] = {
    "name": "new",
    "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 1, "n_query": 4},
    "learners": {"pixels": None, "protonet": None, "matching": None},
    "encoder": {"mlp": {"width": [8, 16], "depth": 1}},
    "outer": {"lr": None},
    "trials": 5,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 20, "finalists": 1, "report_tasks": 20},
}
LIKE = Description("classification", "examples", "vector", False, (16,), 3, 1, 0, 0, 0.7)


def bench_of(**changes: Any) -> Bench:
    return Bench(resolve(STUDY | changes, "new.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


def found(learner: str = "protonet", mean: float = 0.9, **params: Any) -> Found:
    """Return a pipeline as a study found it, its names written with __ for the dot."""
    named = {name.replace("__", "."): value for name, value in params.items()}
    return Found(learner, {"learner": learner, "encoder": "mlp", **named}, mean, 100)


def earlier(study: str = "old", description: Description = LIKE, *learners: Found, **more: Any) -> Earlier:
    return Earlier(study, 0, more.get("objective", "accuracy"), description, learners)


def held(path: Path, *studies: Earlier) -> str:
    portfolio.add(path, studies)
    return str(path)


# What tasks are like


def test_tasks_are_described_by_their_kind_their_sizes_and_how_well_raw_inputs_do() -> None:
    told = describe(bench_of(tasks=STUDY["tasks"] | {"features": 7, "spread": 50.0}))
    assert replace(told, nearest=None) == replace(LIKE, shape=(7,), nearest=None)
    assert told.nearest == 1.0, "classes that lie so far apart are told apart by their means"
    pictures = describe(bench_of(tasks={"sampler": "glyphs", "n_way": 3, "n_shot": 1, "train_classes": 30}))
    assert (pictures.inputs, pictures.shape, pictures.classes, pictures.groups) == ("picture", (1, 28, 28), 30, 0)
    stream = {"sampler": "gaussian", "stream": True, "n_way": 2, "n_shot": 5}
    assert describe(bench_of(tasks=stream, learners=["mann"])).stream


def test_noise_that_hides_the_classes_leaves_the_nearest_class_mean_at_chance() -> None:
    told = describe(bench_of(tasks=STUDY["tasks"] | {"spread": 1e-6}))
    assert told.nearest == pytest.approx(0.0, abs=0.06)


def test_regression_tasks_are_described_by_what_the_nearest_example_explains() -> None:
    regression = {"objective": None, "learners": ["maml"], "tasks": {"sampler": "sinusoid", "n_shot": 5}}
    few, many = (
        describe(bench_of(**{**regression, "objective": "mse", "tasks": {"sampler": "sinusoid", "n_shot": n}}))
        for n in (1, 200)
    )
    assert few.nearest is not None
    assert many.nearest is not None
    assert few.nearest < 0.5 < 0.95 < many.nearest <= 1.0


def test_neither_the_seed_of_a_study_nor_its_test_pool_has_a_part_in_a_description() -> None:
    bench, drawn = bench_of(seed=5), []
    draw = bench.sampler.draw
    bench.sampler.draw = lambda pool, *rest: drawn.append(pool) or draw(pool, *rest)  # type: ignore[func-returns-value, method-assign]
    assert describe(bench) == describe(bench_of())
    assert set(drawn) == {"train"}


def test_a_group_counts_where_classes_belong_to_some(tmp_path: Path) -> None:
    from PIL import Image

    for group in "ab":
        for label in "cdefgh":
            (tmp_path / group / label).mkdir(parents=True)
            for number in range(4):
                path = tmp_path / group / label / f"{number}.png"
                Image.effect_noise((8, 8), 50).save(path)
    tasks = {"sampler": "images", "root": str(tmp_path), "n_way": 2, "n_shot": 1, "n_query": 2, "split": "60/20/20"}
    assert describe(bench_of(tasks=tasks, encoder="conv4")).groups == 2


def test_like_tasks_are_at_distance_0_and_a_great_difference_counts_1() -> None:
    assert distance(LIKE, LIKE) == 0
    for other in (
        replace(LIKE, shape=(160,)),
        replace(LIKE, n_way=15),
        replace(LIKE, n_shot=7),
        replace(LIKE, classes=9),
        replace(LIKE, groups=9),
        replace(LIKE, nearest=0.45),
        replace(LIKE, stream=True),
    ):
        assert distance(LIKE, other) == pytest.approx(1.0)
    assert distance(LIKE, replace(LIKE, inputs="picture")) == pytest.approx(2.0)
    assert distance(LIKE, replace(LIKE, nearest=None)) == 0, "of which nothing is known"
    assert distance(LIKE, replace(LIKE, kind="regression")) == math.inf
    assert distance(LIKE, replace(LIKE, supports="descriptions")) == math.inf


# What a study tries


def test_the_better_half_of_learners_comes_first_and_of_these_those_of_the_most_similar_tasks(tmp_path: Path) -> None:
    far = replace(LIKE, n_way=50)
    path = held(
        tmp_path / "p.json",
        earlier("far", far, found("matching", outer__lr=0.01), found(outer__lr=0.02)),
        earlier("near", LIKE, found(outer__lr=0.03), found("matching", outer__lr=0.04)),
        earlier("regression", replace(LIKE, kind="regression"), found(outer__lr=0.05)),
        earlier("at another score", LIKE, found(outer__lr=0.06), objective="log_loss"),
    )
    tried = starts(bench_of(warm_start=path))
    assert [(one.study, one.learner, one.params["outer.lr"]) for one in tried] == [
        ("near", "protonet", 0.03),
        ("at another score", "protonet", 0.06),
        ("far", "matching", 0.01),
        ("near", "matching", 0.04),
        ("far", "protonet", 0.02),
    ]
    assert tried[1].distance - tried[0].distance == pytest.approx(1.0)


def test_what_was_trained_on_about_as_many_tasks_comes_first_where_the_budget_is_in_tasks(tmp_path: Path) -> None:
    path = held(
        tmp_path / "p.json",
        earlier("longer", LIKE, replace(found(outer__lr=0.02), trained_tasks=80_000)),
        earlier("alike", replace(LIKE, n_way=4), replace(found(outer__lr=0.03), trained_tasks=800)),
        earlier("unknown", replace(LIKE, n_way=50), replace(found(outer__lr=0.04), trained_tasks=0)),
    )
    tried = starts(bench_of(warm_start=path, budget={"tasks": 800}))
    assert [one.study for one in tried] == ["alike", "unknown", "longer"]
    assert tried[2].distance == pytest.approx(2.0 + distance(describe(bench_of()), LIKE))
    in_seconds = starts(bench_of(warm_start=path, budget={"cpu_seconds": 3}))
    assert [one.study for one in in_seconds] == ["longer", "alike", "unknown"]


def test_each_pipeline_is_tried_once_and_no_default_and_six_in_all(tmp_path: Path) -> None:
    default = bench_of().study.space.default("protonet")
    path = held(
        tmp_path / "p.json",
        earlier("defaults", LIKE, Found("protonet", default, 0.9, 8), found("pixels")),
        earlier("one", LIKE, found(outer__lr=0.02)),
        earlier("the same", LIKE, found(outer__lr=0.02)),
        *(earlier(f"study {n}", LIKE, found(outer__lr=0.03 + n / 1000)) for n in range(30)),
    )
    tried = starts(bench_of(warm_start=[path]))
    assert len(tried) == portfolio.MOST
    assert [one.study for one in tried] == ["one", *(f"study {n}" for n in range(portfolio.MOST - 1))]


def test_what_today_declares_no_longer_is_left_out_with_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = held(
        tmp_path / "p.json",
        earlier("a", LIKE, found("vanished", outer__lr=0.02), found(outer__lr=7.0)),
        earlier("b", LIKE, found(protonet__depth=3), found(outer__lr="__import__('os')")),
        earlier("c", LIKE, found(outer__lr=0.05, resnet12__width=9999)),
    )
    with caplog.at_level(logging.WARNING):
        tried = starts(bench_of(warm_start=path))
    assert [one.study for one in tried] == ["c"], (
        "the width of an encoder that this one does not use counts for nothing"
    )
    said = [record.getMessage() for record in caplog.records]
    assert [one.partition(" is left out: ")[2].partition(";")[0] for one in said] == [
        "there is no such learner",
        "protonet.depth: there is no such parameter",
        "outer.lr: 7.0 is outside the declared range (0.0001 to 0.1, log scale)",
        "outer.lr: \"__import__('os')\" is not a number",
    ]


def test_a_study_tries_its_defaults_then_those_pipelines_and_then_its_model(tmp_path: Path) -> None:
    path = held(tmp_path / "p.json", earlier("old", LIKE, found(outer__lr=0.02), found("matching", outer__lr=0.03)))
    board = search.run(bench_of(warm_start=path, prune=False, trials=6), tmp_path / "run", Quiet())
    assert board["status"] == "finished"
    trials = Ledger(bench_of(prune=False), open_storage(tmp_path / "run"), tmp_path / "run").optuna.trials
    assert [trial.user_attrs.get("origin") for trial in trials] == [*["default"] * 3, *["warm start"] * 2, None]
    assert [trial.params["outer.lr"] for trial in trials[3:5]] == [0.02, 0.03]
    assert trials[3].user_attrs["of"] == "old"


def test_the_same_portfolio_makes_the_same_trials_and_one_that_grew_changes_no_study_that_began(
    tmp_path: Path,
) -> None:
    path = tmp_path / "p.json"
    held(path, earlier("old", LIKE, found(outer__lr=0.02)))

    def opened(folder: str) -> Ledger:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Ledger(bench_of(warm_start=str(path)), open_storage(tmp_path / folder), tmp_path / folder)

    def asked(ledger: Ledger) -> list[dict[str, Any]]:
        return [ledger.ask().params for _ in range(5)]

    first, begun = asked(opened("a")), opened("b")
    digest = begun.optuna.user_attrs["portfolios"]
    held(path, earlier("newer", LIKE, found("matching", outer__lr=0.07)))
    assert begun.starts == opened("b").starts
    path.unlink()
    assert asked(opened("b")) == first
    held(path, earlier("old", LIKE, found(outer__lr=0.02)))
    assert portfolio.digests([str(path)]) == digest


def test_a_study_that_died_before_its_first_trial_waited_keeps_what_it_was_to_try(tmp_path: Path) -> None:
    path = held(tmp_path / "p.json", earlier("old", LIKE, found(outer__lr=0.02)))
    bench = bench_of(warm_start=path)
    storage = open_storage(tmp_path)
    import optuna

    optuna.create_study(study_name="new", direction="maximize", storage=storage)  # and here it dies
    assert [start["study"] for start in Ledger(bench, storage, tmp_path).starts] == ["old"]


# The file


def test_a_finished_study_adds_the_best_of_each_learner_to_the_portfolio_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "p.json"
    board = search.run(bench_of(portfolio=str(path)), tmp_path / "run", Quiet())
    [one] = read(path)
    assert (one.study, one.seed, one.objective, one.description) == ("new", 0, "accuracy", describe(bench_of()))
    assert [(had.learner, had.params, had.mean) for had in one.learners] == [
        (learner, entry["params"], entry["search"]["mean"]) for learner, entry in board["learners"].items()
    ]
    assert read(tmp_path / "run" / portfolio.FILE) == [one]
    search.run(bench_of(portfolio=str(path), trials=6), tmp_path / "run", Quiet())
    assert len(read(path)) == 1, "it went on, and stands there once"
    search.run(bench_of(portfolio=str(path), seed=1), tmp_path / "other", Quiet())
    assert [study.seed for study in read(path)] == [0, 1]


def test_a_portfolio_that_is_damaged_meanwhile_spoils_no_finished_study(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "p.json"

    class Vandal(Quiet):
        def phase(self, text: str) -> None:
            path.write_text("{")

    with caplog.at_level(logging.WARNING):
        board = search.run(bench_of(portfolio=str(path)), tmp_path / "run", Vandal())
    assert board["status"] == "finished"
    assert "not added to a portfolio" in caplog.text
    assert path.read_text() == "{"
    with pytest.raises(UserError, match="cannot be read as a portfolio"):
        search.run(bench_of(portfolio=str(path)), tmp_path / "another", Quiet())
    assert not (tmp_path / "another").exists(), "refused before anything was done"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read as a portfolio"),
        ("[]", "lacks what a portfolio has"),
        ('{"format": 2, "studies": []}', "its format is 2, and this metaopt reads 1"),
        ('{"studies": []}', "its format is None"),
        ("[" * 100_000, "cannot be read as a portfolio"),
        ("9" * 5000, "cannot be read as a portfolio"),
        ("\udcff", "cannot be read as a portfolio"),
    ],
)
def test_what_is_no_portfolio_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=said):
        starts(bench_of(warm_start=str(path)))
    with pytest.raises(UserError, match=said):
        portfolio.add(path, [earlier()])


def test_a_portfolio_or_run_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="warm_start: there is no nowhere; give the run folder of a study"):
        starts(bench_of(warm_start="nowhere"))


def test_a_study_of_another_shape_is_left_out_and_the_others_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(held(tmp_path / "p.json", earlier("a", LIKE, found()), earlier("b", LIKE, found())))
    raw = json.loads(path.read_text())
    del raw["studies"][0]["description"]["shape"]
    path.write_text(json.dumps(raw))
    with caplog.at_level(logging.WARNING):
        assert [one.study for one in read(path)] == ["b"]
    assert "study 1 is damaged" in caplog.text


WHOLE = json.dumps({"format": 1, "studies": [portfolio.asdict(earlier("a", LIKE, found(outer__lr=0.02)))]})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, one in inner for place in places(one, (*at, key)))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(place=st.sampled_from(places(json.loads(WHOLE))[1:]), odd=ODD)
def test_whatever_stands_in_any_place_of_a_portfolio_is_refused_or_left_out(
    tmp_path: Path, place: tuple[Any, ...], odd: Any
) -> None:
    raw = json.loads(WHOLE)
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = odd
    path = tmp_path / "p.json"
    path.write_text(json.dumps(raw))
    bench = bench_of(warm_start=str(path))
    try:
        tried = starts(bench)
    except UserError:
        return
    space = bench.study.space
    for one in tried:
        assert space.searched(space.nearest({"learner": one.learner, **one.params})) == one.params
        assert math.isfinite(one.distance)


def _add(path: Path, number: int) -> None:
    portfolio.add(path, [earlier(f"study {number}", LIKE, found())])


def test_studies_that_finish_at_one_moment_are_all_added(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add, args=(tmp_path / "p.json", number)) for number in range(12)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {one.study for one in read(tmp_path / "p.json")} == {f"study {number}" for number in range(12)}


def test_a_portfolio_that_cannot_be_written_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "p.json").mkdir()
    with pytest.raises(UserError, match=r"cannot be (read|written)"):
        portfolio.add(tmp_path / "p.json", [earlier()])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        portfolio.add(tmp_path / "file" / "p.json", [earlier()])


# What comes with metaopt


def test_all_that_comes_with_metaopt_is_declared_by_todays_learners(caplog: pytest.LogCaptureFixture) -> None:
    studies = read(portfolio.SHIPPED)
    assert {one.description.kind for one in studies if one.description} == {"classification", "regression"}
    with caplog.at_level(logging.WARNING):
        for one in studies:
            assert one.learners
            assert all(portfolio._of_today(had, REGISTRY, one.study) for had in one.learners)
    assert not caplog.records, "run `make portfolio`"


def test_a_study_on_the_tasks_of_one_that_comes_with_metaopt_is_nearest_to_that() -> None:
    bench = bench_of(tasks={"sampler": "glyphs", "n_way": 5, "n_shot": 1}, encoder="conv4")
    first, *others = portfolio.listed("builtin", bench)
    assert first["study"] == "glyphs-400"
    assert first["distance"] < 0.5
    assert all(one["distance"] is None for one in others if one["description"]["kind"] == "regression")
