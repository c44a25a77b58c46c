"""The study file: read, checked, and resolved into a `Study` in which nothing is left to guess."""

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import yaml

from metaopt import tune
from metaopt.augment import Augment
from metaopt.errors import UserError, unknown
from metaopt.executor import EXECUTORS, FASTEST
from metaopt.nn import Precision
from metaopt.plugins import Registry
from metaopt.study.space import Drawing, Section, Space
from metaopt.study.strategy import SAMPLERS, STRATEGIES
from metaopt.task import Pool, TaskSampler, TaskSpec
from metaopt.train import Budget, Outer

TASK_KEYS = (
    "sampler",
    "n_way",
    "n_shot",
    "n_query",
    "within",
    "same_source",
    "unequal",
    "stream",
    "train_way",
    "train_shot",
    "train_query",
    "train_within",
    "train_same_source",
    "train_turns",
    "resolution",
)
KEYS = (
    "name",
    "tasks",
    "learners",
    "encoder",
    "outer",
    "augment",
    "objective",
    "prefer",
    "search_on",
    "transductive",
    "trials",
    "timeout",
    "budget",
    "evaluation",
    "final",
    "strategy",
    "sampler",
    "warm_start",
    "portfolio",
    "prune",
    "executor",
    "precision",
    "isolation",
    "limits",
    "seed",
)
BUILTIN = "builtin"
"""In `warm_start`: the portfolio that comes with metaopt."""
MEMBERS = 10
"""Of an ensemble, where a study says `ensemble: true`."""
MAX_BYTES = 1_000_000
UNREADABLE = (yaml.YAMLError, RecursionError, ValueError)
"""What reading YAML raises: ValueError for numbers of thousands of digits."""


@dataclass(frozen=True)
class Tasks:
    """Which tasks a study is about; the train tasks may have other sizes than those a learner is scored on."""

    sampler: str
    config: Any
    n_way: int
    n_shot: int | tuple[int, int]
    """Support examples a class: a number, or the least and the most, of which each batch draws one."""
    n_query: int
    """Query examples a class; 0 in a stream."""
    within: float
    same_source: float
    unequal: bool
    """Whether each class of a task has shots of its own, where these are a range."""
    stream: bool
    """Whether a task is a sequence in which each label is told one step late."""
    train_way: int
    train_shot: int | tuple[int, int]
    train_query: int
    train_within: float
    train_same_source: float
    train_turns: bool
    resolution: int
    searched: Section = field(default_factory=dict)
    """Of the seven before it, those that trials choose, and their ranges; they have the default of these."""

    @property
    def drawing(self) -> Drawing:
        """How train tasks are drawn by default, of a range of shots the most."""
        shot = self.train_shot[1] if isinstance(self.train_shot, tuple) else self.train_shot
        return Drawing(
            self.train_way,
            shot,
            self.train_query,
            self.train_within,
            self.train_same_source,
            self.resolution,
            self.train_turns,
        )

    def specs(self, sampler: TaskSampler) -> tuple[TaskSpec, TaskSpec]:
        """Return the sizes of the tasks that learners are scored on, and of those that they are trained on."""
        return (
            self._sizes(sampler, self.n_way, self.n_shot, self.n_query, self.within, self.same_source),
            self._sizes(
                sampler, self.train_way, self.train_shot, self.train_query, self.train_within, self.train_same_source
            ),
        )

    def _sizes(
        self,
        sampler: TaskSampler,
        n_way: int,
        shots: int | tuple[int, int],
        n_query: int,
        within: float,
        same_source: float,
    ) -> TaskSpec:
        least_shot, n_shot = shots if isinstance(shots, tuple) else (0, shots)
        unequal = self.unequal and bool(least_shot)
        return replace(
            sampler.spec(n_way, n_shot, n_query),
            least_shot=least_shot,
            within=within,
            same_source=same_source,
            unequal=unequal,
            stream=self.stream,
        )


@dataclass(frozen=True)
class Evaluation:
    """How many tasks score a trial, in how many folds, how many trials are finalists, how often and how long each of
    these is meta-trained anew, how many fresh tasks score those, and of how many members an ensemble of them may be.
    """

    tasks: int = 200
    cpu_seconds: float | None = None
    """After which a trial has been scored on enough of these tasks, for some learners adapt slowly; None for all."""
    folds: int = 0
    """0: on the validation pool; otherwise the classes of the train and validation pools take turns in being that."""
    finalists: int = 3
    repeats: int = 1
    longer: int = 1
    """How many times as long finalists are meta-trained as in the search. If more than once, as many learners as can be
    are among them: some gain more from time than others."""
    report_tasks: int = 1000
    ensemble: int = 0
    """Members, of whom one may be there several times; 0 for no ensemble."""


