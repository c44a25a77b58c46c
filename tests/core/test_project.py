"""A plugin's project is written whole or not at all, and is loaded where it lies."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metaopt import plugins, project
from metaopt.errors import UserError
from metaopt.plugins import NOT_INSTALLED
from metaopt.testing import run_checks

REGISTRY = plugins.load()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in an empty folder, and forget afterwards what was imported from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


LEARNER = """
from metaopt import hookimpl
from metaopt.learner import Learner

class Mine(Learner):
    name = "{name}"

@hookimpl
def register_learners():
    return [Mine]
"""


@pytest.mark.parametrize("kind", project.KINDS)
def test_a_project_is_complete_and_provides_what_its_name_says(kind: str) -> None:
    folder = project.create("my_thing", kind, None, REGISTRY)
    assert folder == Path("metaopt-my-thing")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {"README.md", "metaopt_my_thing.py", "pyproject.toml", "study.yaml", "tests/test_my_thing.py"}
    for file in files:
        assert "placeholder" not in (folder / file).read_text().lower()
    registry, [mine] = project.load(folder)
    assert (mine.name, mine.distribution, mine.status) == ("my_thing", "metaopt-my-thing", "ok")
    assert mine.version == f"0.1.0 {NOT_INSTALLED}"
    assert getattr(mine, project.KINDS[kind]) == ("my_thing",)
    assert getattr(registry, project.KINDS[kind])["my_thing"].__name__ == "MyThing"
    assert {plugin.name for plugin in REGISTRY.plugins} < {plugin.name for plugin in registry.plugins}


@pytest.mark.parametrize("kind", ["task_sampler", "meta_objective"])  # a learner's takes longer: tests/test_docs.py
def test_what_a_new_project_provides_passes_every_check(kind: str) -> None:
    registry, _ = project.load(project.create("mine", kind, None, REGISTRY))
    verdicts = list(run_checks(getattr(registry, project.KINDS[kind])["mine"]))
    assert {verdict.status for verdict in verdicts} == {"ok"}, verdicts


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("Mine", "learner", "'Mine' cannot be a name; use lower-case letters, digits and underscores, beginning"),
        ("mine-too", "learner", "'mine-too' cannot be a name; "),
        ("../mine", "learner", "'../mine' cannot be a name; "),
        ("m" * 51, "learner", "' cannot be a name; use lower-case letters"),
        ("", "learner", "'' cannot be a name; "),
        ("maml", "learner", "the learner 'maml' is provided by the plugin 'gradient' of metaopt-fewshot "),
        ("glyphs", "task_sampler", "the task sampler 'glyphs' is provided by the plugin 'tasks' of metaopt-fewshot "),
        ("mse", "meta_objective", "the meta-objective 'mse' is provided by the plugin 'objectives' of metaopt-fewshot"),
        ("metric", "meta_objective", "the plugin 'metric' of metaopt-fewshot "),
        ("fewshot", "learner", "metaopt-fewshot is installed already; choose another name"),
        ("tensor", "learner", "a class Tensor would hide what the project needs by that name; choose another name"),
        ("none", "learner", "a class None would hide what the project needs by that name; choose another name"),
    ],
)
def test_bad_and_taken_names_are_refused_and_nothing_is_written(
    empty_folder: Path, name: str, kind: str, said: str
) -> None:
    with pytest.raises(UserError) as refused:
        project.create(name, kind, None, REGISTRY)
    assert said in str(refused.value)
    assert list(empty_folder.iterdir()) == []


def test_a_name_may_be_that_of_a_thing_of_another_kind() -> None:
    assert project.create("accuracy", "learner", None, REGISTRY).is_dir()


def test_a_folder_that_exists_is_left_as_it_is() -> None:
    folder = Path("here")
    folder.mkdir()
    (folder / "pyproject.toml").write_text("mine")
    with pytest.raises(UserError, match="here exists already; remove it, or name another folder by --output"):
        project.create("mine", "learner", folder, REGISTRY)
    assert [file.read_text() for file in folder.iterdir()] == ["mine"]


def test_a_folder_that_cannot_be_written_is_a_users_mistake(empty_folder: Path) -> None:
    Path("file").write_text("")
    with pytest.raises(UserError, match=r"cannot write file/mine: .*; name another folder by --output"):
        project.create("mine", "learner", Path("file/mine"), REGISTRY)
    assert [path.name for path in empty_folder.iterdir()] == ["file"]


def test_what_fails_halfway_leaves_nothing(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the third file."""
    written, write_text = [], Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="cannot write metaopt-mine: No space left on device; name another folder"):
        project.create("mine", "learner", None, REGISTRY)
    assert len(written) == 3
    assert list(empty_folder.iterdir()) == []


