"""What people see: progress while a study runs, and tables of what was found."""

import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from metaopt import tune
from metaopt.errors import plain
from metaopt.study.leaderboard import interval, number, which

if TYPE_CHECKING:
    from metaopt.study.trial import Bench, Job, TrialResult

WIDTH = 110
"""Columns where the output is no terminal."""
PRESENTATIONS = (1, 2, 5, 10)  # those that Santoro et al. (2016) report
TOLD = 8  # numbers shown of those that an oracle is told


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called while it is handled; rich would end the program with code 1


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are. Where it is no terminal it breaks no lines."""
    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty()
    width = WIDTH if piped else None
    return _Console(
        file=stream,
        width=width,
        soft_wrap=piped,
        highlight=False,
        markup=False,
        emoji=False,
        force_jupyter=False,  # where rich would make a display of each line
    )


class Quiet:
    """Says nothing."""

    def began(self, bench: "Bench", results: "list[TrialResult]") -> None:
        pass

    def started(self, job: "Job") -> None:
        pass

    def finished(self, result: "TrialResult", best: "TrialResult | None") -> None:
        pass

    def phase(self, text: str) -> None:
        pass


class Lines(Quiet):
    """Writes a line for each trial that ends, to stderr, and on a terminal a bar below them."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.out = progress.console if progress else console(stderr=True)
        self.done = 0
        self.running: dict[int, str] = {}

    def began(self, bench: "Bench", results: "list[TrialResult]") -> None:
        study = bench.study
        self.trials, self.done = study.trials, len(results)
        self.end = time.monotonic() + study.timeout if study.timeout else None
        self.started_at, self.done_before = time.monotonic(), self.done
        again = f", {self.done} of them done before" if self.done else ""
        limit = f" or {study.timeout:g} s" if study.timeout else ""
        self.out.print(
            f"study {study.name}: {len(study.space.learners)} learners, {study.trials} trials{limit}{again}; "
            f"{', '.join(study.objectives)} on the {study.search_on} pool"
        )
        if self.progress:
            self.bar = self.progress.add_task("", total=study.trials, completed=self.done, best="", left="")

    def started(self, job: "Job") -> None:
        self.running[job.number] = job.params["learner"]
        self._draw()

    def finished(self, result: "TrialResult", best: "TrialResult | None") -> None:
        self.running.pop(result.number, None)
        self.done += 1
        came = interval({"mean": result.mean, "ci95": result.ci95}) if result.state == "complete" else result.state
        why = f"  ({result.reason})" if result.reason else ""
        self.best = f"best {interval({'mean': best.mean, 'ci95': best.ci95})} {best.learner}" if best else ""
        self.out.print(
            f"trial {result.number:>3}  {result.learner:<10} {came:<18} {result.seconds:5.1f} s   {self.best}{why}"
        )
        self._draw()

    def phase(self, text: str) -> None:
        self.out.print(text)
        if self.progress:
            self.progress.update(self.bar, description=text, left="")

    def _draw(self) -> None:
        if not self.progress:
            return
        what = ", ".join(f"trial {number} {learner}" for number, learner in sorted(self.running.items()))
        self.progress.update(
            self.bar, description=what, completed=self.done, best=getattr(self, "best", ""), left=self._left()
        )

    def _left(self) -> str:
        """Return the time left: of the timeout, or as long as the trials so far took."""
        now, run = time.monotonic(), self.done - self.done_before
        guesses = [self.end - now] if self.end else []
        if run:
            guesses.append((now - self.started_at) / run * (self.trials - self.done))
        if not guesses:
            return ""
        minutes, seconds = divmod(max(0, round(min(guesses))), 60)
        return f"{minutes}:{seconds:02d} left"


@contextmanager
def watcher(*, quiet: bool) -> Iterator[Quiet]:
    """Yield what shows a study's progress: a live display on a terminal, plain lines elsewhere."""
    if quiet:
        yield Quiet()
    elif not sys.stderr.isatty():
        yield Lines(None)
    else:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}  {task.fields[best]}  {task.fields[left]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console(stderr=True), transient=True) as progress:
            yield Lines(progress)