@dataclass(frozen=True)
class Preference:
    """What decides among trials of which none beats another in all objectives: the best in one, within bounds."""

    objective: str
    bounds: tuple[tuple[str, Literal["<=", ">="], float], ...] = ()

    def __str__(self) -> str:
        return ", ".join([self.objective, *(f"{name}{sign}{value:g}" for name, sign, value in self.bounds)])

    def met(self, values: Mapping[str, float]) -> bool:
        """Tell whether scores by objective keep the bounds."""
        return all(
            values[name] <= value if sign == "<=" else values[name] >= value for name, sign, value in self.bounds
        )


@dataclass(frozen=True)
class Limits:
    """What a trial in a process of its own may take; None for no limit."""

    time: float | None = None
    """Seconds by the wall clock; as many times more for a finalist as it is scored on more tasks, and trained longer;
    for the winner as `final` is longer than the budget, or without a limit where the two are not in one unit."""
    memory: int | None = None
    """Bytes that it may allocate, on the host."""


@dataclass(frozen=True)
class Study:
    """A resolved study."""

    name: str
    tasks: Tasks
    space: Space
    objectives: Mapping[str, Any]
    """What a trial is scored by, with each one's Config. Of several, those trials win that no other beats in all."""
    prefer: Preference
    """Which of these the winner is."""
    search_on: Pool
    transductive: bool
    trials: int
    timeout: float | None
    """Seconds for all of it, finalists and report included; None for no limit."""
    budget: Budget
    evaluation: Evaluation
    final: Budget | None
    """For which the winner is meta-trained once more, on the train and the validation pool together; None: not."""
    strategy: str
    """How the next trial is chosen: by one model of the whole space, or by a bandit over learners."""
    sampler: str
    """Which of Optuna's samplers models it."""
    warm_start: tuple[str, ...]
    """Portfolios and run folders of other studies, whose best pipelines are tried after the defaults."""
    portfolio: str | None
    """A file to which the study adds what it found best, when it is finished."""
    prune: bool
    """Whether a hopeless trial is stopped during meta-training."""
    executor: str | Mapping[str, str]
    """How tasks are computed, of all learners or by learner."""
    isolation: Literal["none", "process"]
    """Whether each trial runs in a process of its own, so that a learner that crashes costs its trial only."""
    limits: Limits
    seed: int

    @property
    def objective(self) -> str:
        """The objective that decides which trial is better, or which of several that no other beats in all."""
        return self.prefer.objective

    def to_dict(self) -> dict[str, Any]:
        """Return the study as a study file with every default written out."""
        sampler_config = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self.tasks.config).items()
        }
        return {
            "name": self.name,
            "tasks": {
                key: list(value) if isinstance(value := getattr(self.tasks, key), tuple) else value for key in TASK_KEYS
            }
            | _written(self.tasks.searched, Drawing)
            | sampler_config,
            "learners": {
                name: _written(section, self.space.learner_classes[name].Config)
                for name, section in self.space.learners.items()
            },
            "encoder": {
                name: _written(section, self.space.encoder_classes[name].Config)
                for name, section in self.space.encoders.items()
            },
            "outer": _written(self.space.outer, Outer),
            "augment": _written(self.space.augment, Augment),
            "objective": self._objective_written(),
            **({"prefer": str(self.prefer)} if len(self.objectives) > 1 else {}),
            "search_on": self.search_on,
            "transductive": self.transductive,
            "trials": self.trials,
            "timeout": self.timeout,
            "budget": _of_budget(self.budget),
            "evaluation": {key: value for key, value in asdict(self.evaluation).items() if value is not None},
            "final": self.final and _of_budget(self.final),
            "strategy": self.strategy,
            "sampler": self.sampler,
            "warm_start": list(self.warm_start),
            "portfolio": self.portfolio,
            "prune": self.prune,
            "executor": self.executor,
            "precision": self.space.precision,
            "isolation": self.isolation,
            "limits": {key: value for key, value in asdict(self.limits).items() if value is not None},
            "seed": self.seed,
        }

    def _objective_written(self) -> Any:
        written = {
            name: {key: value for key, value in asdict(config).items() if value != getattr(type(config)(), key)} or None
            for name, config in self.objectives.items()
        }
        return next(iter(written)) if len(written) == 1 and not any(written.values()) else written

    def to_yaml(self) -> str:
        """Return the text of that study file."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False)


def load(
    path: Path, registry: Registry, overrides: Sequence[str] = (), proposed: dict[str, Any] | None = None
) -> Study:
    """Read and resolve a study file, with `path.to.key=value` overrides. Raises UserError where anything is off.

    With `proposed`, the mapping of one made for the data at `path`, nothing is read.
    """
    raw = read(path) if proposed is None else proposed
    for override in overrides:
        override_key(raw, override)
    return resolve(raw, str(path), registry)


def read(path: Path) -> dict[str, Any]:
    """Return a study file's mapping. Raises UserError where it is missing, too large, or not such a YAML file."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path}: {size:,} bytes is too large for a study file, which may have {MAX_BYTES:,}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the study file {path}: {error.strerror}; give the path of a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file in UTF-8; a study file is YAML text") from None
    try:
        raw = yaml.load(text, _Loader)
    except UNREADABLE as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}: not valid YAML: {problem}; mend that line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a study file is a mapping of keys such as `tasks:` and `learners:`, not {_kind(raw)}")
    return raw


