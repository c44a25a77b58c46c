"""What third parties do: write plugins, install them beside metaopt in an environment of their own, and use them.

One environment holds metaopt's wheel, a new project of each kind, a plugin written for the first version of metaopt,
and eleven plugins that are broken or ill-behaved, each in its own way: tests/third_party/broken.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
THIRD_PARTY = Path(__file__).parent / "third_party"
ELDER = THIRD_PARTY / "metaopt-nearest"
BROKEN = THIRD_PARTY / "broken"
NEW = {"scored": "objective", "drawn": "task-sampler", "learned": "learner"}
"""Names of projects that `metaopt plugin new` makes, and the kind of each."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a folder to work in that holds the new projects."""

    bin: Path
    folder: Path

    def run(self, command: str, *arguments: str | Path, cwd: Path | None = None, **variables: str) -> str:
        """Run a command of the environment and return what it prints to stdout."""
        return run(self.bin / command, *arguments, cwd=cwd or self.folder, **variables)

    def study(self, folder: Path, study: Path, *options: str, **variables: str) -> dict[str, Any]:
        """Run a study into `folder`/run and return what it prints, which is what it stores."""
        output = folder / "run"
        printed: dict[str, Any] = json.loads(
            self.run("metaopt", "study", "run", study, "--output", output, "--json", *options, **variables)
        )
        assert printed == json.loads((output / "leaderboard.json").read_text())
        return printed


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command with no trace of the repository on Python's path, and return what it prints to stdout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "METAOPT_"))}
    own = {"OMP_NUM_THREADS": "1", "METAOPT_CACHE": str(cwd / "cache")}
    done = subprocess.run(command, cwd=cwd, env=kept | own | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def wheel_of(module: Path, folder: Path) -> Path:
    """Pack one file as the distribution acme-<its name>, whose plugin has its name, and return the wheel."""
    name = module.stem
    info, wheel = f"acme_{name}-1.0.dist-info", folder / f"acme_{name}-1.0-py3-none-any.whl"
    files = {
        f"acme_{name}.py": module.read_text(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\nRequires-Dist: metaopt-fewshot\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[metaopt]\n{name} = acme_{name}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Return the one environment of these tests, made from nothing."""
    folder = tmp_path_factory.mktemp("third_party")
    wheels, made = folder / "wheels", Environment(folder / "venv" / "bin", folder)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, ROOT, cwd=folder)
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    # what is never imported need not be compiled
    install = ("-m", "pip", "install", "--quiet", "--no-compile", "-c", ROOT / "constraints.txt")
    made.run("python", *install, *wheels.glob("*.whl"), "hatchling", "editables", "pytest")
    for name, kind in NEW.items():
        made.run("metaopt", "plugin", "new", name, f"--{kind}")
    projects = [option for name in NEW for option in ("--editable", f"./metaopt-{name}")]
    ill = [wheel_of(module, wheels) for module in sorted(BROKEN.glob("*.py"))]
    made.run("python", *install, "--no-index", "--no-build-isolation", *projects, *ELDER.glob("*.whl"), *ill)
    return made


# Eleven plugins that are broken or ill-behaved

REASONS = {
    "raises": "RuntimeError: the licence server cannot be reached (acme_raises, line 3); update or uninstall acme-",
    "exits": "SystemExit: no GPU, no service (acme_exits, line 5); update or uninstall acme-exits",
    "misspelt": "no hook named 'register_learner'; did you mean 'register_learners'?",
    "unmarked": "register_learners is not marked as a hook; write @metaopt.hookimpl above it",
    "instance": " is not a subclass of metaopt.learner.Learner",
    "taken": "the learner 'protonet' of the plugin 'taken' of acme-taken 1.0 is already provided by the plugin 'met",
    "lacking": "No module named 'acme_absent' (acme_lacking, line 3); install what brings that module, update ",
    "newer": "no hook named 'register_schedules'; did you mean 'register_encoders'? (or it needs a metaopt-fewshot n",
    "unfrozen": "Config'>; it must be a dataclass with @dataclass(frozen=True) above it",
}
NOTES = {
    "slow": " s to load; let it import what is heavy in the functions that use it",
    "loud": "it printed 'welcome to the loud plugin' while it loaded; let it log instead",
}


def test_each_broken_plugin_is_listed_with_its_reason_and_all_else_works(environment: Environment) -> None:
    listed = json.loads(environment.run("metaopt", "plugin", "list", "--json"))["plugins"]
    plugins = {plugin["name"]: plugin for plugin in listed}
    ill = {module.stem for module in BROKEN.glob("*.py")}
    assert len(ill) == 11
    assert ill == REASONS.keys() | NOTES.keys()
    for name, reason in REASONS.items():
        assert (plugins[name]["distribution"], plugins[name]["status"]) == (f"acme-{name}", "broken")
        assert reason in plugins[name]["error"]
    for name, note in NOTES.items():
        assert (plugins[name]["status"], plugins[name]["learners"]) == ("ok", [name])
        assert note in plugins[name]["note"]
    well = {name: plugin for name, plugin in plugins.items() if name not in ill}
    assert {"metric", "gradient", "tasks", "nearest", *NEW} <= well.keys()
    assert {(plugin["status"], plugin["error"], plugin["note"]) for plugin in well.values()} == {("ok", None, None)}


def test_people_are_told_how_to_leave_the_broken_ones_out(environment: Environment) -> None:
    last = environment.run("metaopt", "plugin", "list").splitlines()[-1]
    explained, _, names = last.partition("METAOPT_DISABLE_PLUGINS=")
    assert (explained, set(names.split(","))) == ("to leave out what is broken: ", REASONS.keys())
    without = environment.run("metaopt", "plugin", "list", METAOPT_DISABLE_PLUGINS=names)
    assert "broken" not in without


# New projects

KINDS = {"learner": "learner", "task-sampler": "task sampler", "objective": "meta-objective"}


@pytest.mark.parametrize("name", NEW)
def test_a_new_project_passes_every_check(environment: Environment, name: str) -> None:
    plugin, thing = json.loads(environment.run("metaopt", "plugin", "check", name, "--json"))["checked"]
    assert (plugin["kind"], plugin["distribution"], plugin["version"]) == ("plugin", f"metaopt-{name}", "0.1.0")
    assert thing["kind"] == KINDS[NEW[name]]
    assert len(thing["checks"]) >= 8
    does_not_apply = {
        "predicts_a_stream_as_it_comes",
        "takes_turns_as_it_learns_tasks",
        "adapts_in_the_steps_that_it_names",
    }
    assert {check["status"] for check in thing["checks"] if check["check"] not in does_not_apply} == {"ok"}


def test_the_tests_of_new_projects_pass(environment: Environment) -> None:
    tests = [f"metaopt-{name}/tests" for name in NEW]
    printed = environment.run("python", "-m", "pytest", "-q", "--strict-markers", *tests)
    assert re.search(r"^\d+ passed, \d+ skipped in ", printed.splitlines()[-1]), printed


SMALL = ("tasks.train_classes=20", "tasks.validation_classes=10", "tasks.test_classes=10", "tasks.size=16")


@pytest.mark.parametrize("name", NEW)
def test_the_study_of_a_new_project_ranks_it(environment: Environment, tmp_path: Path, name: str) -> None:
    overrides = ["trials=4", "budget.tasks=20", "evaluation={tasks: 10, finalists: 4, report_tasks: 20}"]
    if NEW[name] != "task-sampler":
        overrides += SMALL
    board = environment.study(
        tmp_path,
        environment.folder / f"metaopt-{name}" / "study.yaml",
        *(f"--set={override}" for override in overrides),
    )
    assert board["status"] == "finished"
    assert board["trials"]["failed"] == 0
    assert board["versions"][f"metaopt-{name}"] == "0.1.0"
    if name == "learned":
        assert name in board["learners"]
        assert {finalist["learner"] for finalist in board["finalists"]} >= {"learned", "protonet", "pixels"}
    if name == "scored":
        assert board["objective"] == name


# A plugin written for the first version of metaopt


def test_the_wheel_of_the_older_plugin_holds_the_source_beside_it() -> None:
    [wheel] = ELDER.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("metaopt_nearest.py") == (ELDER / "metaopt_nearest.py").read_bytes()


STUDY = """
name: thirdparty
tasks: {sampler: directions, n_way: 3, n_shot: 1, n_query: 5}
learners: [protonet, pixels, nearest]
encoder: doubled
objective: errors
trials: 6
budget: {tasks: 40}
evaluation: {tasks: 20, finalists: 6, report_tasks: 40}
seed: 0
"""


def test_an_older_plugin_passes_every_check(environment: Environment) -> None:
    checked = json.loads(environment.run("metaopt", "plugin", "check", "nearest", "--json"))["checked"]
    assert {one["kind"] for one in checked} == {"plugin", "task sampler", "encoder", "learner", "meta-objective"}
    assert "failed" not in {check["status"] for one in checked for check in one["checks"]}


def test_a_study_on_an_older_plugins_tasks_encoder_and_objective_ranks_its_learner_and_is_observed(
    environment: Environment, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(STUDY)
    log = tmp_path / "trials.txt"
    board = environment.study(tmp_path, tmp_path / "study.yaml", NEAREST_TRIALS=str(log))
    assert sum(board["trials"].values()) == 6
    assert board["trials"]["failed"] == 0
    assert (board["objective"], board["direction"]) == ("errors", "minimize")
    assert board["versions"]["metaopt-nearest"] == "1.0.0"
    finalists = board["finalists"]  # as many as there are trials, so that the list shows what was tried
    assert {"protonet", "pixels", "nearest"} == {finalist["learner"] for finalist in finalists}
    [first, *_] = [finalist for finalist in finalists if finalist["learner"] == "nearest"]
    assert 0.01 <= first["params"]["nearest.temperature"] <= 1.0
    assert [line.split()[0] for line in log.read_text().splitlines()] == [str(number) for number in range(6)]


def test_a_saved_learner_of_an_older_plugin_is_evaluated(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("[protonet, pixels, nearest]", "[nearest]"))
    board = environment.study(tmp_path, tmp_path / "study.yaml", "--trials", "2")
    assert board["finalists"][0]["learner"] == "nearest"
    best = tmp_path / "run" / "best"
    scores = json.loads(environment.run("metaopt", "evaluate", best, "--tasks", "50", "--json"))
    assert scores["tasks"] == 50
    assert 0.0 <= scores["mean"] < 2 / 3  # three classes: fewer errors than by chance
