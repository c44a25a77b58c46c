"""The winner on disk: enough to build it, to score it again, and to use it without its study's data.

A model is a folder of `weights.safetensors`, `config.json`, `preprocessing.safetensors` where raw examples are made
ready by numbers that were fitted, and `MODEL.md`, the card that says what it is. Loading one runs no pickle and no code
but that of the installed plugins which its config names; files are found by these names alone.
"""

import json
import logging
import math
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file

from metaopt import tune
from metaopt.ensemble import Ensemble
from metaopt.environment import Outside
from metaopt.errors import UserError
from metaopt.files import write_json, write_text
from metaopt.learner import Learner
from metaopt.plugins import Registry
from metaopt.preprocessing import Preprocessing
from metaopt.study.file import Study, resolve
from metaopt.study.leaderboard import interval
from metaopt.study.space import Params, section
from metaopt.study.trial import Bench, Member, TrialResult, assembled
from metaopt.study.versions import changed, explained
from metaopt.task import Kind, TaskSpec
from metaopt.train import fit_temperature

log = logging.getLogger(__name__)
WEIGHTS, CONFIG, ARRAYS, CARD = "weights.safetensors", "config.json", "preprocessing.safetensors", "MODEL.md"
FORMAT = 2
NEEDED = {"study", "params", "seed", "transductive", "temperature", "spec", "train_spec", "preprocessing"}
MAX_CONFIG, MAX_HEADER = 2**26, 2**24  # bytes
MAX_NUMBERS = 2**28  # of one example
MAX_MEMBERS = 1000  # of an ensemble


@dataclass(frozen=True, eq=False)
class Model:
    """A winner made ready to use: nothing of it changes, so copies are the same one."""

    name: str
    """Where it is."""
    learner: Learner
    """Sized for the tasks that it was meta-trained on."""
    spec: TaskSpec
    """The tasks that it was scored on."""
    preprocessing: Preprocessing
    study: Study
    config: Mapping[str, Any]
    device: torch.device
    outside: type[Outside]
    """In control what makes a task of a user's environment."""

    def __deepcopy__(self, memo: object) -> "Model":
        return self

    def __repr__(self) -> str:
        return f"Model({self.name!r})"


def save(
    folder: Path,
    bench: Bench,
    result: TrialResult,
    weights: Path,
    board: dict[str, Any],
    members: Sequence[Member] = (),
) -> None:
    """Write the winner's folder, whole: made beside the old one, then put in its place.

    Of an ensemble `weights` are those of its members together.
    """
    bench = bench.last
    preprocessing = bench.sampler.preprocessing(bench.spec.x_shape)
    winner, classes = board["finalists"][0], bench.study.space.learner_classes
    pipelines = [member.params for member in members] or [result.params]
    config: dict[str, Any] = {
        "format": FORMAT,
        "study": bench.study.to_dict(),
        "params": result.params,
        "trial": result.number,
        "seed": result.seed,
        "trained_tasks": result.trained_tasks,
        "planned_tasks": result.planned_tasks,
        "search": winner.get("search"),
        "fresh": winner.get("fresh"),
        "report": winner["report"],
        "transductive": winner["transductive"],
        "any_way": all(classes[params["learner"]].any_way for params in pipelines),
        "temperature": _temperature(bench, result, weights, members),
        "spec": asdict(bench.spec),
        "train_spec": asdict(bench.drawn(pipelines[0])),
        "preprocessing": preprocessing.settings,
        "licence": None,
        "versions": board["versions"],
    }
    if members:
        config["members"] = [
            {
                "trial": member.number,
                "params": member.params,
                "seed": member.seed,
                "train_spec": asdict(bench.drawn(member.params)),
                "count": member.count,
                "temperature": member.temperature,
            }
            for member in members
        ]

    def fill(making: Path) -> None:
        shutil.copyfile(weights, making / WEIGHTS)
        if preprocessing.arrays:
            save_arrays(preprocessing.arrays, making / ARRAYS)
        _write_config(making, config)

    _put(folder, fill)


