"""Fill the marked blocks of README.md and benchmarks/README.md with what the commands print: `make readme`.

A block stands behind a comment that names its source: a leaderboard kept in docs/results/, the same as a table of its
learners beside what papers report ("zoo"), learning curves, published figures measured again, the Omniglot challenge
and its ladder, what the search is worth, sentences of unseen classes, speed beside peers, faults that were provoked,
inputs that were tried, a command, or a source file. tests/test_readme.py fails where a block is not what its source
gives.
"""

import contextlib
import io
import json
import re
import sys
from collections.abc import Callable, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from curves import ZOOS
from metaopt import cli, terminal
from metaopt.study.leaderboard import interval, number

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(<!-- "
    r"(leaderboard|zoo|curves|steps|returns|bandits|search|figures|challenge|ladder|worth|sentences|speed|torture|fuzz|command|"
    r"source)"
    r" "
    r"(\S.*?) -->\n"
    r"```\w*\n)"
    r"(.*?)(```\n)",
    re.DOTALL,
)


def leaderboard(name: str) -> str:
    """Return what `metaopt study run` prints at the end, for a leaderboard kept in docs/results."""
    board = _board(name)
    return _printed(lambda: terminal.show_board(board, Path("runs") / board["study"])).strip() + "\n"


def zoo(name: str) -> str:
    """Return a table of a leaderboard's learners, best first, each at its best, beside what papers report."""
    board = _board(name)
    published = yaml.safe_load((ROOT / "docs" / "published.yaml").read_text(encoding="utf-8")).get(name, {})
    rows = [("learner", board["objective"], "tasks trained", "CPU s", "queries", "paper", "")]
    for learner, entry in board["learners"].items():
        paper = published.get(learner)
        rows.append(
            (
                learner,
                interval(entry["search"]),
                f"{entry['trained_tasks']:,}",
                f"{entry['cpu_seconds']:.0f}",
                "transductive" if entry["transductive"] else "inductive",
                f"{paper['accuracy'] / 100:.4f}" if paper else "–",
                paper["source"] + (", transductive" if paper.get("transductive") else "") if paper else "",
            )
        )
    return _table(rows, left={0, 4, 6})


def curves(name: str) -> str:
    """Return a table of the learning curves that docs/curves.py found, beside what papers report."""
    found, papers = _board(name), yaml.safe_load((ROOT / "docs" / "published.yaml").read_text(encoding="utf-8"))
    published = papers[ZOOS[name].board]
    seconds = [f"{point['after']} s" for point in next(iter(found.values()))["points"]]
    rows = [("accuracy after", *seconds, "tasks trained", "paper")]
    for learner, one in found.items():
        points = one["points"]
        cells = [*(number(point["mean"]) for point in points[:-1]), interval(points[-1])]
        paper = f"{published[learner]['accuracy'] / 100:.4f}" if learner in published else "–"
        rows.append((learner, *cells, f"{points[-1]['tasks']:,}", paper))
    return _table(rows, left={0})


def steps(name: str) -> str:
    """Return a table of the errors that docs/sinusoid_steps.py found, by the number of gradient steps."""
    found = _board(name)
    columns = list(next(iter(found.values()))["errors"])
    rows = [("mean error after steps", *columns, f"median after {columns[-1]}", "tasks trained")]
    for learner, row in found.items():
        errors = row["errors"]
        cells = ["–" if k not in errors else interval(errors[k]) if errors[k]["mean"] is not None else "diverges"
                 for k in columns]  # fmt: skip
        last = errors.get(columns[-1], errors[columns[0]])["median"]
        median = "diverges" if last is None else number(last)
        rows.append((learner, *cells, median, f"{row['tasks']:,}"))
    return _table(rows, left={0})


def returns(name: str) -> str:
    """Return a table of what an episode earns by the number of gradient steps (docs/navigation.py, docs/slope.py)."""
    found = _board(name)
    columns = list(next(iter(found.values()))["returns"])
    gaps = any("closed" in row for row in found.values())
    rows = [("return after steps", *columns, *(["gap closed"] if gaps else []), "rate", "CPU s")]
    for learner, row in found.items():
        cells = [interval(row["returns"][k]) if k in row["returns"] else "–" for k in columns]
        share = row.get("closed")
        closed = [f"{share['low']:.0%} to {share['high']:.0%}" if share else "–"] if gaps else []
        rates = ", ".join(f"{rate:g}" for rate in dict.fromkeys(row["rate"]) if rate) or "–"
        rows.append((learner, *cells, *closed, rates, f"{row['cpu_seconds']:,}"))
    return _table(rows, left={0})


