"""A saved model is an estimator: it predicts what the study's own evaluation did, and keeps scikit-learn's contract."""

import pickle
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor

import metaopt
from metaopt import plugins, seeds
from metaopt.errors import InputError, UserError
from metaopt.estimator import FewShotClassifier, FewShotRegressor
from metaopt.study import model, versions
from metaopt.study.file import resolve
from metaopt.study.search import run
from metaopt.study.trial import Bench, Job
from metaopt.terminal import Quiet
from metaopt.train import Budget

REGISTRY = plugins.load()
CPU = torch.device("cpu")
GLYPHS: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 2, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 6},
    "learners": ["protonet"],
    "encoder": {"conv4": {"width": 8}},
    "executor": "loop",
}  # fmt: skip
VECTORS: dict[str, Any] = {
    "name": "v",
    "tasks": {"sampler": "sklearn_data", "n_way": 3, "n_shot": 2, "n_query": 3},
    "learners": ["protonet"],
    "encoder": {"mlp": {"width": 16}},
    "executor": "loop",
}
Saved = Callable[..., tuple[Path, Bench]]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Return what meta-trains a learner for a few tasks and saves it as a study does its winner."""

    def save(raw: dict[str, Any], learner: str = "protonet", **keys: Any) -> tuple[Path, Bench]:
        torch.set_num_threads(1)
        bench = Bench(resolve(raw | {"learners": [learner]} | keys, "s.yaml", REGISTRY), REGISTRY, CPU)
        weights = tmp_path / f"{learner}.safetensors"
        params = bench.study.space.default(learner)
        done = bench.run(Job(0, params, 1, Budget(tasks=8), "validation", "x", 4, save_to=weights))
        assert done.result.state == "complete", done.result.reason
        score = {"pool": "validation", "mean": done.result.mean, "ci95": done.result.ci95, "tasks": 4}
        entry = {"report": score, "transductive": bench.study.space.transductive(params)}
        board = {"finalists": [entry], "versions": versions.used(bench)}
        folder = tmp_path / f"model-{learner}"
        model.save(folder, bench, done.result, weights, board)
        return folder, bench

    return save


def tasks(bench: Bench, n: int = 6) -> list[tuple[Tensor, ...]]:
    """Return tasks of the test pool: support_x, support_y, query_x, query_y of each."""
    batch = bench.sampler.draw("test", bench.spec, n, seeds.generator(0, "tasks"))
    return list(zip(*batch.tensors(), strict=True))


def test_a_studys_winner_predicts_as_its_report_task_by_task_to_the_last_bit(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    raw = GLYPHS | {"trials": 1, "budget": {"tasks": 8},
                    "evaluation": {"tasks": 10, "finalists": 1, "report_tasks": 20}}  # fmt: skip
    bench = Bench(resolve(raw, "s.yaml", REGISTRY), REGISTRY, CPU)
    assert run(bench, tmp_path / "run", Quiet())["status"] == "finished"
    model.export(tmp_path / "run", tmp_path / "model", REGISTRY, "MIT")
    per_task = np.load(tmp_path / "run" / "report.npy")
    draw, scores = seeds.generator(bench.study.seed, "evaluate", "test", "report"), []
    for n in (16, 4):  # as the evaluation draws its 20
        batch = bench.sampler.draw("test", bench.spec, n, draw)
        for support_x, support_y, query_x, query_y in zip(*batch.tensors(), strict=True):
            for place in (tmp_path / "run", tmp_path / "model"):
                clf = metaopt.load(place).fit(support_x, support_y.numpy())
                score = clf.score(query_x, query_y.numpy())
            scores.append(score)
    np.testing.assert_array_equal(scores, per_task)


@pytest.mark.parametrize("learner", ["protonet", "r2d2", "maml", "pretrain", "pixels", "snail"])
def test_probabilities_are_the_softmax_of_the_learners_scores_over_the_temperature_to_the_last_bit(
    saved: Saved, learner: str
) -> None:
    folder, bench = saved(GLYPHS, learner)
    clf = metaopt.load(folder)
    own, _, config = model.load_with_bench(folder, REGISTRY, CPU)
    for support_x, support_y, query_x, _ in tasks(bench):
        with torch.no_grad():
            scores = own.with_spec(bench.spec).eval()(support_x, support_y, query_x)
        expected = (scores.double() / config["temperature"]).softmax(1).numpy()
        found = clf.fit(support_x, support_y.numpy()).predict_proba(query_x)
        np.testing.assert_array_equal(found, expected)


def test_tasks_run_side_by_side_differ_by_rounding_alone(saved: Saved) -> None:
    folder, bench = saved(GLYPHS, executor="vmap")
    clf = metaopt.load(folder)
    own, _, config = model.load_with_bench(folder, REGISTRY, CPU)
    batch = bench.sampler.draw("test", bench.spec, 6, seeds.generator(0, "tasks"))
    with torch.no_grad():
        scores = bench.executor(own).map(own, "forward", batch.support_x, batch.support_y, batch.query_x)
    assert isinstance(scores, Tensor)
    of_all = (scores / config["temperature"]).softmax(2)
    for task, expected in zip(zip(*batch.tensors(), strict=True), of_all, strict=True):
        found = clf.fit(task[0], task[1].numpy()).predict_proba(task[2])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_temperature_makes_probabilities_of_scores_that_are_none(saved: Saved) -> None:
    folder, bench = saved(GLYPHS, "pretrain")  # whose scores are cosines: at most 4 apart, and mostly near
    clf = metaopt.load(folder)
    assert clf.opened().config["temperature"] < 0.5
    sure, right = [], []
    for support_x, support_y, query_x, query_y in tasks(bench, 60):
        probabilities = clf.fit(support_x, support_y.numpy()).predict_proba(query_x)
        sure += probabilities.max(1).tolist()
        right += (probabilities.argmax(1) == query_y.numpy()).tolist()
    assert np.mean(sure) == pytest.approx(np.mean(right), abs=0.15)


def test_labels_are_kept_and_ways_and_shots_are_as_given(saved: Saved) -> None:
    folder, bench = saved(GLYPHS)
    x = torch.cat([support_x for support_x, *_ in tasks(bench, 2)])[:9]  # (9, 1, 16, 16)
    y = ["b", "a", "c", "a", "a", "d", "b", "c", "a"]  # four ways, one to four shots, where it was trained with 3 and 2
    clf = metaopt.load(folder).fit(x.numpy(), y)
    assert clf.classes_.tolist() == ["a", "b", "c", "d"]
    probabilities = clf.predict_proba(x.numpy())
    assert probabilities.shape == (9, 4)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert clf.predict(x.numpy()).tolist() == clf.classes_[probabilities.argmax(1)].tolist()
    assert clf.score(x.numpy(), y) > 0.5
    again = metaopt.load(folder).fit(x.numpy(), [{"a": 7, "b": 20, "c": 30, "d": 40}[one] for one in y])
    assert again.predict(x.numpy()).dtype.kind == "i"
    np.testing.assert_array_equal(again.predict_proba(x.numpy()), probabilities)


def test_what_a_learner_cannot_learn_is_refused_in_a_sentence(saved: Saved) -> None:
    x = np.zeros((4, 1, 16, 16))
    maml = metaopt.load(saved(GLYPHS, "maml")[0])
    with pytest.raises(InputError, match="maml learns a fixed number of ways, here 3, and y has 2 classes; give"):
        maml.fit(x, ["a", "a", "b", "b"])
    frn = metaopt.load(saved(GLYPHS, "frn")[0])
    with pytest.raises(ValueError, match="frn needs as many examples of each class, and y has 1 of 'b' and 3 of 'a'"):
        frn.fit(x, ["a", "a", "a", "b"])
    clf = metaopt.load(saved(GLYPHS)[0])
    with pytest.raises(ValueError, match="y has one class, 'a'"):
        clf.fit(x, ["a"] * 4)
    with pytest.raises(ValueError, match=r"the examples are \(4, 7\) and the model takes \(n, 1, 16, 16\)"):
        clf.fit(np.zeros((4, 7)), ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="example 2 holds NaN"):
        clf.fit(np.array([0.0, 0, np.nan, 0])[:, None, None, None] + x, ["a", "a", "b", "b"])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(x, ["a", "b"])


def test_it_is_cloned_and_its_parameters_are_read_and_set(saved: Saved) -> None:
    folder, bench = saved(GLYPHS)
    support_x, support_y, query_x, _ = tasks(bench)[0]
    clf = metaopt.load(folder)
    fitted = clone(clf).fit(support_x, support_y.numpy())
    assert fitted.get_params()["device"] == "cpu"
    assert not hasattr(clf, "classes_")
    assert repr(clf).startswith("FewShotClassifier(model=Model(")
    by_name = FewShotClassifier(str(folder)).fit(support_x, support_y.numpy())
    also = FewShotClassifier("nowhere").set_params(model=folder).fit(support_x, support_y.numpy())
    copied = pickle.loads(pickle.dumps(fitted))
    for other in (by_name, also, copied):
        np.testing.assert_array_equal(other.predict_proba(query_x), fitted.predict_proba(query_x))
    with pytest.raises(UserError, match="nowhere: not a saved model"):
        FewShotClassifier("nowhere").fit(support_x, support_y.numpy())


def test_it_is_cross_validated(saved: Saved) -> None:
    folder, _ = saved(VECTORS)
    x, y = blobs()
    scores = cross_val_score(metaopt.load(folder), x, y, cv=4)
    assert len(scores) == 4
    assert scores.mean() > 0.9


def blobs() -> tuple[np.ndarray, np.ndarray]:
    """Three classes of rows of 64 numbers, far apart."""
    random = np.random.default_rng(0)
    y = np.repeat(["x", "y", "z"], 8)
    return random.normal(0, 1, (24, 64)) + 16 * np.repeat(random.random((3, 64)), 8, 0), y


ROUNDING = "float32: the probabilities of a query differ by some 3e-7 with how many are computed together, and the " \
           "check allows 1e-7"  # fmt: skip
NOT_OF_VECTORS = {"check_methods_subset_invariance": ROUNDING}
OTHER_LENGTHS = "X has [0-9]+ features and the model takes 64"


class Widened(FewShotClassifier):
    """The same for vectors of any length, repeated to 64: scikit-learn checks with lengths from 1 to 20."""

    def _wide(self, X: Any, n_features: int) -> Any:  # noqa: N803 - scikit-learn says X
        return np.resize(X.T, (n_features, len(X))).T


def test_it_passes_scikit_learns_checks_but_for_those_named_with_reasons(saved: Saved) -> None:
    clf = Widened(metaopt.load(saved(VECTORS, "pixels")[0]).model)  # for one check learns one hard task well
    results = check_estimator(clf, expected_failed_checks=NOT_OF_VECTORS, on_fail=None, on_skip=None)
    assert {one["check_name"]: str(one["exception"]) for one in results if one["status"] == "failed"} == {}
    assert {one["check_name"] for one in results if one["status"] == "xfail"} <= NOT_OF_VECTORS.keys()
    assert sum(one["status"] == "passed" for one in results) >= 50


def test_as_it_is_it_fails_scikit_learns_checks_only_for_vectors_of_other_lengths(saved: Saved) -> None:
    results = check_estimator(metaopt.load(saved(VECTORS)[0]), on_fail=None, on_skip=None)
    failed = {one["check_name"]: one["exception"] for one in results if one["status"] == "failed"}
    for name, error in failed.items():
        said = "".join(traceback.format_exception(error))  # some checks raise an error of their own about ours
        assert re.search(OTHER_LENGTHS, said), name
    assert sum(one["status"] == "passed" for one in results) >= 20


def test_importing_metaopt_imports_no_torch_and_no_scikit_learn() -> None:
    code = "import metaopt, sys; assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="has no attribute 'lode'"):
        metaopt.lode  # noqa: B018


def test_a_regression_learner_gives_a_regressor(saved: Saved) -> None:
    raw = {"name": "r", "tasks": {"sampler": "sinusoid", "n_shot": 5, "n_query": 4}, "executor": "loop",
           "encoder": {"mlp": {"width": 16}}}  # fmt: skip
    folder, bench = saved(raw, "maml")
    regressor = metaopt.load(folder)
    assert isinstance(regressor, FewShotRegressor)
    own, _, _ = model.load_with_bench(folder, REGISTRY, CPU)
    for support_x, support_y, query_x, _ in tasks(bench, 2):
        with torch.no_grad():
            expected = own.eval()(support_x, support_y, query_x).numpy()
        found = regressor.fit(support_x.numpy(), support_y[:, 0].numpy()).predict(query_x.numpy())
        np.testing.assert_array_equal(found, expected[:, 0])
        assert regressor.fit(support_x, support_y.numpy()).predict(query_x).shape == expected.shape
    with pytest.raises(ValueError, match="the model learns 1 numbers an example"):
        regressor.fit(support_x, np.zeros((5, 2)))


def test_a_zero_shot_learner_learns_classes_from_their_descriptions(saved: Saved, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    attributes, y = random.normal(size=(9, 3)), np.repeat(np.arange(9), 5)
    np.savez(tmp_path / "a.npz", X=attributes[y] @ random.normal(size=(3, 6)), y=y, attributes=attributes)
    tasks_ = {"sampler": "attributes", "file": str(tmp_path / "a.npz"), "n_way": 2, "n_shot": 1, "n_query": 2,
              "split": "3/3/3"}  # fmt: skip
    folder, bench = saved({"name": "z", "tasks": tasks_, "encoder": "identity"}, "eszsl")
    clf = metaopt.load(folder)
    for support_x, support_y, query_x, _ in tasks(bench, 2):
        clf.fit(support_x.numpy(), support_y.numpy())
        assert clf.predict_proba(query_x.numpy()).shape == (4, 2)
        with pytest.raises(ValueError, match="the model learns a class from one description, and y has 2 of 0"):
            clf.fit(torch.cat([support_x, support_x]), [0, 1, 0, 1])