def _temperature(bench: Bench, result: TrialResult, weights: Path, members: Sequence[Member]) -> float:
    """Return what divides the winner's class scores for its probabilities; 1 where train tasks cannot tell."""
    if bench.spec.kind != "classification":
        return 1.0
    try:
        bench.sampler.check("train", bench.spec)
    except UserError:
        return 1.0
    learner = (bench.ensemble(members) if members else bench.build(result.params, result.seed)).eval()
    learner.load_state_dict(load_file(weights))
    sized = learner.with_spec(bench.spec)
    return fit_temperature(sized, bench.sampler, bench.executor(learner), bench.study.seed, bench.device)


def export(source: Path, target: Path, registry: Registry, licence: str | None) -> Model:
    """Copy a run's winner to a folder of its own, its card with the licence of the data, and return it.

    Raises UserError where the source is no model that loads, or the target is there and no model.
    """
    source = _folder(source)
    model = load(source, registry, torch.device("cpu"))
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / CONFIG).exists())):
        raise UserError(f"{target} is there and no saved model; give the name of a new folder")
    if target.exists() and target.resolve() == source.resolve():
        raise UserError(f"{target} is the model itself; give the name of a new folder")

    def fill(making: Path) -> None:
        for name in (WEIGHTS, ARRAYS):
            if (source / name).exists():
                shutil.copyfile(source / name, making / name)
        _write_config(making, {**model.config, "licence": licence or model.config.get("licence")})

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put(target, fill)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}); give a folder that you may write") from None
    return model


def load(folder: Path, registry: Registry, device: torch.device) -> Model:
    """Return a saved model, for use: its study's data are not needed. Raises UserError where it cannot be read.

    `folder` is the model's, or the run folder that holds it as `best`.
    """
    folder = _folder(folder)
    config, tensors = _read(folder, device)
    try:
        study = _of_winner(config)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _misfit(folder, error) from None
    resolved = _resolved(folder, study, config, registry)
    try:
        arrays = load_arrays(folder / ARRAYS) if _is_file(folder / ARRAYS, optional=True) else {}
        spec, train_spec = _spec(config["spec"]), _spec(config["train_spec"])
        if not 0 < float(config["temperature"]) < math.inf:
            raise ValueError(f"its temperature is {config['temperature']}")
        sampler = registry.task_sampler(resolved.tasks.sampler)
        preprocessing = sampler.made_by(spec.x_shape, config["preprocessing"], arrays)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(
            f"{folder}: what makes examples ready does not fit its config ({_reason(error)}); export the model again"
        ) from None
    learner = _with_weights(folder, resolved, train_spec, config, tensors).to(device)
    return Model(str(folder), learner.eval(), spec, preprocessing, resolved, config, device, sampler.outside)


def load_with_bench(folder: Path, registry: Registry, device: torch.device) -> tuple[Learner, Bench, dict[str, Any]]:
    """Return a saved learner, the bench to score it on, made of its study's data, and its config.

    `folder` is the model's, or the run folder that holds it as `best`. Raises UserError where it cannot be read.
    """
    folder = _folder(folder)
    config, tensors = _read(folder, device)
    bench = Bench(_resolved(folder, config["study"], config, registry), registry, device).last
    try:
        spec = bench.drawn({} if "members" in config else config["params"])
    except (AttributeError, TypeError) as error:
        raise _misfit(folder, error) from None
    return _with_weights(folder, bench.study, spec, config, tensors).to(device), bench, config


