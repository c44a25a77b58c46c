"""An ensemble of finalists is one more candidate: ranked, reported, kept, loaded and audited as they are."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import metaopt
from metaopt import plugins, seeds
from metaopt.ensemble import Ensemble
from metaopt.errors import UserError
from metaopt.estimator import FewShotClassifier
from metaopt.study import audit, leaderboard, model, report, search
from metaopt.study.file import MEMBERS, resolve
from metaopt.study.ledger import read_scores
from metaopt.study.trial import Bench, Done, Job, Member
from metaopt.terminal import Quiet, show_board
from metaopt.train import Budget, predict

REGISTRY, CPU = plugins.load(), torch.device("cpu")
STUDY: dict[str, Any] = {
    "name": "e",
    "tasks": {"sampler": "gaussian", "n_way": 4, "n_shot": 1, "n_query": 6, "features": 6},
    "learners": ["pixels", "protonet", "matching", "r2d2"],
    "encoder": {"mlp": {"width": 16, "depth": 1}},
    "outer": {"lr": None},
    "trials": 4,
    "budget": {"tasks": 60},
    "evaluation": {"tasks": 60, "finalists": 4, "report_tasks": 120, "ensemble": True},
}


def bench_of(**changes: Any) -> Bench:
    return Bench(resolve(STUDY | changes, "e.yaml", REGISTRY), REGISTRY, CPU)


def evaluation(**changes: Any) -> dict[str, Any]:
    return {"evaluation": STUDY["evaluation"] | changes}


class Notes(Quiet):
    def __init__(self) -> None:
        self.said: list[str] = []

    def phase(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run a study whose winner is an ensemble."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs") / "e"
    board = search.run(bench_of(), folder, Quiet())
    assert "members" in board["finalists"][0], "the tests below are of an ensemble that wins"
    return folder, board


def test_it_is_ranked_among_the_finalists_and_reported_where_it_wins(run: tuple[Path, dict[str, Any]]) -> None:
    folder, board = run
    first, *others = board["finalists"]
    assert (first["learner"], first["trial"], first["search"]) == ("ensemble", search.NO_TRIAL, None)
    assert (first["report"]["pool"], first["report"]["tasks"]) == ("test", 120)
    assert len(others) == 4
    assert all(first["fresh"]["mean"] >= one["fresh"]["mean"] for one in others)
    assert {one["trial"] for one in first["members"]} <= {one["trial"] for one in others}
    assert 2 <= sum(one["count"] for one in first["members"]) <= MEMBERS
    assert first["cpu_seconds"] > 0
    assert leaderboard.read(folder) == json.loads(json.dumps(board))


def test_its_members_were_chosen_by_other_tasks_than_it_is_ranked_by(run: tuple[Path, dict[str, Any]]) -> None:
    purposes: list[tuple[str, int]] = []
    bench = bench_of()
    draw = bench.sampler.draw

    def noted(pool: Any, spec: Any, n_tasks: int, generator: torch.Generator) -> Any:
        purposes.append((pool, generator.initial_seed()))
        return draw(pool, spec, n_tasks, generator)

    bench.sampler.draw = noted  # type: ignore[method-assign]
    folder, board = run
    members = tuple(
        Member(one["trial"], one["params"], search.finalist_seed(bench, one["trial"], 0),
               folder / search.FINALISTS / f"{one['trial']:05d}-0.safetensors")
        for one in board["finalists"][1:]
    )  # fmt: skip
    params = {"learner": "ensemble"}
    done = bench.run(Job(-1, params, 0, Budget(tasks=1), "validation", "finalists", 120, members=members, choose=10))
    seed_of = {what: seeds.derive(0, "evaluate", "validation", what) for what in ("ensemble", "finalists")}
    assert set(purposes) == {("validation", seed) for seed in seed_of.values()}
    assert list(done.per_task) == read_scores(folder / search.FINALISTS / "ensemble.npy").tolist()  # type: ignore[union-attr]
    assert [(one.number, one.count) for one in done.members] == [
        (one["trial"], one["count"]) for one in board["finalists"][0]["members"]
    ]


def test_what_is_kept_in_best_predicts_the_mean_of_the_finalists(run: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = run
    loaded = model.load(folder, REGISTRY, CPU)
    assert isinstance(loaded.learner, Ensemble)
    bench, kept = bench_of(), json.loads((folder / "best" / model.CONFIG).read_text())["members"]
    tasks = bench.sampler.draw("test", bench.spec, 5, seeds.generator(1, "tasks"))
    expected = torch.zeros(())
    for one in kept:
        learner = bench.build(one["params"], one["seed"])
        learner.load_state_dict(load_file(folder / search.FINALISTS / f"{one['trial']:05d}-0.safetensors"))
        scores = predict(learner.eval(), bench.executor(learner), tasks, seeds.generator(0, "views"))
        share = one["count"] / sum(other["count"] for other in kept)
        expected = expected + share * (scores / one["temperature"]).softmax(-1)
    found = predict(loaded.learner, bench.executor(loaded.learner), tasks, seeds.generator(0, "views"))
    torch.testing.assert_close(found.exp(), expected.detach(), rtol=1e-4, atol=1e-6)


def test_it_is_used_exported_and_adapted_as_any_model(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = run
    model.export(folder, tmp_path / "model", REGISTRY, None)
    classifier = metaopt.load(tmp_path / "model")
    assert isinstance(classifier, FewShotClassifier)
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(3, 6))
    classifier.fit(np.repeat(centres, 2, 0) + 0.1 * rng.normal(size=(6, 6)), list("aabbcc"))
    assert list(classifier.predict(centres)) == ["a", "b", "c"]
    classifier.export(tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2").module()
    expected = torch.from_numpy(classifier.predict_proba(centres)).float()
    torch.testing.assert_close(program(torch.from_numpy(centres).float()), expected, rtol=0, atol=1e-4)
    assert "× trial" in (tmp_path / "model" / model.CARD).read_text()


def test_its_run_is_audited_reported_and_shown(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, board = run
    assert {one.status for one in audit.audit(folder, REGISTRY, CPU)} == {"ok"}
    written = report.write(folder, REGISTRY, CPU, output=tmp_path / "report.html", storage=None)
    assert "ensemble won" in written.path.read_text()
    show_board(board, folder)
    out = capsys.readouterr().out
    assert f"winner: ensemble ({leaderboard.which(board['finalists'][0])})" in out
    assert "ahead of trial" in out


def test_an_ensemble_that_was_made_to_fit_is_noticed(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder = tmp_path / "e"
    shutil.copytree(run[0], folder)
    np.save(folder / search.FINALISTS / "ensemble.npy", np.ones(120))
    failed = [one.what for one in audit.audit(folder, REGISTRY, CPU) if one.status == "failed"]
    assert failed == ["fresh scores"]


def test_it_comes_out_alike_with_workers_and_when_the_same_command_is_given_again(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, board = run
    assert search.run(bench_of(), folder, Quiet()) == json.loads(json.dumps(board))
    isolated = search.run(bench_of(isolation="process"), tmp_path / "e", Quiet(), workers=2)
    for key in ("members", "fresh", "report"):
        assert isolated["finalists"][0][key] == board["finalists"][0][key]


def test_it_may_be_asked_for_after_the_search(tmp_path: Path) -> None:
    before = search.run(bench_of(**evaluation(ensemble=0)), tmp_path / "e", Quiet())
    assert all("members" not in one for one in before["finalists"])
    after = search.run(bench_of(), tmp_path / "e", Quiet())
    assert [one for one in after["finalists"] if "members" in one]


def test_of_regression_the_targets_are_averaged(tmp_path: Path) -> None:
    bench = bench_of(tasks={"sampler": "sinusoid", "n_shot": 5}, learners=["finetune"])
    params, members = bench.study.space.default("finetune"), list[Member]()
    for number, always in enumerate((-1.5, 1.0)):
        learner = bench.build(params, seed=0)
        for weight in learner.parameters():
            torch.nn.init.zeros_(weight)
        torch.nn.init.constant_(list(learner.parameters())[-1], always)
        members.append(Member(number, params, 0, tmp_path / f"{number}.safetensors"))
        save_file(learner.state_dict(), members[-1].weights)

    def scored(*of: Member, choose: int = 0) -> Done:
        ensemble = {"learner": "ensemble"}
        return bench.run(Job(-1, ensemble, 0, Budget(tasks=1), "validation", "x", 40, members=of, choose=choose))

    together = scored(*members, choose=9)
    assert together.result.mean is not None
    assert {one.number for one in together.members} == {0, 1}, "the mean of what errs to either side errs less"
    assert all(together.result.mean < (scored(one).result.mean or 0.0) for one in members)
    assert [one.temperature for one in together.members] == [1.0, 1.0]


def test_where_nobody_helps_the_best_there_is_no_ensemble(tmp_path: Path) -> None:
    notes = Notes()
    tasks = STUDY["tasks"] | {"spread": 100.0}  # all are right
    board = search.run(bench_of(learners=["pixels", "protonet"], tasks=tasks, trials=2), tmp_path / "e", notes)
    assert all("members" not in one for one in board["finalists"])
    assert [said for said in notes.said if said.startswith("no ensemble does better than trial ")]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"evaluation": {"ensemble": 1}}, "one member is no ensemble"),
        ({"evaluation": {"ensemble": -2}}, "not a whole number"),
        ({"final": {"tasks": 9}}, "final .* trains the winner anew"),
        (evaluation(folds=2) | {"tasks": {"sampler": "glyphs", "n_way": 2, "n_shot": 1}}, "final .* anew"),
        ({"objective": ["accuracy", "parameters"]}, "members are chosen by one objective"),
        ({"objective": "adaptation_curve"}, "which adaptation_curve does not score"),
        ({"objective": "parameters"}, "which parameters does not score"),
    ],
)
def test_what_an_ensemble_does_not_go_with_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=rf"e\.yaml: evaluation\.ensemble: .*{said}"):
        bench_of(**changes)


@pytest.mark.parametrize("count", [0, -1, 1.5, "1", None, 2**30])
def test_a_strangers_ensemble_with_counts_that_make_no_sense_is_refused(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, count: Any
) -> None:
    damaged(run[0], tmp_path, lambda members: members[0].update(count=count))


@pytest.mark.parametrize("temperature", [0, -1, float("inf"), float("nan"), "x", None])
def test_a_strangers_ensemble_with_temperatures_that_make_no_sense_is_refused(
    run: tuple[Path, dict[str, Any]], tmp_path: Path, temperature: Any
) -> None:
    damaged(run[0], tmp_path, lambda members: members[0].update(temperature=temperature))


def test_a_strangers_ensemble_with_a_member_too_many_or_too_few_is_refused(
    run: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    damaged(run[0], tmp_path, lambda members: members.pop())
    damaged(run[0], tmp_path, lambda members: members.append(trained(members)))
    damaged(run[0], tmp_path, lambda members: members.clear())
    damaged(run[0], tmp_path, lambda members: members[0].update(members=[members[0].copy()], params={}))


def trained(members: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a member that has weights."""
    return next(member for member in members if member["params"]["learner"] != "pixels")


def damaged(folder: Path, target: Path, change: Any) -> None:
    """Change the members in a copy of a model, which must then be refused."""
    shutil.rmtree(target / "model", ignore_errors=True)
    shutil.copytree(folder / "best", target / "model")
    path = target / "model" / model.CONFIG
    config = json.loads(path.read_text())
    change(config["members"])
    path.write_text(json.dumps(config))
    logging.disable(logging.WARNING)
    try:
        for load in (model.load, model.load_with_bench):
            with pytest.raises(UserError):
                load(target / "model", REGISTRY, CPU)
    finally:
        logging.disable(logging.NOTSET)
