"""The finalists at work: which classes the winner confuses, which tasks it finds hard, how fast each adapts."""

import base64
import io
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from metaopt import seeds
from metaopt.learner import Learner
from metaopt.pools import digest
from metaopt.study.model import load as load_model
from metaopt.study.report.figures import COLOURS, Board, Figure, plain
from metaopt.study.search import FINALISTS, final_weights, finalist_seed
from metaopt.study.trial import Bench
from metaopt.task import ClassPool, Pool
from metaopt.train import Scores, play

N_TASKS = 200
"""On which the winner's answers are looked at, and the hardest are chosen from."""
CURVE_TASKS = 48
"""On which each point of an adaptation curve is measured."""
CURVE_POINTS = 8
SECONDS = 30.0
"""For the answers, and again for the adaptation curves: what is not done then is left out."""
HARDEST = 4
SHOWN_CLASSES = 10
SHOWN_QUERIES = 8
"""Of each class in a task that is drawn, those answered wrong first."""
MATRIX = 14
"""Classes in the table of confusions, where a pool has more."""
PAIRS = 6
MOST_NUMBERS = 2**29
"""In the examples of a pool above which these are not read to tell its classes."""
LARGEST = 64
"""Height and width of a picture in pixels above which it is made smaller."""


class OutOfTimeError(Exception):
    """Ends what takes longer than a report should."""


@dataclass(frozen=True)
class Cell:
    """An example in a task: its picture as a data URI, and of a query the answer."""

    picture: str
    right: bool = True
    answer: str = ""


@dataclass(frozen=True)
class Row:
    """A class in a task."""

    name: str
    support: Sequence[Cell]
    queries: Sequence[Cell]
    wrong: int
    asked: int


@dataclass(frozen=True)
class Hard:
    """A task that the winner found hard."""

    right: int
    asked: int
    rows: Sequence[Row]
    left_out: int
    """Classes that are not drawn."""


@dataclass(frozen=True)
class Pair:
    """A class whose queries the winner took for another one's."""

    name: str
    taken_for: str
    times: int
    of: int
    """Queries of that class in tasks in which the other one stood, too."""
    picture: str
    other_picture: str


@dataclass(frozen=True)
class Answers:
    """What the winner answered on so many tasks."""

    tasks: int = 0
    pool: str = ""
    accuracy: float = 0.0
    confusion: Figure | None = None
    pairs: Sequence[Pair] = ()
    hardest: Sequence[Hard] = ()
    skipped: Sequence[str] = field(default=())
    """Sentences that say what is missing, and why."""


def clock(seconds: float) -> Callable[[], None]:
    """Return a check that raises OutOfTimeError when so many seconds have passed."""
    end = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > end:
            raise OutOfTimeError

    return check


def load(bench: Bench, folder: Path, entry: Mapping[str, Any]) -> Learner:
    """Return a finalist as its first repeat left it. Raises OSError or RuntimeError where its weights are not there."""
    if "members" in entry:
        return load_model(folder / "best", bench.registry, bench.device).learner
    learner = bench.build(entry["params"], finalist_seed(bench, entry["trial"], 0))
    learner.load_state_dict(load_file(folder / FINALISTS / f"{entry['trial']:05d}-0.safetensors"))
    return learner


def winner(bench: Bench, folder: Path, entry: Mapping[str, Any]) -> Learner:
    """Return the winner as it was kept. Raises OSError or RuntimeError where its weights are not there."""
    if not bench.study.final:
        return load(bench, folder, entry)
    learner = bench.last.build(entry["params"], seed=0)
    learner.load_state_dict(load_file(final_weights(folder)))
    return learner