def card(config: Mapping[str, Any]) -> str:
    """Return the text of a model's card, from its config."""
    study, params, spec = config["study"], config["params"], config["spec"]
    tasks = study["tasks"]
    kind = {
        "classification": f"{spec['n_way']}-way {_shots(spec)}-shot",
        "regression": f"{spec['n_shot']}-point",
        "control": f"{spec['n_shot']}-episode",
    }[spec["kind"]]
    learns = {
        "classification": "A few-shot classification model that metaopt found. "
        "It learns new classes from a few examples of each.",
        "regression": "A few-shot regression model that metaopt found. It learns a new function from a few points.",
        "control": "A policy that metaopt found. It acts in a new environment after a few episodes there.",
    }[spec["kind"]]
    unseen = {"classification": "classes", "regression": "functions", "control": "environments"}[spec["kind"]]
    use = {"control": ["model.adapt(env)", "action = model.act(observation)"]}.get(
        spec["kind"], ["model.fit(X_support, y_support).predict(X_query)"]
    )
    classes = f", {spec['n_train_classes']} classes to train on" if spec["n_train_classes"] else ""
    scores = [
        f"| {what} | {interval(config[key])} | {config[key]['tasks']} {config[key]['pool']} tasks |"
        for key, what in (("report", "report"), ("fresh", "finalists"), ("search", "search"))
        if config.get(key)
    ]
    data = {key: value for key, value in tasks.items() if value not in ("", [], None, 0, 0.0, False)}
    pipeline = {key: value for key, value in params.items() if value not in (0.0, None)}
    asks = "any number of" if config.get("any_way") else f"{config['train_spec']['n_way']}"
    lines = [
        f"# {study['name']}: {params['learner']}",
        "",
        learns,
        "",
        *("```python", "import metaopt", 'model = metaopt.load("this folder")', *use, "```"),
        "",
        "## Data",
        "",
        f"Tasks of the sampler `{tasks['sampler']}`{classes}; examples {tuple(spec['x_shape'])}.",
        f"Licence of the data: {config.get('licence') or 'not given'}.",
        "",
        *(f"- {key}: {value}" for key, value in data.items()),
        "",
        "## Protocol",
        "",
        f"Meta-trained on {config['trained_tasks']:,} tasks, seed {config['seed']}; scored by {study['objective']} on "
        f"{kind} tasks of {unseen} never trained on, "
        f"{'transductive' if config['transductive'] else 'inductive'}. "
        f"The search was on the {study['search_on']} pool.",
        "",
        f"| {study['objective']} | mean ± 95 % | on |",
        "|---|---|---|",
        *scores,
        "",
        "The report is on tasks that no trial has touched"
        f"{', but the search was on its pool' if study['search_on'] == 'test' else ''}.",
        f"It takes {asks} classes." if spec["kind"] == "classification" else "",
        "",
        "## Pipeline",
        "",
        *(f"- {key}: {value}" for key, value in pipeline.items()),
        *(
            f"- {member['count']} × trial {member['trial']}: {member['params']['learner']}"
            for member in config.get("members", ())
        ),
        "",
        "## Versions",
        "",
        *(f"- {name} {version}" for name, version in config["versions"].items()),
    ]
    return "\n".join(lines) + "\n"


def _shots(spec: Mapping[str, Any]) -> str:
    return f"{spec['least_shot']} to {spec['n_shot']}" if spec["least_shot"] else str(spec["n_shot"])


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    write_json(folder / CONFIG, config)
    write_text(folder / CARD, card(config))


def _put(folder: Path, fill: Any) -> None:
    making, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (making, old):
        shutil.rmtree(leftover, ignore_errors=True)
    making.mkdir()
    fill(making)
    if folder.exists():
        folder.rename(old)
    making.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _folder(folder: Path) -> Path:
    return folder / "best" if (folder / "best" / CONFIG).exists() else folder


def _read(folder: Path, device: torch.device) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return a model's config and weights. Raises UserError where its files are not there whole."""
    try:
        _is_file(folder / CONFIG, largest=MAX_CONFIG)
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or "format" not in config:
            raise ValueError(f"{CONFIG} lacks what a model needs")
        if config["format"] != FORMAT:
            raise ValueError(f"{CONFIG} has the format {config['format']!r}, and this metaopt reads {FORMAT}")
        if NEEDED - config.keys():
            raise ValueError(f"{CONFIG} lacks what a model needs")
        _is_file(folder / WEIGHTS)
        return config, load_file(folder / WEIGHTS, device=str(device))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise UserError(
            f"{folder}: not a saved model ({_reason(error)}); give the folder `best` of a finished run"
        ) from None


def _is_file(path: Path, *, largest: float = math.inf, optional: bool = False) -> bool:
    """Tell whether a model's file is there. ValueError where it is a link, no plain file, or of absurd size."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        if optional:
            return False
        raise
    if stat.S_ISLNK(found.st_mode):
        raise ValueError(f"{path.name} is a symbolic link, and a model is a folder of plain files")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is no plain file")
    if found.st_size > largest:
        raise ValueError(f"{path.name} has {found.st_size:,} bytes, more than {largest:,}")
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(MAX_HEADER, found.st_size - 8):
            raise ValueError(f"{path.name} announces a header of {header:,} bytes, and has {found.st_size:,} in all")
    return True


def _of_winner(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the study with the winner's learner and encoder alone: nothing else need be installed to use it."""
    study = dict(config["study"])
    pipelines = [member["params"] for member in config["members"]] if "members" in config else [config["params"]]
    study["learners"] = {params["learner"]: study["learners"][params["learner"]] for params in pipelines}
    encoders = {params["encoder"]: study["encoder"][params["encoder"]] for params in pipelines if params.get("encoder")}
    return study | ({"encoder": encoders} if encoders else {})


