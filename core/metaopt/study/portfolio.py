"""Learning across studies: what each found best for its tasks, and where a new study begins by it.

A portfolio is a JSON file of finished studies: a description of each one's tasks, and of every learner the pipeline
that did best there. A new study tries, after the defaults, the pipelines of those studies whose tasks are most like its
own (Feurer, Springenberg & Hutter, 2015, "Initializing Bayesian hyperparameter optimization via meta-learning"). It is
data from a stranger and never code: what is not of the shape of a portfolio is refused, and pipelines that today's
learners do not declare are left out.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from metaopt import seeds, tune
from metaopt.augment import Augment
from metaopt.errors import UserError, of_disk
from metaopt.files import write_json
from metaopt.nn import class_means, squared_distances
from metaopt.plugins import Registry
from metaopt.study import leaderboard
from metaopt.study.file import BUILTIN, load
from metaopt.study.folder import refuse_links
from metaopt.study.space import Drawing, Params
from metaopt.study.trial import Bench
from metaopt.task import ClassPool, TaskBatch, draw_tasks
from metaopt.train import Budget, Outer

try:
    import fcntl
except ImportError:  # Windows, where two studies that end at one moment are the user's to avoid
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

FILE = "portfolio.json"
"""In a run folder: the portfolio of this one study."""
SHIPPED = Path(__file__).parents[1] / FILE
"""What `builtin` names: made by `make portfolio`."""
FORMAT = 1
MAX_BYTES, MAX_NAME = 2**24, 100
MOST = 6
"""Pipelines of earlier studies that a study tries first, at most."""
LOOKED_AT = 100
"""Tasks of the train pool from which it is told how hard they are."""


@dataclass(frozen=True)
class Description:
    """What tasks are like, in a few numbers that take a moment to find."""

    kind: str
    """classification or regression."""
    supports: str
    """What support sets hold: examples, or descriptions of classes."""
    inputs: str
    """What an example is, by its axes: a picture, a vector, an array."""
    stream: bool
    """Whether a task is a sequence."""
    shape: tuple[int, ...]
    """Of an example."""
    n_way: int
    n_shot: int
    """Support examples a class; of a range the most."""
    classes: int
    """In the train pool; 0 where there are none, as in regression."""
    groups: int
    """Such as alphabets, which classes of the train pool belong to; 0 where they belong to none."""
    nearest: float | None
    """How well raw inputs alone do: the accuracy of the nearest class mean, from 0 for chance to 1; in regression the
    share of the variance that the nearest support example explains. None where nothing can be said."""


@dataclass(frozen=True)
class Found:
    """The best pipeline of a learner in a study."""

    learner: str
    params: Params
    mean: float
    trained_tasks: int


@dataclass(frozen=True)
class Earlier:
    """A finished study, as a portfolio knows it."""

    study: str
    seed: int
    objective: str
    description: Description | None
    """None of a run folder without one, as earlier versions wrote them."""
    learners: tuple[Found, ...]
    """Best first."""


@dataclass(frozen=True)
class Start:
    """A pipeline that a study tries after its defaults."""

    params: Params
    """What of it the study searches."""
    learner: str
    study: str
    """That found it."""
    distance: float


_DESCRIPTION = {
    "kind": str, "supports": str, "inputs": str, "stream": bool, "shape": [int], "n_way": int, "n_shot": int,
    "classes": int, "groups": int, "nearest": (float, None),
}  # fmt: skip
_STUDY = {
    "study": str,
    "seed": int,
    "objective": str,
    "description": _DESCRIPTION,
    "learners": [{"learner": str, "params": dict, "mean": float, "trained_tasks": int}],
}


def describe(bench: Bench) -> Description:
    """Return what a study's tasks are like, to which neither its seed nor its other pools matter."""
    spec, sampler = bench.spec, bench.sampler
    train = getattr(sampler, "pools", {}).get("train")
    groups = train.groups.tolist() if isinstance(train, ClassPool) and train.groups is not None else []
    axes = {1: "vector", 3: "picture"}
    return Description(
        kind=spec.kind,
        supports="descriptions" if spec.description_shape else "examples",
        inputs=axes.get(len(spec.x_shape), "array"),
        stream=spec.stream,
        shape=tuple(spec.x_shape),
        n_way=spec.n_way,
        n_shot=spec.n_shot,
        classes=spec.n_train_classes,
        groups=len(set(groups)),
        nearest=None if spec.description_shape or spec.kind == "control" else _nearest(bench),
    )


