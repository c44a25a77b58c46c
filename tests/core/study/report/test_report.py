"""A report is one file that holds all it needs, tells what the run folder holds, and says what it could not show."""

import json
import re
import shutil
from html import escape
from pathlib import Path

import optuna
import pytest
import torch

from metaopt import plugins
from metaopt.cli import main
from metaopt.errors import UserError
from metaopt.study import leaderboard, report
from metaopt.study.file import load
from metaopt.study.ledger import results
from metaopt.study.report import tried
from metaopt.study.storage import open_storage
from metaopt.study.trial import Bench

REGISTRY = plugins.load()
CPU = torch.device("cpu")


def own(page: Path) -> str:
    """Return a page without Plotly's own code."""
    return re.sub(r"<script>.*?</script>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def trials_of(folder: Path) -> list[tried.Tried]:
    name = leaderboard.read(folder)["study"]  # type: ignore[index]
    return tried.read(optuna.load_study(study_name=name, storage=open_storage(folder)))


def test_the_file_asks_no_network_for_anything(page: Path) -> None:
    text = own(page)
    assert re.findall(r"(?:src|href)=[\"'](?!#|data:)", text) == []
    assert "default-src 'none'" in text
    assert "@import" not in text
    assert "url(" not in text


def test_a_finished_study_has_every_part(finished: Path, page: Path) -> None:
    text = own(page)
    figures = set(re.findall(r'id="plot-([a-z-]+)', text))
    assert figures >= {
        "intervals",
        "shrinkage",
        "progress-trials",
        "progress-time",
        "families",
        "confusion",
        "adaptation",
    }
    board = leaderboard.read(finished)
    assert board is not None
    winner = board["finalists"][0]
    assert f"{winner['learner']} won: accuracy {leaderboard.interval(winner['report'])}" in text
    assert text.count('<table class="task">') == 4
    for said in (
        f"<dd>{board['seed']}</dd>",
        board["versions"]["torch"],
        "tasks (metaopt-fewshot",
        "metaopt study audit",
    ):
        assert said in text
    for entry in board["finalists"]:
        assert leaderboard.interval(entry["fresh"]) in text


def test_every_figure_says_how_to_read_it(page: Path, large_page: Path) -> None:
    for text in (own(page), own(large_page)):
        for figure in re.findall(r'<figure class="wide">(.*?)</figure>', text, re.DOTALL):
            assert re.search(r"<figcaption>.{40,}</figcaption>", figure)
        for before in re.findall(r"<p>([^<]*)</p>\s*<div class=\"grid\">", text):
            assert len(before) > 40
        assert len(re.findall(r"</p>\s*<div class=\"grid\">", text)) == text.count('<div class="grid">')


def test_the_command_tells_where_the_report_is(named: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.html"
    assert main(["study", "report", str(named), "--output", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found.keys() == {"report", "bytes", "skipped"}
    assert (found["report"], found["bytes"]) == (str(path), path.stat().st_size)
    assert main(["study", "report", str(named), "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert "not shown: No finalist adapts by inner steps" in out
    assert f"written to {path} (4.9 MB); open it in a browser, no network needed\n" in out


def test_a_report_stands_in_the_run_folder_and_changes_nothing_else_there(named: Path, tmp_path: Path) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    folder = shutil.copytree(named, tmp_path / "run")
    before = contents()
    assert report.write(folder, REGISTRY, CPU).path == folder / "report.html"
    after = contents()
    del after[folder / "report.html"]
    assert after == before, "the record of looks at the test pool among it"


@pytest.mark.parametrize("missing", ["leaderboard.json", "journal.log"])
def test_a_folder_that_holds_no_study_is_a_users_mistake(
    finished: Path, tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / missing).unlink()
    before = sorted(folder.rglob("*"))
    assert main(["study", "report", str(folder)]) == 2
    assert f"no {missing} here; give " in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_path_that_cannot_be_written_is_a_users_mistake(named: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no folder; make it, or give another path with --output"):
        report.write(named, REGISTRY, CPU, output=tmp_path / "no" / "folder" / "r.html")
    with pytest.raises(UserError, match=r"cannot be written \(.*\); give another path with --output"):
        report.write(named, REGISTRY, CPU, output=tmp_path)


def test_without_the_data_all_but_the_tasks_is_shown_and_why(named: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(named, tmp_path / "run")
    gone = Path(str(load(folder / "study.yaml", REGISTRY).tasks.config.file))
    hidden = gone.rename(gone.with_suffix(".away"))
    try:
        found = report.write(folder, REGISTRY, CPU)
    finally:
        hidden.rename(gone)
    assert len(found.skipped) == 1
    assert re.match(r"Tasks cannot be drawn here: .*data\.npz", found.skipped[0])
    text = found.path.read_text(encoding="utf-8")
    assert escape(found.skipped[0], quote=False)[:60] in text
    assert 'id="plot-intervals"' in text
    assert 'id="plot-confusion"' not in text


def test_without_the_finalists_weights_the_rest_is_shown(large: Path, tmp_path: Path) -> None:
    found = report.write(large, REGISTRY, CPU, output=tmp_path / "r.html")
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith("The finalists could not be used (FileNotFoundError")


def test_an_interrupted_study_has_a_report_of_its_search(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    bench = Bench(load(folder / "study.yaml", REGISTRY), REGISTRY, CPU)
    trials = results(optuna.load_study(study_name="tiny", storage=open_storage(folder)))
    board = leaderboard.build(bench, trials, [], [], None, 1.0, "interrupted")
    (folder / leaderboard.FILE).write_text(json.dumps(board))
    text = own(report.write(folder, REGISTRY, CPU).path)
    assert "leads so far" in text
    assert "such a score is too good" in text
    assert 'id="plot-shrinkage"' not in text
    assert "not come to its end" in text


def test_a_study_in_which_all_failed_has_a_report_that_says_so(finished: Path) -> None:
    board = leaderboard.read(finished)
    assert board is not None
    board |= {"finalists": [], "learners": {}, "status": "failed",
              "failures": [{"learner": "maml", "reason": "it <raised> \udcff", "trials": 3}]}  # fmt: skip
    text, _ = report.page(finished, board, [], None, "no data")
    assert "Nothing came to a score" in text
    assert "3 × maml: it &lt;raised&gt; \\udcff" in text
    assert text.encode("utf-8")


def test_a_study_in_another_storage_is_found_there(finished: Path, tmp_path: Path) -> None:
    url, empty = f"sqlite:///{tmp_path / 'study.db'}", f"sqlite:///{tmp_path / 'empty.db'}"
    optuna.copy_study(from_study_name="tiny", from_storage=open_storage(finished), to_storage=url)
    folder = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("journal.log", "finalists"))
    assert 'id="plot-progress-trials"' in own(report.write(folder, REGISTRY, CPU, storage=url).path)
    with pytest.raises(UserError, match="holds no study named 'tiny'"):
        report.write(folder, REGISTRY, CPU, storage=empty)


def test_a_thousand_trials_are_less_than_two_megabytes_beside_plotly(large: Path, large_page: Path) -> None:
    text = own(large_page)
    assert len(text.encode()) < 2e6
    assert large_page.stat().st_size < 7e6
    pattern = r'id="plot-progress-trials".*?<script type="application/json">(.*?)</script>'
    [progress] = re.findall(pattern, text, re.DOTALL)
    dots = sum(len(trace["x"]) for trace in json.loads(progress)["data"] if trace["mode"] == "markers")
    assert dots == sum(trial.state != "failed" for trial in trials_of(large)) > 900
