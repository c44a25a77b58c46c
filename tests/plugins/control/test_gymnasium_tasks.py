"""Environments of Gymnasium become families of tasks that go on as they do by themselves."""

import gc
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from torch import Generator, Tensor

from metaopt.errors import UserError
from metaopt.task import POOLS, Pool
from metaopt.testing import checks_for, parametrize_with_checks
from metaopt_control.gymnasium_tasks import GymnasiumTasks, Worlds

G = {"train": [8, 11], "validation": [11, 12.5], "test": [12.5, 15]}
PENDULUM = {"env": "Pendulum-v1", "parameters": {"g": G}, "horizon": 20}
CARTPOLE = {"env": "CartPole-v1", "parameters": {"gravity": [5, 15], "length": [0.3, 0.7]}}
LAKE = {"env": "FrozenLake-v1", "parameters": {"success_rate": [0.4, 0.9]}, "settings": {"desc": ["SFF", "FHG"]}}
ROW = Box(-1, 1, (2,))


class Still(gymnasium.Env[Any, Any]):
    """Shows nothing new, keeps what it is given, and pays it."""

    closed: ClassVar[list[float]] = []

    def __init__(self, seen: Space[Any] = ROW, done: Space[Any] = ROW, wide: float = 0.0, most: float = 9.0) -> None:
        if wide > most:
            raise ValueError(f"wide is above {most:g}.\nIt must not be.")
        self.observation_space, self.action_space = seen, done
        if wide:
            self.action_space = Box(-wide, wide, (2 if wide < 8 else 3,))
        self.wide, self.heavy, self.label, self.given = wide, 1, "a", list[Any]()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.given.append(action)
        return self.observation_space.sample(), float(np.sum(action)), False, False, {}

    def close(self) -> None:
        self.closed.append(self.wide)


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    gymnasium.register("Still-v0", Still)
    yield
    del gymnasium.registry["Still-v0"]


def sampler(settings: dict[str, Any]) -> GymnasiumTasks:
    return GymnasiumTasks(GymnasiumTasks.Config(**settings))


def drawn(settings: dict[str, Any], n_tasks: int = 2, pool: Pool = "train", seed: int = 0) -> Worlds:
    family = sampler(settings)
    return family.environments(pool, family.spec(1, 1, 1), n_tasks, Generator().manual_seed(seed))


def shown(env: gymnasium.Env[Any, Any], seen: Any) -> Tensor:
    return torch.as_tensor(gymnasium.spaces.flatten(env.observation_space, seen)).float()


def made_of(**spaces: Space[Any]) -> dict[str, Any]:
    return {"env": "Still-v0", "parameters": {"heavy": [1, 2]}, "settings": spaces, "horizon": 5}


@pytest.mark.parametrize("settings", [PENDULUM, CARTPOLE, LAKE], ids=lambda settings: settings["env"])
@pytest.mark.parametrize("name", checks_for(GymnasiumTasks))
def test_it_does_what_every_sampler_of_environments_must(name: str, settings: dict[str, Any]) -> None:
    checks_for(GymnasiumTasks, settings)[name]()