def override_key(raw: dict[str, Any], override: str) -> None:
    """Apply one `path.to.key=value` to a study file's mapping, the value read as YAML."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise UserError(f"--set {override!r}: write it as path.to.key=value, such as --set tasks.n_way=20")
    try:
        value = yaml.load(text, _Loader)
    except UNREADABLE:
        raise UserError(
            f"--set {override!r}: {text!r} is not a YAML value; quote it, or write a number or a text"
        ) from None
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        if isinstance(raw, dict) and raw.get(key) is None:
            raw[key] = {}
        elif isinstance(raw, dict) and isinstance(raw[key], list) and all(isinstance(item, str) for item in raw[key]):
            raw[key] = dict.fromkeys(raw[key])  # a plain list of names is short for their mapping
        raw = raw[key] if isinstance(raw, dict) else raw
        if not isinstance(raw, dict):
            raise UserError(f"--set {override!r}: {'.'.join(parents[: depth + 1])!r} holds a value, not keys to set")
    raw[last] = value


def resolve(raw: Mapping[str, Any], where: str, registry: Registry) -> Study:
    """Return the study that a study file's mapping describes. Raises UserError naming `where` and the key."""
    top = _Mapping(where, "", raw)
    top.only(KEYS)
    with top.at("name"):
        name = _name(raw.get("name", Path(where).stem))
    transductive = top.get("transductive", _flag, False)
    tasks = _tasks(top, registry)
    kind = registry.task_sampler(tasks.sampler).kind
    learners = _names(top, "learners", registry.learner, required=True)
    for learner in learners:
        cls = registry.learner(learner)
        if kind not in cls.kinds:
            top.fail(f"learners.{learner}", f"it learns {' and '.join(cls.kinds)} and the sampler {tasks.sampler!r} "
                     f"gives {kind} tasks; leave it out or take another sampler")  # fmt: skip
        if (given := registry.task_sampler(tasks.sampler).supports) != cls.supports:
            top.fail(f"learners.{learner}", f"it learns from {cls.supports} of classes and the sampler "
                     f"{tasks.sampler!r} gives {given}; leave it out or take another sampler")  # fmt: skip
        if tasks.stream and not cls.streams():
            able = ", ".join(sorted(one for one, other in registry.learners.items() if other.streams()))
            top.fail(f"learners.{learner}", "it cannot learn a stream, in which each label is told one step late; take "
                     f"one that can ({able}), or leave out tasks.stream")  # fmt: skip
        if tasks.unequal and cls.equal_shots:
            top.fail(f"learners.{learner}", "it needs as many support examples of each class; leave it out, or "
                     "tasks.unequal")  # fmt: skip
        if cls.transductive and not transductive:
            top.fail(f"learners.{learner}", "it is transductive (a query's prediction depends on the other queries); "
                     "set transductive: true to allow that, or leave it out")  # fmt: skip
        if cls.is_told and not all(registry.learner(other).is_told for other in learners):
            top.fail(f"learners.{learner}", "it is told which task it is in, and the others have to find out; leave it "
                     "out, or give it a study of its own")  # fmt: skip
        if not cls.any_way and (tasks.train_way != tasks.n_way or "train_way" in tasks.searched):
            asked = tasks.searched.get("train_way", tasks.train_way)
            top.fail("tasks.train_way", f"{learner} learns a fixed number of ways, and train_way {asked} is not n_way "
                     f"{tasks.n_way}; make them equal or leave {learner} out")  # fmt: skip
    encoders = _names(top, "encoder", registry.encoder, default=registry.task_sampler(tasks.sampler).encoder)
    space = Space(
        learners={
            name: _ranges(top, f"learners.{name}", registry.learner(name).Config, given, transductive, every=True)
            for name, given in learners.items()
        },
        encoders={
            name: _ranges(top, f"encoder.{name}", registry.encoder(name).Config, given, transductive)
            for name, given in encoders.items()
        },
        outer=_ranges(top, "outer", Outer, raw.get("outer"), transductive),
        augment=_ranges(top, "augment", Augment, raw.get("augment"), transductive),
        learner_classes={name: registry.learner(name) for name in learners},
        encoder_classes={name: registry.encoder(name) for name in encoders},
        tasks=tasks.searched,
        drawing=tasks.drawing,
        precision=top.get("precision", _one_of(*get_args(Precision)), "float32"),
    )
    objectives = _objectives(top, registry, tasks.sampler, kind)
    budget, evaluation = _budget(top, "budget"), _evaluation(top)
    if raw.get("search_on") == "test" and (evaluation.folds or raw.get("final") is not None):
        top.fail("evaluation.folds" if evaluation.folds else "final", "the train and validation pools are divided or "
                 "put together, and this study searches on the test pool; leave out one of the two")  # fmt: skip
    final = _budget(top, "final") if raw.get("final") is not None else budget if evaluation.folds else None
    if evaluation.ensemble:
        if kind == "control":
            top.fail("evaluation.ensemble", "policies act, and have no predictions to take the mean of; leave it out")
        _refuse_ensemble(top, registry, objectives, final)
    return Study(
        name=name,
        tasks=tasks,
        space=space,
        objectives=objectives,
        prefer=_preference(top, objectives),
        search_on=top.get("search_on", _one_of("validation", "test"), "validation"),
        transductive=transductive,
        trials=top.get("trials", _whole(1), 30),
        timeout=top.get("timeout", duration, None),
        budget=budget,
        evaluation=evaluation,
        final=final,
        strategy=top.get("strategy", _one_of(*STRATEGIES), "joint" if raw.get("sampler") == "qmc" else STRATEGIES[0]),
        sampler=top.get("sampler", _one_of(*SAMPLERS), next(iter(SAMPLERS))),
        warm_start=top.get("warm_start", _paths, ()),
        portfolio=top.get("portfolio", _path, None),
        prune=top.get("prune", _flag, True),
        executor=top.get("executor", _executors(space.learners), "auto"),
        isolation=top.get("isolation", _one_of("none", "process"), "none"),
        limits=_limits(top),
        seed=top.get("seed", _whole(0), 0),
    )