def bandits(name: str) -> str:
    """Return a table of what a pull earns by the rules for bandits and by RL², that docs/bandits.py measured."""
    found = _board(name)["rows"]
    players = list(found[0]["earned"])
    rows = [("arms", "pulls", *players, "less the best rule", "CPU s")]
    for row in found:
        apart = row["difference"]
        less = f"{apart['mean']:+.4f} ± {apart['ci95']:.4f}"
        cells = [interval(row["earned"][player]) for player in players]
        rows.append((str(row["arms"]), str(row["pulls"]), *cells, less, f"{row['cpu_seconds']:,}"))
    return _table(rows, left=set())


def search(name: str) -> str:
    """Return a table of the regret of strategies, by the number of trials, that benchmarks/search.py measured."""
    found = _board(name)
    looks = list(found["strategies"][0]["regret"])
    rows = [(f"regret in points, {found['worlds']} worlds", *(f"{n} trials" for n in looks), "ms a trial")]
    for row in found["strategies"]:
        cells = [f"{row['regret'][n]:.2f} ± {row['error'][n]:.2f}" for n in looks]
        rows.append((row["strategy"], *cells, f"{row['cpu_ms_a_trial']:.1f}"))
    return _table(rows, left={0})


def figures(name: str) -> str:
    """Return what docs/reproduce.py found: published figures beside ours, and a verdict on each that was trained."""
    rows = [("", "published", "ours", "95 % interval", "band")]
    verdicts = []
    for found in _board(name).values():
        write = _percent if found["unit"] == "%" else _rounded
        for figure in found["figures"]:
            known = figure["ours"] is not None
            rows.append(
                (
                    f"{found['subject']}, {found['unit']} {figure['what']}",
                    write(figure["published"]),
                    write(figure["ours"]) if known else "diverges",
                    f"{write(figure['low'])} to {write(figure['high'])}" if known else "–",
                    " to ".join(dict.fromkeys(map(write, figure["band"]))),
                )
            )
        cost = f"{found['cpu_seconds']:.0f} CPU seconds on {found['machine']}, {found['date']}"
        verdicts.append(f"\n{found['subject']}: {found['verdict']}\n  Trained on {found['trained']}; {cost}\n")
    return _table(rows, left={0}) + "".join(verdicts)


def challenge(name: str) -> str:
    """Return a table of the studies that docs/challenge.py ran, and the mean error of each set of alphabets."""
    studies = _board(name)["studies"]
    rows = [("set", "seed", "learner", "% errors", "95 % interval", "on other alphabets", "CPU minutes", "minutes")]
    for found in studies:
        interval = f"{100 * found['low']:.1f} to {100 * found['high']:.1f}"
        other, minutes = 100 * (1 - found["other_alphabets"]), (found["cpu_seconds"] / 60, found["seconds"] / 60)
        rows.append(
            (
                found["set"], f"{found['seed']}", found["learner"], f"{100 * found['error']:.2f}", interval,
                f"{other:.1f}", *(f"{number:.1f}" for number in minutes),
            )
        )  # fmt: skip
    means = []
    for small in dict.fromkeys(found["set"] for found in studies):
        errors = [100 * found["error"] for found in studies if found["set"] == small]
        means.append(f"{small}: mean error {sum(errors) / len(errors):.2f} % over {len(errors)} seeds\n")
    means.append(f"mean error {100 * sum(found['error'] for found in studies) / len(studies):.1f} %\n")
    return _table(rows, left={0, 2}) + "".join(means)


def ladder(name: str) -> str:
    """Return a table of what docs/ladder.py found: each part's worth, removed from the whole and added to nothing."""
    rows = {(row["part"], row["way"]): row for row in _board(name)["rows"]}

    def cells(part: str, way: str) -> tuple[str, str]:
        row = rows[part, way]
        return f"{100 * row['error']:.1f}", f"{100 * row['difference']:+.1f} ± {100 * row['ci95']:.1f}"

    table = [("part", "without it", "than the whole", "it alone", "than without any")]
    parts = [part for part, way in rows if way == "removed"]
    parts.sort(key=lambda part: -float(rows[part, "removed"]["difference"]))
    table += [(part, *cells(part, "removed"), *cells(part, "added")) for part in parts]
    whole, bare = (f"{100 * rows[key]['error']:.1f}" for key in (("all", "whole"), ("none", "bare")))
    return f"% errors of the whole: {whole}; without any of its parts: {bare}\n" + _table(table, left={0})


def worth(name: str) -> str:
    """Return a table of what docs/worth.py found: the search beside learners at their defaults in the same time."""
    seeds = _board(name)["seeds"]
    learners = list(seeds[0]["others"])
    rows = [("accuracy in %, seed", "CPU s", "the search", "of", "ahead of the best", *learners)]
    for row in seeds:
        found, best = row["search"], max(one["test"] for one in row["others"].values())
        shown = [found, *map(row["others"].get, learners)]
        cells = [f"{100 * one['test']:.1f} ± {100 * one['ci95']:.1f}" if one else "–" for one in shown]
        ahead = f"{100 * (found['test'] - best):+.1f}"
        rows.append((str(row["seed"]), f"{found['cpu_seconds']}", cells[0], found["learner"], ahead, *cells[1:]))
    return _table(rows, left={0, 3})


