"""Saved models as scikit-learn's users know them: `fit` learns a task from its support set, `predict` answers queries.

clf = metaopt.load("runs/quickstart")
clf.fit(pictures, ["cat", "dog", "cat"]).predict(others)
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

# scikit-learn has no types: hence what is ignored here, and of the classes made from its own.
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin  # type: ignore[import-untyped]
from sklearn.utils import assert_all_finite  # type: ignore[import-untyped]
from sklearn.utils.multiclass import check_classification_targets  # type: ignore[import-untyped]
from sklearn.utils.validation import (  # type: ignore[import-untyped]
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)
from torch import Tensor

from metaopt import plugins, seeds
from metaopt.agent import Agent
from metaopt.errors import InputError
from metaopt.executor import Loop
from metaopt.learner import Learner
from metaopt.preprocessing import Preprocessing
from metaopt.study.model import Model
from metaopt.study.model import load as load_model
from metaopt.task import TaskBatch
from metaopt.train import predict

AT_ONCE = 1024
"""Queries predicted together, where one does not change another's prediction."""


def load(model: str | Path, device: str = "cpu") -> "FewShotClassifier | FewShotRegressor | Agent":
    """Return a saved model as an estimator, or as an agent where it acts.

    `model` is its folder, or the run folder that holds it as `best`.

    Raises UserError, in one sentence, where it cannot be read.
    """
    opened = load_model(Path(model), plugins.load(), torch.device(device))
    if opened.spec.kind == "control":
        return Agent(opened)
    return (FewShotClassifier if opened.spec.kind == "classification" else FewShotRegressor)(opened, device)


class _FewShot(BaseEstimator):  # type: ignore[misc]
    """What both have in common. `model` is a folder, or a model that is loaded."""

    def __init__(self, model: str | Path | Model, device: str = "cpu") -> None:
        self.model = model
        self.device = device

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if isinstance(self.model, Model):
            takes, n_axes = self.model.preprocessing.takes, len(self.model.spec.support_shape)
            tags.input_tags.two_d_array = takes == "rows" or (takes == "arrays" and n_axes == 1)
            tags.input_tags.three_d_array = takes == "pictures" or n_axes == 3
            tags.input_tags.string = takes == "texts"
        return tags

    def opened(self) -> Model:
        """Return the model, read from its folder where it is named by that."""
        if isinstance(self.model, Model):
            return self.model
        return load_model(Path(self.model), plugins.load(), torch.device(self.device))

    def _examples(self, X: Any, *, support: bool) -> Tensor:
        """Return examples as the learner takes them, (n, *x_shape). Where they are vectors, as scikit-learn checks."""
        model = self.model_
        make, shape = model.preprocessing, model.spec.x_shape
        if support:  # of another model before this one
            self.__dict__.pop("n_features_in_", None)
        if support and model.spec.description_shape:  # these describe classes, and are no X as the queries are
            examples: Tensor = Preprocessing(model.spec.description_shape)(X)
        elif make.takes == "arrays" and len(shape) == 1 and not isinstance(X, Tensor):
            examples = make(self._wide(validate_data(self, X, reset=support), shape[0]))
        else:
            examples = make(X)
        return examples.to(model.device)

    def _wide(self, X: NDArray[Any], n_features: int) -> NDArray[Any]:
        """Return vectors of the length that the model takes. InputError where theirs is another."""
        if X.shape[1] != n_features:
            raise InputError(f"X has {X.shape[1]} features and the model takes {n_features}; give those of its study")
        return X

    def _fitted(self, learner: Learner, support_x: Tensor, support_y: Tensor) -> None:
        """Keep a task's support set; learning from it is the learner's `forward`, with the queries."""
        self.learner_, self.support_x_, self.support_y_ = learner, support_x, support_y

    def _predictions(self, X: Any) -> Tensor:
        """Return what the learner says of each query, (n, n_outputs)."""
        check_is_fitted(self, "support_x_")
        query = self._examples(X, support=False)
        size = len(query) if self.model_.config["transductive"] else AT_ONCE
        with torch.no_grad():  # adaptation turns gradients on for itself
            parts = [self._of(query[start : start + size]) for start in range(0, len(query), size)]
        predictions = torch.cat(parts).cpu()
        if not predictions.isfinite().flatten(1).any(1).all():
            raise InputError(
                "learning from these support examples gave predictions that are not finite; give other examples, or a "
                "model that takes fewer or smaller steps"
            )
        return predictions

    def _of(self, query: Tensor) -> Tensor:
        unused = torch.zeros(1, len(query), dtype=torch.int64)
        task = TaskBatch(self.support_x_[None], self.support_y_[None], query[None], unused)
        return predict(self.learner_, Loop(), task, seeds.generator(0, "views"))[0]


