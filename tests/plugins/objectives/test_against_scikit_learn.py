"""The objectives are what scikit-learn's metrics of the same name say, task by task."""

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, log_loss, r2_score
from torch import Generator, Tensor

from metaopt.objective import Outcome
from metaopt.task import TaskSpec
from metaopt_objectives.balanced_accuracy import BalancedAccuracy
from metaopt_objectives.calibration import Calibration
from metaopt_objectives.log_loss import LogLoss
from metaopt_objectives.r2 import R2

N_TASKS, N_QUERIES, N_WAY = 6, 40, 3
CLASSES = TaskSpec("classification", (4,), N_WAY, 1, N_QUERIES)
TARGETS = TaskSpec("regression", (4,), 1, 1, N_QUERIES, y_size=2)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def guesses() -> tuple[Tensor, Tensor]:
    """Return scores and labels of which the classes differ in size."""
    labels = (torch.rand(N_TASKS, N_QUERIES, generator=seeded()).square() * N_WAY).long()
    scores = 2 * torch.randn(N_TASKS, N_QUERIES, N_WAY, generator=seeded(1), dtype=torch.float64)
    return scores, labels


def test_balanced_accuracy_is_scikit_learns_where_classes_differ_in_size() -> None:
    scores, labels = guesses()
    want = [balanced_accuracy_score(y, p.argmax(1)) for y, p in zip(labels, scores, strict=True)]
    got = BalancedAccuracy(BalancedAccuracy.Config()).score(Outcome(CLASSES, scores, labels))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_class_without_queries_does_not_count_for_balanced_accuracy() -> None:
    labels = torch.tensor([[0, 0, 1, 1]])
    scores = torch.eye(3, dtype=torch.float64)[torch.tensor([[0, 0, 1, 2]])]
    assert float(BalancedAccuracy(BalancedAccuracy.Config()).score(Outcome(CLASSES, scores, labels))) == 0.75


def test_log_loss_is_scikit_learns() -> None:
    scores, labels = guesses()
    want = [log_loss(y, p.softmax(1).numpy(), labels=range(N_WAY)) for y, p in zip(labels, scores, strict=True)]
    got = LogLoss(LogLoss.Config()).score(Outcome(CLASSES, scores, labels))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_r2_is_scikit_learns_mean_over_targets() -> None:
    truth = torch.randn(N_TASKS, N_QUERIES, 2, generator=seeded(), dtype=torch.float64)
    guess = truth + torch.randn(N_TASKS, N_QUERIES, 2, generator=seeded(1), dtype=torch.float64)
    got = R2(R2.Config()).score(Outcome(TARGETS, guess, truth))
    np.testing.assert_allclose(got, [r2_score(y, p) for y, p in zip(truth, guess, strict=True)], rtol=1e-12)


@pytest.mark.parametrize(("offset", "want"), [(0.0, 1.0), (0.5, 0.0)])
def test_r2_of_a_constant_target_is_scikit_learns(offset: float, want: float) -> None:
    truth = torch.full((1, 5, 1), 2.0)
    assert float(R2(R2.Config()).score(Outcome(TARGETS, truth + offset, truth))) == want


def calibration(probabilities: Tensor, labels: Tensor, bins: int = 15) -> Tensor:
    return Calibration(Calibration.Config(bins=bins)).score(Outcome(CLASSES, probabilities.log(), labels))


def test_calibration_error_by_hand() -> None:
    # Four queries at confidence 0.8, three of them right; two at 0.6, none right.
    sure = torch.tensor([0.8, 0.1, 0.1], dtype=torch.float64)
    unsure = torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64)
    probabilities = torch.stack([sure] * 4 + [unsure] * 2)[None]
    labels = torch.tensor([[0, 0, 0, 1, 1, 2]])
    want = 4 / 6 * abs(3 / 4 - 0.8) + 2 / 6 * 0.6
    assert float(calibration(probabilities, labels)) == pytest.approx(want)


def test_calibration_error_in_one_bin_is_the_gap_of_the_means() -> None:
    scores, labels = guesses()
    probabilities = scores.softmax(-1)
    confidence, answer = probabilities.max(-1)
    want = ((answer == labels).double().mean(1) - confidence.mean(1)).abs()
    # Two bins, and with three classes most confidences lie above 1/2: made so for all.
    sure = (probabilities + 2 * torch.nn.functional.one_hot(answer, N_WAY)) / 3
    confidence = sure.max(-1).values
    assert (confidence > 0.5).all()
    want = ((answer == labels).double().mean(1) - confidence.mean(1)).abs()
    torch.testing.assert_close(calibration(sure, labels, bins=2), want)


def test_true_probabilities_are_nearly_calibrated_and_sharpened_ones_are_not() -> None:
    draw = seeded(3)
    probabilities = torch.randn(4, 20000, N_WAY, generator=draw, dtype=torch.float64).softmax(-1)
    labels = torch.multinomial(probabilities.flatten(0, 1), 1, generator=draw).view(4, -1)
    assert (calibration(probabilities, labels) < 0.02).all()
    sharpened = probabilities.pow(4) / probabilities.pow(4).sum(-1, keepdim=True)
    assert (calibration(sharpened, labels) > 0.1).all()