def sentences(name: str) -> str:
    """Return a table of accuracies that docs/clinc.py found, beside those of the fixed features."""
    found = _board(name)["splits"]
    columns = [(f"{shot}-shot", who) for shot in (1, 5) for who in ("winner", "fixed")]
    rows = [("division", "learner", "1 shot", "fixed features", "5 shots", "fixed features")]
    rows += [
        (
            str(one["split"]), one["winner"]["learner"],
            *(f"{100 * one[who][shot]['mean']:.1f} ± {100 * one[who][shot]['ci95']:.1f}" for shot, who in columns),
        )
        for one in found
    ]  # fmt: skip
    means = (sum(one[who][shot]["mean"] for one in found) / len(found) for shot, who in columns)
    rows.append(("mean", "", *(f"{100 * mean:.1f}" for mean in means)))
    return _table(rows, left={0, 1})


def speed(name: str) -> str:
    """Return a table of what benchmarks/speed.py measured: each row beside its fastest peer by CPU time."""
    if not (ROOT / "docs" / "results" / f"{name}.json").exists():
        return "not measured yet: make bench-speed\n"
    found = _board(name)
    rows = [("", "tasks/s", "peer", "", "ratio", "wall", "target", "peak", "peer", "MB", "peer")]
    for row in found["rows"]:
        peers = {peer: one for peer, one in row["contenders"].items() if peer != "metaopt"}
        best = min(peers, key=lambda peer: peers[peer]["cpu"])
        both = row["contenders"]["metaopt"], peers[best]
        wall = min(one["wall"] for one in peers.values()) / both[0]["wall"]
        rates = [row["tasks"] / one["cpu"] for one in both]
        rows.append(
            (
                row["row"], f"{rates[0]:,.1f}", f"{rates[1]:,.1f}", best, f"{rates[0] / rates[1]:.2f}", f"{wall:.2f}",
                f"{row['target']}", *(f"{row['flops'] / one['cpu'] / row['peak']:.0%}" for one in both),
                *(f"{one['megabytes']:.0f}" for one in both),
            )
        )  # fmt: skip
    peaks = sorted({f"{row['peak'] / 1e9:.0f}" for row in found["rows"]})
    return _table(rows, left={0, 3}) + (
        f"a core's float32 matmul peak: {' to '.join(peaks)} GFLOP/s as rows were measured; torch {found['torch']}\n"
    )


def torture(name: str) -> str:
    """Return the table of faults that benchmarks/torture.py provoked, and what came of them."""
    found = _board(name)
    rows = [tuple(found["rows"][0]), *(tuple(row.values()) for row in found["rows"])]
    return _table(rows, left={0}) + f"\n{found['killed']} processes killed; {found['date']}, seed {found['seed']}\n"


def fuzz(name: str) -> str:
    """Return a table of how many inputs benchmarks/fuzz.py gave each target, over all of its runs."""
    found = _board(name)
    rows = [("target", "executions", "a second", "other ends", "last")]
    for target, row in found.items():
        rate = row["executions"] / max(1, row["seconds"])
        rows.append((target, f"{row['executions']:,}", f"{rate:,.0f}", str(row["unexpected"]), row["last"]))
    rows.append(("all", f"{sum(row['executions'] for row in found.values()):,}", "", "", ""))
    return _table(rows, left={0})


def _rounded(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.1g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}".removesuffix("0").removesuffix(".0")


def _table(rows: Sequence[tuple[str, ...]], left: Set[int]) -> str:
    """Return lines of cells in columns, flushed right but for those `left`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "".join(f"{line.rstrip()}\n" for line in lines)


def command(line: str) -> str:
    """Return a command and what it prints."""
    return f"$ {line}\n" + _printed(lambda: cli.main(line.split()[1:]))


def source(path: str) -> str:
    """Return a source file."""
    return (ROOT / path).read_text(encoding="utf-8")


SOURCES: dict[str, Callable[[str], str]] = {
    "leaderboard": leaderboard,
    "zoo": zoo,
    "curves": curves,
    "steps": steps,
    "returns": returns,
    "bandits": bandits,
    "search": search,
    "figures": figures,
    "challenge": challenge,
    "ladder": ladder,
    "worth": worth,
    "sentences": sentences,
    "speed": speed,
    "torture": torture,
    "fuzz": fuzz,
    "command": command,
    "source": source,
}


def filled(text: str) -> str:
    """Return a text with each marked block made anew."""
    return BLOCK.sub(lambda found: found[1] + SOURCES[found[2]](found[3]) + found[5], text)


def _board(name: str) -> Any:
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def _printed(call: Callable[[], object]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        call()
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    for readme in (ROOT / "README.md", ROOT / "benchmarks" / "README.md"):
        readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
