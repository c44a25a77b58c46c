"""Learners: algorithms that learn a task from its support set, and what meta-training does to them."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from metaopt.augment import Augment
from metaopt.environment import Environments
from metaopt.task import Examples, Kind, Supports, TaskBatch, TaskSpec

if TYPE_CHECKING:
    from metaopt.executor import Executor

Gradients = Mapping[str, Tensor]


class Learner(nn.Module):
    """A learning algorithm whose parameters are meta-trained.

    A plugin's learner sets `name`, declares its hyperparameters in a frozen dataclass `Config`, and gives `forward`:
    one task's code, pure in its parameters. The core runs it over many tasks at once. A learner keeps no memory
    between tasks: it adapts a dict of weights and never writes to its parameters. What one outer step leaves for the
    next stands in parameters and registered buffers, persistent or not: a checkpoint of a long trial keeps no more.
    """

    name: ClassVar[str]
    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    """The kinds of tasks it can learn."""
    supports: ClassVar[Supports] = "examples"
    """What it learns a task from: examples of the classes, or in zero-shot learning descriptions of them."""
    trains_on: ClassVar[Literal["tasks", "examples", "nothing"]] = "tasks"
    """What an outer step is given: tasks, labelled examples of all train classes, or no meta-training at all."""
    uses_encoder: ClassVar[bool] = True
    """Whether it stands on the encoder it is given."""
    transductive: ClassVar[bool] = False
    """Whether its prediction for one query depends on the other queries; allowed where a study says so."""
    in_turn: ClassVar[bool] = False
    """In control whether it lives through the episodes of a task one after the other, as it learns while it acts."""
    is_told: ClassVar[bool] = False
    """In control whether it is told what tells the tasks apart: a ceiling for others, of use where one can tell."""
    order_matters: ClassVar[bool] = False
    """Whether the order of the support set changes what it learns, as for a sequence or for mini-batches in turn."""
    equal_shots: ClassVar[bool] = False
    """Whether all classes of a task must have as many support examples."""
    any_way: ClassVar[bool] = False
    """Whether it can be meta-trained with one number of ways and used with another."""
    traceable: ClassVar[bool] = True
    """Whether it runs the same operators for all tasks of one size; not so where it reads `progress`."""
    batchable: ClassVar[bool] = True
    """Whether `torch.func` can run its code over many tasks at once; where not, they run one by one."""
    inner_gradients: ClassVar[bool] = True
    """Whether its code for a task takes gradients itself, as MAML's steps do. Where it says that it does not, those of
    meta-training are taken of many tasks together, which is several times as fast for recurrent and wide networks."""
    steps: ClassVar[str | None] = None
    """The field of its Config that is the number of steps in which it adapts to a task at meta-test, if it has any."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Its own defaults for parameters that all learners share, such as {"outer.lr": 0.01}."""

    spec: TaskSpec
    config: Any
    augment: Augment = Augment()
    """What is done to the tasks it is meta-trained on, set by the core when it builds the learner."""
    turns: bool = False
    """Whether in meta-training each example takes its turn in the support set, set by the core; see `from_features`."""
    progress: float = 0.0
    """The share of meta-training that is done, set by the core before every outer step: for what changes on the way."""

    @dataclass(frozen=True)
    class Config:
        pass

    def __init__(self, spec: TaskSpec, encoder: nn.Module, config: Any) -> None:
        """Build the parameters. `encoder` maps examples (n, *x_shape) to features (n, encoder.n_features)."""
        super().__init__()
        self.spec = spec
        self.encoder = encoder
        self.config = config

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> Tensor:
        """Learn one task from its support set and return predictions for its query set.

        Args:
            support_x: (n_support, *support_shape), which is x_shape unless classes are described
            support_y: (n_support,) int64 labels 0 … n_way − 1, or (n_support, y_size) targets
            query_x: (n_queries, *x_shape)

        Returns:
            (n_queries, n_outputs): unnormalised class scores, or predicted targets.
        """
        if not self.takes_turns():
            raise NotImplementedError(f"the learner {type(self).__name__} does not define `forward` or `from_features`")
        return self.from_features(self.encoder(support_x), support_y, self.encoder(query_x))

    def from_features(self, support: Tensor, support_y: Tensor, query: Tensor) -> Tensor:
        """Learn one task from the features of its support set and return predictions for those of its query set.

        Learners that see examples by their features alone define this instead of `forward`. Each example of a task can
        then take its turn in the support set (`tasks.train_turns`), all turns at the price of one pass of the encoder.

        Args:
            support: (n_support, n_features)
            support_y: (n_support,) int64 labels 0 … n_way − 1, or (n_support, y_size) targets
            query: (n_queries, n_features)
        """
        raise NotImplementedError(f"the learner {type(self).__name__} does not define `from_features`")

    @classmethod
    def takes_turns(cls) -> bool:
        """Tell whether it defines `from_features`."""
        return cls.from_features is not Learner.from_features

    def stream(self, x: Tensor, y: Tensor) -> Tensor:
        """Predict each example of a sequence before its label is told: (n, n_outputs).

        Prediction t rests on x[: t + 1] and y[:t]: from the second on it is what `forward` says of the query x[t] with
        those before it as the support set. Learners that define this can learn the tasks of `tasks.stream`.

        Args:
            x: (n, *x_shape)
            y: (n,) int64 labels 0 … n_way − 1, or (n, y_size) targets
        """
        raise NotImplementedError(f"the learner {type(self).__name__} does not define `stream`")

    @classmethod
    def streams(cls) -> bool:
        """Tell whether it defines `stream`."""
        return cls.stream is not Learner.stream

    def adapt(self, environments: Environments, draw: Generator) -> tuple[Any, Tensor]:
        """Learn tasks by acting in them for `spec.n_shot` episodes.

        Learners of the kind "control" define this, `act` and `practise`, and neither `forward` nor `outer_step`. No
        task knows of another. `metaopt.environment.lived` lets it act.

        Returns:
            What it remembers of the tasks, which `act` is given from then on, and what each episode brought, in the
            order of experience: (n_tasks, n_shot).
        """
        raise NotImplementedError(f"the learner {type(self).__name__} does not define `adapt`")

    def act(self, memory: Any, seen: Tensor, draw: Generator | None) -> tuple[Tensor, Any]:
        """Choose what to do in every episode.

        Args:
            memory: what `adapt` remembered, or what this or `notice` made of it since
            seen: (n_tasks, n_episodes, *x_shape)
            draw: where chance comes from; torch's own generator where it is None

        Returns:
            The actions, (n_tasks, n_episodes) int64 or (n_tasks, n_episodes, y_size), and what it remembers now.
        """
        raise NotImplementedError(f"the learner {type(self).__name__} does not define `act`")

    def notice(self, memory: Any, action: Tensor, reward: Tensor, ended: Tensor) -> Any:
        """Return what it remembers once it is told what the actions brought: for those who learn while they act.

        Args:
            memory: what `act` remembered
            action: what `act` chose
            reward: (n_tasks, n_episodes)
            ended: (n_tasks, n_episodes) bool, whether the episodes are over
        """
        return memory

    def loss(self, predictions: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of predictions (n, n_outputs): cross entropy, or the squared error."""
        return cross_entropy(predictions, y) if self.spec.kind == "classification" else mse_loss(predictions, y)

    def task_loss(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return what meta-training minimises on one task: the query loss after learning from the support set.

        In a stream it is the loss of all predictions along the sequence.
        """
        if self.spec.stream:
            return self.loss(self.stream(support_x, support_y), support_y)
        if self.turns:
            return self._loss_in_turns(support_x, support_y, query_x, query_y)
        return self.loss(self(support_x, support_y, query_x), query_y)

    def _loss_in_turns(self, support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        """Return the mean loss over turns, in each of which other examples of the classes are the support set.

        In the first these are those given, in the next as many of the queries, until too few are left for another.
        """
        n_way, n_shot, each = self.spec.n_way, self.spec.n_shot, self.spec.n_shot + self.spec.n_query
        by_class = torch.cat([support_y, query_y]).argsort(stable=True)
        features = self.encoder(torch.cat([support_x, query_x]))[by_class].unflatten(0, (n_way, each))
        labels = torch.arange(n_way, device=support_y.device)[:, None]
        losses = []
        for first in range(0, each - n_shot + 1, n_shot):
            support = features[:, first : first + n_shot]  # (n_way, n_shot, n_features)
            query = torch.cat([features[:, :first], features[:, first + n_shot :]], 1)
            support_of, query_of = labels.expand(-1, n_shot), labels.expand(-1, each - n_shot)
            predictions = self.from_features(support.flatten(0, 1), support_of.flatten(), query.flatten(0, 1))
            losses.append(self.loss(predictions, query_of.flatten()))
        return torch.stack(losses).mean()

    def outer_step(
        self, batch: TaskBatch | Examples, executor: "Executor", update: Callable[[Gradients], None]
    ) -> Tensor:
        """Improve the parameters on one batch and return the mean loss before the step.

        `update` hands gradients by parameter name to the outer optimiser, which takes one step. Learners whose outer
        step is not the gradient of `task_loss` override this.
        """
        assert isinstance(batch, TaskBatch)
        loss, gradients = executor.gradient(self, batch)
        update(gradients)
        return loss

    def practise(self, environments: Environments, update: Callable[[Gradients], None]) -> Tensor:
        """Improve the parameters by acting in train environments, and return what is to become small, as a loss does.

        It is `outer_step` for learners of the kind "control". `update` may be called several times, as where what was
        experienced once serves several steps. Chance comes from torch's own generator.
        """
        raise NotImplementedError(f"the learner {type(self).__name__} does not define `practise`")

    def with_spec(self, spec: TaskSpec) -> "Learner":
        """Return this learner, its parameters shared, for tasks of another size."""
        if spec == self.spec:
            return self
        other = copy.copy(self)
        other.spec = spec
        return other

    def with_steps(self, steps: int) -> "Learner":
        """Return this learner, its parameters shared, adapting in so many steps; itself where it takes no steps."""
        if self.steps is None:
            return self
        other = copy.copy(self)
        other.config = replace(self.config, **{self.steps: steps})
        return other