def answers(bench: Bench, learner: Learner, seconds: float = SECONDS) -> Answers:
    """Return the winner's answers on the first of the fresh tasks that finalists were ranked by.

    One that was meta-trained on all their classes, too, has none to be asked; of it they are on the report's tasks.
    """
    pool, spec = ("test" if bench.study.final else bench.study.search_on), bench.spec
    if spec.kind != "classification":
        return Answers(skipped=[f"Confusions and hard tasks are drawn of classes; this study is one of {spec.kind}."])
    classes, check = Classes(bench.sampler, pool), clock(seconds)
    purpose = "report" if bench.study.final else "finalists"
    draw = seeds.generator(bench.study.seed, "evaluate", pool, purpose)
    right: list[float] = []
    worst: list[tuple[float, int, Any]] = []
    wrong: Counter[tuple[int, int]] = Counter()
    asked: Counter[tuple[int, int]] = Counter()
    examples: dict[int, Tensor] = {}
    try:
        n_tasks = min(N_TASKS, bench.study.evaluation.report_tasks)
        how: dict[str, Any] = {"draw": draw, "device": bench.device, "before": check}
        for played in play(learner.with_spec(spec), bench.sampler, pool, n_tasks, bench.executor(learner), **how):
            batch, given = played.batch.to(torch.device("cpu")), played.predictions.cpu().argmax(-1)
            for at in range(len(batch)):
                query_x, query_y, answer = batch.query_x[at], batch.query_y[at], given[at]
                share = float((answer == query_y).double().mean())
                numbers = [classes.number(query_x[query_y == label][0]) for label in range(spec.n_way)]
                task = (batch.support_x[at], batch.support_y[at], query_x, query_y, answer, numbers)
                worst = sorted([*worst, (share, len(right), task)], key=lambda one: one[:2])[:HARDEST]
                right.append(share)
                known = [number for number in numbers if number is not None]
                if len(known) < len(numbers):
                    continue
                for label, number in enumerate(known):
                    own = answer[query_y == label]
                    examples.setdefault(number, query_x[query_y == label][0])
                    for other, other_number in enumerate(known):
                        asked[number, other_number] += len(own)
                        wrong[number, other_number] += int((own == other).sum())
    except OutOfTimeError:
        if not right:
            return Answers(
                skipped=[f"The winner's answers are left out: a few tasks take longer than {seconds:.0f} s."]
            )
    skipped = []
    pictured = len(spec.x_shape) == 3 and spec.x_shape[0] in {1, 3}
    if not pictured:
        skipped.append("The hardest tasks are drawn where examples are pictures; these are not.")
    if not asked:
        skipped.append(
            "Confusions are counted where the sampler holds its classes, and they are not very large; not so here."
        )
    confused = [pair for pair, count in wrong.most_common() if pair[0] != pair[1] and count]
    return Answers(
        tasks=len(right),
        pool=pool,
        accuracy=sum(right) / len(right),
        confusion=_confusion(classes, wrong, asked, confused),
        pairs=[
            Pair(classes.name(a), classes.name(b), wrong[a, b], asked[a, b], picture(examples[a]), picture(examples[b]))
            for a, b in confused[:PAIRS]
        ]
        if pictured
        else [],
        hardest=[_hard(classes, share, *task) for share, _, task in worst] if pictured else [],
        skipped=skipped,
    )


class Classes:
    """Tells which class of a pool an example is of, where the sampler holds its classes in memory."""

    def __init__(self, sampler: Any, pool: Pool) -> None:
        held = getattr(sampler, "pools", {}).get(pool)
        self.names = [one.name for one in getattr(sampler, "classes", {}).get(pool, ())]
        self.of: dict[bytes, int] = {}
        self.count, self.bytes = 0, False
        if not isinstance(held, ClassPool) or int(held.sizes.sum()) * held.sources[0].numel() > MOST_NUMBERS:
            return
        self.count, self.bytes = len(held), held.sources.dtype == torch.uint8
        for number, (rows, size) in enumerate(zip(held.table, held.sizes, strict=True)):
            for example in held.sources[rows[:size]]:
                self.of.setdefault(self._key(example), number)

    def number(self, example: Tensor) -> int | None:
        """Return the number of the class of an example (*x_shape) as a task holds it; None where that is not known."""
        return self.of.get(self._key((example * 255).round().to(torch.uint8) if self.bytes else example))

    def name(self, number: int | None, label: int = 0) -> str:
        """Return what a class is called: by the data, or else by its number in the pool, or in the task."""
        if number is None:
            return f"class {label + 1}"
        return self.names[number] if self.names else f"class {number}"

    def _key(self, example: Tensor) -> bytes:
        return digest(example.contiguous().numpy().tobytes()).tobytes()


def _confusion(
    classes: Classes, wrong: Mapping[tuple[int, int], int], asked: Mapping[tuple[int, int], int], confused: Any
) -> Figure | None:
    """Return, for the classes confused most, how often each one's queries were answered as each other one."""
    if not asked:
        return None
    most = classes.count if classes.count <= MATRIX else MATRIX
    order = dict.fromkeys(one for pair in [*confused, *asked] for one in pair)
    numbers = sorted(list(order)[:most])
    names = [_unlike(plain(classes.name(number)), number, numbers, classes) for number in numbers]
    shares = [[wrong[a, b] / asked[a, b] if asked[a, b] else None for b in numbers] for a in numbers]
    counts = [
        [f"{wrong[a, b]} of {asked[a, b]}" if asked[a, b] else "never in one task" for b in numbers] for a in numbers
    ]
    data = [
        {
            "type": "heatmap", "x": names, "y": names, "z": shares, "text": counts, "zmin": 0, "zmax": 1,
            "xgap": 1, "ygap": 1, "hoverongaps": False,
            "colorscale": [[0, "rgba(63,127,214,0.06)"], [1, "rgba(63,127,214,1)"]],
            "colorbar": {"thickness": 12, "outlinewidth": 0, "tickformat": ".0%"},
            "hovertemplate": "%{y} answered as %{x}: %{text}<extra></extra>",
        }
    ]  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "answered"}, "type": "category", "tickangle": -45, "showgrid": False},
        "yaxis": {"title": {"text": "is"}, "type": "category", "autorange": "reversed", "showgrid": False},
    }
    which = "all classes" if len(numbers) == classes.count else f"the {len(numbers)} classes confused most"
    reading = (
        f"A row is a class, a column what its queries were answered as, of {which}; the fuller the blue, the larger "
        "the share of its queries in tasks where both stood; blank if never. Beside the diagonal it should be pale."
    )
    return Figure("confusion", reading, data, layout, height=200 + 30 * len(numbers))