def _plain(value: Any) -> Any:
    """Return data with every text in it plain, as those of a stranger's run folder need not be."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def show_portfolio(found: Mapping[str, Any]) -> None:
    """Print the studies of a portfolio: what their tasks were like, and each learner's best score there."""
    out, found = console(), _plain(found)
    if not found["studies"]:
        out.print(f"{found['portfolio']} holds no studies; add some by `metaopt portfolio add`, or name it in a study")
    for one in found["studies"]:
        told, what = one["description"], "as an earlier version kept it, without what its tasks are like"
        if told:
            shape = " × ".join(map(str, told["shape"]))
            what = f"{told['inputs']}s of {shape}" + (" as streams" if told["stream"] else "")
            sizes = f"{told['n_way']}-way {told['n_shot']}-shot" if told["kind"] == "classification" else (
                f"{told['n_shot']} {'episodes' if told['kind'] == 'control' else 'points'}"
            )  # fmt: skip
            pool = [f"{told[key]:,} {key}" for key in ("classes", "groups") if told[key]]
            near = f"nearest {told['nearest']:.2f}" if told["nearest"] is not None else ""
            what = ", ".join(filter(None, [sizes, what, *pool, near]))
        far = f"distance {one['distance']:.2f}; " if one.get("distance") is not None else ""
        out.print(f"{one['study']}: {far}{what}")
        best = ", ".join(f"{had['learner']} {number(had['mean'])}" for had in one["learners"])
        out.print(f"  {one['objective']}: {best}")


def show_created(made: Mapping[str, Any]) -> None:
    """Print what `study create` did, and what comes next."""
    out, name = console(), made["study"]
    done = f", {made['done']} of them done" if made["done"] else ""
    out.print(f"study {name}: {made['trials']} trials{done}; on as many machines as there are, with the same storage:")
    out.print(f"  metaopt worker --study {name}")


def show_status(found: Mapping[str, Any], *, one: bool) -> None:
    """Print how shared studies stand: a line each, or one in detail."""
    out, found = console(), _plain(found)
    if not found["studies"]:
        out.print("no studies made by `metaopt study create` here")
    for study in found["studies"]:
        out.print(
            f"{study['study']}: {study['complete']} trials complete, {study['pruned']} pruned, {study['failed']} "
            f"failed, {len(study['running'])} running, {study['left']} of {study['trials']} left; {study['status']}"
        )
        if not one:
            continue
        for trial in study["running"]:
            again = f", for the {trial['attempt']}. time" if (trial["attempt"] or 1) > 1 else ""
            out.print(f"  running: trial {trial['trial']} {trial['learner'] or ''}{again}")
        for best in study["best"]:
            out.print(f"  {best['learner']:<12} {interval(best)}   trial {best['trial']}")
        if winner := study["winner"]:
            out.print(
                f"  winner: {winner['learner']} ({_trial(winner)}), {interval(winner)} on {winner['tasks']} "
                "test tasks that no trial has touched"
            )
        elif study["status"] == "to be finished":
            out.print(f"  finalists and report: metaopt study finish --study {study['study']}")


def show_board(board: Mapping[str, Any], folder: Path) -> None:
    """Print a leaderboard, the winner's pipeline, and where everything is."""
    out, board = console(), _plain(board)
    trials = board["trials"]
    out.print()
    out.print(
        f"{board['study']}: {trials['complete']} trials complete, {trials['pruned']} pruned, {trials['failed']} "
        f"failed, in {board['seconds']:.0f} s; {board['objective']}, {board['direction']}d"
    )
    if board["search_on"] == "test":
        out.print("This study searched on the test pool itself, so its scores are too good for new classes.")
    if "front" in board:
        _show_front(out, board)
    if board["finalists"]:
        out.print(f"finalists; search and fresh: {board['search_on']} tasks; apart: told apart from the first of them")
        out.print(_finalists(board))
        _show_winner(out, board)
        if len(board["tested"]) > 1:
            times = ", ".join(f"{one['what']} of {_trial(one)}" for one in board["tested"])
            out.print(f"The test pool was scored {len(board['tested'])} times ({times}): choosing by it is no test.")
        out.print("best of each learner in the search:")
        for learner, entry in board["learners"].items():
            out.print(f"  {learner:<12} {interval(entry['search'])}   trial {entry['trial']}")
    for failure in board["failures"]:
        out.print(f"{failure['trials']} failed: {failure['learner']}: {failure['reason']}", style="red")
    match board["status"]:
        case "finished":
            out.print(f"written to {folder}; score the winner again: metaopt evaluate {folder / 'best'} --tasks 1000")
            out.print(f"look at it, in one file: metaopt study report {folder}")
        case "interrupted":
            out.print(f"interrupted; what is done is in {folder}; the same command goes on from here")
        case _:
            out.print("nothing came to a final score; mend the failures above, or give more time")