def _resolved(folder: Path, study: Any, config: Mapping[str, Any], registry: Registry) -> Study:
    recorded = versions if isinstance(versions := config.get("versions"), dict) else {}
    try:
        resolved = resolve(study, str(folder / CONFIG), registry)
    except UserError as error:
        raise explained(error, recorded) from None
    if said := changed(recorded):
        log.warning("%s: %s", folder, said)
    return resolved


def _spec(given: Mapping[str, Any]) -> TaskSpec:
    """Return the sizes of a task. ValueError, TypeError or KeyError where these are none, or absurd."""
    numbers = [field.name for field in fields(TaskSpec) if field.type is int or field.type == "int"]
    given = {"n_actions": 0, "n_told": 0, **given}  # models of before there were environments
    if given.keys() != {field.name for field in fields(TaskSpec)} or given["kind"] not in get_args(Kind):
        raise ValueError("its sizes of tasks lack something, or have something else")
    shapes = {name: tuple(given[name]) for name in ("x_shape", "description_shape")}
    counts = [given[name] for name in numbers] + [size for shape in shapes.values() for size in shape]
    if not all(type(count) is int and 0 <= count < 2**24 for count in counts) or not shapes["x_shape"]:
        raise ValueError("its sizes of tasks are no whole numbers that make sense")
    if max(map(math.prod, shapes.values())) > MAX_NUMBERS or not all(map(math.prod, shapes.values())):
        raise ValueError("its examples have no size that makes sense")
    return TaskSpec(**{**given, **shapes})


def _with_weights(
    folder: Path, study: Study, spec: TaskSpec, config: Mapping[str, Any], tensors: dict[str, torch.Tensor]
) -> Learner:
    if "members" in config:
        return _ensemble(folder, study, config, tensors)
    try:
        _check_params(study, config["params"])
        learner = assembled(study.space, spec, config["params"], config["seed"])
        learner.load_state_dict(tensors)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _misfit(folder, error) from None
    return learner


def _ensemble(folder: Path, study: Study, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Ensemble:
    """Return an ensemble, each member built as a model of its own."""
    try:
        members = config["members"]
        counts = [member["count"] for member in members]
        temperatures = [float(member["temperature"]) for member in members]
        if not 0 < len(members) <= MAX_MEMBERS or not all(type(count) is int and 0 < count < 2**24 for count in counts):
            raise ValueError("its members have no counts that make sense")
        if not all(0 < temperature < math.inf for temperature in temperatures):
            raise ValueError("its members have no temperatures that make sense")
        of: list[dict[str, torch.Tensor]] = [{} for _ in members]
        for name, tensor in tensors.items():
            owner, number, rest = name.split(".", 2)
            if owner != "members":
                raise ValueError(f"its weights hold {name!r}, which is no member's")
            of[int(number)][rest] = tensor
        built = [
            _with_weights(
                folder, study, _spec(member["train_spec"]), {key: member[key] for key in ("params", "seed")}, own
            )
            for member, own in zip(members, of, strict=True)
        ]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise _misfit(folder, error) from None
    return Ensemble(built, [count / sum(counts) for count in counts], temperatures)


def _check_params(study: Study, params: Params) -> None:
    """Raise ValueError or KeyError where hyperparameters are outside of what learner and encoder declare."""
    space = study.space
    cls = space.learner_classes[params["learner"]]
    chosen: list[tuple[str, type]] = [(params["learner"], cls.Config)]
    if cls.uses_encoder:
        chosen.append((params["encoder"], space.encoder_classes[params["encoder"]].Config))
    for name, config in chosen:
        declared = tune.declared(config)
        for key, value in section(params, name).items():
            if not isinstance(tune.narrow(declared[key], value), tune.Fixed):
                raise ValueError(f"{name}.{key} is {value!r}, which is no value")


def _misfit(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder}: its weights do not fit its config ({_reason(error)}); was a plugin changed since?")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).splitlines()), "")
