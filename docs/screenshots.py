"""Take the README's pictures: `make screenshots`, of a study run anew; and a browser to look at a report with.

The browser is headless Chromium (Debian: apt-get install chromium chromium-driver), driven by Selenium.
"""

import base64
import contextlib
import io
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
STUDY = ROOT / "studies" / "quickstart.yaml"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
"""In a picture by rich: a font from another site, which a picture should not ask for."""
DRAWN = 120
"""Seconds in which a page must be drawn."""
COLOURS = 64
"""Of a picture: enough for a page, and a third of the bytes."""


def installed() -> tuple[str, str] | None:
    """Return the paths of Chromium and of its driver; None where either is missing."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser that has seen nothing before."""
    found = installed()
    assert found is not None, "install chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location, driver = found
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory() as folder:
        for flag in (*FLAGS, f"--user-data-dir={folder}"):
            options.add_argument(flag)
        browser = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield browser
        finally:
            browser.quit()


def show(browser: Any, page: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
    """Open a report in a window of so many CSS pixels, and wait until all its figures are drawn."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get(page.resolve().as_uri())
    end = time.monotonic() + DRAWN
    while browser.execute_script("return document.documentElement.dataset.drawn") is None:
        assert time.monotonic() < end, f"{page} is not drawn after {DRAWN} s"
        time.sleep(0.05)


def shoot(browser: Any, path: Path, selector: str = "html", *, margin: int = 0) -> None:
    """Write a picture of the part of the page that holds all a CSS selector finds: the whole page by default."""
    left, top, right, bottom = browser.execute_script(
        "const boxes = [...document.querySelectorAll(arguments[0])].map(one => one.getBoundingClientRect());"
        "return [Math.min(...boxes.map(b => b.left)) + scrollX, Math.min(...boxes.map(b => b.top)) + scrollY,"
        "        Math.max(...boxes.map(b => b.right)) + scrollX, Math.max(...boxes.map(b => b.bottom)) + scrollY]",
        selector,
    )
    clip = {"x": max(0, left - margin), "y": max(0, top - margin), "scale": 1,
            "width": right - left + 2 * margin, "height": bottom - top + 2 * margin}  # fmt: skip
    found = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(found["data"]))


def main() -> int:
    """Run the quickstart with a third of its budget, write its report, and take the pictures."""
    from metaopt import cli, terminal
    from metaopt.study import leaderboard

    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        folder = Path("runs") / "quickstart"
        less = ["--set", "budget.tasks=400", "--set", "evaluation.finalists=3", "--timeout", "15m"]
        for arguments in (
            ["study", "run", str(STUDY), *less, "--quiet"],
            ["study", "report", str(folder)],
        ):
            if code := cli.main(arguments):
                return code
        board = leaderboard.read(folder)
        assert board is not None
        screen = Console(width=116, record=True, file=io.StringIO(), force_terminal=True, highlight=False, markup=False)
        terminal_console, terminal.console = terminal.console, lambda **_: screen  # type: ignore[assignment]
        try:
            terminal.show_board(board, folder)
        finally:
            terminal.console = terminal_console
        PICTURES.mkdir(exist_ok=True)
        drawn = screen.export_svg(title="metaopt study show runs/quickstart")
        (PICTURES / "terminal.svg").write_text(FONT.sub("", drawn), encoding="utf-8")
        with chromium() as browser:
            show(browser, folder / "report.html", width=1200)
            shots = {"report": "header, #leaderboard > figure:first-of-type", "hardest": ".tasks"}
            for name, selector in shots.items():
                path = PICTURES / f"{name}.png"
                shoot(browser, path, selector, margin=12)
                Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