@parametrize_with_checks([GymnasiumTasks])
def test_without_settings_there_is_nothing_to_check(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("settings", [PENDULUM, CARTPOLE, LAKE], ids=lambda settings: settings["env"])
def test_an_episode_is_that_of_gymnasium_by_itself(settings: dict[str, Any]) -> None:
    tasks, draw = drawn(settings), Generator().manual_seed(1)
    state = tasks.start(3, draw)
    n = tasks.family.n_actions
    alone = []
    for number, env in enumerate(tasks.running):
        values = tasks.values[number // 3]
        attributes = {name: values[name] for name in values if settings["env"] == "CartPole-v1"}
        arguments = {name: values[name] for name in values if name not in attributes}
        steps = {"max_episode_steps": settings.get("horizon")}
        by_hand = gymnasium.make(settings["env"], **steps, **settings.get("settings", {}), **arguments)
        for name, value in attributes.items():
            setattr(by_hand.unwrapped, name, value)
        first, _ = by_hand.reset(seed=env.unwrapped.np_random_seed)
        alone.append(by_hand)
        assert torch.equal(tasks.observe(state).flatten(0, 1)[number], shown(by_hand, first))
    over = [False] * 6
    for _ in range(tasks.horizon):
        action = torch.randint(n, (2, 3), generator=draw) if n else 0.4 * torch.randn(2, 3, 1, generator=draw)
        state, reward, ended = tasks.step(state, action, draw)
        for number, env in enumerate(alone):
            if not over[number]:
                done = action.flatten(0, 1)[number]
                given = int(done) if n else (2 * done).clamp(-2, 2).numpy()  # a pendulum is turned by −2 to 2
                seen, paid, terminated, truncated, _ = env.step(given)
                assert torch.equal(tasks.observe(state).flatten(0, 1)[number], shown(env, seen))
                assert float(reward.flatten()[number]) == pytest.approx(float(paid), rel=1e-6)
                over[number] = terminated or truncated
        assert ended.flatten().tolist() == over
    assert all(over)


def test_an_ended_episode_stands_still_and_pays_nothing() -> None:
    tasks = drawn(CARTPOLE)
    state = tasks.start(2, Generator().manual_seed(0))
    over = torch.zeros(2, 2, dtype=torch.bool)
    for _ in range(100):  # who always goes left soon falls
        before, was = tasks.observe(state), over
        state, reward, over = tasks.step(state, torch.zeros(2, 2, dtype=torch.long), None)
        assert torch.equal(reward, (~was).float())
        assert torch.equal(tasks.observe(state)[was], before[was])
        assert (over | ~was).all()
    assert over.all()
    assert not tasks.step(tasks.start(2, None), torch.zeros(2, 2, dtype=torch.long), None)[2].any()


@pytest.mark.parametrize("pool", POOLS)
def test_each_environment_has_what_its_pool_draws(pool: Pool) -> None:
    tasks = drawn(PENDULUM, 50, pool)
    tasks.start(2, None)
    low, high = G[pool]
    pull = [env.unwrapped.g for env in tasks.running]  # type: ignore[attr-defined]  # of a pendulum
    assert pull == [values["g"] for values in tasks.values for _ in range(2)]
    assert low <= min(pull) < low + 0.2 * (high - low) < high - 0.2 * (high - low) < max(pull) <= high


def test_a_number_that_is_no_argument_is_set_as_an_attribute() -> None:
    tasks = drawn(CARTPOLE)
    tasks.start(1, None)
    for env, values in zip(tasks.running, tasks.values, strict=True):
        inner: Any = env.unwrapped
        assert (inner.gravity, inner.length) == (values["gravity"], values["length"])


def test_what_is_told_has_mean_0_and_standard_deviation_1_in_the_train_range() -> None:
    told = drawn(CARTPOLE, 5000).told
    torch.testing.assert_close(told.mean(0), torch.zeros(2), rtol=0, atol=0.05)
    torch.testing.assert_close(told.std(0), torch.ones(2), rtol=0.03, atol=0)
    assert drawn(PENDULUM, 50, "test").told.min() > 3**0.5


def test_a_plain_range_is_that_of_all_pools() -> None:
    family = sampler(CARTPOLE)
    assert family.ranges["length"] == dict.fromkeys(POOLS, (0.3, 0.7))


def test_actions_go_from_the_lower_bound_to_the_upper_one_and_no_further() -> None:
    done = Box(np.array([0, -np.inf, 0, -4], np.float32), np.array([10, np.inf, np.inf, 4], np.float32))
    tasks = drawn(made_of(done=done), 1)
    state = tasks.start(1, None)
    for number in (-1, 0, 1, 50):
        state, reward, _ = tasks.step(state, torch.full((1, 1, 4), float(number)), None)
    given: Any = tasks.running[0].unwrapped
    assert np.array(given.given).tolist() == [[0, -1, 0, -4], [5, 0, 0, 0], [10, 1, 1, 4], [10, 50, 50, 4]]
    assert given.given[0].dtype == np.float32
    assert float(reward) == 114


def test_where_a_parameter_widens_the_bounds_actions_go_as_far() -> None:
    tasks = drawn({"env": "Still-v0", "parameters": {"wide": [1, 5]}, "horizon": 5}, 3)
    _, reward, _ = tasks.step(tasks.start(1, None), torch.ones(3, 1, 2), None)
    torch.testing.assert_close(reward[:, 0], torch.tensor([2 * values["wide"] for values in tasks.values]))


def test_choices_and_what_is_seen_may_begin_at_another_number_than_0() -> None:
    tasks = drawn(made_of(done=Discrete(3, start=5), seen=Discrete(4, start=-1)))
    state = tasks.start(2, None)
    assert tasks.observe(state).shape == (2, 2, 4)
    assert tasks.observe(state).sum(-1).eq(1).all()
    _, reward, _ = tasks.step(state, torch.tensor([[0, 1], [2, 0]]), None)
    assert reward.tolist() == [[5, 6], [7, 5]]


@pytest.mark.parametrize(("shape", "x_shape"), [((3, 4, 2), (3, 4, 2)), ((), (1,))])
def test_what_is_seen_keeps_the_shape_of_its_box(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    tasks = drawn(made_of(seen=Box(0, 255, shape, np.uint8)))
    assert tasks.family.spec(1, 1, 1).x_shape == x_shape
    assert tasks.observe(tasks.start(2, None)).shape == (2, 2, *x_shape)


def test_an_earlier_state_cannot_be_acted_in_and_a_copy_of_the_latest_can() -> None:
    tasks, still = drawn(PENDULUM), torch.zeros(2, 1, 1)
    first = tasks.start(1, None)
    second, _, _ = tasks.step(first.clone(), still, None)
    with pytest.raises(RuntimeError, match="cannot go back to an earlier state"):
        tasks.step(first, still, None)
    tasks.step(second, still, None)
    tasks.start(1, None)
    with pytest.raises(RuntimeError, match="cannot go back to an earlier state"):
        tasks.step(second, still, None)


def test_without_a_generator_chance_comes_from_that_of_torch() -> None:
    tasks, found = drawn(PENDULUM), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(tasks.start(2, None)[..., :-1])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("horizon", [7, 300])
def test_an_episode_ends_at_the_horizon_that_is_set(horizon: int) -> None:
    tasks = drawn(PENDULUM | {"horizon": horizon}, 1)
    state, ends = tasks.start(1, None), []
    for _ in range(horizon):
        state, _, ended = tasks.step(state, torch.zeros(1, 1, 1), None)
        ends.append(bool(ended))
    assert ends == [False] * (horizon - 1) + [True]
    assert drawn({**PENDULUM, "horizon": None}).horizon == 200


def test_environments_serve_again_and_are_closed_when_nobody_needs_them() -> None:
    tasks = drawn({"env": "Still-v0", "parameters": {"wide": [1, 5]}, "horizon": 5})
    tasks.start(3, None)
    first = list(tasks.running)
    tasks.start(1, None)
    assert [id(env) for env in tasks.running] == [id(first[0]), id(first[3])]
    wide = [values["wide"] for values in tasks.values]
    Still.closed.clear()
    del tasks, first
    gc.collect()
    assert Still.closed == [one for one in wide for _ in range(3)]


def test_another_device_has_the_same_tasks() -> None:
    tasks = drawn(PENDULUM)
    moved = tasks.to(torch.device("cpu"))
    assert moved.values == tasks.values
    assert torch.equal(moved.told, tasks.told)


def test_a_sampler_pickles_to_a_worker_process() -> None:
    family = pickle.loads(pickle.dumps(sampler(CARTPOLE)))
    tasks = family.environments("train", family.spec(1, 1, 1), 1, Generator().manual_seed(0))
    assert tasks.values == drawn(CARTPOLE, 1).values


def test_an_id_may_name_a_module_to_import_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gym_of_mine.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('Mine-v0', PendulumEnv, max_episode_steps=30)\n"
        "gymnasium.register('Mine-v1', PendulumEnv, max_episode_steps=40)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert drawn({"env": "gym_of_mine:Mine-v0", "parameters": {"g": [8, 9]}}).horizon == 30  # of which is no warning
    for name in ("Mine-v0", "Mine-v1"):
        del gymnasium.registry[name]


def test_without_gymnasium_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"tasks\.sampler: gymnasium is not installed; pip install 'metaopt-fewshot\["):
        sampler(PENDULUM)


SENTENCES: list[tuple[dict[str, Any], str]] = [
    ({"env": ""}, "tasks.env is empty; set it to an id such as Pendulum-v1, or module:Id-v0"),
    ({"env": "Pendulums-v1"}, "tasks.env: gymnasium cannot make 'Pendulums-v1' with g = 8 (Environment `Pendulums` "
     "doesn't exist. Did you mean: `Pendulum`?); mend the id, tasks.parameters or tasks.settings, or install what it "
     "needs"),
    ({"env": "no_such:Pendulum-v1"}, "No module named 'no_such'"),
    ({"env": "a:b:c"}, "tasks.env: gymnasium cannot make 'a:b:c'"),
    ({"horizon": 0}, "tasks.horizon is 0; an episode has 1 step or more, a whole number"),
    ({"horizon": 2.5}, "tasks.horizon is 2.5"),
    ({"horizon": True}, "tasks.horizon is True"),
    ({"env": "Still-v0", "parameters": {"heavy": [1, 2]}, "horizon": None},
     "tasks.horizon: Still-v0 has no limit of its own; set it to a number of steps"),
    ({"parameters": None}, "tasks.parameters is None; name what tells the tasks apart, such as {g: [8, 12]}"),
    ({"parameters": ["g"]}, "tasks.parameters is ['g']; name what tells"),
    ({"parameters": {"gg": [8, 9]}}, "tasks.parameters: no number in Pendulum-v1 named 'gg'; did you mean 'g'?"),
    ({"env": "FrozenLake-v1", "parameters": {"success": [0, 1]}}, "did you mean 'success_rate'?"),
    ({"env": "Still-v0", "parameters": {"label": [8, 9]}}, "tasks.parameters: no number in Still-v0 named 'label'"),
    ({"settings": [1]}, "tasks.settings is [1]; it must be a mapping of arguments to values"),
    ({"settings": {"g": 9}}, "tasks.settings.g: each task has one of its own by tasks.parameters; leave out one"),
    ({"settings": {"gg": 9}}, "got an unexpected keyword argument 'gg'"),
    ({"parameters": {"g": {"train": [8, 9], "val": [9, 10], "test": [9, 10]}}},
     "tasks.parameters.g has ranges for train, val, test; give one each to train, validation, test"),
    ({"parameters": {"g": G | {"test": [9, 9]}}},
     "tasks.parameters.g.test is [9, 9]; a range is two numbers, the lower one first, such as [8, 12]"),
    *(({"parameters": {"g": given}}, f"tasks.parameters.g is {given!r}; a range is two numbers")
      for given in (8, [8], [8, 9, 10], [9, 8], ["8", "9"], [False, True], [8, float("inf")], [float("nan"), 9],
                    [0, 10**400])),
    ({"env": "Still-v0", "parameters": {"wide": [1, 12]}}, "tasks.env: gymnasium cannot make 'Still-v0' with wide = 12 "
     "(wide is above 9. It must not be); mend the id, tasks.parameters or tasks.settings, or install what it needs"),
    ({"env": "Still-v0", "parameters": {"wide": [1, 9]}}, "tasks.parameters: they change the sizes of what is seen or "
     "done in Still-v0, and all tasks are of one size; leave out what changes them"),
    (made_of(seen=MultiDiscrete([2, 3])), "tasks.env: what is seen in Still-v0 is a MultiDiscrete([2 3]); take one in "
     "which it is a Box or Discrete"),
    (made_of(done=MultiDiscrete([2, 3])), "tasks.env: what is done in Still-v0 is a MultiDiscrete([2 3]); take one in "
     "which it is Discrete, or a Box of real numbers in a row"),
    (made_of(done=Box(0, 1, (2, 2))), "tasks.env: what is done in Still-v0 is a Box(0.0, 1.0, (2, 2), float32)"),
    (made_of(done=Box(0, 9, (2,), np.int64)), "tasks.env: what is done in Still-v0 is a Box(0, 9, (2,), int64)"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "said"), SENTENCES)
def test_what_does_not_fit_is_refused_in_a_sentence(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        sampler(PENDULUM | settings)
    assert said in str(refused.value)
    assert "\n" not in refused.value.args[0]
