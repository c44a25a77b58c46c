"""A study's report: one HTML file that opens without a network, made from a run folder alone."""

import base64
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import optuna
import torch
from markupsafe import Markup

from metaopt import __version__, seeds
from metaopt.errors import UserError
from metaopt.files import write_text
from metaopt.plugins import Registry
from metaopt.preview import describe_pool
from metaopt.study import file, leaderboard, tested, versions
from metaopt.study.leaderboard import interval, number
from metaopt.study.report import answers, figures, importance, tried
from metaopt.study.report.figures import Board, Figure
from metaopt.study.report.tried import Tried
from metaopt.study.storage import JOURNAL, open_storage
from metaopt.study.trial import Bench
from metaopt.task import POOLS

HERE = Path(__file__).parent
NAMES = 2000
"""Classes of a pool that are named."""


@dataclass(frozen=True)
class Written:
    """Where a report is, and what it could not show."""

    path: Path
    bytes: int
    skipped: Sequence[str]


def write(
    folder: Path, registry: Registry, device: torch.device, *, output: Path | None = None, storage: str | None = None
) -> Written:
    """Write the report of a run folder. Raises UserError where the folder holds no study that came to a leaderboard.

    What needs the study's data or the finalists' weights is left out, with the reason, where these are not there.
    """
    board = leaderboard.read(folder)
    if board is None:
        raise UserError(
            f"{folder}: no {leaderboard.FILE} here; give the folder of a run, such as runs/quickstart, "
            "and where a study was killed run it again to go on"
        )
    if storage is None and not (folder / JOURNAL).exists():
        raise UserError(f"{folder}: no {JOURNAL} here; give the study's storage with --storage")
    path = output or folder / "report.html"
    if not path.parent.is_dir():  # known before minutes are spent
        raise UserError(f"{path.parent} is no folder; make it, or give another path with --output")
    study = _load(board["study"], open_storage(folder, storage))
    board.setdefault("directions", [direction.name.lower() for direction in study.directions])
    decisive = list(board.get("objectives", [board["objective"]])).index(board["objective"])
    text, skipped = page(folder, board, tried.read(study, decisive), *_bench(folder, registry, device))
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give another path with --output") from None
    return Written(path, path.stat().st_size, skipped)


def page(
    folder: Path, board: Board, trials: Sequence[Tried], bench: Bench | None, why: str | None
) -> tuple[str, Sequence[str]]:
    """Return the page, and sentences on what it could not show. Without `bench` only `why` is said of the tasks."""
    of = figures.colours(board, trials)
    winner = board["finalists"][0] if board["finalists"] else None
    found, adapted, skipped = _at_work(folder, board, bench, why)
    learner = winner["learner"] if winner else ""
    ranks = importance.ranked(trials, learner, board["direction"]) if winner else {}
    parts: dict[str, Any] = {
        "intervals": figures.intervals(board) if winner else None,
        "shrinkage": figures.shrinkage(board) if winner and winner["fresh"] else None,
        "progress": [figures.progress(board, trials, of, over_time=over_time) for over_time in (False, True)],
        "families": figures.families(board, trials, of) if board["learners"] else None,
        "within": importance.within(board, trials, of),
        "slices": importance.slices(board, trials, learner, ranks) if winner else [],
        "contours": importance.contours(board, trials, learner, ranks) if winner else [],
        "curves": figures.curves(board, trials),
        "pareto": importance.pareto(board, trials, of),
        "adaptation": adapted,
        "answers": found,
    }
    text = _environment().get_template("page.html.jinja").render(
        board=board,
        winner=winner,
        parts=parts,
        skipped=skipped,
        share=importance.share_of_variance(trials),
        scored=len(importance.scored(trials)),
        most=next(iter(ranks), None),
        headings=_headings(board, trials, found),
        counts={state: sum(trial.state == state for trial in trials) for state in ("raced", "pruned")},
        fewest=importance.FEWEST,
        provenance=_provenance(folder, board, bench),
        **_assets(),
    )  # fmt: skip
    # A file may have a name that is no Unicode, and a class the name of its folder.
    return text.encode("utf-8", "backslashreplace").decode("utf-8"), skipped


def _load(name: str, storage: Any) -> optuna.Study:
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise UserError(
            f"the storage holds no study named {name!r}; give the one that it ran on with --storage"
        ) from None


def _bench(folder: Path, registry: Registry, device: torch.device) -> tuple[Bench | None, str | None]:
    """Return the study made ready to run; or None and the reason why it cannot be, for its data may be elsewhere."""
    try:
        return Bench(file.load(folder / "study.yaml", registry), registry, device), None
    except UserError as error:
        return None, str(versions.explained(error, versions.kept(folder)))


def _at_work(
    folder: Path, board: Board, bench: Bench | None, why: str | None
) -> tuple[answers.Answers, Figure | None, Sequence[str]]:
    """Return the winner's answers, the curves of adaptation, and sentences on what is missing of either."""
    if board["status"] != "finished":
        return answers.Answers(), None, ["The study has not come to its end, so there are no finalists to look at."]
    if bench is None:
        return answers.Answers(), None, [f"Tasks cannot be drawn here: {why}"]
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(bench.study.seed, "report"))  # of learners that draw: the same page again
            found = answers.answers(bench, answers.winner(bench, folder, board["finalists"][0]))
            adapted, missing = answers.adaptation(bench, folder, board)
    except Exception as error:  # a plugin may have changed since, or its weights are gone: the rest is worth a report
        return answers.Answers(), None, [f"The finalists could not be used ({type(error).__name__}: {error})."]
    return found, adapted, [*found.skipped, *missing]


