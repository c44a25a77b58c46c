"""A plugin's project on disk: made from a template, or loaded without being installed."""

import importlib
import re
import shutil
import sys
import tomllib
from collections.abc import Mapping
from importlib import metadata, util
from keyword import iskeyword
from pathlib import Path

from metaopt import plugins
from metaopt.errors import UserError
from metaopt.plugins import CONTRACTS, GROUP, NOT_INSTALLED, Plugin, Registry

TEMPLATES = Path(__file__).parent / "template"
KINDS: Mapping[str, str] = {"learner": "learners", "task_sampler": "task_samplers", "meta_objective": "meta_objectives"}
"""The templates, folders of projects in which `placeholder` stands for a name, and what each registers."""


def create(name: str, kind: str, folder: Path | None, registry: Registry) -> Path:
    """Write a project with one plugin, complete and working, and return its folder: by default ./metaopt-<name>.

    Raises UserError where the name is bad or taken, or where the folder exists.
    """
    _refuse_bad_or_taken(name, kind, registry)
    folder = folder or Path(f"metaopt-{name.replace('_', '-')}")
    making = folder.with_name(f".{folder.name}.new")
    if folder.exists():
        raise UserError(f"{folder} exists already; remove it, or name another folder by --output")
    try:
        for template in _files(kind):
            file = making / _filled(str(template.relative_to(TEMPLATES / kind)), name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(template.read_text(encoding="utf-8"), name), encoding="utf-8")
        making.rename(folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; name another folder by --output") from None
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def load(path: Path) -> tuple[Registry, list[Plugin]]:
    """Load the plugins of a project's folder, of a package or of one .py file, beside those that are installed.

    Returns the registry and, of its plugins, those found there. Raises UserError where the path holds none.
    """
    project, import_from = _project(path)
    own = list(project.entry_points.select(group=GROUP))
    values = {entry_point.value for entry_point in own}
    packages = {re.split(r"\W", value)[0] for value in values}
    for module in [module for module in sys.modules if module.partition(".")[0] in packages]:
        del sys.modules[module]  # another version of it may be installed
    sys.path[:0] = map(str, import_from)
    importlib.invalidate_caches()
    others = [
        other
        for other in metadata.entry_points(group=GROUP)
        if other.value not in values and not (other.dist and other.dist.name == project.name)
    ]
    registry = plugins.load([*own, *others])
    return registry, [plugin for plugin in registry.plugins if plugin.distribution == project.name]


class _Uninstalled(metadata.Distribution):
    """A project told of as if it were installed."""

    def __init__(self, name: str, version: str, entry_points: Mapping[str, str]) -> None:
        lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
        self.texts = {
            "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            "entry_points.txt": f"[{GROUP}]\n{lines}",
        }

    def read_text(self, filename: str) -> str | None:
        return self.texts.get(filename)

    def locate_file(self, path: object) -> Path:
        return Path(str(path))


def _project(path: Path) -> tuple[_Uninstalled, list[Path]]:
    """Return a project as if it were installed, and the folders that its modules are imported from."""
    path = path.resolve()
    toml = path / "pyproject.toml"
    if path.suffix == ".py" or ((path / "__init__.py").is_file() and not toml.exists()):
        if not path.stem.isidentifier():
            raise UserError(f"{path.name} cannot be imported; rename it to letters, digits and underscores")
        return _Uninstalled(path.name, NOT_INSTALLED, {path.stem: path.stem}), [path.parent]
    if not toml.is_file():
        raise UserError(f"{path} is no project; give a folder with a pyproject.toml, a package, or a .py file")
    try:
        said = tomllib.loads(toml.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {toml}: {error}; mend it") from None
    match said:
        case {"project": {"entry-points": {plugins.GROUP: {**entry_points}}, **project}} if entry_points:
            name, version = str(project.get("name", path.name)), f"{project.get('version', '')} {NOT_INSTALLED}"
            values = {str(name): str(value) for name, value in entry_points.items()}
            return _Uninstalled(name, version.strip(), values), [path, path / "src"]
    raise UserError(
        f'{toml} names no plugin; add a table [project.entry-points.{GROUP}] with a line such as mine = "the_module"'
    )


def _refuse_bad_or_taken(name: str, kind: str, registry: Registry) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,49}", name):
        raise UserError(
            f"{name!r} cannot be a name; use lower-case letters, digits and underscores, beginning with a letter, at "
            "most 50"
        )
    provided = getattr(registry, KINDS[kind])
    if name in provided:
        noun = CONTRACTS[KINDS[kind]][0]
        raise UserError(f"the {noun} {name!r} is provided by {registry.provider(provided[name])}; choose another name")
    for plugin in registry.plugins:
        if plugin.name == name:
            raise UserError(f"{plugin} is installed already; choose another name")
    distribution, module = (_filled(text, name) for text in ("metaopt-placeholder", "metaopt_placeholder"))
    if any(metadata.distributions(name=distribution)) or util.find_spec(module):
        raise UserError(f"{distribution} is installed already; choose another name")
    hidden = _filled("Placeholder", name)
    texts = [file.read_text(encoding="utf-8") for file in _files(kind)]
    if iskeyword(hidden) or any(re.search(rf"\b{hidden}\b", text) for text in texts):
        raise UserError(f"a class {hidden} would hide what the project needs by that name; choose another name")


def _files(kind: str) -> list[Path]:
    return [file for file in sorted((TEMPLATES / kind).rglob("*")) if file.is_file() and file.suffix != ".pyc"]


def _filled(text: str, name: str) -> str:
    """Return a template's text with the name in the place of `placeholder`, in each of its spellings."""
    text = text.replace("metaopt-placeholder", f"metaopt-{name.replace('_', '-')}")
    text = text.replace("Placeholder", "".join(word.capitalize() for word in name.split("_")))
    return text.replace("placeholder", name)
