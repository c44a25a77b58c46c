"""An audit finds nothing in a sound run folder, and each thing that was tampered with."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study import tested
from metaopt.study.audit import audit
from metaopt.study.file import resolve
from metaopt.study.search import run
from metaopt.study.trial import Bench
from metaopt.terminal import Quiet

REGISTRY = plugins.load()
CPU = torch.device("cpu")
STUDY: dict[str, Any] = {
    "name": "s",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": ["protonet"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 4,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 2, "repeats": 2, "report_tasks": 20},
}  # fmt: skip


def finished(folder: Path, **changes: Any) -> Path:
    torch.set_num_threads(1)
    assert (
        run(Bench(resolve(STUDY | changes, "s.yaml", REGISTRY), REGISTRY, CPU), folder, Quiet())["status"] == "finished"
    )
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """Return a copy of a sound run folder, to be tampered with."""
    return shutil.copytree(sound, tmp_path / "run")


def found(folder: Path, status: str) -> list[str]:
    return [finding.what for finding in audit(folder, REGISTRY, CPU) if finding.status == status]


def board(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "leaderboard.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_nothing_is_found_in_a_sound_run_folder(sound: Path) -> None:
    findings = audit(sound, REGISTRY, CPU)
    assert {finding.status for finding in findings} == {"ok"}, findings
    assert {finding.what for finding in findings} >= {
        "versions", "pools", "search", "test pool", "study", "seeds", "trials", "finalists", "fresh scores", "ranks",
        "comparisons", "report", "winner",
    }  # fmt: skip
    assert json.loads(json.dumps([asdict(finding) for finding in findings]))


def test_a_report_that_was_improved_is_found(folder: Path) -> None:
    board(folder, lambda content: content["finalists"][0]["report"].update(mean=0.999))
    assert found(folder, "failed") == ["report"]


def test_scores_of_a_trial_that_were_improved_are_found(folder: Path) -> None:
    path = sorted((folder / "scores").iterdir())[0]
    np.save(path, np.ones_like(np.load(path)))
    assert found(folder, "failed") == ["trials"]


def test_a_finalists_scores_that_are_missing_or_changed_are_found(folder: Path) -> None:
    path = sorted((folder / "finalists").glob("*.npy"))[0]
    np.save(path, np.load(path)[::-1] * 0.5)
    assert found(folder, "failed") == ["fresh scores"]
    path.unlink()
    assert found(folder, "failed") == ["fresh scores"]


def test_a_comparison_that_was_changed_is_found(folder: Path) -> None:
    board(folder, lambda content: content["finalists"][1]["behind"].update(p=1e-9, told_apart=True))
    assert found(folder, "failed") == ["comparisons"]


def test_a_winner_that_was_not_the_best_is_found(folder: Path) -> None:
    def swap(content: dict[str, Any]) -> None:
        first, second = content["finalists"]
        for key in ("trial", "learner", "params", "search", "fresh"):
            first[key], second[key] = second[key], first[key]

    board(folder, swap)
    assert {"ranks", "winner"} <= set(found(folder, "failed"))


def test_a_study_file_that_was_changed_after_the_search_is_found(folder: Path) -> None:
    path = folder / "study.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))
    assert {"study", "seeds"} <= set(found(folder, "failed"))


def test_other_weights_than_those_reported_on_are_noted(folder: Path) -> None:
    path = folder / "best" / "weights.safetensors"
    save_file({name: torch.randn_like(tensor) for name, tensor in load_file(path).items()}, path)
    assert found(folder, "note") == ["winner"]


def test_a_second_look_at_the_test_pool_is_noted_and_a_lost_record_is_a_fault(folder: Path) -> None:
    tested.note(folder / "best", "evaluate --seed 1", trial=0, tasks=50)
    assert found(folder, "note") == ["test pool"]
    (folder / "tested.jsonl").unlink()
    assert found(folder, "failed") == ["test pool"]


def test_other_versions_are_noted(folder: Path) -> None:
    board(folder, lambda content: content["versions"].update(torch="1.0"))
    assert found(folder, "note") == ["versions"]


def test_a_search_on_the_test_pool_is_noted(tmp_path: Path) -> None:
    assert found(finished(tmp_path / "run", search_on="test"), "note") == ["search"]


def test_classes_in_two_pools_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glyphs: Any = REGISTRY.task_sampler("glyphs")
    honest = glyphs.pools

    def leaky(sampler: Any) -> Any:
        pools = honest.__get__(sampler) if hasattr(honest, "__get__") else honest
        return {**pools, "validation": pools["train"]}

    monkeypatch.setattr(glyphs, "pools", property(leaky))
    findings = {finding.what: finding for finding in audit(folder, REGISTRY, CPU)}
    assert findings["pools"].status == "failed"
    assert "train and in the validation pool" in findings["pools"].detail


def test_what_is_no_finished_run_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="no finished study here"):
        audit(tmp_path, REGISTRY, CPU)
    board(folder, lambda content: content.update(status="interrupted"))
    with pytest.raises(UserError, match="no finished study here"):
        audit(folder, REGISTRY, CPU)
