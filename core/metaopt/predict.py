"""Files in, labels out: a saved model learns classes from a few examples of each and says which others show."""

import csv
import time
from pathlib import Path
from typing import Any

from metaopt.errors import UserError
from metaopt.estimator import FewShotClassifier, load
from metaopt.files import whole
from metaopt.preprocessing import Given


def adapted(model: Path, support: Path, device: str) -> FewShotClassifier:
    """Return a model that has learned the classes of the support set at `support`."""
    return _learn(_load(model, device), support)


def _load(model: Path, device: str) -> FewShotClassifier:
    classifier = load(model, device)
    if not isinstance(classifier, FewShotClassifier):
        raise UserError(f"{model} is no model for classification; use metaopt.load in Python")
    if classifier.opened().spec.description_shape:
        raise UserError(f"{model} learns from descriptions of classes, not from examples; use metaopt.load in Python")
    return classifier


def _learn(classifier: FewShotClassifier, support: Path) -> FewShotClassifier:
    given = _read(classifier, support, labelled=True)
    try:
        return classifier.fit(given.examples, given.labels)
    except UserError as error:
        raise UserError(f"{support}: {error}") from None


def _read(classifier: FewShotClassifier, path: Path, *, labelled: bool) -> Given:
    preprocessing = classifier.opened().preprocessing
    if not path.exists():
        what = {"pictures": "a folder of pictures", "rows": "a table", "texts": "a file of texts"}
        raise UserError(f"there is no {path}; give {what.get(preprocessing.takes, 'a file of arrays')}")
    return preprocessing.read(path, labelled=labelled)


def predict(model: Path, support: Path, query: Path, device: str) -> dict[str, Any]:
    """Return the label and probability of each example at `query`, of the classes of those at `support`.

    `seconds` are those of reading, learning and answering, after the model is loaded. Raises UserError where files are
    missing, damaged or not what the model takes.
    """
    classifier = _load(model, device)
    started = time.perf_counter()
    _learn(classifier, support)
    asked = _read(classifier, query, labelled=False)
    try:
        probabilities = classifier.predict_proba(asked.examples)
    except UserError as error:
        raise UserError(f"{query}: {error}") from None
    seconds = time.perf_counter() - started
    classes = [str(name) for name in classifier.classes_]
    answers = [
        {
            "name": name,
            "label": classes[row.argmax()],
            "probability": float(row.max()),
            "probabilities": dict(zip(classes, row.tolist(), strict=True)),
        }
        for name, row in zip(asked.names, probabilities, strict=True)
    ]
    return {
        "model": str(model),
        "learner": classifier.learner_.name,
        "support": len(classifier.support_x_),
        "classes": classes,
        "seconds": seconds,
        "answers": answers,
    }


def write_csv(path: Path, found: dict[str, Any]) -> None:
    """Write a row for each example: its name, label and probability."""
    try:
        with whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["name", "label", "probability"])
            for answer in found["answers"]:
                writer.writerow([answer["name"], answer["label"], f"{answer['probability']:.6f}"])
    except OSError as error:
        raise UserError(
            f"--output {path} cannot be written ({error.strerror}); give a path that you may write"
        ) from None
