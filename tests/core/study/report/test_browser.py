"""Reports in a real browser: every figure is drawn, nothing is said on the console, nothing in a name is run.

Pictures of the pages are kept in build/screenshots, or where METAOPT_SCREENSHOTS points, to be looked at.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import screenshots
from metaopt import plugins
from metaopt.study import report

ROOT = Path(__file__).parents[4]
KEPT = Path(os.environ.get("METAOPT_SCREENSHOTS", ROOT / "build" / "screenshots"))
LOOKS = [(1200, False), (1200, True), (390, False), (390, True)]
pytest.importorskip("selenium", reason="the browser is driven by Selenium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if screenshots.installed() is None:
        pytest.skip("no chromium and chromedriver here; apt-get install chromium chromium-driver")
    with screenshots.chromium() as browser:
        yield browser


def look(browser: Any, page: Path, name: str, *, width: int = 1200, dark: bool = False) -> None:
    """Open a page, keep a picture of it, and hold it to what every page must be."""
    screenshots.show(browser, page, width=width, dark=dark)
    screenshots.shoot(browser, KEPT / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    said = browser.get_log("browser")
    assert not said, said
    places = browser.find_elements("css selector", ".plot")
    assert len(places) == len(re.findall(r'<div class="plot"', page.read_text(encoding="utf-8"))) > 4
    drawn = "return [...document.querySelectorAll('.plot')].map(p => p.dataset.drawn === 'yes' && p.data.length > 0 "
    drawn += "&& p.querySelector('.main-svg').getBoundingClientRect().width > 100 && p.querySelectorAll('.trace, .hm, "
    drawn += ".contour').length > 0)"
    names = [place.get_attribute("id") for place in places]
    assert dict(zip(names, browser.execute_script(drawn), strict=True)) == dict.fromkeys(names, True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width, "no page scrolls sideways"
    assert browser.execute_script("return [...document.images].every(i => i.complete && i.naturalWidth > 0)")


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_a_report_is_drawn_on_wide_and_narrow_screens_by_day_and_night(
    browser: Any, page: Path, width: int, dark: bool
) -> None:
    look(browser, page, "finished", width=width, dark=dark)
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) < 300) == dark


def test_a_page_follows_its_reader_into_the_dark(browser: Any, page: Path) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    def coloured(scheme: str) -> str:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return str(browser.execute_script("return document.querySelector('.xtick text').style.fill"))

    screenshots.show(browser, page, width=1200)
    light = coloured("light")
    WebDriverWait(browser, 30).until(lambda _: coloured("dark") != light)  # figures are drawn anew in a moment


def test_a_thousand_trials_are_drawn(browser: Any, large_page: Path) -> None:
    look(browser, large_page, "large")


def test_what_a_class_is_called_is_shown_and_never_run(
    browser: Any, named: Path, names: tuple[str, ...], tmp_path: Path
) -> None:
    found = report.write(named, plugins.load(), torch.device("cpu"), output=tmp_path / "named.html")
    look(browser, found.path, "named")
    assert browser.execute_script("return window.hacked") is None
    figures = len(browser.find_elements("css selector", ".plot"))
    assert browser.execute_script("return document.scripts.length") == figures + 2
    in_pools = " ".join(one.get_attribute("textContent") for one in browser.find_elements("css selector", ".names"))
    assert all(name in in_pools for name in names)
    ticks = browser.find_elements("css selector", "#plot-confusion .ytick text")
    said = {tick.get_attribute("textContent") for tick in ticks}
    assert said == {name if len(name) <= 28 else f"{name[:27]}…" for name in names[:3]}
    assert not browser.find_elements("css selector", "#plot-confusion .ytick a, #plot-confusion .ytick b")


def test_the_page_itself_forbids_scripts_that_are_not_its_own(browser: Any, page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8").replace("</main>", "<script>window.hacked = 1</script></main>")
    (tmp_path / "changed.html").write_text(text, encoding="utf-8")
    screenshots.show(browser, tmp_path / "changed.html", width=1200)
    assert browser.execute_script("return window.hacked") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))