def _nearest(bench: Bench) -> float | None:
    """Return how well the nearest class mean, or the nearest example, of raw inputs does: 1 all right, 0 by chance."""
    spec = replace(bench.spec, least_shot=0, unequal=False)
    if spec.stream:
        spec = replace(spec, stream=False, n_shot=spec.n_shot - 1, n_query=1)
    try:
        bench.sampler.check("train", spec)
    except UserError:  # trained on other tasks than it is scored on
        return None
    tasks = draw_tasks(bench.sampler, "train", spec, LOOKED_AT, seeds.generator(0, "description"))
    found = _nearest_mean(tasks, spec.n_way) if spec.kind == "classification" else _nearest_example(tasks)
    return round(found, 4) if math.isfinite(found) else None


def _nearest_mean(tasks: TaskBatch, n_way: int) -> float:
    right = 0.0
    for support_x, support_y, query_x, query_y in zip(*tasks.tensors(), strict=True):
        means = class_means(support_x.flatten(1), support_y, n_way)
        answers = squared_distances(query_x.flatten(1), means).argmin(1)
        right += float((answers == query_y).double().mean()) / len(tasks)
    return (right - 1 / n_way) / (1 - 1 / n_way)


def _nearest_example(tasks: TaskBatch) -> float:
    errors = []
    for support_x, support_y, query_x, query_y in zip(*tasks.tensors(), strict=True):
        nearest = squared_distances(query_x.flatten(1), support_x.flatten(1)).argmin(1)
        errors.append(support_y[nearest] - query_y)
    return 1 - float(torch.cat(errors).square().mean() / tasks.query_y.var())


def distance(one: Description, other: Description) -> float:
    """Return how unlike tasks are; infinite where a learner of the one cannot be one of the other.

    These count 1 each: ten times as large an example, four times as many ways or shots, ten times as many classes or
    groups to train on, 0.25 more that the nearest class mean gets right, and being a sequence or not; being pictures or
    not counts 2.
    """
    if (one.kind, one.supports) != (other.kind, other.supports):
        return math.inf
    far = 2.0 * (one.inputs != other.inputs) + 1.0 * (one.stream != other.stream)
    far += abs(math.log10(math.prod(one.shape)) - math.log10(math.prod(other.shape)))
    for name, base in (("n_way", 4), ("n_shot", 4), ("classes", 10), ("groups", 10)):
        far += abs(math.log((1 + getattr(one, name)) / (1 + getattr(other, name)), base))
    if one.nearest is not None and other.nearest is not None:
        far += abs(one.nearest - other.nearest) / 0.25
    return far


def of_study(bench: Bench, board: Mapping[str, Any]) -> Earlier:
    """Return what a finished study adds to a portfolio, from its leaderboard."""
    return Earlier(board["study"], board["seed"], board["objective"], describe(bench), _found(board))


def _found(board: Mapping[str, Any]) -> tuple[Found, ...]:
    return tuple(
        Found(learner, entry["params"], entry["search"]["mean"], entry["trained_tasks"])
        for learner, entry in board["learners"].items()
    )