def test_a_file_and_a_package_are_loaded_where_they_lie() -> None:
    Path("acme_file.py").write_text(LEARNER.format(name="acme_file_learner"))
    Path("acme_package").mkdir()
    Path("acme_package/__init__.py").write_text(LEARNER.format(name="acme_package_learner"))
    for path in ("acme_file.py", "acme_package"):
        registry, [mine] = project.load(Path(path))
        assert (mine.name, mine.distribution, mine.version) == (Path(path).stem, path, NOT_INSTALLED)
        assert mine.learners == (f"{Path(path).stem}_learner",)
        assert "protonet" in registry.learners


def test_a_project_may_keep_its_package_under_src() -> None:
    package = Path("acme/src/acme_src")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(LEARNER.format(name="acme_src"))
    Path("acme/pyproject.toml").write_text('[project]\nname = "acme"\n[project.entry-points.metaopt]\nx = "acme_src"\n')
    _, [mine] = project.load(Path("acme"))
    assert (mine.name, mine.distribution, mine.learners) == ("x", "acme", ("acme_src",))


def test_what_is_loaded_again_is_what_the_file_holds_now() -> None:
    for name in ("first", "second_one"):
        Path("acme_again.py").write_text(LEARNER.format(name=name))
        _, [mine] = project.load(Path("acme_again.py"))
        assert mine.learners == (name,)


def test_a_project_stands_in_the_place_of_its_installed_version(empty_folder: Path) -> None:
    site = empty_folder / "site"
    info = site / "acme_two-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "acme_two.py").write_text(LEARNER.format(name="installed"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-two\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metaopt]\ntwo = acme_two\n")
    sys.path.insert(0, str(site))
    assert "installed" in plugins.load().learners
    Path("pyproject.toml").write_text(
        '[project]\nname = "acme-two"\nversion = "2.0"\n[project.entry-points.metaopt]\ntwo = "acme_two"\n'
    )
    Path("acme_two.py").write_text(LEARNER.format(name="edited"))
    registry, [mine] = project.load(Path())
    assert (mine.version, mine.learners) == (f"2.0 {NOT_INSTALLED}", ("edited",))
    assert "installed" not in registry.learners


def test_a_broken_project_is_loaded_as_broken_and_its_author_told_to_mend_it() -> None:
    Path("acme_broken.py").write_text("raise RuntimeError('on purpose')")
    registry, [mine] = project.load(Path("acme_broken.py"))
    assert mine.error == "RuntimeError: on purpose (acme_broken, line 1); mend that"
    assert "protonet" in registry.learners


@pytest.mark.parametrize(
    ("files", "path", "said"),
    [
        ({}, ".", "is no project; give a folder with a pyproject.toml, a package, or a .py file"),
        ({"a.txt": ""}, "a.txt", "a.txt is no project; "),
        ({"1st.py": ""}, "1st.py", "1st.py cannot be imported; rename it to letters, digits and underscores"),
        ({"pyproject.toml": "["}, ".", "pyproject.toml: "),
        ({"pyproject.toml": "[project]\nname = 'x'"}, ".", "pyproject.toml names no plugin; add a table [project.entr"),
        ({"pyproject.toml": "[project.entry-points]\nmetaopt = 3"}, ".", "pyproject.toml names no plugin; add a table"),
        ({"pyproject.toml": "project = 3"}, ".", "pyproject.toml names no plugin; add a table"),
    ],
)
def test_what_is_no_project_is_refused_with_what_to_give(files: dict[str, str], path: str, said: str) -> None:
    for name, text in files.items():
        Path(name).write_text(text)
    with pytest.raises(UserError) as refused:
        project.load(Path(path))
    assert said in str(refused.value)
