"""Data without a study file get one that resolves and whose pools can give its tasks, or a refusal with numbers."""

import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.study.file import resolve
from metaopt.study.propose import about, propose
from metaopt.study.trial import Bench
from metaopt.task import POOLS

REGISTRY = plugins.load()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))


def pictures(root: Path, classes: int, each: int = 8, groups: int = 0) -> Path:
    random = np.random.default_rng(0)
    for number in range(classes):
        folder = root / (f"g{number % groups}/" if groups else "") / f"c{number}"
        folder.mkdir(parents=True)
        for n in range(each):
            Image.fromarray(random.integers(0, 256, (9, 9)).astype(np.uint8)).save(folder / f"{n}.png")
    return root


def proposed(path: Path, n_way: int = 3, n_shot: int = 1, minutes: float = 10) -> dict[str, Any]:
    """Return what is proposed, after a check that it works."""
    study = propose(path, REGISTRY, n_way=n_way, n_shot=n_shot, minutes=minutes)
    resolved = resolve(study, "proposed", REGISTRY)
    sampler = REGISTRY.task_sampler(resolved.tasks.sampler)(resolved.tasks.config)
    spec, _ = resolved.tasks.specs(sampler)
    for pool in POOLS:
        sampler.check(pool, spec)
    assert (spec.n_way, spec.n_shot) == (n_way, n_shot)
    assert f"{n_way}-way {n_shot}-shot" in about(study, path, sampler)
    Bench(resolved, REGISTRY, torch.device("cpu")).check()
    assert propose(path, REGISTRY, n_way=n_way, n_shot=n_shot, minutes=minutes) == study
    return study


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    study = proposed(pictures(tmp_path / "my pets!", 15))
    assert study["name"] == "my-pets"
    assert study["tasks"]["sampler"] == "images"
    assert study["tasks"]["n_query"] == 5  # the most tried that eight pictures a class leave
    assert "split" not in study["tasks"]
    assert "split_by" not in study["tasks"]
    assert list(study["learners"])[:3] == ["pixels", "pretrain", "protonet"]


def test_a_zip_file_of_pictures(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", 15)
    with ZipFile(tmp_path / "p.zip", "w") as archive:
        for path in root.glob("*/*"):
            archive.write(path, path.relative_to(tmp_path))
    assert proposed(tmp_path / "p.zip")["tasks"]["root"] == str(tmp_path / "p.zip")


def test_many_groups_are_kept_apart_whole_and_few_are_not(tmp_path: Path) -> None:
    assert proposed(pictures(tmp_path / "a", 40, groups=10))["tasks"]["split_by"] == "group"
    assert "split_by" not in proposed(pictures(tmp_path / "b", 40, groups=4))["tasks"]
    assert "split_by" not in proposed(pictures(tmp_path / "c", 20, groups=10), n_way=5)["tasks"]  # groups of 2 each


def test_few_classes_are_divided_so_that_each_pool_has_enough(tmp_path: Path) -> None:
    study = proposed(pictures(tmp_path / "p", 11))
    assert study["tasks"]["split"] == "5/3/3"


def test_small_classes_are_left_out(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", 15)
    (root / "c3" / "0.png").rename(root / "only.png")
    (root / "few").mkdir()
    (root / "only.png").rename(root / "few" / "only.png")
    study = proposed(root)
    assert study["tasks"]["min_examples"] == 6
    assert study["tasks"]["n_query"] == 5


@pytest.mark.parametrize(("classes", "said"), [(8, "and there are 8; give --way 2 or less, or add classes or examples"),
                                               (5, "and there are 5; add classes or examples")])  # fmt: skip
def test_too_few_classes_are_refused_with_numbers_that_work(tmp_path: Path, classes: int, said: str) -> None:
    root = pictures(tmp_path / "p", classes)
    with pytest.raises(UserError) as refused:
        proposed(root)
    assert str(refused.value) == (
        f"{root}: 3-way 1-shot tasks need 9 classes of 2 examples or more, 3 in each of three pools, {said}"
    )
    if way := re.search(r"--way (\d)", said):
        assert proposed(root, n_way=int(way[1]))


def rows(n: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [{"width": round(random.normal(), 5), "colour": ["red", "blue"][row % 2], "class": f"k{row // 6}"}
            for row in range(n)]  # fmt: skip


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\n".join([",".join(rows(1)[0]), *(",".join(map(str, row.values())) for row in rows(90))]))
    study = proposed(path)
    assert (study["tasks"]["sampler"], study["tasks"]["label"]) == ("table", "class")
    assert study["tasks"]["n_query"] == 5
    path.write_text(path.read_text().replace("class", "what"))
    assert proposed(path)["tasks"]["label"] == "what"  # the last column, as none is called like a class
    path.write_text("a,b,label\n1,2,x\n")
    with pytest.raises(UserError, match="tasks need 9 classes of 2 examples or more, 3 in each of three pools, and"):
        proposed(path)


@pytest.mark.parametrize(("text", "label"), [("utterance", "intent"), ("words", "label")])
def test_texts(tmp_path: Path, text: str, label: str) -> None:
    path = tmp_path / "t.jsonl"
    lines = [{text: f"please tell me {n} more of it", label: f"i{n // 6}"} for n in range(90)]
    path.write_text("\n".join(map(json.dumps, lines)))
    study = proposed(path)
    assert study["tasks"] | {"sampler": "text", "text": text, "label": label} == study["tasks"]


def test_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=np.random.default_rng(0).random((90, 4)), y=np.arange(90) // 6)
    assert "mlp" in proposed(tmp_path / "a.npz")["encoder"]
    for size, encoder in ((8, "mlp"), (16, "conv4")):  # smaller pictures than conv4 takes
        np.savez(tmp_path / "b.npz", X=np.random.default_rng(0).random((90, size, size)), y=np.arange(90) // 6)
        assert encoder in proposed(tmp_path / "b.npz")["encoder"]


def test_the_minutes_are_shared_out(tmp_path: Path) -> None:
    root = pictures(tmp_path / "p", 15)
    short, long = proposed(root, minutes=1), proposed(root, minutes=60)
    assert short["timeout"] == "1m"
    assert short["budget"] == {"cpu_seconds": 6.0}  # a tenth of a minute, for three learners
    assert short["evaluation"]["report_tasks"] == 400
    assert long["evaluation"] == {}
    assert "maml" in long["learners"]
    assert "maml" not in short["learners"]


def test_what_nobody_reads_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "note.txt"):
        path.touch()
        with pytest.raises(UserError, match="is nothing that an installed task sampler reads; give a folder or zip"):
            proposed(path)
    with pytest.raises(UserError, match=r"there is no .*nowhere; give a folder of pictures"):
        proposed(tmp_path / "nowhere")