def duration(value: object) -> float | None:
    """Return the seconds that "90s", "10m", "1.5h" or a plain number of seconds stand for. ValueError otherwise."""
    if value is None:
        return None
    seconds = 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", value.strip())):
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
    if not 0 < seconds < 1e9:  # 30 years
        raise ValueError(f"{value!r} is not a time; write it as 90s, 10m or 2h")
    return float(seconds)


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-3 is a number, 010 and 1:30 are none, only true and false are booleans, a key stands
    once.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not a text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML leaves it so
        problem = None
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not read; write the value again"
        elif event.tag is not None:
            problem = f"tags such as {event.tag!r} are not read; write the value alone"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: a text that either takes for a number is quoted, and there are no aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+|[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?|\.(inf|nan))",
        list("-+0123456789."),
    ),
):
    for _cls in (_Loader, _Dumper):
        _cls.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), _first)


class _Mapping:
    """A mapping of the study file that knows where it stands, so that every complaint names file and key."""

    def __init__(self, where: str, path: str, raw: Any) -> None:
        self.where, self.path = where, path
        if not isinstance(raw, Mapping):
            self.fail("", f"this is {_kind(raw)}, and must be a mapping of keys to values")
        self.raw = raw

    def fail(self, key: str, message: str) -> NoReturn:
        full = ".".join(part for part in (self.path, key) if part)
        raise UserError(f"{self.where}: {full + ': ' if full else ''}{message}")

    def only(self, keys: Sequence[str]) -> None:
        for key in self.raw:
            if key not in keys:
                self.fail("", unknown("key", key, keys))

    def get(self, key: str, check: Callable[[object], Any], *default: Any) -> Any:
        """Return the checked value of `key`, or the default where the key is absent."""
        if key not in self.raw:
            if default:
                return default[0]
            self.fail("", f"the key {key!r} is missing; a study file needs it")
        with self.at(key):
            return check(self.raw[key])

    def at(self, key: str) -> "_At":
        return _At(self, key)


class _At:
    """Puts file and key before a complaint."""

    def __init__(self, mapping: _Mapping, key: str) -> None:
        self.mapping, self.key = mapping, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, ValueError | UserError):
            try:
                self.mapping.fail(self.key, str(error))
            except UserError as placed:
                raise placed from None


