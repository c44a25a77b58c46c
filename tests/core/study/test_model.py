"""The winner on disk is the winner: it predicts the same and reproduces its report."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from metaopt import plugins, seeds
from metaopt.errors import UserError
from metaopt.study import model
from metaopt.study.file import resolve
from metaopt.study.leaderboard import interval
from metaopt.study.model import CARD, CONFIG, WEIGHTS, load, load_with_bench, save
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


def linked(path: Path) -> None:
    """Put a link to a file outside of the folder in the place of a file."""
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


def headed(path: Path, length: int) -> None:
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])


def with_header(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


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
    "another format": (
        lambda folder: changed(folder, format=1),
        "not a saved model (config.json has the format 1, and this metaopt reads 2); give",
    ),
    "a linked config": (lambda folder: linked(folder / CONFIG), "not a saved model (config.json is a symbolic link,"),
    "linked weights": (lambda folder: linked(folder / WEIGHTS), "not a saved model (weights.safetensors is a symbolic"),
    "a folder of weights": (
        lambda folder: ((folder / WEIGHTS).unlink(), (folder / WEIGHTS).mkdir()),
        "not a saved model (weights.safetensors is no plain file)",
    ),
    "a header of a terabyte": (
        lambda folder: headed(folder / WEIGHTS, 2**40),
        "not a saved model (weights.safetensors announces a header of 1,099,511,627,776 bytes, and has",
    ),
    "a header of nothing": (lambda folder: headed(folder / WEIGHTS, 0), "not a saved model ("),
    "a header that is no JSON": (
        lambda folder: (folder / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"{" * 8),
        "not a saved model (",
    ),
    "weights beyond the file": (
        lambda folder: (folder / WEIGHTS).write_bytes(
            with_header(b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}')
        ),
        "not a saved model (",
    ),
    "a pickle as weights": (
        lambda folder: (folder / WEIGHTS).write_bytes(pickle.dumps({"x": torch.zeros(1)})),
        "not a saved model (",
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
@pytest.mark.parametrize("open_", [load, load_with_bench])
def test_a_spoilt_model_is_refused_in_one_sentence(
    copy: Path, spoil: Callable[[Path], object], said: str, open_: Callable[..., object]
) -> None:
    spoil(copy)
    if open_ is load and "must be a mapping" in said:
        said = "its weights do not fit its config ("  # it takes the winner's part of the study first
    if open_ is load and ("no learner named" in said or "no key named" in said):
        pytest.skip("the rest of the study is not read")
    with pytest.raises(UserError) as refused:
        open_(copy, REGISTRY, CPU)
    assert str(refused.value).startswith((f"{copy}: {said}", f"{copy / CONFIG}: {said}"))
    assert len(str(refused.value).splitlines()) == 1


ABSURD: dict[str, dict[str, Any]] = {
    "more classes than there are": {"spec": {"n_way": 10**9}},
    "half a class": {"spec": {"n_way": 2.5}},
    "an endless example": {"spec": {"x_shape": [2**20, 2**20]}},
    "no example": {"spec": {"x_shape": [0, 2]}},
    "no shape": {"spec": {"x_shape": []}},
    "another kind": {"spec": {"kind": "divination"}},
    "one thing more": {"spec": {"path": "../../etc"}},
    "no sizes": {"spec": None},
    "no temperature": {"temperature": None},
    "a temperature of nothing": {"temperature": 0},
    "a list as preprocessing": {"preprocessing": [1]},
}


@pytest.mark.parametrize("changes", ABSURD.values(), ids=ABSURD)
def test_absurd_sizes_are_refused_before_anything_is_built(copy: Path, changes: dict[str, Any]) -> None:
    config = json.loads((copy / CONFIG).read_text())
    for key, change in changes.items():
        changed(copy, **{key: config[key] | change if isinstance(change, dict) else change})
    with pytest.raises(UserError, match="what makes examples ready does not fit its config") as refused:
        load(copy, REGISTRY, CPU)
    assert len(str(refused.value).splitlines()) == 1


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_bytes_as_weights_are_refused(copy: Path, content: bytes) -> None:
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="not a saved model"):
        load(copy, REGISTRY, CPU)


def test_a_model_needs_neither_its_studys_data_nor_its_other_learners(copy: Path) -> None:
    config = json.loads((copy / CONFIG).read_text())
    config["study"]["tasks"] |= {"sampler": "images", "root": "../../../etc/passwd"}
    for key in ("size", "train_classes", "validation_classes", "test_classes", "examples"):
        config["study"]["tasks"].pop(key, None)
    for key in list(config["study"]["tasks"]):
        if key not in {"sampler", "root", "n_way", "n_shot", "n_query"}:
            del config["study"]["tasks"][key]
    config["study"]["learners"]["of_a_plugin_that_is_gone"] = {}
    changed(copy, **config | {"preprocessing": {"fit": "stretch"}})
    found = load(copy, REGISTRY, CPU)
    assert found.learner.name == "protonet"
    assert found.preprocessing.takes == "pictures"
    assert repr(found) == f"Model('{copy}')"


def test_a_copy_that_is_not_spoilt_loads(copy: Path) -> None:
    learner, _, config = load_with_bench(copy, REGISTRY, CPU)
    assert learner.name == config["params"]["learner"] == "protonet"


def test_an_export_is_the_model_with_the_licence_in_its_card(best: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "model"
    model.export(best.parent, target, REGISTRY, "CC BY 4.0, Ada")
    assert {path.name for path in target.iterdir()} == {WEIGHTS, CONFIG, CARD}
    assert (target / WEIGHTS).read_bytes() == (best / WEIGHTS).read_bytes()
    text = (target / CARD).read_text(encoding="utf-8")
    report = json.loads((best / CONFIG).read_text())["report"]
    for said in ("Licence of the data: CC BY 4.0, Ada.", "# s: protonet", "3-way 1-shot", "10 classes to train on",
                 f"| report | {interval(report)} | 20 test tasks |", f"- torch {torch.__version__}"):  # fmt: skip
        assert said in text
    model.export(target, tmp_path / "again", REGISTRY, None)
    assert (tmp_path / "again" / CARD).read_text(encoding="utf-8") == text
    model.export(best, target, REGISTRY, "another")  # a model may be replaced
    assert "another" in (target / CARD).read_text(encoding="utf-8")


def test_an_export_to_what_is_no_model_is_refused(best: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for name in ("file", "full"):
        with pytest.raises(UserError, match="is there and no saved model; give the name of a new folder"):
            model.export(best, tmp_path / name, REGISTRY, None)
    with pytest.raises(UserError, match="is the model itself"):
        model.export(best, best, REGISTRY, None)
    assert (tmp_path / "full" / "mine").exists()
    assert (tmp_path / "file").read_text() == "mine"
