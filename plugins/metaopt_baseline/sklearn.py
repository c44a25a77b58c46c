"""scikit-learn's classifiers on the raw input: what a person without any train tasks would do."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metaopt import tune
from metaopt.learner import Learner


class Sklearn(Learner):
    """Fit a classifier to the support set, the numbers of an example being its features. It has nothing to meta-train.

    A linear discriminant is not among them: scikit-learn's refuses classes of one example.
    """

    name = "sklearn"
    trains_on = "nothing"
    uses_encoder = False
    any_way = True
    batchable = False
    config: "Config"

    @dataclass(frozen=True)
    class Config:
        classifier: str = tune.choice("logistic", "svm", "neighbors", "bayes")
        logistic_c: float = tune.real(1e-3, 1e3, log=True, default=1.0, when={"classifier": "logistic"})
        svm_c: float = tune.real(1e-3, 1e3, log=True, default=1.0, when={"classifier": "svm"})
        neighbors: int = tune.integer(1, 10, default=1, when={"classifier": "neighbors"})
        smoothing: float = tune.real(1e-9, 10.0, log=True, default=1e-9, when={"classifier": "bayes"})
        """Added to the variances, as a share of the largest one."""

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Return the classifier's scores, probabilities where it gives no others: (n_queries, n_way)."""
        model = self._model(len(support_x)).fit(support_x.flatten(1).cpu().numpy(), support_y.cpu().numpy())
        score = getattr(model, "decision_function", None) or model.predict_proba
        scores = torch.as_tensor(score(query_x.flatten(1).cpu().numpy()))
        if scores.ndim == 1:  # of two classes, scikit-learn scores the second
            scores = torch.stack([-scores, scores], 1)
        return scores.to(query_x)

    def _model(self, n_support: int) -> Any:
        from sklearn import linear_model, naive_bayes, neighbors, svm  # type: ignore[import-untyped]  # slow to import

        match self.config.classifier:
            case "logistic":
                return linear_model.LogisticRegression(C=self.config.logistic_c, max_iter=1000)
            case "svm":
                return svm.SVC(kernel="linear", C=self.config.svm_c)
            case "neighbors":
                return neighbors.KNeighborsClassifier(min(self.config.neighbors, n_support))
            case _:
                return naive_bayes.GaussianNB(var_smoothing=self.config.smoothing)
