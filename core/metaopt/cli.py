"""The command line. Arguments are read first; torch is imported only by a command that needs it."""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metaopt import __version__
from metaopt.errors import UserError, of_disk, plain, unknown

if TYPE_CHECKING:
    import torch

    from metaopt.plugins import Registry

INTERRUPTED = 130
STORAGE = "METAOPT_STORAGE"
"""The environment variable that holds the URL of a study's storage, where no option gives it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 nothing came of it, 2 a user's mistake, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        _leave_out(options.plugin)
        _keep_password(options)
        command: Callable[[argparse.Namespace], int] = options.command
        code = command(options)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"metaopt: {plain(str(error))}", file=sys.stderr)  # noqa: T201 - what a command says
        return 2
    except KeyboardInterrupt:  # before a study began, or after it
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not of_disk(error):
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(  # noqa: T201 - what a command says
            f"metaopt: {where}{error.strerror}; what was finished is kept, so mend the disk and give the same command "
            "again",
            file=sys.stderr,
        )
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="metaopt", description="Search few-shot learning algorithms and their hyperparameters together."
    )
    parser.add_argument("--version", action="version", version=f"metaopt {__version__}")
    parser.add_argument(
        "--plugin", type=_no_plugin, action="append", default=[], metavar="no:NAME", help="leave a plugin out"
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    _study_arguments(_group(commands, "study", "run a study, show what it found"))
    _tasks_arguments(_group(commands, "tasks", "look at the tasks of a study"))
    _portfolio_arguments(
        _group(commands, "portfolio", "what studies found best for their tasks, for others to begin by")
    )
    _plugin_arguments(
        _group(commands, "plugin", "list what is installed, with ranges and papers; make and check your own")
    )
    _worker_arguments(commands)
    _launch_arguments(commands)
    _model_arguments(commands)
    _use_arguments(commands)
    return parser


def _study_arguments(study: Any) -> None:
    run = _command(study, "run", _study_run, "run a study, or go on with one that was interrupted")
    run.add_argument(
        "study", metavar="STUDY", help="a study file, the name of one that comes with metaopt, or your data"
    )
    sizes = run.add_argument_group("data", "of STUDY where it is a folder of pictures, a table, texts or arrays")
    sizes.add_argument("--way", type=_count, metavar="N", help="classes to tell apart (default: 5)")
    sizes.add_argument("--shot", type=_count, metavar="N", help="examples to learn each from (default: 1)")
    sizes.add_argument("--minutes", type=_minutes, metavar="N", help="time for all of it (default: 10)")
    run.add_argument("--trials", type=_count, metavar="N", help="trials in all, those already done included")
    run.add_argument("--timeout", metavar="TIME", help="time for all of it, such as 90s, 10m or 2h")
    run.add_argument("--seed", type=int, metavar="N", help="the study's seed, from which all others are made")
    run.add_argument(
        "--prefer",
        metavar="WHAT",
        help="of several objectives, which decides, within bounds: 'accuracy, parameters<=5e4'",
    )
    run.add_argument(
        "--executor",
        metavar="NAME",
        help="how tasks are computed: auto, loop, traced-loop, vmap, traced, or fastest, which is measured",
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set any key of the study file: tasks.n_way=20"
    )
    run.add_argument("--workers", type=_count, default=1, metavar="N", help="processes, one thread each (default: 1)")
    run.add_argument("--output", type=Path, metavar="DIR", help="the run folder (default: runs/<study name>)")
    run.add_argument("--storage", metavar="URL", help="an Optuna storage other than the journal in the run folder")
    run.add_argument("--quiet", action="store_true", help="no progress, only the leaderboard")
    _device(run)
    _json(run)
    space = _command(study, "space", _study_space, "list what a study searches: parameters, ranges and defaults")
    space.add_argument("study", metavar="STUDY", help="a study file, or the name of one that comes with metaopt")
    space.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set any key of the study file: tasks.n_way=20"
    )
    _json(space)

    show = _command(study, "show", _study_show, "show the leaderboard of a run folder")
    show.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    _json(show)
    audit = _command(study, "audit", _study_audit, "check that a finished run's report follows from what is stored")
    audit.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    audit.add_argument("--storage", metavar="URL", help="the study's storage, where it is not in the run folder")
    _device(audit)
    _json(audit)
    report = _command(study, "report", _study_report, "write a run folder's report: one HTML file, no network needed")
    report.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    report.add_argument("--output", type=Path, metavar="FILE", help="where to write it (default: DIR/report.html)")
    report.add_argument("--storage", metavar="URL", help="the study's storage, where it is not in the run folder")
    _device(report)
    _json(report)
    dashboard = _command(study, "dashboard", _study_dashboard, "open optuna-dashboard on a run folder's trials")
    dashboard.add_argument("folder", type=Path, metavar="DIR", help="a run folder")
    dashboard.add_argument("--port", type=_port, default=8080, metavar="N", help="default: 8080")
    dashboard.add_argument("--host", default="127.0.0.1", metavar="HOST", help="default: 127.0.0.1, this machine alone")
    dashboard.add_argument("--storage", metavar="URL", help="the study's storage, where it is not in the run folder")
    _json(_command(study, "list", _study_list, "list the studies that come with metaopt"))
    _shared_study_arguments(study)


def _shared_study_arguments(study: Any) -> None:
    create = _command(study, "create", _study_create, "make a study in a storage, for workers on many machines")
    create.add_argument("study", metavar="STUDY", help="a study file, or the name of one that comes with metaopt")
    create.add_argument("--trials", type=_count, metavar="N", help="trials in all; also of a study that is there")
    create.add_argument("--timeout", metavar="TIME", help="time for the search, such as 90s, 10m or 2h")
    create.add_argument("--seed", type=int, metavar="N", help="the study's seed, from which all others are made")
    create.add_argument("--prefer", metavar="WHAT", help="of several objectives, which decides")
    create.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set any key of the study file: tasks.n_way=20"
    )
    _shared_storage(create)
    create.add_argument(
        "--artifacts", metavar="URL", help="what long trials go on from: a folder that all machines see, or s3://BUCKET"
    )
    _json(create)
    status = _command(study, "status", _study_status, "tell how the studies stand that workers share")
    _shared_storage(status)
    status.add_argument("--study", metavar="NAME", help="this one, in detail (default: all, a line each)")
    _json(status)
    finish = _command(study, "finish", _study_finish, "train and score the finalists of a study that workers shared")
    _shared_storage(finish)
    finish.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    finish.add_argument("--workers", type=_count, default=1, metavar="N", help="processes here (default: 1)")
    finish.add_argument("--output", type=Path, metavar="DIR", help="the run folder (default: runs/<study name>)")
    finish.add_argument("--quiet", action="store_true", help="no progress, only the leaderboard")
    _device(finish)
    _json(finish)


def _worker_arguments(commands: Any) -> None:
    worker = _command(commands, "worker", _worker, "work on a study in a storage, as do others, until it is done")
    _shared_storage(worker)
    worker.add_argument("--study", required=True, metavar="NAME", help="the study's name")
    worker.add_argument("--workers", type=_count, default=1, metavar="N", help="processes here (default: 1)")
    worker.add_argument(
        "--beat", type=_seconds, metavar="S", help="seconds between signs of life; six missed is dead (default: 10)"
    )
    worker.add_argument("--quiet", action="store_true", help="no line for each trial")
    _device(worker)

    proxy = _command(commands, "proxy", _proxy, "answer for a database to workers that cannot reach it, until stopped")
    _shared_storage(proxy)
    proxy.add_argument("--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1, this machine alone)")
    proxy.add_argument("--port", type=_port, default=13000, metavar="N", help="default: 13000")


def _launch_arguments(commands: Any) -> None:
    engines = _group(commands, "launch", "start workers on a cluster: Dask, Ray or Slurm")
    dask = _command(engines, "dask", _launch, "run workers as tasks of a Dask cluster")
    dask.add_argument("--address", required=True, metavar="ADDRESS", help="the scheduler's: tcp://HOST:8786")
    ray = _command(engines, "ray", _launch, "run workers as tasks of a Ray cluster")
    ray.add_argument("--address", default="auto", metavar="ADDRESS", help="the cluster's (default: auto, this one's)")
    ray.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs a worker, also 0.25 (default: 0)")
    slurm = _command(engines, "slurm", _launch, "run workers as a Slurm array, by submitit")
    slurm.add_argument("--time", type=_count, default=240, metavar="MINUTES", help="of each job (default: 240)")
    slurm.add_argument("--partition", metavar="NAME", help="Slurm's partition")
    slurm.add_argument("--gpus", type=int, default=0, metavar="N", help="GPUs a worker (default: 0)")
    slurm.add_argument("--logs", type=Path, default=Path("runs/slurm"), metavar="DIR", help="default: runs/slurm")
    slurm.add_argument("--local", action="store_true", help="run the jobs here, without Slurm, to try it")
    for engine in (dask, ray, slurm):
        engine.set_defaults(engine=engine.prog.rpartition(" ")[2])
        _shared_storage(engine)
        engine.add_argument("--study", required=True, metavar="NAME", help="the study's name")
        engine.add_argument("--workers", type=_count, required=True, metavar="N", help="how many")
        _device(engine)
        _json(engine)


def _shared_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="postgresql+psycopg://USER@HOST/DATABASE, the path of a journal file, /shared/journal.log, or of a proxy "
        "grpc://HOST:PORT (default: $METAOPT_STORAGE)",
    )


def _plugin_arguments(plugin: Any) -> None:
    _json(_command(plugin, "list", _plugin_list, "list plugins and what they provide"))
    one = _command(plugin, "show", _plugin_show, "show a plugin, learner, task sampler, encoder or objective")
    one.add_argument("name", metavar="NAME")
    _json(one)

    check = _command(
        plugin, "check", _plugin_check, "check that a plugin, or one thing it provides, keeps the contract"
    )
    check.add_argument("name", metavar="NAME", help="a plugin, a learner, …; or the path of a project or a .py file")
    check.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of a task sampler: root=DIR"
    )
    _json(check)
    new = _command(plugin, "new", _plugin_new, "write a plugin's project: complete, working, ready for pip install -e")
    new.add_argument("name", metavar="NAME", help="what it provides: lower-case letters, digits, underscores")
    kinds = new.add_mutually_exclusive_group()
    for flag, kind in (("learner", "learner"), ("task-sampler", "task_sampler"), ("objective", "meta_objective")):
        noun = "a learner (the default)" if kind == "learner" else f"a {kind.replace('_', ' ')}"
        kinds.add_argument(f"--{flag}", dest="kind", action="store_const", const=kind, default="learner", help=noun)
    new.add_argument("--output", type=Path, metavar="DIR", help="the project's folder (default: metaopt-NAME)")
    _json(new)


def _portfolio_arguments(portfolio: Any) -> None:
    add = _command(portfolio, "add", _portfolio_add, "add what finished studies found best to a portfolio")
    add.add_argument("runs", type=Path, nargs="+", metavar="DIR", help="run folders")
    add.add_argument("--to", type=Path, required=True, metavar="FILE", help="the portfolio: portfolio.json")
    _json(add)
    show = _command(portfolio, "show", _portfolio_show, "list the studies of a portfolio and what was best in each")
    show.add_argument("portfolio", metavar="FILE", help="a portfolio, a run folder, or builtin: what metaopt brings")
    show.add_argument("--like", metavar="STUDY", help="those first whose tasks are most like this study file's")
    _json(show)


def _tasks_arguments(tasks: Any) -> None:
    preview = _command(tasks, "preview", _tasks_preview, "describe a study's pools, draw one task and picture it")
    preview.add_argument("study", metavar="STUDY", help="a study file, or the name of one that comes with metaopt")
    preview.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="set any key of the study file: tasks.size=56"
    )
    preview.add_argument("--output", type=Path, metavar="FILE", help="write a picture of the task: task.png")
    _json(preview)


def _model_arguments(commands: Any) -> None:
    evaluate = _command(commands, "evaluate", _evaluate, "score a study's winner again, on fresh test tasks")
    evaluate.add_argument("model", type=Path, metavar="DIR", help="a run folder, or the folder `best` of one")
    evaluate.add_argument("--tasks", type=_count, default=1000, metavar="N", help="test tasks (default: 1000)")
    evaluate.add_argument("--seed", type=int, default=1, metavar="N", help="which test tasks (default: 1)")
    evaluate.add_argument("--way", type=_count, metavar="N", help="classes of a task, if not the study's number")
    evaluate.add_argument("--shot", type=_count, metavar="N", help="support examples a class, likewise")
    evaluate.add_argument("--on", metavar="NAME", help="the fixed tasks of this name instead: omniglot-challenge")
    _device(evaluate)
    _json(evaluate)

    compare = _command(commands, "compare", _compare, "compare winners of studies on the same tasks")
    compare.add_argument("models", type=Path, nargs="+", metavar="DIR", help="run folders, or folders `best` of such")
    compare.add_argument("--tasks", type=_count, default=1000, metavar="N", help="tasks (default: 1000)")
    compare.add_argument("--pool", choices=["validation", "test"], default="test", help="of which pool (default: test)")
    compare.add_argument("--seed", type=int, default=1, metavar="N", help="which tasks (default: 1)")
    _device(compare)
    _json(compare)


def _use_arguments(commands: Any) -> None:
    export = _command(commands, "export", _export, "copy a run's winner into a folder to keep, with a card")
    export.add_argument("run", type=Path, metavar="DIR", help="a run folder, or a saved model")
    export.add_argument(
        "target", type=Path, metavar="MODEL", help="the new folder; with --adapted, a file such as m.pt2"
    )
    export.add_argument("--licence", metavar="TEXT", help="the licence of the data, for the card")
    export.add_argument(
        "--adapted", type=Path, metavar="SUPPORT", help="write a torch.export program that knows these classes instead"
    )
    _json(export)

    predict = _command(commands, "predict", _predict, "learn classes from a few examples and name those of others")
    predict.add_argument("model", type=Path, metavar="MODEL", help="a saved model, or a run folder")
    predict.add_argument(
        "--support", type=Path, required=True, metavar="PATH",
        help="examples to learn from: a folder of pictures for each class, or a file with a column of labels",
    )  # fmt: skip
    predict.add_argument(
        "--query", type=Path, required=True, metavar="PATH", help="examples to name: a folder of pictures, or a file"
    )
    predict.add_argument("--output", type=Path, metavar="CSV", help="write names, labels and probabilities there")
    _device(predict)
    _json(predict)


def _group(commands: Any, name: str, help: str) -> Any:
    return commands.add_parser(name, help=help).add_subparsers(metavar="ACTION", required=True)


def _command(group: Any, name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = group.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
    parser.set_defaults(command=command)
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def _device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")


def _no_plugin(text: str) -> str:
    if not text.startswith("no:") or not text.removeprefix("no:"):
        raise argparse.ArgumentTypeError(f"{text!r} leaves nothing out; write no: and a plugin's name, as no:nearest")
    return text.removeprefix("no:")


def _leave_out(names: Sequence[str]) -> None:
    """Leave plugins out, here and in every process that this one starts."""
    if names:
        from metaopt.plugins import LEAVE_OUT

        os.environ[LEAVE_OUT] = ",".join(filter(None, [os.environ.get(LEAVE_OUT), *names]))


def _keep_password(options: argparse.Namespace) -> None:
    """Take the storage from the environment where no option gives it; there its password is nobody else's to see."""
    from urllib.parse import urlsplit

    if not hasattr(options, "storage"):
        return
    if options.storage is None:
        options.storage = os.environ.get(STORAGE)
        return
    try:
        password = urlsplit(options.storage).password
    except ValueError:  # no URL at all, which opening it will say
        return
    if password:
        raise UserError(
            "--storage: every user of this machine can read a password on the command line; put the URL into the "
            f"environment, as {STORAGE}, or the password alone, as PGPASSWORD, and leave it out here"
        )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0.1 <= minutes <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from 0.1 to 10000")
    return minutes


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.1 to 3600")
    return seconds


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; give a number from 1 to 65535, or 0 for any free one")
    return int(text)


