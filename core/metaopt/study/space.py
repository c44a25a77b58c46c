"""The space a study searches: pipelines, each a learner with what surrounds it, as one flat dict of names.

A pipeline is written {"learner": "maml", "maml.inner_lr": 0.1, …, "encoder": "conv4", "conv4.width": 64, …,
"outer.lr": 0.001, …}: complete, fixed values included, so that it can be built without the study file.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from metaopt import tune
from metaopt.augment import Augment
from metaopt.learner import Learner
from metaopt.nn import Encoder, Precision
from metaopt.train import Outer

Params = dict[str, Any]
Section = Mapping[str, tune.Parameter]
TURNS = "tasks.train_turns"
"""The parameter of learners with a `from_features` alone."""
RESOLUTION = "tasks.resolution"
"""The parameter of all learners that train an encoder."""


@dataclass(frozen=True)
class Drawing:
    """How the tasks of meta-training are drawn. Learners share these under `tasks.`; a study fixes or searches each."""

    train_way: int = tune.integer(2, 100, log=True, default=5)
    """Classes in a train task."""
    train_shot: int = tune.integer(1, 100, log=True, default=1)
    """Support examples a class."""
    train_query: int = tune.integer(1, 100, log=True, default=5)
    """Query examples a class: fewer give more tasks in the same time."""
    train_within: float = tune.real(0.0, 1.0, default=0.0)
    """The share of train tasks whose classes all come from one group."""
    train_same_source: float = tune.real(0.0, 1.0, default=0.0)
    """The share of train tasks whose classes have their examples from the same sources, such as drawers."""
    resolution: int = tune.integer(8, 1024, log=True, default=1024)
    """Pixels a side at most that pictures have for the encoder, at meta-test, too: fewer give more tasks in a time."""
    train_turns: bool = tune.choice(False, True)
    """Whether each example of a train task takes its turn in the support set, for learners with `from_features`."""


@dataclass(frozen=True)
class Space:
    """Every pipeline a study may try."""

    learners: Mapping[str, Section]
    encoders: Mapping[str, Section]
    outer: Section
    """What the study file says of the outer loop; what it leaves out is at each learner's own default."""
    augment: Section
    """What it says of augmentation; what neither it nor the learner's own defaults name is off."""
    learner_classes: Mapping[str, type[Learner]]
    encoder_classes: Mapping[str, type[Encoder]]
    tasks: Section = dataclasses.field(default_factory=dict)
    """What is searched of how train tasks are drawn."""
    drawing: Drawing = Drawing()
    """How they are drawn where that is not searched, and by default where it is."""
    precision: Precision = "float32"
    """In which encoders compute."""

    def suggest(self, trial: tune.Trial, learner: str | None = None) -> Params:
        """Return the pipeline that an Optuna trial chooses, of any learner or of that one.

        Only what may vary is asked of it.
        """
        return self._walk(lambda name, parameter, default: parameter.suggest(trial, name), learner)

    def default(self, learner: str, encoder: str | None = None) -> Params:
        """Return the learner's default pipeline, moved into the ranges where the study file narrowed them.

        With `encoder`, the one on that encoder.
        """

        def decide(name: str, parameter: tune.Parameter, default: Any) -> Any:
            return encoder if name == "encoder" and encoder else parameter.nearest(default)

        return self._walk(decide, learner)

    def nearest(self, params: Params) -> Params:
        """Return the pipeline of this space nearest to one of another study, of a learner that this space has.

        What that one does not say is at the learner's default.
        """

        def decide(name: str, parameter: tune.Parameter, default: Any) -> Any:
            given = params.get(name, default)
            try:
                return parameter.nearest(given)
            except TypeError:  # of another kind, as a number where there are names now
                return parameter.nearest(default)

        return self._walk(decide, params["learner"])

    def searched(self, params: Params) -> Params:
        """Return the part of a pipeline that the study searches."""
        asked: Params = {}

        def ask(name: str, parameter: tune.Parameter, default: Any) -> Any:
            if not isinstance(parameter, tune.Fixed):
                asked[name] = params[name]
            return params[name]

        self._walk(ask)
        return asked

    def described(self) -> list[dict[str, Any]]:
        """Return every parameter that is searched: name, range, when it is asked, and each learner's default."""
        classes = self.learner_classes.values()
        encoding = [cls for cls in classes if cls.uses_encoder]
        trained = [cls for cls in classes if cls.trains_on != "nothing"]
        owners: list[tuple[str, type, Section, list[type[Learner]]]] = [
            *((name, cls.Config, self.learners[name], [cls]) for name, cls in self.learner_classes.items()),
            *((name, cls.Config, self.encoders[name], encoding) for name, cls in self.encoder_classes.items()),
            ("outer", Outer, self.outer, trained),
            ("augment", Augment, self.augment, trained),
            ("tasks", Drawing, self.tasks, trained),
        ]
        found = []
        if len(self.encoders) > 1 and encoding:
            usual = {cls.name: _one_of(self.encoders).nearest(cls.defaults.get("encoder")) for cls in encoding}
            found.append({"name": "encoder", "range": str(_one_of(self.encoders)), "when": {}, "defaults": usual})
        for owner, config, given, used_by in owners:
            declared = vars(self.drawing) if config is Drawing else vars(config())
            for name, parameter in given.items():
                full = f"{owner}.{name}"
                able = [cls for cls in used_by if owner != "tasks" or name in self._of_tasks(cls)]
                usual = {cls.name: parameter.nearest(cls.defaults.get(full, declared[name])) for cls in able}
                if not isinstance(parameter, tune.Fixed) and usual:
                    when = dict(tune.conditions(config)[name])
                    found.append({"name": full, "range": str(parameter), "when": when, "defaults": usual})
        return found

    def idle(self, params: Params) -> list[str]:
        """Return the parameters of a pipeline that do nothing, as others have not the values that they wait for."""
        learner, encoder = params["learner"], params.get("encoder")
        owners: list[tuple[str, type]] = [(learner, self.learner_classes[learner].Config), ("outer", Outer)]
        if encoder:
            owners.append((encoder, self.encoder_classes[encoder].Config))
        return [
            f"{owner}.{field}"
            for owner, config in owners
            for field, when in tune.conditions(config).items()
            if f"{owner}.{field}" in params
            and not all(params[f"{owner}.{other}"] == value for other, value in when.items())
        ]

    def settled(self) -> frozenset[str]:
        """Return the learners of which nothing is searched, so that one trial tells all there is to know.

        Empty where that is so of every learner: then there is nothing else to try.
        """
        settled = {learner for learner in self.learners if self.searched(self.default(learner)).keys() <= {"learner"}}
        return frozenset(settled if settled < self.learners.keys() else ())

    def real(self) -> str | None:
        """Return the name of a parameter that is searched and real, the first; None where all are countable."""
        sections = {**self.learners, **self.encoders, "outer": self.outer, "augment": self.augment, "tasks": self.tasks}
        found = (
            f"{owner}.{name}"
            for owner, section in sections.items()
            for name, parameter in section.items()
            if isinstance(parameter, tune.Real)
        )
        return next(found, None)

    def transductive(self, params: Params) -> bool:
        """Tell whether a pipeline lets the prediction for one query depend on the others."""
        learner, encoder = params["learner"], params.get("encoder")
        owners: list[tuple[str, type]] = [(learner, self.learner_classes[learner].Config)]
        if encoder:
            owners.append((encoder, self.encoder_classes[encoder].Config))
        return self.learner_classes[learner].transductive or any(
            params[f"{owner}.{field}"] in getattr(parameter, "transductive", ())
            for owner, config in owners
            for field, parameter in tune.declared(config).items()
        )

    def _walk(self, decide: Any, learner: str | None = None) -> Params:
        """Visit the parameters of one pipeline in order, deciding each by its name, its range and its default."""
        params: Params = {}
        learner = learner or decide("learner", _one_of(self.learners), None)
        params["learner"] = learner
        cls = self.learner_classes[learner]
        _visit(params, learner, cls.Config, self.learners[learner], cls.defaults, decide)
        if cls.uses_encoder:
            encoder = params["encoder"] = decide("encoder", _one_of(self.encoders), cls.defaults.get("encoder"))
            _visit(params, encoder, self.encoder_classes[encoder].Config, self.encoders[encoder], cls.defaults, decide)
        if cls.trains_on != "nothing":
            _visit(params, "outer", Outer, self.outer, cls.defaults, decide)
            named = {name.removeprefix("augment.") for name in cls.defaults if name.startswith("augment.")}
            _visit(params, "augment", Augment, self.augment, cls.defaults, decide, named | self.augment.keys())
        defaults = {f"tasks.{name}": value for name, value in vars(self.drawing).items()} | dict(cls.defaults)
        _visit(params, "tasks", Drawing, self.tasks, defaults, decide, self._of_tasks(cls))
        return params

    def _of_tasks(self, cls: type[Learner]) -> list[str]:
        """Return what of the searched drawing of tasks a learner has use for."""
        useful = {
            RESOLUTION: cls.uses_encoder and cls.trains_on != "nothing",
            TURNS: cls.trains_on == "tasks" and cls.takes_turns(),
        }
        return [name for name in self.tasks if useful.get(f"tasks.{name}", cls.trains_on == "tasks")]


def _one_of(sections: Mapping[str, Section]) -> tune.Parameter:
    names = tuple(sections)
    return tune.Choice(names) if len(names) > 1 else tune.Fixed(names[0])


def _visit(
    params: Params,
    owner: str,
    config: type,
    given: Section,
    defaults: Mapping[str, Any],
    decide: Any,
    fields: Collection[str] | None = None,
) -> None:
    """Decide the fields of `config` in order; one whose condition does not hold keeps its default, unsearched.

    With `fields` only these are decided, the others left out.
    """
    declared_default = config()
    for field, when in tune.conditions(config).items():
        if fields is not None and field not in fields:
            continue
        name = f"{owner}.{field}"
        default = defaults.get(name, getattr(declared_default, field))
        parameter = given.get(field, tune.Fixed(default))
        if all(params[f"{owner}.{other}"] == value for other, value in when.items()):
            params[name] = decide(name, parameter, default)
        else:
            params[name] = parameter.nearest(default)


def section(params: Params, owner: str) -> Params:
    """Return one owner's part of a pipeline, by field: section(params, "maml") is MAML's configuration."""
    return {name.removeprefix(f"{owner}."): value for name, value in params.items() if name.startswith(f"{owner}.")}
