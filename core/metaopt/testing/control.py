"""The checks of learners that act and of samplers of environments, in place of those of examples."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from metaopt.environment import Environments
from metaopt.errors import UserError
from metaopt.executor import trainable
from metaopt.learner import Gradients, Learner
from metaopt.plugins import violations
from metaopt.task import POOLS, Pool, TaskSampler, TaskSpec
from metaopt.testing.learners import its_defaults_exist, obeys_the_contract
from metaopt.testing.setting import Skipped, corners, random_states
from metaopt.train import brought

N_TASKS, N_SHOT, N_QUERY = 6, 4, 3
PRACTICE = (10, 20, 40, 80)
"""Outer steps, after each number of which a learner may show that they pay: most need the first only."""
SPECS = (
    TaskSpec("control", (2,), n_way=1, n_shot=N_SHOT, n_query=N_QUERY, y_size=2, n_told=2),
    TaskSpec("control", (2,), n_way=1, n_shot=N_SHOT, n_query=N_QUERY, n_actions=3, n_told=2),
)


class Line(Environments):
    """A point that drifts, and is paid for being near a place of the task's. Its actions are numbers, or choices."""

    horizon = 4

    def __init__(self, places: Tensor, n_actions: int) -> None:
        self.told, self.n_actions = places, n_actions  # (n_tasks, 2)

    def start(self, n_episodes: int, draw: Generator | None) -> Tensor:
        return 0.1 * torch.randn(len(self), n_episodes, 2, generator=draw, dtype=self.told.dtype)

    def observe(self, state: Tensor) -> Tensor:
        return state

    def step(self, state: Tensor, action: Tensor, draw: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        moves = torch.tensor([[-0.2, 0.0], [0.0, 0.2], [0.2, -0.2]], dtype=state.dtype)
        state = state + (moves[action] if self.n_actions else action.clamp(-0.3, 0.3))
        far = (state - self.told[:, None]).norm(dim=-1)
        return state, -far, far < 0.05

    def to(self, device: torch.device) -> "Line":
        return Line(self.told.to(device), self.n_actions)


def environments(spec: TaskSpec, n: int = N_TASKS, seed: int = 0) -> Line:
    """Return small tasks of that spec."""
    return Line(torch.randn(n, 2, generator=Generator().manual_seed(seed)), spec.n_actions)


def built(cls: type[Learner], spec: TaskSpec, seed: int = 0, **config: Any) -> Learner:
    """Return a fresh learner; the same seed gives the same parameters."""
    from metaopt.testing.setting import SmallEncoder

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: nn.Module = SmallEncoder(spec.x_shape) if cls.uses_encoder else nn.Identity()
        return cls(spec, encoder, cls.Config(**config))


def acted(learner: Learner, seed: int = 0) -> Tensor:
    """Return what a learner's episodes bring in the small tasks."""
    return brought(learner.eval(), environments(learner.spec), Generator().manual_seed(seed))


def practised(learner: Learner, seed: int = 0) -> tuple[Tensor, list[Gradients]]:
    """Let a learner take an outer step that moves nothing; return its loss and the gradients."""
    found: list[Gradients] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loss = learner.train().practise(environments(learner.spec, seed=seed), found.append)
    return loss, found


def returns_have_their_shape(cls: type[Learner]) -> None:
    """Adapting and acting bring a finite number in each episode, (n_tasks, n_shot + n_query)."""
    for spec in SPECS:
        learner = built(cls, spec).eval()
        with torch.no_grad():
            _, before = learner.adapt(environments(spec), Generator().manual_seed(0))
        want = (N_TASKS, N_SHOT)
        assert tuple(before.shape) == want, (
            f"adapt gave returns of shape {tuple(before.shape)}; they must be (n_tasks, n_shot) = {want}"
        )
        returns = acted(learner)
        assert returns.isfinite().all(), "returns are not finite; guard the computation"
        assert (returns <= 0).all(), "adapt gave returns that no episode brought; they are sums of its rewards"


def is_finite_at_both_ends_of_every_range(cls: type[Learner]) -> None:
    """Returns, loss and gradients are finite at the defaults, at both ends of every range and at every option."""
    for spec in (replace(spec, n_shot=10) for spec in SPECS):  # enough for as many steps as any range has
        for config in corners(cls.Config):
            loss, steps = practised(built(cls, spec, **config))
            numbers = [acted(built(cls, spec, **config)), loss, *(one for step in steps for one in step.values())]
            assert all(number.isfinite().all() for number in numbers), (
                f"numbers are not finite with {config or 'the defaults'}; narrow that range or guard the computation"
            )


def an_outer_step_moves_every_parameter(cls: type[Learner]) -> None:
    """`practise` hands gradients by the names of parameters, and some are not zero for each."""
    for spec in SPECS:
        learner = built(cls, spec)
        moved = {
            name for seed in range(3) for step in practised(learner, seed)[1] for name in step if step[name].ne(0).any()
        }
        still = ", ".join(sorted(trainable(learner).keys() - moved))
        assert not still, f"no outer step moves {still}; leave out what is not learned, or mend practise"


def keeps_no_memory_between_tasks(cls: type[Learner]) -> None:
    """Acting changes neither parameters nor buffers: what is learned of a task is gone after it."""
    for spec in SPECS:
        learner = built(cls, spec)
        before = copy.deepcopy(learner.state_dict())
        acted(learner)
        for name, tensor in learner.state_dict().items():
            assert torch.equal(tensor, before[name]), f"adapt or act wrote to {name}; adapt a dict of weights instead"


def chance_comes_from_the_generator(cls: type[Learner]) -> None:
    """The same state of the generator gives the same returns, and torch's own is not drawn from."""
    for spec in SPECS:
        learner, before = built(cls, spec), random_states()
        one, same, other = acted(learner), acted(learner), acted(learner, seed=1)
        assert torch.equal(one, same), "the same seed gave other returns; draw from the generator passed in, alone"
        assert not torch.equal(one, other), "another seed gave the same returns; draw from the generator passed in"
        assert before == random_states(), "it drew from a global generator; draw from the one passed in"


def an_outer_step_repeats_from_a_seed(cls: type[Learner]) -> None:
    """The same seed of torch's generator gives the same outer step."""
    for spec in SPECS:
        (one, steps), (other, others) = practised(built(cls, spec)), practised(built(cls, spec))
        same = torch.equal(one, other) and all(
            torch.equal(a[name], b[name]) for a, b in zip(steps, others, strict=True) for name in a
        )
        assert same, "the same seed gave another outer step; draw from torch's own generator, alone"


def serves_other_numbers_of_episodes(cls: type[Learner]) -> None:
    """A learner built for some episodes acts in tasks of others, as its steps allow."""
    for spec in SPECS:
        other = built(cls, spec).with_spec(replace(spec, n_shot=N_SHOT + 5, n_query=N_QUERY - 1))
        got = acted(other).shape[1]
        assert got == N_SHOT + N_QUERY + 4, f"of {N_SHOT + N_QUERY + 4} episodes it lived through {got}"


def serves_one_episode_at_a_time(cls: type[Learner]) -> None:
    """It learns an environment that runs no two episodes side by side, as the one robot that there is."""
    for spec in SPECS:
        tasks = environments(spec, 1)
        tasks.at_once = 1
        got = tuple(brought(built(cls, spec).eval(), tasks, Generator().manual_seed(0)).shape)
        assert got == (1, N_SHOT + N_QUERY), f"its episodes brought numbers of shape {got}; let it act by `lived`"


def practice_pays(cls: type[Learner]) -> None:
    """After some outer steps, more of them where need be, it earns more in the tasks that it practised in."""
    for spec in SPECS:
        learner, tasks = built(cls, spec), environments(spec, 20)
        before = earned(learner, tasks)
        optimizer = torch.optim.Adam(trainable(learner).values(), lr=0.01)

        def update(gradients: Gradients, learner: Learner = learner, optimizer: Any = optimizer) -> None:
            for name, parameter in trainable(learner).items():
                parameter.grad = gradients[name]
            optimizer.step()

        after = before
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for more in PRACTICE:
                if after < before + 0.1 * abs(before):
                    for _ in range(more):
                        learner.train().practise(tasks, update)
                    after = earned(learner, tasks)
        assert after > before, f"it earned {before:.3g} an episode before practice and {after:.3g} after; mend practise"


def earned(learner: Learner, tasks: Environments) -> float:
    """Return what an episode brings on average."""
    return float(brought(learner.eval(), tasks, Generator().manual_seed(0)).mean())


def pickles_to_a_worker_process(cls: type[Learner]) -> None:
    """A learner pickles, and what comes back acts alike."""
    learner = built(cls, SPECS[0])
    again = pickle.loads(pickle.dumps(learner))
    assert torch.equal(acted(learner), acted(again)), "it acts otherwise after pickling; keep its state in parameters"


LEARNER_CHECKS: list[Callable[[Any], None]] = [
    obeys_the_contract,
    its_defaults_exist,
    returns_have_their_shape,
    is_finite_at_both_ends_of_every_range,
    an_outer_step_moves_every_parameter,
    keeps_no_memory_between_tasks,
    chance_comes_from_the_generator,
    an_outer_step_repeats_from_a_seed,
    serves_other_numbers_of_episodes,
    serves_one_episode_at_a_time,
    practice_pays,
    pickles_to_a_worker_process,
]


def _sampler(source: Any) -> tuple[TaskSampler, TaskSpec]:
    try:
        sampler = source.cls(source.cls.Config(**source.settings))
    except UserError as error:
        if source.settings:
            raise
        raise Skipped(f"its default settings give no tasks ({error}); check it with settings") from None
    return sampler, sampler.spec(1, N_SHOT, N_QUERY)


def _drawn(source: Any, pool: Pool = "train", seed: int = 0) -> Environments:
    sampler, spec = _sampler(source)
    return sampler.environments(pool, spec, N_TASKS, Generator().manual_seed(seed))


def _lived(source: Any, tasks: Environments, n_episodes: int = 3, seed: int = 0) -> list[tuple[Tensor, ...]]:
    """Act at random in tasks; return what was observed, earned and ended, step by step."""
    draw, (_, spec) = Generator().manual_seed(seed), _sampler(source)
    state, found = tasks.start(n_episodes, draw), list[tuple[Tensor, ...]]()
    for _ in range(tasks.horizon):
        shape = (len(tasks), n_episodes)
        action = (
            torch.randint(spec.n_actions, shape, generator=draw)
            if spec.n_actions
            else torch.randn(*shape, spec.y_size, generator=draw)
        )
        seen, kept = tasks.observe(state), state.clone()
        after, reward, ended = tasks.step(state, action, draw)
        assert torch.equal(state, kept), "step wrote to the state that it was given; return a new one"
        found.append((seen, reward, ended))
        state = after
    return found


def follows_the_contract(source: Any) -> None:
    """Name, kind, Config and the rest are what the plugin loader asks for."""
    problems = list(violations(source.cls, TaskSampler))
    assert not problems, "; ".join(problems)


def environments_have_their_shapes(source: Any) -> None:
    """Observations, rewards and ends have the shapes that the spec says, in every pool, and numbers are finite."""
    _, spec = _sampler(source)
    got = (spec.kind, spec.n_way, spec.n_shot, spec.n_query)
    assert got == ("control", 1, N_SHOT, N_QUERY), f"spec says {got}; it must say what it was asked for"
    for pool in POOLS:
        tasks = _drawn(source, pool)
        assert tuple(tasks.told.shape) == (N_TASKS, spec.n_told), (
            f"told has shape {tuple(tasks.told.shape)}; it must be (n_tasks, n_told) = {(N_TASKS, spec.n_told)}"
        )
        for seen, reward, ended in _lived(source, tasks):
            shapes = (tuple(seen.shape), tuple(reward.shape), tuple(ended.shape))
            want = ((N_TASKS, 3, *spec.x_shape), (N_TASKS, 3), (N_TASKS, 3))
            assert shapes == want, f"observation, reward and end have shapes {shapes}; they must be {want}"
            assert ended.dtype == torch.bool, f"whether episodes ended is {ended.dtype}; it must be bool"
            assert seen.isfinite().all(), f"observations of the {pool} pool are not finite"
            assert reward.isfinite().all(), f"rewards of the {pool} pool are not finite"


def same_seed_same_environments(source: Any) -> None:
    """The same generator state gives the same tasks and the same episodes, and another seed gives others."""
    before = random_states()
    tasks, same, other = _drawn(source), _drawn(source), _drawn(source, seed=1)
    assert torch.equal(tasks.told, same.told), "the same seed gave other tasks; draw from the generator passed in"
    assert not torch.equal(tasks.told, other.told), "another seed gave the same tasks; draw from the generator"
    for one, again in zip(_lived(source, tasks), _lived(source, same), strict=True):
        assert all(map(torch.equal, one, again)), "the same seed gave other episodes; draw from the generator passed in"
    assert before == random_states(), "it drew from a global generator; draw from the one passed in"


SAMPLER_CHECKS: list[Callable[[Any], None]] = [
    follows_the_contract,
    environments_have_their_shapes,
    same_seed_same_environments,
]
