"""A study searches complete pipelines: a learner with what surrounds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import optuna
import pytest
import yaml
from torch import nn

from metaopt import plugins, tune
from metaopt.learner import Learner
from metaopt.nn import Encoder
from metaopt.study.file import resolve
from metaopt.study.space import Params, Space, section
from metaopt.train import Outer

REGISTRY = plugins.load()
ALL = """
tasks: {sampler: glyphs, n_way: 5, n_shot: 1}
learners: [protonet, maml, reptile, pretrain, pixels]
encoder: {conv4: {width: {low: 8, high: 64}, pool: }, mlp: {depth: 2}}
outer: {optimizer: , lr: {low: 0.002, high: 0.01}, sgd_lr: , tasks_per_step: 4}
"""
OWNERS = {
    "outer": Outer,
    **{name: cls.Config for name, cls in REGISTRY.learners.items()},
    **{name: cls.Config for name, cls in REGISTRY.encoders.items()},
}


def space_of(text: str) -> Space:
    return resolve(yaml.safe_load(text), "a.yaml", REGISTRY).space


def suggestions(space: Space, n: int = 100) -> list[tuple[Params, dict[str, Any]]]:
    """Return pipelines that random trials choose, each with what was asked of its trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    trials = [study.ask() for _ in range(n)]
    return [(space.suggest(trial), dict(trial.params)) for trial in trials]


def allowed(name: str, value: object) -> bool:
    owner, _, field = name.partition(".")
    parameter = tune.declared(OWNERS[owner])[field]
    if isinstance(parameter, tune.Fixed):
        return True
    return parameter.check(value) == value  # it raises where the value is outside


def build(params: Params) -> None:
    """Build the parts of a pipeline from it alone; a missing or an odd name raises."""
    left = set(params) - {"learner", "encoder"}
    for owner in ("outer", params["learner"], *([params["encoder"]] if "encoder" in params else [])):
        if part := section(params, owner):
            config = OWNERS[owner](**part)
            assert vars(config) == part, "no field may be left at an unwritten default"
            left -= {f"{owner}.{field}" for field in part}
    assert not left


def test_a_suggested_pipeline_is_complete_and_inside_the_declared_ranges() -> None:
    seen = set()
    for params, _ in suggestions(space_of(ALL)):
        seen.add((params["learner"], params.get("encoder")))
        build(params)
        assert all(allowed(name, value) for name, value in params.items() if "." in name)
    assert seen == {(a, b) for a in ("protonet", "maml", "reptile", "pretrain") for b in ("conv4", "mlp")} | {
        ("pixels", None)
    }


def test_a_default_pipeline_is_complete_too() -> None:
    space = space_of(ALL)
    for learner in space.learners:
        params = space.default(learner)
        assert params["learner"] == learner
        build(params)


def test_what_is_searched_is_what_was_asked() -> None:
    space = space_of(ALL)
    for params, asked in suggestions(space):
        assert space.searched(params) == asked
        assert asked.keys() <= params.keys()
        assert {"mlp.depth", "outer.tasks_per_step"}.isdisjoint(asked), "fixed values are not asked"


def test_a_single_learner_and_a_single_encoder_are_not_asked() -> None:
    space = space_of("{tasks: {sampler: glyphs, n_way: 5, n_shot: 1}, learners: {protonet: {distance: cosine}}}")
    for params, asked in suggestions(space, 5):
        assert asked.keys() == {"protonet.temperature"}
        assert (params["learner"], params["encoder"], params["protonet.distance"]) == ("protonet", "conv4", "cosine")


def test_a_conditional_parameter_is_asked_only_where_its_condition_holds() -> None:
    asked_for: dict[str, set[str]] = {"adam": set(), "sgd": set()}
    for params, asked in suggestions(space_of(ALL)):
        if optimizer := params.get("outer.optimizer"):
            asked_for[optimizer] |= {"outer.lr", "outer.sgd_lr"} & asked.keys()
            other = "outer.sgd_lr" if optimizer == "adam" else "outer.lr"
            assert other in params, "it is there all the same"
    assert asked_for == {"adam": {"outer.lr"}, "sgd": {"outer.sgd_lr"}}


