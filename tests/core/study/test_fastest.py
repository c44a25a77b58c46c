"""`executor: fastest` measures once, and what it found stands in the study file from then on."""

from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml

from metaopt import cli, plugins
from metaopt.errors import UserError
from metaopt.executor import Loop, Traced, Vmap
from metaopt.pace import Pace
from metaopt.study import cluster, fastest
from metaopt.study.file import resolve
from metaopt.study.stores import open_store
from metaopt.study.trial import Bench

REGISTRY = plugins.load()
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "gaussian", "features": 4, "n_way": 3, "n_shot": 1, "n_query": 3},
    "learners": ["protonet", "maml", "pretrain", "pixels"],
    "encoder": {"mlp": {"width": 8, "depth": 1}},
    "outer": {"tasks_per_step": 2},
    "executor": "fastest",
    "trials": 4,
    "budget": {"tasks": 80},
    "evaluation": {"tasks": 10, "report_tasks": 20},
}


def bench(**changes: Any) -> Bench:
    return Bench(resolve(STUDY | changes, "a.yaml", REGISTRY), REGISTRY, torch.device("cpu"))


def with_paces(monkeypatch: pytest.MonkeyPatch, **paces: Pace | Exception) -> None:
    """Let steps under an executor take as long as is said; by name, with a _ in the place of -."""

    def measured(step: Any, executor: Any, seconds: float, spend: float) -> Pace:
        pace = paces.get(executor.name.replace("-", "_"), Pace(9.0))
        if isinstance(pace, Exception):
            raise pace
        return pace

    monkeypatch.setattr(fastest, "measured", measured)


@pytest.mark.parametrize(
    ("budget", "found"),
    [
        ({"tasks": 80}, "vmap"),
        ({"tasks": 400}, "traced"),
        ({"cpu_seconds": 40}, "vmap"),
        ({"cpu_seconds": 200}, "traced"),
    ],
    ids=["a short trial", "one that makes up for recording", "few seconds", "many"],
)
def test_what_counts_is_the_time_of_a_whole_trial_or_the_steps_in_its_seconds(
    monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any], found: str
) -> None:
    with_paces(monkeypatch, loop=Pace(3.0), vmap=Pace(1.0), traced=Pace(1.0, 20, 50.0, 0.5))
    assert fastest.fastest(bench(budget=budget), "maml") == found


@pytest.mark.parametrize(("loop", "found"), [(0.96, "traced"), (0.94, "loop")])
def test_what_auto_takes_is_left_only_for_what_is_faster_by_more_than_noise(
    monkeypatch: pytest.MonkeyPatch, loop: float, found: str
) -> None:
    with_paces(monkeypatch, loop=Pace(loop), traced=Pace(1.0))
    assert fastest.fastest(bench(), "maml") == found


def test_an_executor_that_cannot_run_a_learner_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("vmap: no batching rule")
    with_paces(monkeypatch, loop=Pace(2.0), traced_loop=Pace(3.0), vmap=error, traced=error)
    assert fastest.fastest(bench(), "maml") == "loop"


def test_learners_that_no_executor_trains_have_none() -> None:
    one = bench()
    assert [fastest.fastest(one, learner) for learner in ("pretrain", "pixels")] == [None, None]


def test_measuring_leaves_everything_as_it_was() -> None:
    one = bench()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert fastest.fastest(one, "maml") in {"loop", "traced-loop", "vmap", "traced"}
    assert torch.equal(torch.get_rng_state(), before)
    assert one.study == bench().study


def test_what_was_found_is_written_and_never_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with_paces(monkeypatch, loop=Pace(1.0), vmap=Pace(2.0))
    Path("s.yaml").write_text(yaml.safe_dump(STUDY))
    assert cli.main(["study", "run", "s.yaml", "--trials", "2"]) == 0
    assert "executors: protonet loop, maml loop\n" in capsys.readouterr().err
    kept = yaml.safe_load(Path("runs/s/study.yaml").read_text())
    assert kept["executor"] == {"protonet": "loop", "maml": "loop"}

    def fails(*arguments: Any) -> Any:
        pytest.fail("it was measured once")

    monkeypatch.setattr(fastest, "measured", fails)
    assert cli.main(["study", "run", "s.yaml", "--trials", "4"]) == 0, "it goes on"
    assert cli.main(["study", "run", "runs/s/study.yaml", "--output", "again"]) == 0
    first, again = (sorted(path.read_bytes() for path in Path(run, "scores").iterdir()) for run in ("runs/s", "again"))
    assert first == again


def test_a_shared_study_is_measured_where_it_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "shared.log")
    with_paces(monkeypatch, loop=Pace(1.0), vmap=Pace(2.0))
    cluster.create(bench(), url)
    with_paces(monkeypatch, loop=Pace(2.0), vmap=Pace(1.0))
    cluster.create(bench(trials=9), url)
    with closing(open_store(url, "s")) as store:
        attrs = optuna.load_study(study_name="s", storage=store.storage).user_attrs["study"]
    assert (attrs["trials"], attrs["executor"]) == (9, {"protonet": "loop", "maml": "loop"})


def test_executors_may_be_given_by_learner() -> None:
    one = bench(executor={"maml": "vmap", "protonet": "loop"}, learners=["maml", "protonet", "anil"])
    under = {name: type(one.executor(one.build(one.study.space.default(name), 0))) for name in one.study.space.learners}
    assert under == {"maml": Vmap, "protonet": Loop, "anil": Traced}
    assert resolve(one.study.to_dict(), "a.yaml", REGISTRY).executor == one.study.executor


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("quick", "a.yaml: executor: 'quick' must be auto or fastest or loop or traced-loop or vmap or traced"),
        ({"mamml": "loop"}, "a.yaml: executor: no learner of this study named 'mamml'; did you mean 'maml'?"),
        (
            {"maml": "fastest"},
            "a.yaml: executor: maml: 'fastest' must be auto or loop or traced-loop or vmap or traced",
        ),
        ({"maml": 3}, "a.yaml: executor: maml: 3 must be auto or loop or traced-loop or vmap or traced"),
        (["loop"], "a.yaml: executor: ['loop'] must be auto or fastest or loop or traced-loop or vmap or traced"),
    ],
)
def test_what_is_no_executor_is_refused(given: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        bench(executor=given)
    assert str(error.value) == said