def _trial(entry: Mapping[str, Any]) -> str:
    return f"trial {entry['trial']}" if entry["trial"] >= 0 else "several trials"


def _show_winner(out: Console, board: Mapping[str, Any]) -> None:
    """Print how the winner did, whether it is told apart from the other finalists, and its pipeline."""
    winner = board["finalists"][0]
    if board["status"] == "finished":
        report = winner["report"]
        kind = "transductive" if winner["transductive"] else "inductive"
        out.print(
            f"winner: {winner['learner']} ({which(winner)}), {board['objective']} {interval(report)} on "
            f"{report['tasks']} {report['pool']} tasks that no trial has touched, {kind}"
        )
        if final := winner.get("final"):
            out.print(
                f"  meta-trained once more for that, on the train and validation classes together: "
                f"{final['trained_tasks']:,} tasks, {final['cpu_seconds']:.0f} CPU s"
            )
        if others := report.get("others"):
            out.print(
                "  its other scores: " + ", ".join(f"{name} {other['mean']:.4g}" for name, other in others.items())
            )
        for entry in board["finalists"][1:]:
            behind = entry["behind"]
            verdict = "told apart" if behind["told_apart"] else "not told apart"
            out.print(
                f"  ahead of {which(entry)} by {interval(behind)} on the same fresh tasks: {verdict} "
                f"(p = {behind['p']:.2g})"
            )
    for name, value in winner["params"].items():
        off = (value in (0.0, None) and name.startswith(("outer.", "augment."))) or name in winner.get("idle", ())
        if name not in {"learner", "encoder"} and not off:
            out.print(f"  {name}: {_shown(value)}")


