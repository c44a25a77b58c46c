"""A peer's algorithms as plugins: the example project is installed, checked, tested and ranked.

easyfsl takes four names of building blocks from torchvision, for backbones that are not used here, and torchvision's
wheel on the index only loads beside a CUDA build of torch; so an empty module stands in for it.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / "examples" / "metaopt-easyfsl"
LEARNERS = {"easyfsl_protonet", "easyfsl_simpleshot", "easyfsl_bdcspn", "easyfsl_finetune", "easyfsl_tim"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for Python's path with easyfsl and the example's plugin."""
    site = tmp_path_factory.mktemp("easyfsl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", site]
    subprocess.run([*install, "easyfsl==1.5.0", PROJECT], check=True)
    blocks = site / "torchvision" / "models" / "resnet.py"
    blocks.parent.mkdir(parents=True)
    blocks.write_text("BasicBlock = Bottleneck = conv1x1 = conv3x3 = None\n")
    return site


def run(site: Path, *arguments: str | Path, cwd: Path = PROJECT) -> str:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_its_learners_keep_the_contract_and_say_what_easyfsl_says(site: Path) -> None:
    printed = run(site, "pytest", "-p", "no:cacheprovider", "tests")
    assert re.match(r"\d{2,} passed, \d+ skipped in ", printed.splitlines()[-1])


def test_each_learner_takes_at_most_fifteen_lines() -> None:
    source = (PROJECT / "metaopt_easyfsl.py").read_text()
    classes = source.split("\nclass ")[1:]
    assert len(classes) == len(LEARNERS)
    for lines in ([line for line in text.partition("\n\n\n")[0].splitlines() if line.strip()] for text in classes):
        assert len(lines) <= 15, lines[0]


def test_a_study_ranks_them_beside_metaopts_own(site: Path, tmp_path: Path) -> None:
    study = yaml.safe_load((PROJECT / "study.yaml").read_text()) | {
        "tasks": {"sampler": "gaussian", "n_way": 3, "n_shot": 2, "n_query": 5, "features": 8},
        "learners": ["protonet", *sorted(LEARNERS)],
        "encoder": {"mlp": {"width": 16, "depth": 1}},
        "transductive": True,
        "trials": 6,
        "budget": {"tasks": 40},
        "evaluation": {"tasks": 20, "finalists": 6, "report_tasks": 20},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    board = json.loads(run(site, "metaopt", "study", "run", "study.yaml", "--json", cwd=tmp_path))
    assert board["trials"]["failed"] == 0
    assert board["learners"].keys() == LEARNERS | {"protonet"}
    assert board["versions"]["metaopt-easyfsl"] == "0.1.0"
    scores = {learner: entry["search"]["mean"] for learner, entry in board["learners"].items()}
    assert min(scores.values()) > 1 / 3, "each is better than a guess"


def test_its_study_file_resolves(site: Path) -> None:
    overrides = ["trials=1", "budget.tasks=4", "evaluation={tasks: 4, finalists: 1, report_tasks: 4}"]
    sizes = [f"tasks.{name}=20" for name in ("train_classes", "validation_classes", "test_classes")]
    options = [f"--set={override}" for override in (*overrides, *sizes)]
    board = json.loads(
        run(site, "metaopt", "study", "run", "study.yaml", "--json", "--output", str(site / "run"), *options)
    )
    assert board["status"] == "finished"