def test_learners_that_train_on_nothing_have_no_outer_loop_and_no_encoder() -> None:
    space = space_of(ALL)
    assert space.default("pixels") == {"learner": "pixels"}
    pixels = [params for params, _ in suggestions(space) if params["learner"] == "pixels"]
    assert pixels
    assert all(params == {"learner": "pixels"} for params in pixels)


def test_a_default_uses_the_learners_own_shared_defaults() -> None:
    default = space_of("{tasks: {sampler: glyphs, n_way: 5, n_shot: 1}, learners: [reptile, protonet]}").default
    reptile, protonet = default("reptile"), default("protonet")
    assert section(reptile, "outer") == vars(Outer(optimizer="sgd", sgd_lr=1.0, schedule="linear", tasks_per_step=5))
    assert section(protonet, "outer") == vars(Outer())


@pytest.mark.parametrize(
    ("outer", "name", "moved"),
    [
        ("lr: {low: 0.002, high: 0.01}", "outer.lr", 0.002),
        ("lr: {low: 0.0001, high: 0.0005}", "outer.lr", 0.0005),
        ("lr: {low: 0.0005, high: 0.01}", "outer.lr", 0.001),
        ("lr: 0.05", "outer.lr", 0.05),
        ("tasks_per_step: {low: 8}", "outer.tasks_per_step", 8),
        ("optimizer: [sgd, adam]", "outer.optimizer", "adam"),
        ("schedule: [linear, cosine]", "outer.schedule", "linear"),
    ],
)
def test_a_default_is_moved_into_the_ranges_that_the_study_narrowed(outer: str, name: str, moved: object) -> None:
    text = "{tasks: {sampler: glyphs, n_way: 5, n_shot: 1}, learners: protonet, outer: {%s}}" % outer  # noqa: UP031
    assert space_of(text).default("protonet")[name] == moved


def test_what_a_study_leaves_out_of_the_outer_loop_is_at_each_learners_own_default() -> None:
    space = space_of("{tasks: {sampler: glyphs, n_way: 5, n_shot: 1}, learners: [reptile, protonet], outer: {lr: }}")
    for params, _ in suggestions(space, 30):
        assert params["outer.optimizer"] == ("sgd" if params["learner"] == "reptile" else "adam")


def test_a_default_may_be_had_on_each_encoder() -> None:
    space = space_of(ALL)
    assert [space.default("maml", encoder)["encoder"] for encoder in ("conv4", "mlp")] == ["conv4", "mlp"]
    assert space.default("maml", "mlp")["mlp.depth"] == 2
    assert space.default("pixels", "mlp") == {"learner": "pixels"}


def test_a_section_is_one_owners_part() -> None:
    params = {"learner": "maml", "maml.inner_lr": 0.1, "maml_pp.inner_lr": 0.2, "outer.lr": 0.3, "encoder": "maml"}
    assert section(params, "maml") == {"inner_lr": 0.1}
    assert section(params, "conv4") == {}


class Blind(Encoder):
    name = "blind"

    @dataclass(frozen=True)
    class Config:
        norm: str = tune.choice("none", "batch", transductive=("batch",))


class Sharing(Learner):
    name = "sharing"
    defaults: ClassVar[dict[str, Any]] = {}

    @dataclass(frozen=True)
    class Config:
        share: bool = tune.choice(False, True, transductive=(True,))
        mood: str = tune.choice("good", "bad")

    def __init__(self, *_: Any) -> None:
        nn.Module.__init__(self)


class Shared(Sharing):
    name = "shared"
    transductive = True


@pytest.mark.parametrize(
    ("cls", "change", "transductive"),
    [
        (Sharing, {}, False),
        (Sharing, {"sharing.mood": "bad"}, False),
        (Sharing, {"sharing.share": True}, True),
        (Sharing, {"blind.norm": "batch"}, True),
        (Shared, {}, True),
    ],
)
def test_a_pipeline_is_transductive_by_its_learner_or_by_one_option(
    cls: type[Learner], change: Params, transductive: bool
) -> None:
    every: Callable[[Any], dict[str, tune.Parameter]] = tune.declared
    space = Space(
        {cls.name: every(cls.Config)}, {"blind": every(Blind.Config)}, {}, {}, {cls.name: cls}, {"blind": Blind}
    )
    assert space.transductive(space.default(cls.name) | change) is transductive