def _tasks(top: _Mapping, registry: Registry) -> Tasks:
    tasks = _Mapping(top.where, "tasks", top.get("tasks", lambda value: value))
    name = tasks.get("sampler", _text)
    with tasks.at("sampler"):
        cls = registry.task_sampler(name)
    settings = tuple(field.name for field in fields(cls.Config))
    tasks.only([*TASK_KEYS, *settings])
    if cls.kind != "classification":
        ways, n_way = _one_of(1), tasks.get("n_way", _one_of(1), 1)  # there are no classes, so one "way"
    else:
        ways, n_way = _whole(2), tasks.get("n_way", _whole(2))
    stream = tasks.get("stream", _flag, False)
    _refuse_examples(tasks, name, cls.kind)
    shots = _presentations if stream else _shots
    n_shot = tasks.get("n_shot", shots)
    searched = _searched(tasks, cls.kind, stream)
    train_shot = n_shot if "train_shot" in searched else tasks.get("train_shot", shots, n_shot)
    queries = _no_queries if stream else _whole(1)
    n_query = tasks.get("n_query", queries, 0 if stream else 15)
    unequal = tasks.get("unequal", _flag, False)
    for asked in ("stream", "unequal"):
        if tasks.raw.get(asked) is True and cls.supports == "descriptions":
            tasks.fail(
                asked, f"the support sets of the sampler {name!r} hold one description of each class; leave it out"
            )
    if unequal and cls.kind == "regression":
        tasks.fail("unequal", f"the sampler {name!r} gives regression tasks, which have no classes; leave it out")
    if unequal and not (isinstance(n_shot, tuple) or isinstance(train_shot, tuple)):
        tasks.fail("unequal", f"each class draws its shots from a range, and n_shot is {n_shot}; write the least and "
                   "the most, such as n_shot: [1, 5], or leave it out")  # fmt: skip
    within, train_within = _shares(tasks, "within", searched)
    if not cls.has_groups and (key := _asked("within", within, train_within, searched)):
        grouped = sorted(other for other, sampler in registry.task_samplers.items() if sampler.has_groups)
        tasks.fail(key, f"the classes of the sampler {name!r} belong to no groups; leave it out, or take a sampler "
                   f"with groups: {', '.join(grouped)}")  # fmt: skip
    same_source, train_same_source = _shares(tasks, "same_source", searched)
    if not cls.has_sources and (key := _asked("same_source", same_source, train_same_source, searched)):
        able = sorted(other for other, sampler in registry.task_samplers.items() if sampler.has_sources)
        tasks.fail(key, f"the sampler {name!r} does not know the sources of its examples; leave it out, or take a "
                   f"sampler that does: {', '.join(able)}")  # fmt: skip
    train_turns = "train_turns" not in searched and tasks.get("train_turns", _flag, False)
    if train_turns or "train_turns" in searched:
        for key, other in (("sampler", cls.kind != "classification"), ("stream", stream), ("unequal", unequal)):
            if other:
                tasks.fail("train_turns", "examples can take turns where each class of a task has as many, and not "
                           f"with this tasks.{key}; leave one of the two out")  # fmt: skip
    as_given = Drawing().resolution
    given = {key: tasks.raw[key] for key in settings if key in tasks.raw}
    config = {key: _fixed(parameter) for key, parameter in _narrowed(tasks, cls.Config, given).items()}
    return Tasks(
        sampler=name,
        config=cls.Config(**config),
        n_way=n_way,
        n_shot=n_shot,
        n_query=n_query,
        within=within,
        same_source=same_source,
        unequal=unequal,
        stream=stream,
        train_way=_drawn(searched, "train_way", n_way) or tasks.get("train_way", ways, n_way),
        train_shot=_drawn(searched, "train_shot", n_shot) or train_shot,
        train_query=_drawn(searched, "train_query", n_query) or tasks.get("train_query", queries, n_query),
        train_within=train_within,
        train_same_source=train_same_source,
        train_turns=_drawn(searched, "train_turns", False) if "train_turns" in searched else train_turns,
        resolution=_drawn(searched, "resolution", as_given) or tasks.get("resolution", _whole(8), as_given),
        searched=searched,
    )


def _refuse_examples(tasks: _Mapping, sampler: str, kind: str) -> None:
    """Refuse what is for examples where tasks are environments."""
    if kind != "control":
        return
    for key in ("stream", "unequal"):
        if tasks.raw.get(key) is True:
            tasks.fail(key, f"the sampler {sampler!r} gives environments, which hold no examples; leave it out")
    for key in ("n_shot", "train_shot"):
        if isinstance(tasks.raw.get(key), list):
            tasks.fail(key, "all environments of a study have as many episodes to learn from; write one number")