def _headings(board: Board, trials: Sequence[Tried], found: answers.Answers) -> dict[str, str]:
    """Return headings that say what one sees."""
    said = {
        "winner": "Nothing came to a score",
        "shrinkage": "From the search to new classes",
        "progress": f"{len(trials)} trials",
        "families": "The best of each learner",
        "confusion": "What the winner confuses",
        "hardest": "The tasks it finds hardest",
    }
    if not board["finalists"]:
        return said
    first, sign = board["finalists"][0], 1 if board["direction"] == "maximize" else -1
    best = first["report"] if first["report"] and first["report"]["pool"] == "test" else first["search"]
    won = "won" if board["status"] == "finished" else "leads so far"
    said["winner"] = f"{first['learner']} {won}: {board['objective']} {interval(best)}"
    if first["fresh"] and first["search"]:
        worse = sign * (first["search"]["mean"] - first["fresh"]["mean"])
        than = f"{number(abs(worse))} {'worse' if worse > 0 else 'better'} than its score in the search"
        said["shrinkage"] = f"On fresh tasks, trained anew, the winner is {than}"
    complete = [trial for trial in trials if trial.state == "complete" and trial.value is not None]
    top = max(complete, key=lambda trial: (sign * (trial.value or 0.0), -trial.number), default=None)
    if top:
        said["progress"] = f"The best score came with trial {top.number} of {len(trials)}"
    learners = list(board["learners"].items())
    if len(learners) > 1:
        (name, one), (other, two) = learners[:2]
        ahead = sign * (one["search"]["mean"] - two["search"]["mean"])
        said["families"] = f"{name} is {number(ahead)} ahead of {other}, the next best learner"
    if found.pairs:
        said["confusion"] = f"What the winner confuses: {found.pairs[0].name} and {found.pairs[0].taken_for} most"
    if found.hardest:
        hardest = found.hardest[0]
        said["hardest"] = f"The hardest of {found.tasks} tasks: {hardest.right} of {hardest.asked} queries right"
    return said


def _provenance(folder: Path, board: Board, bench: Bench | None) -> dict[str, Any]:
    """Return where the numbers come from: pools, seeds, versions, plugins, the study file and how to run it again."""
    pools: dict[str, Any] = {}
    plugins: list[str] = []
    if bench:
        named = getattr(bench.sampler, "classes", {})
        for pool in POOLS:
            found = describe_pool(bench.sampler, pool, bench.train_spec if pool == "train" else bench.spec)
            names = [one.name for one in named.get(pool, ())]
            pools[pool] = found | {"names": names[:NAMES], "unnamed": max(0, len(names) - NAMES)}
        space = bench.study.space
        used = [
            type(bench.sampler),
            *(type(objective) for objective in (bench.objective, *bench.others)),
            *space.learner_classes.values(),
            *space.encoder_classes.values(),
        ]
        providers = {found.name: found for found in map(bench.registry.provider, used)}
        plugins = [f"{name} ({one.distribution} {one.version})" for name, one in sorted(providers.items())]
    text = (
        (folder / "study.yaml").read_text(encoding="utf-8", errors="replace")
        if (folder / "study.yaml").exists()
        else ""
    )
    where = shlex.quote(str(folder))
    return {
        "folder": str(folder),
        "pools": pools,
        "pools_are": bench.sampler.pools_are if bench else "",
        "plugins": plugins,
        "study": text,
        "tested": tested.read(folder),
        "commands": {
            "run it again from the start": f"metaopt study run {where}/study.yaml --output {where}-again",
            "check that it follows from what is stored": f"metaopt study audit {where}",
            "score the winner on other test tasks": f"metaopt evaluate {where}/best --tasks 1000 --seed 2",
            "make this page again": f"metaopt study report {where}",
        },
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "metaopt": __version__,
    }


def _environment() -> jinja2.Environment:
    """Return a template engine that escapes all it is given, whatever a class, a file or a plugin is called."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"interval": interval, "number": number, "embedded": _embedded, "setting": _setting}
    return environment


def _assets() -> dict[str, Markup]:
    """Return styles and scripts to stand in the page, and the policy by which a browser runs no others."""
    from plotly.offline import get_plotlyjs  # 5 MB of text: read where it is needed

    plotly, script = get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in (plotly, script)
    )
    policy = f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"
    return {
        "plotly": Markup(plotly),
        "script": Markup(script),
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "policy": Markup(policy),
    }


def _embedded(figure: Figure) -> Markup:
    """Return a figure as JSON that may stand in a script element: nothing in it can end that."""
    text = json.dumps({"data": figure.data, "layout": figure.layout}, ensure_ascii=False, allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _setting(value: Any) -> str:
    """Return a hyperparameter's value as people write it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
