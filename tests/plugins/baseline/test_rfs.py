"""RFS is scikit-learn's logistic regression on normalised features."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
from sklearn.preprocessing import normalize  # type: ignore[import-untyped]
from torch import Generator
from torch.nn.functional import cross_entropy

from metaopt.executor import Loop
from metaopt.task import Examples, TaskSpec
from metaopt_baseline.rfs import RFS
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP


def rfs(spec: TaskSpec, c: float = 1.0) -> RFS:
    torch.manual_seed(0)
    encoder = MLP(spec.x_shape, MLP.Config(16)) if len(spec.x_shape) == 1 else Conv4(spec.x_shape, Conv4.Config(8))
    return RFS(spec, encoder, RFS.Config(c)).double()


@pytest.mark.parametrize("c", [0.1, 1.0, 100.0])
@pytest.mark.parametrize("n_way", [2, 5])
@pytest.mark.parametrize("x_shape", [(6,), (1, 16, 16)])
def test_scores_are_scikit_learns_log_probabilities(x_shape: tuple[int, ...], n_way: int, c: float) -> None:
    learner, draw = (
        rfs(TaskSpec("classification", x_shape, n_way, 2, 6, n_train_classes=9), c),
        Generator().manual_seed(1),
    )
    support_x, query_x = (torch.randn(n * n_way, *x_shape, dtype=torch.float64, generator=draw) for n in (2, 6))
    support_y = torch.randperm(2 * n_way, generator=draw) % n_way
    support, query = (normalize(learner.encoder(x).detach().numpy()) for x in (support_x, query_x))
    peer = LogisticRegression(C=c, max_iter=1000).fit(support, support_y.numpy())
    scores = learner(support_x, support_y, query_x)
    torch.testing.assert_close(scores, torch.from_numpy(peer.predict_log_proba(query)), rtol=1e-9, atol=1e-9)
    assert scores.argmax(1).tolist() == peer.predict(query).tolist()


def test_the_gradient_of_meta_training_reaches_every_parameter() -> None:
    learner, draw = rfs(TaskSpec("classification", (6,), 3, 1, 1, n_train_classes=9)), Generator().manual_seed(2)
    batch = Examples(torch.randn(20, 6, dtype=torch.float64, generator=draw), torch.randint(9, (20,), generator=draw))
    handed: list[object] = []
    loss = learner.outer_step(batch, Loop(), handed.append)
    torch.testing.assert_close(loss, cross_entropy(learner.classifier(learner.encoder(batch.x)), batch.y).detach())
    (gradients,) = handed
    assert isinstance(gradients, dict)
    assert set(gradients) == {name for name, _ in learner.named_parameters()}
    assert all(gradient.any() for gradient in gradients.values())
