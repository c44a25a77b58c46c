"""The command line: what each command prints, its exit codes, and one sentence for every mistake."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from metaopt import __version__, plugins
from metaopt.cli import main
from metaopt.study.file import load
from metaopt.study.folder import owned

STUDY: dict[str, Any] = {
    "name": "tiny",
    "tasks": {"sampler": "glyphs", "n_way": 3, "n_shot": 1, "n_query": 3, "size": 16,
              "train_classes": 10, "validation_classes": 6, "test_classes": 5, "examples": 5},
    "learners": ["protonet", "pixels"],
    "encoder": {"conv4": {"width": 8}},
    "trials": 3,
    "budget": {"tasks": 8},
    "evaluation": {"tasks": 10, "finalists": 2, "report_tasks": 20},
}  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in an empty folder that holds tiny.yaml; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY))

    def run_command(*arguments: str) -> tuple[int, str, str]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(str(end.code))
        out, err = capsys.readouterr()
        return code, out, err

    return run_command


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of a finished study."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    assert main(["study", "run", str(folder / "tiny.yaml"), "--output", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def timeless(board: Any) -> Any:
    """Return a leaderboard without the times in it."""
    if isinstance(board, list):
        return [timeless(entry) for entry in board]
    if not isinstance(board, dict):
        return board
    return {key: timeless(value) for key, value in board.items() if key not in {"seconds", "cpu_seconds"}}


def metaopt(*arguments: str | Path, **options: Any) -> "subprocess.Popen[str]":
    """Start a command in a process of its own, which hears Ctrl-C even where these tests run in the background."""
    command = [sys.executable, "-m", "metaopt", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread runs here
        **options,
    )


# Starting


def test_help_version_and_mistaken_arguments_do_not_import_torch() -> None:
    code = (
        "import sys\nfrom metaopt.cli import main\n"
        "for arguments in (['--help'], ['--version'], ['study', 'run', '--help'], ['study'], ['nonsense'], "
        "['study', 'run', 'x', '--trials', '0']):\n"
        "    try:\n        main(arguments)\n    except SystemExit:\n        pass\n"
        "print(*sorted({'torch', 'numpy', 'optuna', 'rich', 'yaml'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""


def test_help_takes_under_a_third_of_a_second() -> None:
    def cpu_seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "metaopt", "--help"], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(cpu_seconds() for _ in range(3)) < 0.3


def test_the_version_is_told_as_a_module_too(run: Run) -> None:
    assert run("--version") == (0, f"metaopt {__version__}\n", "")
    with metaopt("--version") as process:
        assert process.communicate() == (f"metaopt {__version__}\n", "")


@pytest.mark.parametrize("arguments", [(), ("study",), ("study", "run"), ("stduy",), ("evaluate",), ("plugin", "show")])
def test_a_command_that_is_not_complete_is_answered_with_its_usage(run: Run, arguments: tuple[str, ...]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: metaopt")


@pytest.mark.parametrize("option", ["--trials", "--workers"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "²"])
def test_a_count_is_a_whole_number_of_one_or_more(run: Run, option: str, value: str) -> None:
    code, out, err = run("study", "run", "tiny.yaml", f"{option}={value}")
    assert (code, out) == (2, "")
    assert f"argument {option}: " in err


# study run and study show


def test_a_study_run_prints_its_leaderboard_and_where_it_is(run: Run, tmp_path: Path) -> None:
    code, out, err = run("study", "run", "tiny.yaml")
    assert code == 0
    assert re.search(r"^tiny: 3 trials complete, 0 pruned, 0 failed, in \d+ s; accuracy, maximized$", out, re.MULTILINE)
    assert "written to runs/tiny; score the winner again: metaopt evaluate runs/tiny/best --tasks 1000\n" in out
    assert (tmp_path / "runs" / "tiny" / "leaderboard.json").exists()
    lines = err.splitlines()
    assert lines[0] == "study tiny: 2 learners, 3 trials; accuracy on the validation pool"
    assert [line.split()[:2] for line in lines if line.startswith("trial ")] == [["trial", str(n)] for n in range(3)]
    assert run("study", "run", "tiny.yaml")[:2] == (0, out), "again: at once"
    assert run("study", "show", "runs/tiny") == (0, out, "")


def test_json_is_the_leaderboard_alone_and_the_one_in_the_folder(run: Run, finished: Path) -> None:
    stored = json.loads((finished / "leaderboard.json").read_text())
    code, out, err = run("study", "show", str(finished), "--json")
    assert (code, json.loads(out), err) == (0, stored, "")
    code, out, err = run("study", "run", str(finished.parent / "tiny.yaml"), "--output", str(finished), "--json")
    assert (code, json.loads(out), err) == (0, stored, "")


def test_the_leaderboard_has_what_the_contract_names(finished: Path) -> None:
    board = json.loads((finished / "leaderboard.json").read_text(), parse_constant=pytest.fail)
    contract = ("study", "seed", "objective", "direction", "search_on", "trials", "finalists", "versions", "seconds")
    assert set(contract) <= board.keys()
    assert board["trials"].keys() == {"complete", "pruned", "failed"}
    for entry in board["finalists"]:
        assert {"rank", "trial", "learner", "params", "search", "report"} <= entry.keys()
        assert {"mean", "ci95", "tasks"} <= entry["search"].keys()
        assert {"pool", "mean", "ci95", "tasks"} <= entry["report"].keys()


def test_options_overrule_the_study_file(run: Run) -> None:
    sets = ["tasks.n_way=2", "learners.protonet.distance=cosine", "evaluation.finalists=1"]
    options = [
        "--trials=2",
        "--timeout=10m",
        "--seed=5",
        "--executor=loop",
        *(f"--set={override}" for override in sets),
    ]
    options += ["--output=there", "--quiet", "--json", "--device=cpu", "--workers=1", "--storage=sqlite:///trials.db"]
    code, out, err = run("study", "run", "tiny.yaml", *options)
    board = json.loads(out)
    assert (code, err) == (0, "")
    assert (board["seed"], sum(board["trials"].values()), len(board["finalists"])) == (5, 2, 1)
    assert board["limits"]["timeout"] == 600.0
    assert not Path("runs").exists()
    study = load(Path("there/study.yaml"), plugins.load())
    assert study.executor == "loop"
    assert (study.tasks.n_way, study.space.default("protonet")["protonet.distance"]) == (2, "cosine")
    assert Path("trials.db").exists()
    assert not Path("there/journal.log").exists()


def test_more_trials_go_on_with_a_study(run: Run) -> None:
    run("study", "run", "tiny.yaml", "--trials", "2", "--quiet")
    code, out, err = run("study", "run", "tiny.yaml", "--json")
    assert (code, json.loads(out)["trials"]["complete"]) == (0, 3)
    assert "3 trials, 2 of them done before; accuracy" in err
    assert len([line for line in err.splitlines() if line.startswith("trial ")]) == 1


def test_a_study_of_which_nothing_came_has_exit_code_1(run: Run) -> None:
    code, out, _ = run("study", "run", "tiny.yaml", "--timeout", "0.001s")
    assert code == 1
    assert out.endswith("nothing came to a final score; mend the failures above, or give more time\n")
    assert json.loads(Path("runs/tiny/leaderboard.json").read_text())["status"] == "failed"


# The studies that come with metaopt


def test_the_shipped_studies_are_listed_and_each_resolves(run: Run) -> None:
    code, out, _ = run("study", "list", "--json")
    studies = {study["name"]: study for study in json.loads(out)["studies"]}
    assert code == 0
    assert studies.keys() >= {"quickstart", "omniglot-5w1s", "omniglot-minimal", "sinusoid", "clinc150", "alphabets"}
    for name, study in studies.items():
        assert study["about"], "its first line says what it is about"
        assert load(Path(study["path"]), plugins.load()).name == name
    code, out, _ = run("study", "list")
    assert [line.split()[0] for line in out.splitlines() if line.split()[0] in studies] == sorted(studies)


def test_a_shipped_study_is_run_by_name_also_where_a_folder_has_its_name(run: Run) -> None:
    small = ["tasks.train_classes=10", "tasks.validation_classes=6", "tasks.test_classes=6", "tasks.size=16",
             "encoder.conv4.width=8", "budget.tasks=4",
             "evaluation={tasks: 4, finalists: 1, report_tasks: 4}"]  # fmt: skip
    Path("quickstart").mkdir()
    overrides = [f"--set={override}" for override in small]
    code, out, _ = run("study", "run", "quickstart", "--trials=1", "--output=quickstart", "--json", *overrides)
    assert code == 0
    assert json.loads(out)["study"] == "quickstart"


# plugin and evaluate


def test_plugins_are_listed_as_the_contract_says(run: Run) -> None:
    code, out, _ = run("plugin", "list", "--json")
    assert code == 0
    found = {plugin["name"]: plugin for plugin in json.loads(out)["plugins"]}
    keys = {"name", "distribution", "version", "status", "error", "task_samplers", "learners", "meta_objectives"}
    for plugin in found.values():
        assert plugin.keys() >= keys
        assert plugin["status"] in ("ok", "broken")
    assert found["tasks"]["distribution"] == "metaopt-fewshot"
    assert found["tasks"]["version"] == __version__
    assert {"glyphs", "omniglot", "sinusoid"} <= set(found["tasks"]["task_samplers"])
    code, out, _ = run("plugin", "list")
    assert code == 0
    samplers = ", ".join(found["tasks"]["task_samplers"])
    assert f"tasks  (metaopt-fewshot {__version__})\n  task samplers: {samplers}\n" in out


def test_a_sampler_is_shown_with_what_each_setting_is_and_means(run: Run) -> None:
    code, out, _ = run("plugin", "show", "curves")
    assert code == 0
    assert "\n  family             a text, by default mixed\n" in out
    assert "\n  amplitude          a list, by default [0.1, 5]\n                       Sinusoids are amplitude ·" in out
    _, out, _ = run("plugin", "show", "images")
    assert "\n  root               a text, by default empty\n" in out
    assert "\n  follow_links       true or false, by default false\n" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_preview_describes_pools_and_a_task_and_writes_its_picture(run: Run) -> None:
    code, out, err = run("tasks", "preview", "tiny.yaml", "--output", "task.png")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["train", "–", "10", "50", "5", "–"] in lines
    assert "  support_x  3 × 1 × 16 × 16" in out
    assert lines[-1] == ["written", "to", "task.png"]
    assert Path("task.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("tasks", "preview", "tiny.yaml", "--set", "tasks.n_way=6", "--json")
    found = json.loads(out)
    assert code == 1, "the study would not run"
    assert found["pools"]["validation"]["refused"] is None
    assert "the test pool has 5; set tasks.n_way to 5" in found["pools"]["test"]["refused"]
    assert found["task"]["shapes"]["query_y"] == [18]
    assert found["picture"] is None
    code, out, _ = run("tasks", "preview", "sinusoid")
    assert code == 0
    assert "\na train task: 10 support and 10 query examples" in out


def test_what_a_study_searches_is_listed_with_ranges_and_defaults(run: Run) -> None:
    overrides = ("--set", "learners.protonet.distance=cosine", "--set", "tasks.train_way={low: 2, high: 4}")
    code, out, err = run("study", "space", "tiny.yaml", *overrides)
    assert (code, err) == (0, "")
    assert any(
        line.split() == ["tasks.train_way", "2", "to", "4,", "whole,", "log", "scale", "3"] for line in out.splitlines()
    )
    assert "protonet.distance" not in out, "it is fixed"
    code, out, _ = run("study", "space", "tiny.yaml", *overrides, "--json")
    found = json.loads(out)
    assert found["learners"]["protonet"]["tasks.train_way"] == 3
    assert {
        "name": "tasks.train_way",
        "range": "2 to 4, whole, log scale",
        "when": {},
        "defaults": {"protonet": 3},
    } in found["parameters"]


def test_a_learner_is_shown_with_ranges_defaults_provider_and_paper(run: Run) -> None:
    code, out, _ = run("plugin", "show", "maml", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["distribution"], found["kind"]) == ("metaopt-fewshot", "learner")
    assert found["parameters"]["inner_lr"] == {"range": "0.001 to 1, log scale", "default": 0.1}
    code, out, _ = run("plugin", "show", "maml")
    assert code == 0
    for text in ("arXiv:1703.03400", "0.001 to 1, log scale", "default 0.1", f"(metaopt-fewshot {__version__})"):
        assert text in out


FAULTY = """
import torch
from metaopt import hookimpl
from metaopt.objective import MetaObjective