def _shares(tasks: _Mapping, key: str, searched: Mapping[str, tune.Parameter]) -> tuple[float, float]:
    """Return the share of tasks that have something, and of train tasks: by default the same, or the nearest to it."""
    train, share = f"train_{key}", tasks.get(key, _share, 0.0)
    return share, _drawn(searched, train, share) if train in searched else tasks.get(train, _share, share)


def _asked(key: str, share: float, train: float, searched: Mapping[str, tune.Parameter]) -> str | None:
    """Return the key by which something is asked for; None where it is not."""
    return key if share else f"train_{key}" if train or f"train_{key}" in searched else None


def _searched(tasks: _Mapping, kind: str, stream: bool) -> dict[str, tune.Parameter]:
    """Return what of the drawing of train tasks is written as a range; a list of shots is a range for each batch."""
    searched: dict[str, tune.Parameter] = {}
    for key, declared in tune.declared(Drawing).items():
        given = tasks.raw.get(key)
        if not isinstance(given, Mapping if key == "train_shot" else Mapping | list):
            continue
        if kind != "classification" and key in {"train_way", "train_within", "train_same_source", "train_turns"}:
            tasks.fail(key, f"{kind} tasks have no classes to draw; leave it out")
        if stream and key == "train_query":
            tasks.fail(key, "a stream has no queries of its own; leave it out")
        with tasks.at(key):
            parameter = tune.narrow(declared, given)
        searched[key] = parameter
    return searched


def _drawn(searched: Mapping[str, tune.Parameter], key: str, usual: Any) -> Any:
    """Return the default of what is searched: what the tasks have that learners are scored on, or the nearest to it."""
    if key not in searched:
        return None
    return searched[key].nearest(usual[1] if isinstance(usual, tuple) else usual)


def _fixed(parameter: tune.Parameter) -> Any:
    assert isinstance(parameter, tune.Fixed), "a task sampler's Config holds settings, not ranges"
    return parameter.value


def _names(
    top: _Mapping,
    key: str,
    find: Callable[[str], type],
    *,
    required: bool = False,
    default: str | None = None,
) -> dict[str, Any]:
    """Return a section written as one name, a list of names, or a mapping of names to ranges, as that mapping."""
    given = top.raw.get(key) if not required else top.get(key, lambda value: value)
    if given is None and default:
        given = default
    if isinstance(given, str):
        given = {given: None}
    if isinstance(given, list):
        given = dict.fromkeys(map(str, given))
    if not isinstance(given, Mapping) or not given:
        top.fail(key, f"this is {_kind(given)}, and must be names: a list, or a mapping of names to their ranges")
    for name in given:
        with top.at(key):
            find(name)
    return dict(given)


def _ranges(
    top: _Mapping, path: str, config: type, given: Any, transductive: bool, *, every: bool = False
) -> dict[str, tune.Parameter]:
    """Return the parameters of one section: those it names, or with `every` all that are declared."""
    section = _Mapping(top.where, path, {} if given is None else given)
    ranges = _narrowed(section, config, section.raw, every)
    for name, parameter in ranges.items():
        declared = tune.declared(config)[name]
        banned = () if transductive else getattr(declared, "transductive", ())
        named = section.raw.get(name)
        if isinstance(parameter, tune.Choice):
            if clash := [option for option in parameter.options if option in banned and isinstance(named, list)]:
                section.fail(name, _transductive(clash[0]))
            left = tuple(option for option in parameter.options if option not in banned)
            ranges[name] = tune.Choice(left, parameter.transductive) if len(left) > 1 else tune.Fixed(left[0])
        elif parameter.value in banned if isinstance(parameter, tune.Fixed) else False:
            section.fail(name, _transductive(parameter.value))
    return ranges


def _transductive(value: object) -> str:
    return f"{value!r} is transductive (a query's prediction depends on the other queries); set transductive: true"


def _narrowed(section: _Mapping, config: type, given: Mapping[str, Any], every: bool = False) -> dict[str, Any]:
    declared = tune.declared(config)
    for key in given:
        if key not in declared:
            section.fail("", unknown("key", key, declared))
    ranges = {}
    for name, parameter in declared.items():
        if name in given or every:
            with section.at(name):
                ranges[name] = tune.narrow(parameter, given[name]) if name in given else parameter
    return ranges


def _of_budget(budget: Budget) -> dict[str, Any]:
    return {key: value for key, value in asdict(budget).items() if value is not None}


