"""The notebook leads from images to a report in ten cells, and each of them does what it says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PATH = Path(__file__).parents[2] / "examples" / "pictures.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def notebook(folder: Path) -> nbformat.NotebookNode:
    """Return the notebook, executed in an empty folder."""
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_it_has_ten_cells_and_keeps_no_output_of_earlier_times() -> None:
    cells = nbformat.read(PATH, as_version=4).cells
    assert len(cells) == 10
    assert not any(cell.get("outputs") for cell in cells)


def test_it_ends_with_a_report_and_a_score_on_classes_never_seen(notebook: nbformat.NotebookNode, folder: Path) -> None:
    text = "\n".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "images" in text
    assert re.search(r"^winner: \w+ \(trial \d\), accuracy 0\.\d+ ± 0\.\d+ on 100 test tasks", text, re.MULTILINE)
    assert re.search(r"^written to runs/pictures/report\.html \(\d\.\d MB\)", text, re.MULTILINE)
    assert re.search(r"on 100 fresh test tasks, inductive", text, re.MULTILINE)
    page = (folder / "runs" / "pictures" / "report.html").read_text(encoding="utf-8")
    assert all(f"character-{number:02d}" in page for number in range(60)), "the split names every class"


def test_pictures_are_shown(notebook: nbformat.NotebookNode) -> None:
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    assert any("image/png" in output.data for output in shown)
    assert any("report.html" in output.data.get("text/html", "") for output in shown)