class Sum(MetaObjective):
    \"\"\"Errs: it adds up all tasks.\"\"\"
    name = "faulty_sum"
    direction = "maximize"
    kinds = ("classification",)

    def score(self, outcome):
        print("chatter")
        return torch.tensor([outcome.predictions.sum()])

@hookimpl
def register_meta_objectives():
    return [Sum]
"""


@pytest.fixture
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep to this test what `plugin check PATH` puts on Python's path."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_one_thing_or_a_whole_plugin_is_checked_by_name(run: Run) -> None:
    code, out, err = run("plugin", "check", "mse")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == [
        f"mse: meta-objective of objectives (metaopt-fewshot {__version__})",
        "  ok       obeys_the_contract",
    ]
    assert re.fullmatch(r"\d+ ok, 0 failed, \d+ skipped", lines[-1])
    code, out, _ = run("plugin", "check", "objectives", "--json")
    whole = json.loads(out)["checked"]
    assert (code, whole[0]["name"], whole[0]["kind"]) == (0, "objectives", "plugin")
    assert {"accuracy", "mse", "calibration"} <= {one["name"] for one in whole[1:]}
    for check in (check for one in whole for check in one["checks"]):
        assert check.keys() == {"check", "status", "reason"}
        assert check["status"] in ("ok", "skipped")


def test_a_failed_check_says_the_law_and_the_remedy_with_exit_code_1(run: Run, at_home: None) -> None:
    Path("faulty_sum.py").write_text(FAULTY)
    code, out, err = run("plugin", "check", "faulty_sum.py")
    assert code == 1
    assert "faulty_sum: plugin (faulty_sum.py (not installed))\n  ok       loads\n" in out
    [failed] = [line for line in out.splitlines() if "scores_each_task" in line]
    assert failed.startswith("  failed   scores_each_task: ")
    assert "(n_tasks,)" in failed
    assert re.search(r"^\d+ ok, [1-9]\d* failed, ", out.splitlines()[-1])
    assert "chatter" not in out, "what a plugin prints goes to stderr"
    assert "chatter" in err
    code, again, _ = run("plugin", "check", "faulty_sum.py", "--json")
    checks = {check["check"]: check for one in json.loads(again)["checked"] for check in one["checks"]}
    assert (code, checks["scores_each_task"]["status"]) == (1, "failed")
    assert checks["scores_each_task"]["reason"] in failed


@pytest.mark.parametrize("kind", ["task-sampler", "objective"])
def test_a_new_project_is_written_and_checked_by_the_path_of_its_folder(run: Run, at_home: None, kind: str) -> None:
    code, out, err = run("plugin", "new", "acme_new", f"--{kind}")
    files = "README.md, metaopt_acme_new.py, pyproject.toml, study.yaml, tests/test_acme_new.py"
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"wrote metaopt-acme-new: {files}"
    assert "  metaopt plugin check acme_new\n" in out
    code, out, err = run("plugin", "check", "metaopt-acme-new")
    assert (code, err) == (0, "")
    assert "acme_new: plugin (metaopt-acme-new 0.1.0 (not installed))" in out
    for name in [name for name in sys.modules if name.startswith("metaopt_acme_new")]:
        del sys.modules[name]


def test_a_new_project_is_a_learners_unless_it_is_told_otherwise(run: Run) -> None:
    code, out, _ = run("plugin", "new", "acme", "--output", "there", "--json")
    made = json.loads(out)
    assert (code, made["name"], made["kind"], made["folder"]) == (0, "acme", "learner", "there")
    assert all((Path("there") / file).is_file() for file in made["files"])
    assert "register_learners" in Path("there/metaopt_acme.py").read_text()


def test_a_task_sampler_is_checked_at_the_settings_that_set_gives(run: Run) -> None:
    sizes = ["train_classes=10", "validation_classes=6", "test_classes=5", "size=8"]
    code, out, _ = run("plugin", "check", "glyphs", *(f"--set={size}" for size in sizes))
    assert (code, "  ok       pools_are_disjoint\n" in out) == (0, True)
    code, out, _ = run("plugin", "check", "glyphs", "--set", "size=4")
    assert (code, "tasks.size is 4; glyphs need 8 at least" in out) == (1, True)


def test_a_winner_is_scored_again_on_tasks_that_the_seed_names(run: Run, finished: Path) -> None:
    code, out, _ = run("evaluate", str(finished / "best"), "--tasks", "15", "--json")
    found = json.loads(out)
    assert (code, found["tasks"], found["pool"], found["study"]) == (0, 15, "test", "tiny")
    assert found.keys() >= {"model", "learner", "objective", "mean", "ci95", "median", "transductive", "not_finite"}
    assert run("evaluate", str(finished / "best"), "--tasks", "15", "--json")[1] == out
    other = json.loads(run("evaluate", str(finished / "best"), "--tasks", "15", "--seed", "2", "--json")[1])
    assert other["mean"] != found["mean"]
    code, out, _ = run("evaluate", str(finished / "best"), "--tasks", "15")
    assert code == 0
    assert re.match(rf"{found['learner']}: accuracy 0\.\d{{4}} ± .* on 15 fresh test tasks, inductive$", out.strip())


def test_a_winner_is_scored_on_tasks_of_other_sizes(run: Run, finished: Path) -> None:
    best = str(finished / "best")
    asked = ("evaluate", best, "--tasks", "15")
    usual = json.loads(run(*asked, "--json")[1])
    easier = json.loads(run(*asked, "--way", "2", "--shot", "2", "--json")[1])
    assert (easier["n_way"], easier["n_shot"]) == (2, 2)
    assert easier["mean"] > usual["mean"]
    assert json.loads(run(*asked, "--way", str(usual["n_way"]), "--json")[1]) == usual
    assert "on 15 fresh 2-way 2-shot test tasks" in run(*asked, "--way", "2", "--shot", "2")[1]
    refused(run(*asked, "--way", "1"), "--way: 1 class leaves nothing to tell apart; give 2 or more")
    refused(run(*asked, "--way", "99"), "99-way tasks need 99 classes")
    refused(
        run(*asked, "--way", "2", "--on", "omniglot-challenge"),
        "--on: the tasks of omniglot-challenge have sizes of their own",
    )


def test_a_winner_is_scored_on_fixed_tasks_as_an_error_with_its_interval(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    runs = tmp_path / "omniglot" / "one-shot-classification"
    for folder in (runs / f"run{number:02}" for number in range(1, 21)):
        for name in ("training/class", "test/item"):
            (folder / name).parent.mkdir(parents=True)
            for number in range(20):
                pixels = np.full((105, 105), 255, np.uint8)
                pixels[5 * number : 5 * number + 5] = 0  # as easy as can be
                Image.fromarray(pixels).save(folder / f"{name}{number + 1:02}.png")
        lines = [f"{folder.name}/test/item{n:02}.png {folder.name}/training/class{n:02}.png" for n in range(1, 21)]
        (folder / "class_labels.txt").write_text("\n".join(lines))
    monkeypatch.setenv("METAOPT_DATA", str(tmp_path))
    code, out, _ = run("evaluate", str(finished / "best"), "--on", "omniglot-challenge", "--json")
    found = json.loads(out)
    assert (code, found["on"], found["queries"], found["tasks"]) == (0, "omniglot-challenge", 400, 20)
    assert found["low"] <= found["error"] == found["wrong"] / 400 <= found["high"] < 0.5
    code, out, _ = run("evaluate", str(finished / "best"), "--on", "omniglot-challenge")
    assert code == 0
    assert re.match(
        rf"{found['learner']}: error \d+\.\d\d% \(95 % interval .*\) on omniglot-challenge: {found['wrong']} of 400 "
        r"queries of 20 20-way 1-shot tasks, inductive\nit was trained on tasks of glyphs, and these are as", out,
    )  # fmt: skip
    refused(run("evaluate", str(finished / "best"), "--on", "omniglot"), "--on: no fixed evaluation named 'omniglot'")


# Mistakes

MISTAKES: dict[str, tuple[list[str], str]] = {
    "an unknown shipped study": (["quickstrat"], "no study file or shipped study named 'quickstrat'; did you mean "),
    "a missing file": (["no.yaml"], "cannot read the study file no.yaml: No such file or directory; give the path of"),
    "no yaml": (["broken.yaml"], "broken.yaml:1: not valid YAML: "),
    "an unknown key": (["tiny.yaml", "--set=trails=3"], "tiny.yaml: no key named 'trails'; did you mean 'trials'?"),
    "an override without value": (["tiny.yaml", "--set=trials"], "--set 'trials': write it as path.to.key=value, such"),
    "a bad timeout": (["tiny.yaml", "--timeout=soon"], "tiny.yaml: timeout: 'soon' is not a time; write it as 90s"),
    "a bad seed": (["tiny.yaml", "--seed=-1"], "tiny.yaml: seed: -1 is not a whole number of 0 or more"),
    "too many ways": (
        ["tiny.yaml", "--set=tasks.n_way=7"],
        "tiny.yaml: 7-way tasks need 7 classes and the validation pool has 6; set tasks.n_way to 6 or less",
    ),
    "too many shots": (
        ["tiny.yaml", "--set=tasks.n_shot=5"],
        "tiny.yaml: 5 shots and 3 queries need 8 examples of every class and the smallest class of the",
    ),
    "a bad setting": (["tiny.yaml", "--set=tasks.size=4"], "tiny.yaml: tasks.size is 4; glyphs need 8 at least"),
    "pictures too small": (
        ["tiny.yaml", "--set=tasks.size=8"],
        "tiny.yaml: the encoder conv4 halves a picture 4 times: (8, 8) pixels are too few; use 16 or more",
    ),
    "missing data": (
        ["tiny.yaml", "--set=tasks={sampler: omniglot, n_way: 5, n_shot: 1, root: nowhere, split: here}"],
        "tiny.yaml: ",
    ),
    "an output below a file": (["tiny.yaml", "--output=tiny.yaml/run"], "cannot write to the run folder tiny.yaml/run"),
    "an output that is a file": (["tiny.yaml", "--output=tiny.yaml"], "cannot write to the run folder tiny.yaml (File"),
    "a storage that cannot be opened": (["tiny.yaml", "--storage=nonsense"], "--storage: cannot open that storage ("),
}  # fmt: skip


def refused(answer: tuple[int, str, str], said: str) -> None:
    code, out, err = answer
    assert (code, out) == (2, "")
    assert err.startswith(f"metaopt: {said}")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(("arguments", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_exit_code_2_and_nothing_is_left_behind(
    run: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "broken.yaml").write_text("tasks: {")
    refused(run("study", "run", *arguments), said)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "broken.yaml"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_a_mistake(run: Run) -> None:
    refused(
        run("study", "run", "tiny.yaml", "--device", "cuda"), "--device cuda: torch finds no CUDA device here; leave"
    )


def test_mistakes_of_the_other_commands_are_one_sentence_too(run: Run, tmp_path: Path) -> None:
    refused(
        run("study", "show", "."), ".: no leaderboard.json here; give the folder of a run, such as runs/quickstart,"
    )
    refused(run("study", "show", "tiny.yaml"), "tiny.yaml: no leaderboard.json here; give the folder of a run")
    refused(run("tasks", "preview", "tiny.yaml", "--set", "tasks.size=1"), "tiny.yaml: tasks.size is 1; glyphs need 8")
    refused(run("tasks", "preview", "tiny.yaml", "--output", "a.txt"), "--output a.txt: .txt names no picture format")
    refused(run("plugin", "show", "protonett"), "no plugin or thing provided by one named 'protonett'; did you mean ")
    refused(run("plugin", "check", "protonett"), "no plugin or thing provided by one named 'protonett'; did you mean ")
    refused(run("plugin", "check", "mine.py"), "mine.py does not exist; give a project's folder, a package or a .py")
    refused(run("plugin", "check", "."), f"{tmp_path} is no project; give a folder with a pyproject.toml, a package")
    refused(run("plugin", "check", "glyphs", "--set=sise=8"), "--set: no setting of a task sampler that is checked nam")
    refused(run("plugin", "new", "Mine"), "'Mine' cannot be a name; use lower-case letters, digits and underscores")
    refused(run("plugin", "new", "maml"), "the learner 'maml' is provided by the plugin 'gradient' of metaopt-fewshot")
    refused(run("plugin", "new", "mine", "--output", "tiny.yaml"), "tiny.yaml exists already; remove it, or name ano")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    refused(
        run("evaluate", "nowhere"), "nowhere: not a saved model (No such file or directory); give the folder `best`"
    )
    refused(run("evaluate", "."), ".: not a saved model (No such file or directory); give the folder `best`")
    (tmp_path / "leaderboard.json").write_text("{")
    refused(run("study", "show", "."), "leaderboard.json: cannot be read (")


def test_a_changed_study_is_refused_with_the_key_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    run("study", "run", "tiny.yaml", "--trials=1", "--quiet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    answer = run("study", "run", "tiny.yaml", "--set=encoder.conv4.width=16")
    refused(
        answer, "this study was begun with encoder.conv4.width = 8, not 16, and its trials would not compare; set it"
    )
    refused(
        run("study", "run", "tiny.yaml", "--set=name=other", "--output=runs/tiny"), "runs/tiny is the run folder of"
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Interrupted


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(run: Run, tmp_path: Path) -> None:
    options = ["tiny.yaml", "--trials=5", "--set=learners=[protonet]", "--set=budget.tasks=40", "--json"]
    whole = json.loads(run("study", "run", *options, "--output=whole")[1])
    with metaopt("study", "run", *options[:-1]) as process:
        assert process.stderr
        while not process.stderr.readline().startswith("trial   2"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130
    assert "finishing; once more ends at once" in err
    assert "Traceback" not in err
    assert out.endswith("interrupted; what is done is in runs/tiny; the same command goes on from here\n")
    done = re.search(r"^tiny: ([345]) trials complete, 0 pruned, 0 failed", out, re.MULTILINE)
    assert done
    code, out, err = run("study", "run", *options)
    assert f"5 trials, {done[1]} of them done before; accuracy" in err
    assert code == 0
    assert timeless(json.loads(out)) == timeless(whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_a_study_with_its_workers_cleanly(run: Run, name: str) -> None:
    options = ["tiny.yaml", "--set=budget.tasks=10000000", "--set=learners=[protonet]", "--workers=2", "--json"]
    with metaopt("study", "run", *options, start_new_session=True) as process:
        assert process.stderr
        assert process.stderr.readline().startswith("study tiny: ")
        os.killpg(process.pid, getattr(signal, name))  # as a terminal does: to the workers too
        out, err = process.communicate()
    assert process.returncode == 130
    assert json.loads(out)["trials"] == {"complete": 0, "pruned": 0, "failed": 0}
    assert json.loads(out)["status"] == "interrupted"
    assert "Traceback" not in err


def test_ctrl_c_before_a_study_has_begun_says_nothing(run: Run, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "acme_slow-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acme_slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-slow\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metaopt]\nslow = acme_slow\n")
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    with metaopt("study", "run", "tiny.yaml", env=os.environ | {"PYTHONPATH": path}) as process:
        assert process.communicate() == ("", "")
    assert process.returncode == 130
    assert not Path("runs").exists()


def test_a_second_process_in_one_folder_is_refused(run: Run, tmp_path: Path) -> None:
    with owned(tmp_path / "runs" / "tiny"), metaopt("study", "run", "tiny.yaml") as process:
        out, err = process.communicate()
    refused((process.returncode, out, err), "another process is running the study in runs/tiny; wait for it, or give")


@pytest.mark.parametrize("arguments", [["plugin", "list"], ["plugin", "list", "--json"]])
def test_a_reader_that_leaves_is_no_mistake(arguments: list[str]) -> None:
    with metaopt(*arguments) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


# Audit and compare


def test_an_audit_prints_what_it_found_and_fails_where_the_report_does_not_follow(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    code, out, _ = run("study", "audit", str(finished), "--json")
    findings = json.loads(out)["findings"]
    assert (code, {finding["status"] for finding in findings} - {"note"}) == (0, {"ok"})
    folder = shutil.copytree(finished, tmp_path / "tampered")
    board = json.loads((folder / "leaderboard.json").read_text())
    board["finalists"][0]["report"]["mean"] = 1.5
    (folder / "leaderboard.json").write_text(json.dumps(board))
    code, out, _ = run("study", "audit", str(folder))
    assert code == 1
    assert "failed  report: does not follow from its scores task by task\n" in out
    assert re.search(r"\d+ ok, \d+ to note, 1 failed\n$", out)


def test_compare_prints_each_score_and_the_differences_and_records_that_the_test_pool_was_scored(
    run: Run, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    code, out, _ = run("compare", str(folder), str(finished / "best"), "--tasks", "20", "--seed", "9")
    assert code == 0
    assert "on the same 20 test tasks\n" in out
    assert "0.0000 ± 0.0000 against the first: not told apart (p = 1)\n" in out
    assert "compare --seed 9" in (folder / "tested.jsonl").read_text()
    code, out, _ = run("compare", str(folder), str(folder), "--tasks", "20", "--pool", "validation", "--json")
    assert json.loads(out)["models"][1]["difference"]["told_apart"] is False
    assert len((folder / "tested.jsonl").read_text().splitlines()) == len(
        (finished / "tested.jsonl").read_text().splitlines()
    )


def test_compare_needs_two_models(run: Run, finished: Path) -> None:
    code, _, err = run("compare", str(finished))
    assert (code, err) == (2, "metaopt: compare needs two models or more; give two folders, such as runs/a runs/b\n")


# Leaving plugins out


def test_a_plugin_is_left_out_by_an_option_beside_those_that_the_environment_leaves_out(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAOPT_DISABLE_PLUGINS", "memory")
    code, out, _ = run("--plugin", "no:metric", "--plugin", "no:hyper", "plugin", "list", "--json")
    listed = {plugin["name"] for plugin in json.loads(out)["plugins"]}
    assert code == 0
    assert "gradient" in listed
    assert not {"memory", "metric", "hyper"} & listed
    code, _, err = run("--plugin", "metric", "plugin", "list")
    assert code == 2
    assert "'metric' leaves nothing out; write no: and a plugin's name, as no:nearest" in err


def test_sizes_of_data_are_refused_beside_a_study_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "run", "quickstart", "--way", "3"]) == 2
    err = capsys.readouterr().err
    assert "--way is for data, and quickstart is a study file" in err
    assert len(err.splitlines()) == 1


# Portfolios


def test_what_runs_found_is_collected_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
name: points
tasks: {sampler: gaussian, n_way: 3, n_shot: 1, n_query: 4}
learners: [pixels, protonet]
encoder: {mlp: {width: 8}}
trials: 2
budget: {tasks: 8}
evaluation: {tasks: 20, finalists: 1, report_tasks: 20}
"""
    (tmp_path / "study.yaml").write_text(text)
    run, portfolio = str(tmp_path / "run"), tmp_path / "p.json"
    assert main(["study", "run", str(tmp_path / "study.yaml"), "--output", run, "--quiet"]) == 0
    (tmp_path / "run" / "portfolio.json").unlink()  # as in a run of an earlier version: the tasks are looked at now
    assert main(["portfolio", "add", run, "--to", str(portfolio)]) == 0
    assert main(["portfolio", "show", str(portfolio), "--like", str(tmp_path / "study.yaml")]) == 0
    out = capsys.readouterr().out
    assert f"{portfolio}: added points; it holds 1" in out
    assert re.search(r"points: distance 0\.00; 3-way 1-shot, vectors of 16, nearest 0\.\d\d\n  accuracy: \w+ 0\.", out)
    assert main(["portfolio", "show", str(tmp_path / "nowhere")]) == 2
    assert main(["portfolio", "add", str(tmp_path), "--to", str(portfolio)]) == 2
