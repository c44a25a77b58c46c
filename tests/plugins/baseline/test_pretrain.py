"""Pretraining is ordinary training of a classifier; prediction is nearest class mean on its features."""

import copy

import pytest
import torch
from sklearn.neighbors import NearestCentroid  # type: ignore[import-untyped]
from torch import Generator, Tensor
from torch.autograd import backward
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from metaopt import seeds
from metaopt.executor import EXECUTORS, Executor
from metaopt.task import ClassPool, Examples, TaskSampler, TaskSpec
from metaopt.train import Budget, Outer, meta_train
from metaopt_baseline.pretrain import Pretrain
from metaopt_encoders.conv4 import Conv4
from metaopt_encoders.mlp import MLP

N_CLASSES = 9
VECTORS = TaskSpec("classification", (6,), n_way=3, n_shot=2, n_query=4, n_train_classes=N_CLASSES)
PICTURES = TaskSpec("classification", (1, 16, 16), n_way=3, n_shot=2, n_query=1, n_train_classes=N_CLASSES)

both_shapes = pytest.mark.parametrize("spec", [VECTORS, PICTURES], ids=["vectors", "pictures"])


class Noise(TaskSampler):
    """Labelled examples of nothing but noise."""

    name = "noise"
    kind = "classification"

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(self.Config())
        examples = torch.randn(10 * N_CLASSES, *spec.x_shape, generator=Generator().manual_seed(7))
        self.pool = ClassPool(examples, list(torch.arange(10 * N_CLASSES).reshape(N_CLASSES, 10)))

    def examples(self, n: int, generator: Generator) -> Examples:
        return self.pool.draw_examples(n, generator)


def pretrain(spec: TaskSpec, **config: object) -> Pretrain:
    torch.manual_seed(0)
    encoder = MLP(spec.x_shape, MLP.Config(16)) if len(spec.x_shape) == 1 else Conv4(spec.x_shape, Conv4.Config(8))
    return Pretrain(spec, encoder, Pretrain.Config(**config))  # type: ignore[arg-type]


def task(spec: TaskSpec) -> tuple[Tensor, Tensor, Tensor]:
    draw = Generator().manual_seed(1)
    support_y = torch.randperm(spec.n_way * spec.n_shot, generator=draw) % spec.n_way
    support_x = torch.randn(len(support_y), *spec.x_shape, generator=draw, dtype=torch.float64)
    return support_x, support_y, torch.randn(30, *spec.x_shape, generator=draw, dtype=torch.float64)


@both_shapes
def test_meta_training_is_ordinary_classifier_training_bit_for_bit(spec: TaskSpec) -> None:
    """Seven tasks, three a step: two steps on as many examples as three tasks hold, and one on those of one."""
    learner = pretrain(spec)
    encoder, classifier = copy.deepcopy(learner.encoder), copy.deepcopy(learner.classifier)
    sampler, outer = Noise(spec), Outer(lr=0.01, tasks_per_step=3)
    meta_train(learner, sampler, outer, Budget(tasks=7), EXECUTORS["loop"](), seed=5, device=torch.device("cpu"))

    draw = seeds.generator(5, "train")
    optimizer = torch.optim.Adam([*encoder.parameters(), *classifier.parameters()], lr=0.01)
    for n_tasks in (3, 3, 1):
        batch = sampler.examples(n_tasks * spec.n_way * (spec.n_shot + spec.n_query), draw)
        optimizer.zero_grad()
        backward(cross_entropy(classifier(encoder(batch.x)), batch.y))
        optimizer.step()

    by_hand = {f"encoder.{name}": weight for name, weight in encoder.state_dict().items()}
    by_hand |= {f"classifier.{name}": weight for name, weight in classifier.state_dict().items()}
    fresh = pretrain(spec).state_dict()
    assert set(by_hand) == set(learner.state_dict())
    for name, weight in learner.state_dict().items():
        assert torch.equal(weight, by_hand[name])
        assert not torch.equal(weight, fresh[name])


@pytest.mark.parametrize("executor", [executor() for executor in EXECUTORS.values()], ids=EXECUTORS)
def test_the_loss_is_that_before_the_step(executor: Executor) -> None:
    learner, batch = pretrain(VECTORS), Noise(VECTORS).examples(20, Generator().manual_seed(0))
    before = cross_entropy(learner.classifier(learner.encoder(batch.x)), batch.y)
    loss = learner.outer_step(batch, executor, lambda gradients: None)
    assert torch.equal(loss, before)
    assert not loss.requires_grad


def test_the_classifier_tells_all_train_classes_apart() -> None:
    assert pretrain(VECTORS).classifier.out_features == N_CLASSES > VECTORS.n_way


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")  # a unit that is off for all
@both_shapes
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_predictions_are_those_of_scikit_learns_nearest_centroid_on_features(spec: TaskSpec, distance: str) -> None:
    learner = pretrain(spec, distance=distance).double()
    support_x, support_y, query_x = task(spec)
    support, query = learner.encoder(support_x).detach(), learner.encoder(query_x).detach()
    if distance == "cosine":
        support, query = normalize(support, dim=-1), normalize(query, dim=-1)
    expected = NearestCentroid().fit(support.numpy(), support_y.numpy()).predict(query.numpy())
    assert len(set(expected.tolist())) > 1, "a constant prediction would be no test"
    assert learner(support_x, support_y, query_x).argmax(1).tolist() == expected.tolist()


def test_euclidean_scores_are_minus_squared_distances_to_class_means() -> None:
    learner = pretrain(VECTORS, distance="euclidean").double()
    support_x, support_y, query_x = task(VECTORS)
    means = torch.stack([learner.encoder(support_x[support_y == k]).mean(0) for k in range(3)])
    expected = -torch.cdist(learner.encoder(query_x), means).square()
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_cosine_scores_of_one_shot_are_twice_the_cosine_less_two() -> None:
    spec = TaskSpec("classification", (6,), 3, 1, 4, n_train_classes=N_CLASSES)
    learner = pretrain(spec, distance="cosine").double()
    support_x, support_y, query_x = task(spec)
    support = learner.encoder(support_x)[support_y.argsort()]
    expected = 2 * cosine_similarity(learner.encoder(query_x)[:, None], support, dim=-1) - 2
    torch.testing.assert_close(learner(support_x, support_y, query_x), expected, rtol=1e-9, atol=1e-12)


def test_the_classifier_has_no_part_in_predictions() -> None:
    learner = pretrain(VECTORS).double()
    before = learner(*task(VECTORS))
    torch.nn.init.normal_(learner.classifier.weight)
    assert torch.equal(learner(*task(VECTORS)), before)