def _unlike(name: str, number: int, numbers: Sequence[int], classes: Classes) -> str:
    """Return a name that no other class in a figure has: long ones may be alike when cut short."""
    alike = sum(plain(classes.name(other)) == name for other in numbers) > 1
    return f"{name} ({number})" if alike else name


def _hard(
    classes: Classes,
    share: float,
    support_x: Tensor,
    support_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    answer: Tensor,
    numbers: Sequence[int | None],
) -> Hard:
    names = [classes.name(number, label) for label, number in enumerate(numbers)]
    rows = []
    for label, name in enumerate(names):
        own = query_y == label
        order = (answer[own] == label).long().argsort(stable=True)[:SHOWN_QUERIES]  # wrong ones first
        queries = [
            Cell(picture(x), bool(given == label), names[int(given)])
            for x, given in zip(query_x[own][order], answer[own][order], strict=True)
        ]
        shown = support_x[support_y == label][:SHOWN_QUERIES] if support_x.shape[1:] == query_x.shape[1:] else ()
        wrong = int((answer[own] != label).sum())
        rows.append(Row(name, [Cell(picture(x)) for x in shown], queries, wrong, int(own.sum())))
    drawn = sorted(rows, key=lambda row: -row.wrong)[:SHOWN_CLASSES] if len(rows) > SHOWN_CLASSES else rows
    return Hard(round(share * len(query_y)), len(query_y), drawn, len(rows) - len(drawn))


def picture(example: Tensor) -> str:
    """Return an example (1 or 3, height, width) as a PNG in a data URI; numbers outside 0 to 1 are stretched."""
    low, high = float(example.min()), float(example.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    levels = ((example - low) / max(high - low, 1e-12) * 255).round().to(torch.uint8).cpu()
    image = Image.fromarray(levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy())
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST))
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def adaptation(
    bench: Bench, folder: Path, board: Board, seconds: float = SECONDS
) -> tuple[Figure | None, Sequence[str]]:
    """Return the finalists' scores after 0 … n inner steps on common tasks, and sentences on what is left out."""
    check, skipped = clock(seconds), list[str]()
    data: list[dict[str, Any]] = []
    if bench.study.evaluation.folds:
        return None, ["Curves of adaptation are not drawn: of finalists in folds no weights are kept."]
    for at, entry in enumerate(board["finalists"]):
        if "members" in entry:
            continue
        title = f"{entry['learner']} (trial {entry['trial']})"
        setting = bench.study.space.learner_classes[entry["learner"]].steps
        if setting is None:
            continue
        try:
            learner, points = load(bench, folder, entry), []
            for steps in _points(int(entry["params"][f"{entry['learner']}.{setting}"])):
                scores = _after(bench, learner, steps, check)
                points.append((steps, scores.mean, scores.ci95))
        except OutOfTimeError:
            skipped.append(f"{title} is cut short: its steps take longer than a report should.")
        except Exception as error:  # a learner may raise anything where it is asked for other steps
            skipped.append(f"{title} is left out ({type(error).__name__}: {error}).")
            continue
        if points:
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "name": plain(title),
                    "x": [steps for steps, _, _ in points],
                    "y": [mean for _, mean, _ in points],
                    "error_y": {"array": [ci95 for _, _, ci95 in points], "thickness": 1.2, "width": 3},
                    "line": {"color": COLOURS[at % len(COLOURS)], "width": 2},
                    "hovertemplate": "%{y:.4f}",
                }
            )
    aside = 0.01 * max((line["x"][-1] for line in data), default=0)  # lest intervals lie on each other
    for at, line in enumerate(data):
        line["x"] = [steps + aside * (at - (len(data) - 1) / 2) for steps in line["x"]]
    if not data:
        return None, skipped or ["No finalist adapts by inner steps, so there is no curve of adaptation."]
    layout = {
        "xaxis": {"title": {"text": "inner steps on the support set"}, "dtick": 1 if aside <= 0.2 else None},
        "yaxis": {"title": {"text": plain(bench.study.objective)}},
    }
    reading = (
        f"A line is a finalist's mean score on {CURVE_TASKS} {bench.study.search_on} tasks after so many inner steps, "
        "with its 95 % interval. At 0 it has learned nothing of the task; where the line is flat, more steps are idle."
    )
    return Figure("adaptation", reading, data, layout, height=400), skipped


def _after(bench: Bench, learner: Learner, steps: int, check: Callable[[], None]) -> Scores:
    """Score a learner that takes so many steps, on common tasks."""
    return bench.decided(
        bench.score(learner.with_steps(steps), bench.study.search_on, "finalists", CURVE_TASKS, lambda scores: check())
    )


def _points(last: int) -> list[int]:
    """Return numbers of steps from 0 to the last, a few, closer where they are small."""
    if last < CURVE_POINTS:
        return list(range(last + 1))
    return sorted({0, 1, 2, *(round(last ** (at / (CURVE_POINTS - 3))) for at in range(1, CURVE_POINTS - 2)), last})