def read(path: Path) -> list[Earlier]:
    """Return the studies of a portfolio, in its order. Raises UserError where it cannot be read.

    A study that is not of the shape that it must have is left out, with a line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or not isinstance(raw.get("studies"), list):
            raise ValueError("it lacks what a portfolio has")
        if raw.get("format") != FORMAT:
            raise ValueError(f"its format is {raw.get('format')!r}, and this metaopt reads {FORMAT}")
    except (OSError, ValueError, RecursionError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise UserError(
            f"{path}: cannot be read as a portfolio ({reason}); give one that `metaopt portfolio add` wrote, or delete "
            "it to begin another"
        ) from None
    found = []
    for number, one in enumerate(raw["studies"], 1):
        if _is_sound(one):
            learners = tuple(Found(**{field.name: had[field.name] for field in fields(Found)})
                             for had in one["learners"])  # fmt: skip
            told = {field.name: one["description"][field.name] for field in fields(Description)}
            description = Description(**{**told, "shape": tuple(told["shape"])})
            found.append(Earlier(one["study"], one["seed"], one["objective"], description, learners))
        else:
            log.warning("%s: study %d is damaged, or of another version, and left out", path, number)
    return found


def _is_sound(one: Any) -> bool:
    """Tell whether something is what a portfolio holds of a study, its numbers such as to be computed with."""
    if not leaderboard.fits(one, _STUDY):
        return False
    told = one["description"]
    names = [one["study"], *(had["learner"] for had in one["learners"])]
    counts = [*told["shape"], *(told[name] for name in ("n_way", "n_shot", "classes", "groups"))]
    return (
        all(0 < len(name) <= MAX_NAME for name in names)
        and all(0 <= count < 2**40 for count in counts)
        and len(told["shape"]) < 10
        and math.prod(told["shape"]) > 0
        and all(
            abs(number) < math.inf for number in (told["nearest"] or 0.0, *(had["mean"] for had in one["learners"]))
        )
    )


def add(path: Path, studies: Sequence[Earlier]) -> int:
    """Add studies to a portfolio, or begin one, in the place of the same ones from before; return how many it holds.

    One process does so at a time. Raises UserError where it cannot be read or written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            held = {(one.study, one.seed, one.description): one for one in (read(path) if path.exists() else [])}
            held |= {(one.study, one.seed, one.description): one for one in studies}
            _write(path, held.values())
            return len(held)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give a file that you may write") from None


def _write(path: Path, studies: Iterable[Earlier]) -> None:
    write_json(path, {"format": FORMAT, "studies": [asdict(one) for one in studies]})


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a portfolio: a file beside it, as the portfolio itself is replaced when it is written."""
    with path.with_name(f".{path.name}.lock").open("ab") as file:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def check(bench: Bench) -> None:
    """Raise UserError where the portfolio that a study will be added to cannot be read: now, and not after hours."""
    if bench.study.portfolio and Path(bench.study.portfolio).exists():
        read(Path(bench.study.portfolio))


def keep(bench: Bench, board: Mapping[str, Any], folder: Path) -> None:
    """Write a finished study's portfolio into its run folder, and add it to the one that the study names.

    What a plugin or a file spoils now is said, and spoils nothing of the study.
    """
    if board["status"] != "finished":
        return
    try:
        found = of_study(bench, board)
        _write(folder / FILE, [found])
        if bench.study.portfolio:
            add(Path(bench.study.portfolio), [found])
    except Exception as error:
        if of_disk(error):
            raise
        log.warning("%s: not added to a portfolio: %s", bench.study.name, error)


def of_run(folder: Path, registry: Registry, device: torch.device) -> list[Earlier]:
    """Return the study of a run folder, whose tasks are looked at where an earlier version has not done so.

    Raises UserError where there is none, or it is not finished.
    """
    [one, *_] = _of_folder(folder)
    if one.description is None:
        study = load(folder / "study.yaml", registry)
        one = replace(one, description=describe(Bench(study, registry, device)))
    return [one]


def _of_folder(folder: Path) -> list[Earlier]:
    refuse_links(folder)
    if (folder / FILE).exists():
        return read(folder / FILE)
    board = leaderboard.read(folder)
    if board is None:
        raise UserError(
            f"{folder} holds no {leaderboard.FILE}; give the run folder of a study, such as runs/quickstart, or a "
            "portfolio"
        )
    return [Earlier(board["study"], board["seed"], board["objective"], None, _found(board))]


def starts(bench: Bench) -> list[Start]:
    """Return what a study tries after its defaults, of the portfolios and run folders that it names.

    Each learner's best pipeline, as near as the study's own space allows, each once and no default. First those of the
    better half of the learners, then the others; of either half, first those of the study whose tasks are most like
    its own. Where the budget is in tasks, having been trained on ten times as many, or as few, counts 1 more. Raises
    UserError where a source cannot be read.
    """
    try:
        sources = [(source, _read(source)) for source in bench.study.warm_start]
    except UserError as error:
        raise UserError(f"warm_start: {error}") from None
    mine = describe(bench) if any(one.description for _, studies in sources for one in studies) else None
    space, found = bench.study.space, list[Start]()
    elsewhere = bench.registry.learners.keys() - space.learners.keys()
    near = [
        (worse, _distance(mine, one, bench.study.objective) + _length_apart(had, bench.study.budget), source, one, had)
        for source, studies in sources
        for one in studies
        for worse, had in _halves([had for had in one.learners if had.learner not in elsewhere])
    ]
    tried = [space.searched(space.default(learner)) for learner in space.learners]
    for _, far, source, one, had in sorted(near, key=lambda item: item[:2]):
        if far == math.inf:
            continue
        params = _of_today(had, bench.registry, f"warm_start: {source}: {had.learner!r} of {one.study!r}")
        if params is None:
            continue
        asked = space.searched(space.nearest(params))
        if asked not in tried and len(found) < MOST:
            tried.append(asked)
            found.append(Start(asked, had.learner, one.study, far))
    return found


def listed(source: str, like: Bench | None) -> list[dict[str, Any]]:
    """Return the studies of a portfolio or run folder as data, with a bench the most similar first."""
    mine, studies = describe(like) if like else None, _read(source)
    if like is None:
        return [asdict(one) for one in studies]
    far = [_distance(mine, one, like.study.objective) for one in studies]
    return [
        asdict(one) | {"distance": at if at < math.inf else None}
        for at, one in sorted(zip(far, studies, strict=True), key=lambda item: item[0])
    ]


def _read(source: str) -> list[Earlier]:
    path = SHIPPED if source == BUILTIN else Path(source)
    if not path.exists():
        raise UserError(f"there is no {path}; give the run folder of a study, a portfolio, or {BUILTIN}")
    return _of_folder(path) if path.is_dir() else read(path)


def _distance(mine: Description | None, one: Earlier, objective: str) -> float:
    if mine is None or one.description is None:  # a run folder that the user names, of which no more is known
        return 0.0
    return distance(mine, one.description) + (one.objective != objective)


def _halves(best_first: Sequence[Found]) -> Iterator[tuple[bool, Found]]:
    """Yield the best of each learner, and whether it is of the worse half of them."""
    for at, had in enumerate(best_first):
        yield at >= len(best_first) / 2, had


def _length_apart(had: Found, budget: Budget) -> float:
    """Return how unlike the training of a pipeline is to a study's, in powers of ten; 0 where tasks do not tell."""
    if not budget.tasks or had.trained_tasks < 1:
        return 0.0
    return abs(math.log10(had.trained_tasks / budget.tasks))


