"""The winner on disk is the winner: it predicts the same and reproduces its report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from metaopt import plugins, seeds
from metaopt.errors import UserError
from metaopt.study import model
from metaopt.study.file import resolve
from metaopt.study.model import CARD, CONFIG, WEIGHTS, load_with_bench, save
from metaopt.study.search import run
from metaopt.study.trial import Bench, TrialResult
from metaopt.terminal import Quiet

REGISTRY = plugins.load()
CPU = torch.device("cpu")
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": ["protonet"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 2,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study's winner."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("run")
    assert run(Bench(resolve(STUDY, "s.yaml", REGISTRY), REGISTRY, CPU), folder, Quiet())["status"] == "finished"
    return folder / "best"


@pytest.fixture
def copy(best: Path, tmp_path: Path) -> Path:
    """Return a copy of the winner's folder, to be spoilt."""
    folder = tmp_path / "best"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG):
        (folder / name).write_bytes((best / name).read_bytes())
    return folder


def changed(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def test_a_loaded_winner_reproduces_its_report_and_its_fresh_score(best: Path) -> None:
    learner, bench, config = load_with_bench(best, REGISTRY, CPU)
    board = json.loads((best.parent / "leaderboard.json").read_text())
    report = board["finalists"][0]["report"]
    scores = bench.score(learner, "test", "report", report["tasks"])
    assert (scores.mean, scores.ci95, scores.median) == (report["mean"], report["ci95"], report["median"])
    assert config["report"] == report
    fresh = board["finalists"][0]["fresh"]
    assert bench.score(learner, "validation", "finalists", fresh["tasks"]).mean == fresh["mean"]
    assert bench.score(learner, "test", "another purpose", report["tasks"]).mean != report["mean"]


def test_a_loaded_winner_predicts_what_the_finalist_predicted(best: Path) -> None:
    learner, bench, config = load_with_bench(best, REGISTRY, CPU)
    finalist = bench.build(config["params"], config["seed"])
    weights = best.parent / "finalists" / f"{config['trial']:05d}-0.safetensors"
    assert any(not torch.equal(p, q) for p, q in zip(finalist.parameters(), learner.parameters(), strict=True))
    finalist.load_state_dict(load_file(weights))
    batch = bench.sampler.draw("test", bench.spec, 4, seeds.generator(0, "x"))
    for task in zip(*batch.tensors()[:3], strict=True):
        assert torch.equal(finalist(*task), learner(*task))


def test_the_config_says_what_it_takes_to_train_the_winner_again(best: Path) -> None:
    config = json.loads((best / CONFIG).read_text())
    assert resolve(config["study"], "config", REGISTRY) == resolve(STUDY, "s.yaml", REGISTRY)
    assert (config["format"], config["transductive"], config["trained_tasks"], config["planned_tasks"]) == (
        2,
        False,
        8,
        8,
    )
    assert config["seed"] == seeds.derive(0, "finalist", config["trial"], 0)
    assert config["versions"]["torch"] == torch.__version__


def test_a_new_winner_takes_the_old_ones_place_whole(copy: Path) -> None:
    learner, bench, config = load_with_bench(copy, REGISTRY, CPU)
    (copy / "stray").touch()
    weights = copy.parent / "new.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in learner.state_dict().items()}, weights)
    for leftover in (".best.new", ".best.old"):  # of a process that died
        (copy.parent / leftover).mkdir()
        (copy.parent / leftover / "junk").touch()
    result = TrialResult(9, "complete", "protonet", config["params"], 3, trained_tasks=5)
    entry = {"report": config["report"], "transductive": False}
    save(copy, bench, result, weights, {"finalists": [entry], "versions": {}})
    assert {path.name for path in copy.iterdir()} == {WEIGHTS, CONFIG, CARD}
    assert {path.name for path in copy.parent.iterdir()} == {"best", "new.safetensors"}
    again, _, found = load_with_bench(copy, REGISTRY, CPU)
    assert (found["trial"], found["seed"], found["trained_tasks"]) == (9, 3, 5)
    assert all((parameter == 0).all() for parameter in again.parameters())


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (
        lambda folder: folder.rename(folder.parent / "moved"),
        "not a saved model (No such file or directory)",
    ),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "not a saved model (No such file or directory)"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "not a saved model (No such file or directory"),
    "half a config": (lambda folder: (folder / CONFIG).write_text('{"study"'), "not a saved model (Expecting ':'"),
    "a binary config": (lambda folder: (folder / CONFIG).write_bytes(b"\x80"), "not a saved model ('utf-8' codec"),
    "a deep config": (lambda folder: (folder / CONFIG).write_text("[" * 10**5), "not a saved model (maximum recursion"),
    "a list as config": (
        lambda folder: (folder / CONFIG).write_text("[]"),
        "not a saved model (config.json lacks what",
    ),
    "an empty config": (lambda folder: (folder / CONFIG).write_text("{}"), "not a saved model (config.json lacks what"),
    "half the weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100]),
        "not a saved model (",
    ),
    "no bytes of weights": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "not a saved model ("),
    "other weights": (
        lambda folder: save_file({"x": torch.zeros(1)}, folder / WEIGHTS),
        "its weights do not fit its config (Error(s) in loading state_dict for ProtoNet:); was a plugin changed since?",
    ),
    "no study": (lambda folder: changed(folder, study=None), "this is empty, and must be a mapping"),
    "another study": (lambda folder: changed(folder, study={"x": 1}), "no key named 'x'; choose one of: "),
    "an uninstalled learner": (
        lambda folder: changed(folder, study=STUDY | {"learners": ["protonett"]}),
        "learners: no learner named 'protonett'; did you mean 'protonet'?",
    ),
    "no params": (lambda folder: changed(folder, params=None), "its weights do not fit its config ("),
    "params of nobody": (lambda folder: changed(folder, params={}), "its weights do not fit its config ('learner')"),
    "an odd param": (
        lambda folder: changed(folder, params={"learner": "protonet", "encoder": "conv4", "conv4.depth": 3}),
        "its weights do not fit its config (",
    ),
    "an odd value": (
        lambda folder: changed(folder, params={"learner": "protonet", "encoder": "conv4", "conv4.width": -8}),
        "its weights do not fit its config (",
    ),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_model_is_refused_in_one_sentence(copy: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(copy)
    with pytest.raises(UserError) as refused:
        load_with_bench(copy, REGISTRY, CPU)
    assert str(refused.value).startswith((f"{copy}: {said}", f"{copy / CONFIG}: {said}"))
    assert len(str(refused.value).splitlines()) == 1


def test_a_copy_that_is_not_spoilt_loads(copy: Path) -> None:
    learner, _, config = model.load_with_bench(copy, REGISTRY, CPU)
    assert learner.name == config["params"]["learner"] == "protonet"
