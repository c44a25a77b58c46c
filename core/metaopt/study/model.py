"""The winner on disk: `weights.safetensors` and `config.json`, enough to build it and to score it again."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from metaopt.errors import UserError
from metaopt.files import write_json
from metaopt.learner import Learner
from metaopt.plugins import Registry
from metaopt.study.file import resolve
from metaopt.study.trial import Bench, TrialResult
from metaopt.study.versions import changed, explained

log = logging.getLogger(__name__)
WEIGHTS, CONFIG = "weights.safetensors", "config.json"


def save(folder: Path, bench: Bench, result: TrialResult, weights: Path, board: dict[str, Any]) -> None:
    """Write the winner's folder, whole: made beside the old one, then put in its place."""
    making, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    for leftover in (making, old):
        shutil.rmtree(leftover, ignore_errors=True)
    making.mkdir()
    shutil.copyfile(weights, making / WEIGHTS)
    config = {
        "format": 1,
        "study": bench.study.to_dict(),
        "params": result.params,
        "trial": result.number,
        "seed": result.seed,
        "trained_tasks": result.trained_tasks,
        "planned_tasks": result.planned_tasks,
        "report": board["finalists"][0]["report"],
        "transductive": board["finalists"][0]["transductive"],
        "versions": board["versions"],
    }
    write_json(making / CONFIG, config)
    if folder.exists():
        folder.rename(old)
    making.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path, registry: Registry, device: torch.device) -> tuple[Learner, Bench, dict[str, Any]]:
    """Return a saved learner, the bench to score it on, and its config. Raises UserError where it cannot be read.

    `folder` is the model's, or the run folder that holds it as `best`.
    """
    folder = folder / "best" if (folder / "best" / CONFIG).exists() else folder
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not (isinstance(config, dict) and {"study", "params", "seed", "transductive"} <= config.keys()):
            raise ValueError(f"{CONFIG} lacks what a model needs")
        tensors = load_file(folder / WEIGHTS, device=str(device))
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(f"{folder}: not a saved model ({reason}); give the folder `best` of a finished run") from None
    recorded = versions if isinstance(versions := config.get("versions"), dict) else {}
    try:
        study = resolve(config["study"], str(folder / CONFIG), registry)
    except UserError as error:
        raise explained(error, recorded) from None
    if said := changed(recorded):
        log.warning("%s: %s", folder, said)
    bench = Bench(study, registry, device)
    try:
        learner = bench.build(config["params"], config["seed"])
        learner.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{folder}: its weights do not fit its config ({reason}); was a plugin changed since?"
        ) from None
    return learner, bench, config