def _of_today(had: Found, registry: Registry, where: str) -> Params | None:
    """Return a pipeline as far as today's plugins declare it; None, with a line, where they do not declare that."""
    if had.learner not in registry.learners:
        log.warning("%s is left out: there is no such learner", where)
        return None
    configs: dict[str, type] = {
        had.learner: registry.learners[had.learner].Config,
        "outer": Outer,
        "augment": Augment,
        "tasks": Drawing,
    }
    params: Params = {"learner": had.learner}
    encoder = had.params.get("encoder")
    if isinstance(encoder, str) and encoder in registry.encoders:
        configs[encoder], params["encoder"] = registry.encoders[encoder].Config, encoder
    for name, value in had.params.items():
        owner, _, field = name.partition(".")
        if owner not in configs or not field:
            continue  # of an encoder that is not there, for one
        declared = tune.declared(configs[owner]).get(field)
        try:
            if declared is None:
                raise ValueError("there is no such parameter")
            params[name] = tune.narrow(declared, value) if isinstance(declared, tune.Fixed) else declared.check(value)
        except ValueError as error:
            log.warning("%s is left out: %s: %s", where, name[:MAX_NAME], str(error)[:200])
            return None
        if isinstance(params[name], tune.Fixed):
            params[name] = params[name].value
    return params


def digests(sources: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each portfolio that a study begins by, by its name in the study file."""
    paths = {source: SHIPPED if source == BUILTIN else Path(source) for source in sources}
    files = {source: path / FILE if path.is_dir() else path for source, path in paths.items()}
    return {source: sha256(path.read_bytes()).hexdigest() for source, path in files.items() if path.exists()}