def _show_front(out: Console, board: Mapping[str, Any]) -> None:
    """Print the trials that none beats in every objective."""
    objectives = board["objectives"]
    directed = ", ".join(f"{name} ({'more' if way == 'maximize' else 'less'})" for name, way in objectives.items())
    out.print(f"beaten by none in all of {directed}; of these the study prefers: {board['prefer']}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("trial", "learner", *objectives):
        table.add_column(column, justify="left" if column == "learner" else "right")
    for entry in board["front"]:
        table.add_row(str(entry["trial"]), entry["learner"], *(f"{entry['values'][name]:.4g}" for name in objectives))
    out.print(table)


def _finalists(board: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("rank", "learner", "trial", "search", "fresh", "test", "apart", "CPU s", "parameters")
    for column in columns:
        table.add_column(column, justify="left" if column == "learner" else "right")
    for entry in board["finalists"]:
        report = entry["report"] if entry["report"] and entry["report"]["pool"] == "test" else None
        flag = " (transductive)" if entry["transductive"] else ""
        behind = entry["behind"]
        table.add_row(
            str(entry["rank"]),
            entry["learner"] + flag,
            "–" if "members" in entry else str(entry["trial"]),
            interval(entry["search"]),
            interval(entry["fresh"]),
            interval(report if entry["rank"] == 1 else None),
            "–" if behind is None else "yes" if behind["told_apart"] else "no",
            f"{entry['cpu_seconds']:.0f}",
            f"{entry['parameters']:,}",
        )
    return table


def show_scores(found: Mapping[str, Any], *, sized: bool = False) -> None:
    """Print the scores of a saved model; with `sized`, the sizes of the tasks, which are not its study's."""
    kind = "transductive" if found["transductive"] else "inductive"
    odd = f", {found['not_finite']} of them not finite" if found["not_finite"] else ""
    of = (
        f"{found['n_shot']}-episode " if found["kind"] == "control" else f"{found['n_way']}-way {found['n_shot']}-shot "
    )
    sizes = of if sized else ""
    console().print(
        f"{found['learner']}: {found['objective']} {interval(found)} (median {number(found['median'])}) on "
        f"{found['tasks']} fresh {sizes}{found['pool']} tasks{odd}, {kind}"
    )
    presented = [one for one in found.get("presentations", ()) if one["presentation"] in PRESENTATIONS]
    if presented:
        told = ", ".join(f"{one['presentation']}: {interval(one)}" for one in presented)
        console().print(f"accuracy by how often a class has been shown, {told}")


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the scores of models on the same tasks, and by how much each differs from the first."""
    out = console()
    out.print(f"{found['objective']}, {found['direction']}d, on the same {found['tasks']} {found['pool']} tasks")
    for entry in found["models"]:
        kind = " (transductive)" if entry["transductive"] else ""
        out.print(f"{entry['model']}: {entry['learner']}{kind} {interval(entry)}")
        if by := entry["difference"]:
            verdict = "told apart" if by["told_apart"] else "not told apart"
            sign = "+" if by["mean"] > 0 else ""
            out.print(f"  {sign}{interval(by)} against the first: {verdict} (p = {by['p']:.2g})")


def show_exported(found: Mapping[str, Any]) -> None:
    """Print what was exported, and what to do with it."""
    if "file" in found:
        console().print(f"wrote {found['file']}: {found['learner']}, which tells {', '.join(found['classes'])} apart")
        return
    console().print(f"wrote {found['model']}: {', '.join(found['files'])} ({found['learner']})")
    console().print(
        f'  in Python: metaopt.load("{found["model"]}").adapt(env)'
        if found["kind"] == "control"
        else f"  metaopt predict {found['model']} --support DIR --query DIR"
    )


def show_answers(found: Mapping[str, Any], output: Path | None) -> None:
    """Print the label and probability of each example, or where they were written."""
    out, n = console(), len(found["answers"])
    if not output:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("name", "label", "probability"):
            table.add_column(column, justify="right" if column == "probability" else "left")
        for answer in _plain(found["answers"]):
            table.add_row(answer["name"], answer["label"], f"{answer['probability']:.3f}")
        out.print(table)
    where = f", written to {output}" if output else ""
    out.print(
        f"{found['learner']} learned {len(found['classes'])} classes from {found['support']} examples and named {n} "
        f"others in {found['seconds']:.2f} s{where}"
    )


def show_audit(found: Mapping[str, Any]) -> None:
    """Print what an audit found, and the sum."""
    out, styles = console(), {"failed": "red", "note": "yellow"}
    for finding in _plain(found["findings"]):
        status = finding["status"]
        out.print(f"{status:<7} {finding['what']}: {finding['detail']}", style=styles.get(status))
    count = {status: sum(one["status"] == status for one in found["findings"]) for status in ("ok", "note", "failed")}
    out.print(f"{count['ok']} ok, {count['note']} to note, {count['failed']} failed")


def show_report(found: Mapping[str, Any]) -> None:
    """Print where a report is, and what it could not show."""
    out = console()
    for sentence in found["skipped"]:
        out.print(f"not shown: {sentence}", style="yellow")
    out.print(f"written to {found['report']} ({found['bytes'] / 1e6:.1f} MB); open it in a browser, no network needed")


def show_error(found: Mapping[str, Any]) -> None:
    """Print the error of a saved model on fixed tasks."""
    kind = "transductive" if found["transductive"] else "inductive"
    odd = f", {found['not_finite']} of them not finite" if found["not_finite"] else ""
    console().print(
        f"{found['learner']}: error {found['error']:.2%} (95 % interval {found['low']:.2%} to {found['high']:.2%}) on "
        f"{found['on']}: {found['wrong']} of {found['queries']} queries of {found['tasks']} {found['n_way']}-way "
        f"{found['n_shot']}-shot tasks{odd}, {kind}"
    )
    if found["trained_on"] != found["of"]:
        console().print(
            f"it was trained on tasks of {found['trained_on']}, and these are as {found['of']} gives them: compare the "
            "two by `metaopt tasks preview`, for ink may be dark in one and light in the other"
        )


def show_preview(found: Mapping[str, Any]) -> None:
    """Print a study's pools and the shapes of one of its tasks."""
    out, pools = console(), found["pools"]
    out.print(f"{found['study']}: {found['kind']} tasks of {found['sampler']}")
    if any(pool["classes"] is not None for pool in pools.values()):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("pool", "groups", "classes", "examples", "a class", "smallest class"):
            table.add_column(column, justify="left" if column in {"pool", "smallest class"} else "right")
        for name, pool in pools.items():
            counts = [pool[key] for key in ("groups", "classes", "examples")]
            each = " to ".join(dict.fromkeys(f"{n:,}" for n in (pool["smallest"], pool["largest"]) if n is not None))
            few = pool["smallest_class"] if pool["smallest"] != pool["largest"] else None
            table.add_row(name, *("–" if n is None else f"{n:,}" for n in counts), each or "–", few or "–")
        out.print(table)
    else:
        out.print(f"no pools of classes: {found['pools_are']}")
    if found["task"]:
        (_print_environment if found["kind"] == "control" else _print_task)(out, found["task"], found["kind"])
    for name, pool in pools.items():
        if pool["refused"]:
            out.print(f"{name}: {pool['refused']}", style="red")
    if found["picture"]:
        out.print(f"written to {found['picture']}")


def _print_task(out: Console, task: Mapping[str, Any], kind: str) -> None:
    within = {0.0: "", 1.0: ", within a group"}.get(task["within"], f", {task['within']:.0%} within a group")
    if task["same_source"]:
        within += f", {task['same_source']:.0%} with examples of the same sources for all classes"
    shots = " to ".join(dict.fromkeys(f"{task[key]}" for key in ("least_shot", "n_shot")))
    each = ", each class its own" if task["unequal"] else ""
    sizes = f"{task['n_way']}-way {shots}-shot{each}, {task['n_query']} queries a class{within}"
    if task["stream"]:
        sizes = f"a stream of {task['n_way']} classes, {shots} presentations of each{each}{within}"
    if kind == "regression":
        sizes = f"{shots} support and {task['n_query']} query examples"
        sizes = f"a stream of {shots} examples" if task["stream"] else sizes
    out.print(f"a train task: {sizes}; numbers from {task['low']:.3g} to {task['high']:.3g}")
    for name, shape in task["shapes"].items():
        out.print(f"  {name:<10} {' × '.join(map(str, shape))}")


def _print_environment(out: Console, task: Mapping[str, Any], kind: str) -> None:
    if task["n_actions"]:
        acts = f"one of {task['n_actions']} actions"
    else:
        [size] = task["action"]
        acts = f"{size} number{'' if size == 1 else 's'} an action"
    told = [*map(number, task["told"][:TOLD]), *(["…"] if len(task["told"]) > TOLD else [])]
    out.print(
        f"a train task: {task['n_shot']} episodes to learn from and {task['n_query']} after them, of up to "
        f"{task['horizon']} steps; {acts}; observations of {' × '.join(map(str, task['observation']))}"
    )
    out.print(f"  told to an oracle alone, {len(task['told'])} numbers: {', '.join(told)}")


def show_space(found: Mapping[str, Any]) -> None:
    """Print what a study searches: each parameter, its range, and the default, where learners differ each one's."""
    out, learners = console(), found["learners"]
    out.print(f"{found['study']} chooses one of {len(learners)} learners: {', '.join(learners)}")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("parameter", "range", "default"):
        table.add_column(column)
    for entry in found["parameters"]:
        values = {name: _shown(value) for name, value in entry["defaults"].items()}
        alike = set(values.values())
        usual = alike.pop() if len(alike) == 1 else ", ".join(f"{value} ({name})" for name, value in values.items())
        when = ", ".join(f"{name} is {value}" for name, value in entry["when"].items())
        table.add_row(entry["name"], entry["range"] + (f" (when {when})" if when else ""), usual)
    out.print(table)
    settled = [name for name in learners if not any(name in entry["defaults"] for entry in found["parameters"])]
    if settled:
        out.print(f"nothing is searched of {', '.join(settled)}: one trial each")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show_studies(studies: Sequence[Mapping[str, str]]) -> None:
    """Print the studies that come with metaopt."""
    for study in studies:
        console().print(f"{study['name']:<20} {study['about']}")


def show_plugins(plugins: Sequence[Mapping[str, Any]]) -> None:
    """Print plugins and what they provide."""
    out = console()
    for plugin in plugins:
        out.print(f"{plugin['name']}  ({plugin['distribution']} {plugin['version']})", style="bold")
        if plugin["status"] == "broken":
            out.print(f"  broken: {plugin['error']}", style="red")
        for kind in ("task_samplers", "encoders", "learners", "meta_objectives"):
            if plugin[kind]:
                out.print(f"  {kind.replace('_', ' ')}: {', '.join(plugin[kind])}")
        if plugin["observes"]:
            out.print(f"  observes: {', '.join(plugin['observes'])}")
        if plugin["note"]:
            out.print(f"  note: {plugin['note']}", style="yellow")
    if broken := [plugin["name"] for plugin in plugins if plugin["status"] == "broken"]:
        from metaopt.plugins import LEAVE_OUT  # which imports torch

        out.print(f"to leave out what is broken: {LEAVE_OUT}={','.join(broken)}")


def show_description(found: Mapping[str, Any]) -> None:
    """Print one thing that a plugin provides."""
    out = console()
    out.print(f"{found['name']}: {found['kind']} of {found['plugin']} ({found['distribution']} {found['version']})")
    out.print(found["about"])
    if found.get("paper"):
        out.print(f"\n{found['paper']}")
    if found["parameters"]:
        out.print()
    for name, parameter in found["parameters"].items():
        default = parameter["default"]
        if parameter["range"] == "a setting":
            out.print(f"  {name:<18} {tune.kind(default)}, by default {_as_yaml(default)}")
        else:
            out.print(f"  {name:<18} {parameter['range']:<34} default {default}")
        for line in textwrap.wrap(parameter.get("about", ""), WIDTH - 23):
            out.print(f"  {'':<20} {line}")


def _as_yaml(value: Any) -> str:
    """Return a default as a study file writes it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_as_yaml, value))}]" if value else "empty"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value) or "empty"


def show_checked(report: Mapping[str, Any]) -> None:
    """Print what came of each check of one thing."""
    out, styles = console(), {"failed": "red", "skipped": "dim"}
    of = "" if report["kind"] == "plugin" else f" of {report['plugin']}"
    out.print(f"{report['name']}: {report['kind']}{of} ({report['distribution']} {report['version']})", style="bold")
    for check in report["checks"]:
        why = f": {check['reason']}" if check["reason"] else ""
        out.print(f"  {check['status']:<8} {check['check']}{why}", style=styles.get(check["status"]))


def show_sum(reports: Sequence[Mapping[str, Any]]) -> None:
    """Print what came of all checks together."""
    count = Counter(check["status"] for report in reports for check in report["checks"])
    console().print(f"{count['ok']} ok, {count['failed']} failed, {count['skipped']} skipped")


def show_project(made: Mapping[str, Any]) -> None:
    """Print what was written, and what to do with it."""
    out = console()
    out.print(f"wrote {made['folder']}: {', '.join(made['files'])}")
    for command in (
        f"cd {made['folder']}",
        'pip install -e ".[dev]"',
        f"metaopt plugin check {made['name']}",
        "pytest",
        "metaopt study run study.yaml",
    ):
        out.print(f"  {command}")