def _study_run(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import crew, file, propose, search, trial, versions

    device, overrides = _torch_device(options.device), _overrides(options)
    registry, given = plugins.load(), _data(options)
    path = given or _study_file(options.study)
    try:
        raw = _proposed(path, options, registry) if given else None
        study = file.load(path, registry, overrides, raw)
    except UserError as error:
        raise versions.explained(error, versions.kept(options.output or Path("runs") / _name(path))) from None
    try:
        bench = trial.Bench(study, registry, device)
        crew.check(bench)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    folder = options.output or Path("runs") / study.name
    if raw and not options.quiet:
        print(propose.about(raw, path, bench.sampler), file=sys.stderr)  # noqa: T201 - what a command says
        print(f"the study file is {folder / 'study.yaml'}", file=sys.stderr)  # noqa: T201 - what a command says
    with _Interrupt() as interrupt, terminal.watcher(quiet=options.quiet) as watcher:
        board = search.run(
            bench,
            folder,
            watcher,
            workers=options.workers,
            storage=options.storage,
            stopped=lambda: interrupt.came,
        )
    _print_json(board) if options.json else terminal.show_board(board, folder)
    if interrupt.came:
        return INTERRUPTED
    return 1 if board["status"] == "failed" else 0


def _overrides(options: argparse.Namespace) -> list[str]:
    given = {key: getattr(options, key, None) for key in ("trials", "timeout", "seed", "prefer", "executor")}
    return [*options.set, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def _study_create(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import artifacts, cluster, crew, file, trial

    url, path, registry = _url(options), _study_file(options.study), plugins.load()
    study = file.load(path, registry, _overrides(options))
    try:
        bench = trial.Bench(study, registry, _torch_device("cpu"))
        crew.check(bench)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    made = cluster.create(bench, url, options.artifacts and artifacts.checked(options.artifacts))
    _print_json(made) if options.json else terminal.show_created(made)
    return 0


def _study_status(options: argparse.Namespace) -> int:
    from metaopt import terminal
    from metaopt.study import cluster

    found = cluster.status(_url(options), options.study)
    _print_json(found) if options.json else terminal.show_status(found, one=bool(options.study))
    return 0


def _study_finish(options: argparse.Namespace) -> int:
    from metaopt import terminal
    from metaopt.study import cluster

    url, device = _url(options), _torch_device(options.device)
    with _Interrupt() as interrupt, terminal.watcher(quiet=options.quiet) as watcher:
        board, folder = cluster.finish(
            url, options.study, options.output, device, watcher,
            workers=options.workers, stopped=lambda: interrupt.came,
        )  # fmt: skip
    _print_json(board) if options.json else terminal.show_board(board, folder)
    if interrupt.came:
        return INTERRUPTED
    return 1 if board["status"] == "failed" else 0


def _worker(options: argparse.Namespace) -> int:
    from metaopt import supervise

    url = _url(options)
    watched_by = os.environ.get(supervise.SUPERVISED)
    if watched_by is None:
        os.environ[STORAGE] = url  # for the worker processes, of whose command lines it is no part
        arguments = ["worker", "--study", options.study, "--device", options.device]
        arguments += ["--quiet"] * options.quiet + (["--beat", str(options.beat)] if options.beat else [])
        with _Interrupt() as interrupt:
            return supervise.supervise(arguments, options.workers, lambda: interrupt.came)
    supervise.end_with(int(watched_by))
    del os.environ[supervise.SUPERVISED]
    from metaopt import terminal
    from metaopt.study import stores, worker

    device = _torch_device(options.device)
    with _Interrupt() as interrupt, terminal.watcher(quiet=options.quiet) as watcher:
        beat = options.beat or stores.BEAT
        finished = worker.work(url, options.study, device, watcher, lambda: interrupt.came, beat=beat)
    if not options.quiet:
        done = "stopped; its trial is put back" if interrupt.came else f"every trial of {options.study} is done"
        print(f"{done}; this worker finished {finished}", file=sys.stderr)  # noqa: T201 - what a command says
    return INTERRUPTED if interrupt.came else 0


def _proxy(options: argparse.Namespace) -> int:
    from metaopt.study import proxy

    port, stop = proxy.serve(_url(options), options.host, options.port)
    where = f"grpc://{options.host}:{port}"
    print(f"workers find the storage at {where}; Ctrl-C ends it", file=sys.stderr)  # noqa: T201 - what a command says
    with _Interrupt() as interrupt:
        while not interrupt.came:
            time.sleep(0.2)
    stop()
    return 0


def _launch(options: argparse.Namespace) -> int:
    from metaopt import launch

    url, arguments = _url(options), ["--study", options.study, "--device", options.device, "--quiet"]
    if "://" not in url:
        url = str(Path(url).absolute())  # engines run workers in folders of their own
    match options.engine:
        case "dask":
            ended = launch.on_dask(url, arguments, options.workers, options.address)
        case "ray":
            ended = launch.on_ray(url, arguments, options.workers, options.address, options.gpus)
        case _:
            ended = launch.on_slurm(
                url, arguments, options.workers, options.logs,
                minutes=options.time, partition=options.partition, gpus=options.gpus,
                cluster="local" if options.local else None,
            )  # fmt: skip
    codes, said = launch.summed(ended)
    found = {"study": options.study, "workers": options.workers, "codes": codes, "said": said}
    if options.json:
        _print_json(found)
    else:
        whole = f"{codes.get(0, 0)} of {options.workers} workers ended well"
        print("\n".join([whole, *said]), file=sys.stderr)  # noqa: T201 - what a command says
    return 0 if codes.keys() <= {0} else 1


def _url(options: argparse.Namespace) -> str:
    if not options.storage:
        raise UserError(
            "--storage: give the storage that workers share, as postgresql+psycopg://USER@HOST/DATABASE, or set "
            f"{STORAGE}"
        )
    return str(options.storage)


def _study_space(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import file

    path = _study_file(options.study)
    study = file.load(path, plugins.load(), options.set)
    found = {
        "study": study.name,
        "learners": {name: study.space.default(name) for name in study.space.learners},
        "parameters": study.space.described(),
    }
    _print_json(found) if options.json else terminal.show_space(found)
    return 0


def _study_show(options: argparse.Namespace) -> int:
    from metaopt import terminal
    from metaopt.study import leaderboard

    board = leaderboard.read(options.folder)
    if board is None:
        raise UserError(
            f"{options.folder}: no {leaderboard.FILE} here; give the folder of a run, such as runs/quickstart, "
            "and where a study was killed run it again to go on"
        )
    _print_json(board) if options.json else terminal.show_board(board, options.folder)
    return 0


def _study_audit(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from metaopt import plugins, terminal
    from metaopt.study import audit

    findings = audit.audit(options.folder, plugins.load(), _torch_device(options.device), options.storage)
    found = {"run": str(options.folder), "findings": [asdict(finding) for finding in findings]}
    _print_json(found) if options.json else terminal.show_audit(found)
    return 1 if any(finding.status == "failed" for finding in findings) else 0


def _study_report(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import report

    written = report.write(
        options.folder,
        plugins.load(),
        _torch_device(options.device),
        output=options.output,
        storage=options.storage,
    )
    found = {"report": str(written.path), "bytes": written.bytes, "skipped": list(written.skipped)}
    _print_json(found) if options.json else terminal.show_report(found)
    return 0


def _study_dashboard(options: argparse.Namespace) -> int:
    from metaopt.study import dashboard

    dashboard.serve(options.folder, options.host, options.port, options.storage)
    return 0


def _study_list(options: argparse.Namespace) -> int:
    from metaopt import terminal

    studies = [
        {"name": path.stem, "path": str(path), "about": _first_comment(path)}
        for path in sorted(_shipped().glob("*.yaml"), key=lambda path: path.stem)
    ]
    _print_json({"studies": studies}) if options.json else terminal.show_studies(studies)
    return 0


def _portfolio_add(options: argparse.Namespace) -> int:
    from metaopt import plugins
    from metaopt.study import portfolio

    registry, device = plugins.load(), _torch_device("cpu")
    added = [one for run in options.runs for one in portfolio.of_run(run, registry, device)]
    held = portfolio.add(options.to, added)
    found = {"portfolio": str(options.to), "added": [one.study for one in added], "studies": held}
    said = f"{options.to}: added {', '.join(one.study for one in added)}; it holds {held}"
    _print_json(found) if options.json else print(plain(said))  # noqa: T201 - what a command says
    return 0


def _portfolio_show(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import file, portfolio, trial

    like, device = None, _torch_device("cpu")
    if options.like:
        registry = plugins.load()
        like = trial.Bench(file.load(_study_file(options.like), registry), registry, device)
    found = {"portfolio": options.portfolio, "studies": portfolio.listed(options.portfolio, like)}
    _print_json(found) if options.json else terminal.show_portfolio(found)
    return 0


def _plugin_list(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from metaopt import plugins, terminal

    found = [asdict(plugin) for plugin in plugins.load().plugins]
    _print_json({"plugins": found}) if options.json else terminal.show_plugins(found)
    return 0


def _plugin_show(options: argparse.Namespace) -> int:
    from metaopt import catalog, plugins, terminal

    found = catalog.describe(plugins.load(), options.name)
    _print_json(found) if options.json else terminal.show_description(found)
    return 0


def _plugin_check(options: argparse.Namespace) -> int:
    from contextlib import redirect_stdout
    from dataclasses import asdict

    from metaopt import plugins, project, terminal
    from metaopt.testing import report

    registry, path = plugins.load(), Path(options.name)
    try:
        chosen, things = report.named(registry, options.name)
    except UserError:
        if not path.exists():
            if path.suffix == ".py" or len(path.parts) > 1:
                raise UserError(f"{path} does not exist; give a project's folder, a package or a .py file") from None
            raise
        (registry, chosen), things = project.load(path), []
    reports, found = report.check(registry, chosen, things, options.set), []
    while True:
        with redirect_stdout(sys.stderr):  # of what the plugin prints; the report alone goes to stdout
            one = next(reports, None)
        if one is None:
            break
        found.append(asdict(one))
        if not options.json:
            terminal.show_checked(found[-1])
    _print_json({"checked": found}) if options.json else terminal.show_sum(found)
    return 1 if any(check["status"] == "failed" for one in found for check in one["checks"]) else 0


def _plugin_new(options: argparse.Namespace) -> int:
    from metaopt import plugins, project, terminal

    folder = project.create(options.name, options.kind, options.output, plugins.load())
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    made = {"name": options.name, "kind": options.kind, "folder": str(folder), "files": files}
    _print_json(made) if options.json else terminal.show_project(made)
    return 0


def _tasks_preview(options: argparse.Namespace) -> int:
    from metaopt import plugins, preview, terminal
    from metaopt.study import file

    registry, path = plugins.load(), _study_file(options.study)
    study = file.load(path, registry, options.set)
    try:
        found, batch, spec = preview.preview(study, registry.task_sampler(study.tasks.sampler)(study.tasks.config))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if options.output and found["kind"] == "control":
        raise UserError("--output: environments have no picture; leave it out")
    if options.output and batch:
        preview.save_picture(batch, spec, options.output)
        found["picture"] = str(options.output)
    _print_json(found) if options.json else terminal.show_preview(found)
    return 1 if any(pool["refused"] for pool in found["pools"].values()) else 0


def _evaluate(options: argparse.Namespace) -> int:
    from metaopt import benchmark, plugins, stream, terminal
    from metaopt.study import model, tested

    registry = plugins.load()
    learner, bench, config = model.load_with_bench(options.model, registry, _torch_device(options.device))
    if options.on:
        if options.way or options.shot:
            raise UserError(f"--on: the tasks of {options.on} have sizes of their own; leave out --way and --shot")
        about = {"model": str(options.model), "study": bench.study.name, "learner": learner.name}
        found = about | benchmark.evaluate(learner, bench, registry, options.on)
        found["transductive"] = config["transductive"]
        tested.note(options.model, f"evaluate --on {options.on}", trial=config["trial"], tasks=found["tasks"])
        _print_json(found) if options.json else terminal.show_error(found)
        return 0
    bench.check()
    if sized := options.way is not None or options.shot is not None:
        bench.resize(learner, options.way, options.shot)
    scores = bench.decided(bench.score(learner, "test", f"evaluate {options.seed}", options.tasks))
    sizes = f" --way {bench.spec.n_way} --shot {bench.spec.n_shot}" if sized else ""
    tested.note(options.model, f"evaluate --seed {options.seed}{sizes}", trial=config["trial"], tasks=options.tasks)
    found = {
        "model": str(options.model),
        "study": bench.study.name,
        "learner": config["params"]["learner"],
        "objective": bench.study.objective,
        "pool": "test",
        "kind": bench.spec.kind,
        "n_way": bench.spec.n_way,
        "n_shot": bench.spec.n_shot,
        "transductive": config["transductive"],
        "mean": scores.mean,
        "ci95": scores.ci95,
        "median": scores.median,
        "tasks": len(scores.per_task),
        "not_finite": scores.not_finite,
    }
    if presented := stream.by_presentation(learner, bench, "test", f"evaluate {options.seed}", options.tasks):
        found["presentations"] = presented
    _print_json(found) if options.json else terminal.show_scores(found, sized=sized)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import compare, tested

    if len(options.models) < 2:
        raise UserError("compare needs two models or more; give two folders, such as runs/a runs/b")
    device = _torch_device(options.device)
    found = compare.compare(
        options.models, plugins.load(), device, pool=options.pool, n_tasks=options.tasks, seed=options.seed
    )
    for entry in found["models"] if options.pool == "test" else ():
        tested.note(Path(entry["model"]), f"compare --seed {options.seed}", trial=entry["trial"], tasks=options.tasks)
    _print_json(found) if options.json else terminal.show_comparison(found)
    return 0


def _export(options: argparse.Namespace) -> int:
    from metaopt import plugins, terminal
    from metaopt.study import model

    _torch_device("cpu")
    if options.adapted:
        from metaopt.predict import adapted

        classifier = adapted(options.run, options.adapted, "cpu")
        classifier.export(options.target)
        found = {"file": str(options.target), "learner": classifier.learner_.name,
                 "classes": [str(name) for name in classifier.classes_]}  # fmt: skip
    else:
        kept = model.export(options.run, options.target, plugins.load(), options.licence)
        found = {"model": str(options.target), "learner": kept.learner.name, "kind": kept.spec.kind,
                 "files": sorted(path.name for path in options.target.iterdir())}  # fmt: skip
    _print_json(found) if options.json else terminal.show_exported(found)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from metaopt import terminal
    from metaopt.predict import predict, write_csv

    found = predict(options.model, options.support, options.query, _torch_device(options.device).type)
    if options.output:
        write_csv(options.output, found)
    _print_json(found) if options.json else terminal.show_answers(found, options.output)
    return 0


def _torch_device(name: str) -> "torch.device":
    import torch

    from metaopt import process

    process.on_one_core()
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; leave --device out, or give --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _shipped() -> Path:
    """Return the folder of the studies that come with metaopt: in the package, or beside it in a checkout."""
    installed = Path(__file__).parent / "studies"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "studies"


def _shipped_names() -> dict[str, Path]:
    return {shipped.stem: shipped for shipped in _shipped().glob("*.yaml")}


def _data(options: argparse.Namespace) -> Path | None:
    """Return the data that a study is asked of; None where it is a study file."""
    from metaopt.study.propose import SUFFIXES

    path = Path(options.study)
    sizes = [flag for flag in ("way", "shot", "minutes") if getattr(options, flag) is not None]
    shipped = options.study in _shipped_names() and not sizes  # which also a folder may be called
    if (path.is_dir() and not shipped) or path.suffix.lower() in SUFFIXES:
        return path
    if sizes and path.suffix.lower() == ".json" and path.is_file():
        return path
    if sizes:
        raise UserError(
            f"--{sizes[0]} is for data, and {options.study} is a study file; write it there, or give --set "
            "tasks.n_way=5, --set tasks.n_shot=1 or --timeout 10m"
        )
    return None


def _proposed(path: Path, options: argparse.Namespace, registry: "Registry") -> dict[str, Any]:
    from metaopt.study import propose

    return propose.propose(
        path,
        registry,
        n_way=propose.DEFAULT_WAY if options.way is None else options.way,
        n_shot=propose.DEFAULT_SHOT if options.shot is None else options.shot,
        minutes=propose.DEFAULT_MINUTES if options.minutes is None else options.minutes,
    )


def _study_file(given: str) -> Path:
    path = Path(given)
    if path.is_file() or path.suffix in {".yaml", ".yml"} or len(path.parts) > 1:
        return path
    names = _shipped_names()
    if given not in names:
        raise UserError(unknown("study file or shipped study", given, names))
    return names[given]


def _name(study: Path) -> str:
    """Return the name of a study that does not resolve, as far as it can be read."""
    from metaopt.study import file

    try:
        return str(file.read(study).get("name", study.stem))
    except UserError:
        return study.stem


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))  # noqa: T201 - what a command says


class _Interrupt:
    """Turns the first Ctrl-C or SIGTERM into a flag; the second ends the program at once."""

    came = False

    def __enter__(self) -> "_Interrupt":
        self.before = {number: signal.signal(number, self._hear) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: object) -> None:
        if self.came:
            os._exit(INTERRUPTED)
        self.came = True
        os.write(2, b"\nfinishing; once more ends at once\n")  # print may have been interrupted itself
