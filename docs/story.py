"""Run the README's first story on real handwriting and keep what is printed: `make story`.

A folder of pictures, Omniglot's 964 background characters, is given to `metaopt study run` with two minutes; the winner
is exported and told five characters of an alphabet that it has never seen, by five drawings of each. Which alphabet,
characters and drawings is decided by the order of names: the first of images_evaluation.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from csv import DictReader
from pathlib import Path
from zipfile import ZipFile

from PIL import Image, ImageDraw, ImageOps

RESULTS = Path(__file__).with_name("results")
DATA = Path(os.environ.get("METAOPT_DATA", Path(__file__).parents[2] / "shared" / "data")).expanduser() / "omniglot"
WAYS, SHOTS, QUERIES = 5, 5, 2
COMMANDS = (
    "metaopt study run characters --way 5 --shot 1 --minutes 2",
    'metaopt export runs/characters model --licence "MIT, Lake et al. 2015"',
    "metaopt predict model --support new/support --query new/query",
)
CELL, GAP, INK, WRONG = 64, 6, "black", "crimson"


def main() -> None:
    """Run the story in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        unpack(folder)
        told = [line for name in ("characters", "new/support", "new/query") for line in listed(name, folder)]
        for command in COMMANDS:
            told += [f"$ {command}", *printed(command, folder), ""]
        answers = folder / "answers.csv"
        printed(f"{COMMANDS[-1]} --output {answers}", folder)
        with answers.open(encoding="utf-8", newline="") as file:
            labels = {row["name"]: row["label"] for row in DictReader(file)}
        picture(folder / "new", labels).save(RESULTS / "story.png", optimize=True)
    (RESULTS / "story.txt").write_text("\n".join(told[:-1]) + "\n", encoding="utf-8")


def unpack(folder: Path) -> None:
    """Write the pictures to learn from, and those of the new characters."""
    with ZipFile(DATA / "images_background.zip") as archive:
        for member in drawings(archive):
            write(folder / "characters" / "/".join(member.split("/")[-3:]), archive.read(member))
    with ZipFile(DATA / "images_evaluation.zip") as archive:
        names = drawings(archive)
        alphabet = names[0].split("/")[-3]
        characters = sorted({name.split("/")[-2] for name in names if name.split("/")[-3] == alphabet})[:WAYS]
        for character in characters:
            own = [name for name in names if name.split("/")[-3:-1] == [alphabet, character]]
            for number, member in enumerate(own[: SHOTS + QUERIES]):
                place = f"support/{character}/{number}" if number < SHOTS else f"query/{character}-{number}"
                write(folder / "new" / f"{place}.png", archive.read(member))


def drawings(archive: ZipFile) -> list[str]:
    """Return the pictures in an official zip file, in the order of their names."""
    return sorted(name for name in archive.namelist() if name.endswith(".png") and "__MACOSX" not in name)


def write(path: Path, content: bytes) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def listed(name: str, folder: Path) -> list[str]:
    """Return a command that lists a folder and what it prints on a terminal of 110 columns."""
    columns = ["ls", "-C", "-w", "110", name]
    return [f"$ ls {name}", *subprocess.check_output(columns, cwd=folder, text=True).expandtabs().splitlines(), ""]


def printed(command: str, folder: Path) -> list[str]:
    """Run a command and return what it prints, the lines of trials left out."""
    arguments = [sys.executable, "-m", *shlex.split(command)]
    environment = os.environ | {"METAOPT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    trials = [number for number, line in enumerate(lines) if line.startswith("trial ")]
    if trials:
        lines[trials[0] : trials[-1] + 1] = ["…"]
    return lines


def picture(new: Path, labels: dict[str, str]) -> Image.Image:
    """Draw the support set, a row a character, and beside it the queries with what they were taken for."""
    characters = sorted(path.name for path in (new / "support").iterdir())
    width = (SHOTS + QUERIES) * (CELL + GAP) + 8 * GAP
    page = Image.new("RGB", (width, (WAYS) * (CELL + 4 * GAP) + 4 * GAP), "white")
    draw = ImageDraw.Draw(page)
    queries = SHOTS * (CELL + GAP) + 8 * GAP
    draw.text((GAP, GAP), "learned from", INK)
    draw.text((queries, GAP), "taken for", INK)
    for row, character in enumerate(characters):
        top = 4 * GAP + row * (CELL + 4 * GAP)
        draw.text((GAP, top), character, INK)
        for column, path in enumerate(sorted((new / "support" / character).iterdir())):
            page.paste(cell(path), (GAP + column * (CELL + GAP), top + 2 * GAP))
        for column, path in enumerate(sorted((new / "query").glob(f"{character}-*"))):
            left, label = queries + column * (CELL + GAP), labels[path.name]
            draw.text((left, top), label.removeprefix("character"), INK if label == character else WRONG)
            page.paste(cell(path), (left, top + 2 * GAP))
    return page


def cell(path: Path) -> Image.Image:
    """Return a drawing in a thin frame."""
    drawing = Image.open(path).convert("L").resize((CELL - 2, CELL - 2), Image.Resampling.BILINEAR)
    return ImageOps.expand(drawing, 1, 200)


if __name__ == "__main__":
    main()