def _budget(top: _Mapping, key: str) -> Budget:
    budget = _Mapping(top.where, key, top.get(key, lambda value: value, {"tasks": 4000}))
    budget.only(["tasks", "cpu_seconds"])
    if len(budget.raw) != 1:
        budget.fail("", "give one of the two, {tasks: 4000} or {cpu_seconds: 10}")
    return Budget(tasks=budget.get("tasks", _whole(1), None), cpu_seconds=budget.get("cpu_seconds", duration, None))


def _evaluation(top: _Mapping) -> Evaluation:
    evaluation = _Mapping(top.where, "evaluation", top.get("evaluation", lambda value: value, {}))
    evaluation.only([field.name for field in fields(Evaluation)])
    folds: int = evaluation.get("folds", _whole(0), Evaluation.folds)
    if folds == 1:
        evaluation.fail("folds", "one fold leaves nothing to train on; set 2 or more, or 0 for the validation pool")
    # Of one task there is no interval.
    least = {"tasks": max(2, folds), "folds": 0, "finalists": 1, "repeats": 1, "longer": 1,
             "report_tasks": max(2, folds)}  # fmt: skip
    given = {key: evaluation.get(key, _whole(low), getattr(Evaluation, key)) for key, low in least.items()}
    cpu_seconds = evaluation.get("cpu_seconds", duration, Evaluation.cpu_seconds)
    ensemble = evaluation.get("ensemble", _members, Evaluation.ensemble)
    return Evaluation(**given, cpu_seconds=cpu_seconds, ensemble=ensemble)


def _members(value: object) -> int:
    if isinstance(value, bool):
        return MEMBERS if value else 0
    count = _whole(0)(value)
    if count == 1:
        raise ValueError("one member is no ensemble; write true, or a number of 2 or more")
    return count


def _refuse_ensemble(top: _Mapping, registry: Registry, objectives: Mapping[str, Any], final: Budget | None) -> None:
    """Refuse an ensemble where there are no finalists to make one of, or nothing to choose its members by."""
    [name, *others] = objectives
    objective, path = registry.meta_objective(name)(objectives[name]), "evaluation.ensemble"
    if final:
        top.fail(path, "an ensemble is of finalists as they are, and final (which folds imply) trains the winner anew; "
                 "leave out one of the two")  # fmt: skip
    if others:
        top.fail(path, f"members are chosen by one objective, and there are {', '.join(objectives)}; leave out one of "
                 "the two")  # fmt: skip
    if not objective.judges_predictions or objective.steps is not None or objective.fits_temperature:
        top.fail(path, f"members are chosen by how good their mean predictions are, which {name} does not score; leave "
                 "out one of the two")  # fmt: skip


def _limits(top: _Mapping) -> Limits:
    limits = _Mapping(top.where, "limits", top.get("limits", lambda value: value, {}))
    limits.only([field.name for field in fields(Limits)])
    if limits.raw and top.raw.get("isolation") != "process":
        limits.fail("", "only a trial in a process of its own can be limited; set isolation: process")
    if "memory" in limits.raw and sys.platform != "linux":
        limits.fail("memory", "memory can be limited on Linux only; leave it out")
    return Limits(limits.get("time", duration, None), limits.get("memory", _bytes, None))