# Augmentation


def test_augmentation_is_part_of_a_pipeline_only_where_the_study_names_it() -> None:
    plain = space_of(ALL)
    assert not any(name.startswith("augment.") for name in plain.default("protonet"))
    named = space_of(ALL + "augment: {turn: , rotate: {low: 0, high: 20}, shift: 0.1}\n")
    default = named.default("protonet")
    assert section(default, "augment") == {"turn": "none", "rotate": 0.0, "shift": 0.1}
    assert not section(named.default("pixels"), "augment"), "it is not meta-trained"
    seen = {params["augment.turn"] for params, _ in suggestions(named) if "augment.turn" in params}
    assert seen == {"none", "task", "class"}
    assert all(params.get("augment.shift", 0.1) == 0.1 for params, _ in suggestions(named))


def test_a_learner_is_settled_where_nothing_of_it_or_around_it_is_searched() -> None:
    assert space_of(ALL).settled() == {"pixels"}
    protonet = "protonet: {distance: euclidean, temperature: 1}"
    fixed = f"{{tasks: {{sampler: glyphs, n_way: 5, n_shot: 1}}, learners: {{{protonet}, maml: }}}}"
    assert space_of(fixed).settled() == {"protonet"}
    all_fixed = f"{{tasks: {{sampler: glyphs, n_way: 5, n_shot: 1}}, learners: {{{protonet}, pixels: }}}}"
    assert space_of(all_fixed).settled() == set(), "there is nothing else to try"


# How train tasks are drawn


def test_how_train_tasks_are_drawn_is_chosen_only_where_the_study_gives_ranges() -> None:
    drawn = ALL.replace("n_shot: 1}", "n_shot: 1, train_query: [1, 2], train_shot: {low: 1, high: 3}, train_within: 0}")
    space = space_of(drawn.replace("sampler: glyphs", "sampler: omniglot"))
    assert section(space.default("protonet"), "tasks") == {"train_shot": 1, "train_query": 1}
    assert not section(space.default("pretrain"), "tasks"), "it is trained on examples"
    assert not section(space_of(ALL).default("protonet"), "tasks")
    seen = {params["tasks.train_shot"] for params, _ in suggestions(space) if "tasks.train_shot" in params}
    assert seen == {1, 2, 3}


def test_a_searched_resolution_is_chosen_for_every_learner_that_trains_an_encoder() -> None:
    space = space_of(ALL.replace("n_shot: 1}", "n_shot: 1, resolution: [28, 20]}"))
    found = {learner: space.default(learner).get("tasks.resolution") for learner in space.learners}
    assert found == {"protonet": 28, "maml": 28, "reptile": 28, "pretrain": 28, "pixels": None}
    described = next(entry for entry in space.described() if entry["name"] == "tasks.resolution")
    assert described["defaults"].keys() == {"protonet", "maml", "reptile", "pretrain"}


def test_what_is_searched_is_described_with_each_learners_default_and_its_condition() -> None:
    found = {entry["name"]: entry for entry in space_of(ALL).described()}
    assert found["maml.inner_lr"]["defaults"] == {"maml": 0.1}
    assert found["outer.lr"]["range"] == "0.002 to 0.01, log scale"
    assert found["outer.lr"]["when"] == {"optimizer": "adam"}
    assert found["outer.lr"]["defaults"].keys() == {"protonet", "maml", "reptile", "pretrain"}, "pixels learns nothing"
    assert "outer.tasks_per_step" not in found, "it is fixed"
    assert found["encoder"]["range"] == "one of conv4, mlp"


def test_what_waits_for_another_value_is_idle() -> None:
    space = space_of(ALL)
    assert space.idle(space.default("protonet")) == ["outer.sgd_lr"]
    assert "outer.lr" in space.idle(space.default("protonet") | {"outer.optimizer": "sgd"})
