"""The report page in a real browser: filters, sorting, levels, narrow screens."""

from __future__ import annotations

import shutil
from typing import NoReturn

import pytest

from helpers.project import cannot_run
from helpers.small_report import a_level, a_page

BROWSER_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
)


def unavailable(what: str) -> NoReturn:
    """Skip, or fail in .ci/run, which installs browser and driver."""
    cannot_run(f"needs {what}; .ci/run installs it", "REQUIRE_BROWSER")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that keeps its console's messages."""
    try:
        from selenium import webdriver
    except ImportError:
        unavailable("selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        unavailable("chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*BROWSER_FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


@pytest.fixture
def opened(browser, tmp_path):
    """The page of `a_page`, opened from a file."""
    path = tmp_path / "index.html"
    path.write_text(a_page())
    browser.get(path.as_uri())
    return browser


def shown(browser) -> list[str]:
    """`category|level|place|error` of the pictures that are visible, in their order."""
    return browser.execute_script(
        "return [...document.querySelectorAll('article')].filter(a => a.offsetParent !== null)"
        ".map(a => a.dataset).map(d => [d.category, d.level, d.place, d.error].join('|'))"
    )


def choose(browser, name: str, value: str) -> None:
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("id", f"filter-{name}")).select_by_value(value)


def test_filters_and_sorting_work_and_the_console_stays_empty(opened):
    assert len(shown(opened)) == 12
    choose(opened, "category", "chair")
    choose(opened, "level", "FGL1_BGL1")
    assert [s.split("|")[2] for s in shown(opened)] == ["best", "median", "worst"]
    assert all(s.startswith("chair|FGL1_BGL1") for s in shown(opened))
    assert opened.find_element("id", "shown").text == "3 of 12 pictures"
    choose(opened, "order", "down")
    assert [s.split("|")[2] for s in shown(opened)] == ["worst", "median", "best"]
    choose(opened, "place", "median")
    assert shown(opened) == ["chair|FGL1_BGL1|median|8.000"]
    choose(opened, "category", "*")
    choose(opened, "level", "*")
    assert [s.split("|")[3] for s in shown(opened)] == ["8.500", "8.500", "8.000", "8.000"]
    finish = (
        "const done = arguments[0];"
        "Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))"
        ".then(() => done(document.images.length), e => done(String(e)))"
    )
    assert opened.execute_async_script(finish) == 12
    assert opened.get_log("browser") == []


def test_one_level_is_shown_at_a_time(opened):
    def visible() -> list[str]:
        return [
            s.get_attribute("data-level")
            for s in opened.find_elements("css selector", "section.level")
            if s.is_displayed()
        ]

    assert visible() == [""]
    opened.find_element("css selector", "button[data-show=FGL1_BGL1]").click()
    assert visible() == ["FGL1_BGL1"]
    other = opened.find_element("css selector", "button[data-show='']")
    assert other.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_no_width_of_a_screen_scrolls_sideways(opened, width):
    long_table = [["Metric", *(f"category{i}" for i in range(12))], ["Pi/6", *["99.9"] * 12]]
    html = a_page(levels=[a_level("", table=long_table, notes=["x" * 200]), a_level("FGL1_BGL1")])
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 600),
    )
    opened.execute_script("document.open(); document.write(arguments[0]); document.close();", html)
    wide, inner = opened.execute_script(
        "return [document.documentElement.scrollWidth, window.innerWidth]"
    )
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert inner == width
    assert wide <= width