def _bytes(value: object) -> int:
    """Return the bytes that "500MB", "2GB" or a plain number of bytes stand for. ValueError otherwise."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|G|T|)B?", str(value))
    size = float(match[1]) * 1000 ** ["", "k", "M", "G", "T"].index(match[2]) if match else 0
    if not 1e6 <= size < 1e15:
        raise ValueError(f"{value!r} is not a size of 1MB or more; write it as 500MB or 2GB")
    return int(size)


def _objectives(top: _Mapping, registry: Registry, sampler: str, kind: str) -> dict[str, Any]:
    usual = {"classification": "accuracy", "regression": "mse", "control": "return_after"}[kind]
    given = _names(top, "objective", registry.meta_objective, default=usual)
    objectives = {}
    for name, settings in given.items():
        cls = registry.meta_objective(name)
        if kind not in cls.kinds:
            top.fail("objective", f"{name!r} does not score {kind} tasks, which the sampler {sampler!r} gives; "
                     f"choose one of: {', '.join(_objectives_for(registry, kind))}")  # fmt: skip
        section = _Mapping(top.where, f"objective.{name}", {} if settings is None else settings)
        objectives[name] = cls.Config(
            **{key: _single(section, key, one) for key, one in _narrowed(section, cls.Config, section.raw).items()}
        )
    return objectives


def _single(section: _Mapping, key: str, parameter: tune.Parameter) -> Any:
    if not isinstance(parameter, tune.Fixed):
        section.fail(key, "an objective's setting is one value, not a range to search; write one")
    return parameter.value


def _preference(top: _Mapping, objectives: Mapping[str, Any]) -> Preference:
    first = next(iter(objectives))
    written = top.get("prefer", _text, first)
    with top.at("prefer"):
        name, *conditions = (part.strip() for part in written.split(","))
        bounds = [re.fullmatch(r"(\w+)\s*(<=|>=)\s*(\S+)", condition) for condition in [name, *conditions]]
        if bounds[0]:  # bounds alone: the first objective decides
            name = first
        else:
            bounds = bounds[1:]
        for one in [name, *(bound[1] for bound in bounds if bound)]:
            if one not in objectives:
                raise UserError(unknown("objective of this study", one, objectives))
        try:
            return Preference(name, tuple((bound[1], bound[2], float(bound[3])) for bound in bounds))  # type: ignore[index,misc]
        except (TypeError, ValueError):
            raise UserError(
                f"{written!r} is not an objective's name with bounds on others; write it as "
                f"'{first}' or '{first}, parameters<=50000'"
            ) from None


def _objectives_for(registry: Registry, kind: str) -> list[str]:
    return sorted(name for name, objective in registry.meta_objectives.items() if kind in objective.kinds)


def _written(section: Section, config: type) -> dict[str, Any]:
    """Return a section as a study file writes it."""
    written: dict[str, Any] = {}
    declared = tune.declared(config)
    for name, parameter in section.items():
        match parameter:
            case tune.Fixed(None) if isinstance(declared[name], tune.Choice):
                written[name] = [None]  # None alone stands for the declared range
            case tune.Fixed(value):
                written[name] = value
            case tune.Choice(options):
                written[name] = list(options)
            case tune.Real() | tune.Integer():
                written[name] = {"low": parameter.low, "high": parameter.high}
    return written


def _whole(low: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0 or value < low:
            raise ValueError(f"{value!r} is not a whole number of {low} or more")
        return int(value)

    return check


def _shots(value: object) -> int | tuple[int, int]:
    if not isinstance(value, list):
        return _whole(1)(value)
    least, most = map(_whole(1), value) if len(value) == 2 else (0, 0)
    if not 0 < least < most:
        raise ValueError(f"{value!r} is not the least and the most shots, such as [1, 5]; write two whole numbers")
    return least, most


def _presentations(value: object) -> int | tuple[int, int]:
    shots = _shots(value)
    if (shots[0] if isinstance(shots, tuple) else shots) < 2:
        raise ValueError(f"{value!r}: in a stream each class is shown twice or more, as the first is a guess; set "
                         "2 or more, such as 10")  # fmt: skip
    return shots


def _no_queries(value: object) -> int:
    if value != 0 or isinstance(value, bool):
        raise ValueError(f"{value!r}: a stream asks for each of its presentations and has no other queries; leave it "
                         "out")  # fmt: skip
    return 0


def _paths(value: object) -> tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(
            f"{value!r} must be portfolios or run folders of other studies, such as [{BUILTIN}, runs/quickstart]"
        )
    return tuple(paths)


def _path(value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value or value == BUILTIN):
        raise ValueError(f"{value!r} must be the path of a portfolio of your own, such as portfolio.json")
    return value


def _share(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not a share of the tasks; write a number from 0 to 1")
    return float(value)


def _one_of(*allowed: Any) -> Callable[[object], Any]:
    def check(value: object) -> Any:
        if value not in allowed or isinstance(value, bool):
            raise ValueError(f"{value!r} must be {' or '.join(map(str, allowed))}")
        return value

    return check


def _executors(learners: Collection[str]) -> Callable[[object], str | dict[str, str]]:
    """Take the name of an executor, or one for each of some learners."""
    name = _one_of("auto", FASTEST, *EXECUTORS)

    def check(value: object) -> Any:
        if not isinstance(value, dict):
            return name(value)
        for learner, one in value.items():
            if learner not in learners:
                raise ValueError(unknown("learner of this study", learner, learners))
            if one not in ("auto", *EXECUTORS):
                raise ValueError(f"{learner}: {one!r} must be {' or '.join(('auto', *EXECUTORS))}")
        return value

    return check


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a name")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} must be true or false")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError(f"{value!r} names the run folder; use letters, digits, '.', '_' and '-', at most 100")
    return value


def _kind(value: object) -> str:
    kinds = {dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}
    return "empty" if value is None or value in ([], {}) else kinds.get(type(value), "a number")