class FewShotClassifier(ClassifierMixin, _FewShot):  # type: ignore[misc]
    """A few-shot learner as a classifier: it learns the classes of `y` from a few examples of each."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn a task from its support set: examples X (n, …) as the model takes them and their classes y (n,).

        Raises InputError, a ValueError, where the learner cannot learn such a task.
        """
        self.model_ = self.opened()
        if y is None:
            raise InputError("a classifier requires y to be passed, but the target y is None; give the class of each")
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        classes, labels = np.unique(y, return_inverse=True)
        support = self._examples(X, support=True)
        check_consistent_length(support, y)
        learner = _for_ways(self.model_, classes, labels)
        self.classes_ = classes
        self._fitted(learner, support, torch.from_numpy(labels).to(support.device))
        return self

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probability of each of `classes_`, (n, n_classes), whose rows add up to 1.

        These are the softmax of the learner's scores over one temperature, which the study fitted on train tasks.
        """
        scores = self._predictions(X).double() / self.model_.config["temperature"]
        probabilities: NDArray[np.float64] = scores.softmax(1).numpy()
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each example, (n,), as `y` called it."""
        best = self._predictions(X).argmax(1).numpy()
        predictions: NDArray[Any] = self.classes_[best]
        return predictions

    def export(self, path: str | Path) -> None:
        """Write the query path after adaptation as a torch.export program: see `metaopt.export`."""
        from metaopt.export import export

        check_is_fitted(self, "classes_")
        temperature = float(self.model_.config["temperature"])
        export(self.learner_, self.support_x_, self.support_y_, self.classes_, Path(path), temperature)


class FewShotRegressor(RegressorMixin, _FewShot):  # type: ignore[misc]
    """A few-shot learner as a regressor: it learns a function from a few points."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learn a task from its support set: examples X (n, …) and targets y, (n,) or (n, y_size)."""
        self.model_ = self.opened()
        if y is None:
            raise InputError("a regressor requires y to be passed, but the target y is None; give that of each example")
        support = self._examples(X, support=True)
        targets = check_array(y, ensure_2d=False, dtype=np.float32, input_name="y")
        check_consistent_length(support, targets)
        size = self.model_.spec.y_size
        if targets.reshape(len(targets), -1).shape[1] != size:
            raise InputError(f"y is {targets.shape} and the model learns {size} numbers an example; give those")
        self.y_axes_ = targets.ndim
        learner = _sized(self.model_, 1, len(support))
        self._fitted(learner, support, torch.from_numpy(targets.reshape(len(targets), -1)).to(support.device))
        return self

    def predict(self, X: Any) -> NDArray[np.float32]:
        """Return the targets of examples, (n,) or (n, y_size) as those of `fit` were."""
        check_is_fitted(self, "y_axes_")
        predictions: NDArray[np.float32] = self._predictions(X).numpy()
        return predictions[:, 0] if self.y_axes_ == 1 else predictions


def _for_ways(model: Model, classes: NDArray[Any], labels: NDArray[np.int64]) -> Learner:
    """Return the learner sized for these classes. InputError where it cannot learn them."""
    learner, n_way = model.learner, len(classes)
    counts, names = np.bincount(labels, minlength=n_way), classes.tolist()
    if n_way < 2:
        raise InputError(f"y has one class, {names[0]!r}; a classifier needs examples of two or more")
    if not learner.any_way and n_way != learner.spec.n_way:
        raise InputError(
            f"{learner.name} learns a fixed number of ways, here {learner.spec.n_way}, and y has {n_way} classes; give "
            f"examples of {learner.spec.n_way} classes, or take a model of a learner of any number, such as protonet"
        )
    if learner.equal_shots and len(set(counts.tolist())) > 1:
        raise InputError(
            f"{learner.name} needs as many examples of each class, and y has {counts.min()} of "
            f"{names[counts.argmin()]!r} and {counts.max()} of {names[counts.argmax()]!r}; give {counts.min()} of each"
        )
    if model.spec.description_shape and counts.max() > 1:
        raise InputError(
            f"the model learns a class from one description, and y has {counts.max()} of "
            f"{names[counts.argmax()]!r}; give one of each"
        )
    return _sized(model, n_way, int(counts.max()))


def _sized(model: Model, n_way: int, n_shot: int) -> Learner:
    spec = replace(model.spec, n_way=n_way, n_shot=n_shot, least_shot=0)
    return model.learner.with_spec(spec)
