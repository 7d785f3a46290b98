"""Every page in a real Chromium: nothing is said on its console, nothing is asked of anybody else, keys work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from benchmarks.console.made_run import make_run
from tests.console.chromium import assert_silent, chromium, console, needs_chromium
from tests.console.conftest import HOSTILE

pytestmark = [pytest.mark.slow, needs_chromium]
PAGES = (
    "/",
    "/?x=time",
    "/episodes",
    "/episodes?q=FAILED&outcome=solved&sort=tokens",
    "/episode?id=g3/2",
    "/tokens?id=tokens/0",
    "/tokens?id=tokens/0&at=2500",
    "/group?id=g3",
    "/tasks",
    "/task?id=owner3__project3-3",
    "/steps",
    "/evaluations",
    "/step?n=5",
    "/fleet",
    "/log?name=learner-0",
    "/settings",
    "/compare",
)


@pytest.fixture(scope="module")
def address(made_run: Path) -> Iterator[str]:
    """Of a console of the made run, in a process of its own as a person starts it."""
    other = make_run(made_run.parent / "other <i>run", 16, num_steps=12, seed=1)
    settings = json.loads((other / "settings.json").read_text())
    settings["learner"]["lr"] = 1e-6
    (other / "settings.json").write_text(json.dumps(settings))
    with console(made_run, other) as found:
        yield found


@pytest.fixture(scope="module")
def driver(address: str) -> Iterator[WebDriver]:
    with chromium() as found:
        found.get(f"{address}/episodes")
        WebDriverWait(found, 60).until(lambda _: _reloaded_count(found) == "248")
        yield found


def _reloaded_count(driver: WebDriver) -> str:
    driver.refresh()
    return driver.find_element(By.CSS_SELECTOR, "h1 .count").text


def press(driver: WebDriver, *keys: str) -> None:
    ActionChains(driver).send_keys(*keys).perform()


def test_every_page_is_silent_and_asks_nobody_else(driver: WebDriver, address: str) -> None:
    assert_silent(driver, address, PAGES)


def test_filters_filter_and_the_address_says_so(driver: WebDriver, address: str) -> None:
    driver.get(f"{address}/episodes")
    press(driver, "/")
    press(driver, "FAILED", Keys.ENTER)
    WebDriverWait(driver, 60).until(lambda d: d.current_url == f"{address}/episodes?q=FAILED")
    everything = int(driver.find_element(By.CSS_SELECTOR, "h1 .count").text.split()[0])
    assert 0 < everything <= 242
    driver.get(f"{address}/episodes?q=FAILED&outcome=solved")
    outcomes = {cell.text for cell in driver.find_elements(By.CSS_SELECTOR, "td .outcome")}
    assert outcomes == {"solved"}
    driver.get(f"{address}/episodes?page=x")
    assert "expected a whole number" in driver.find_element(By.TAG_NAME, "main").text


def test_a_steps_worst_token_leads_to_it_in_its_episode(driver: WebDriver, address: str) -> None:
    driver.get(f"{address}/step?n=5")
    assert [chip.text for chip in driver.find_elements(By.CSS_SELECTOR, ".chip")] == ["1 +1.50", "0 -1.50"]
    driver.find_element(By.CSS_SELECTOR, "a[href*='/tokens']").click()
    WebDriverWait(driver, 60).until(lambda d: "/tokens" in d.current_url)
    shown = driver.find_element(By.ID, "chosen").text.split("\n")
    facts = dict(zip(shown[::2], shown[1::2], strict=True))
    assert (facts["place"], facts["mask"], facts["version"]) == ("2500", "sampled", "4")
    assert (facts["log-prob"], facts["learner's"], facts["advantage"]) == ("-0.5000", "-0.2500", "+1.5000")
    assert driver.find_element(By.CSS_SELECTOR, ".tok.here").get_attribute("id") == "at"
    assert len(driver.find_elements(By.CSS_SELECTOR, ".tokens .tok")) == 1000  # the second page
    driver.get(f"{address}/episodes?source=made")
    assert driver.find_element(By.CSS_SELECTOR, "h1 .count").text.split()[0] == "1"
    driver.get(f"{address}/episode?id=tokens/0")
    assert "trained in step 5" in driver.find_element(By.TAG_NAME, "main").text


def test_keys_go_through_rows_and_pages(driver: WebDriver, address: str) -> None:
    driver.get(f"{address}/episodes?outcome=solved&sort=tokens")
    names = [link.text for link in driver.find_elements(By.CSS_SELECTOR, "tbody a.go")]
    press(driver, "j", "j", "j", "k")
    assert driver.find_element(By.CSS_SELECTOR, "tr.chosen a.go").text == names[1]
    press(driver, Keys.ENTER)
    WebDriverWait(driver, 60).until(lambda d: "/episode?" in d.current_url)
    assert names[1] in driver.find_element(By.TAG_NAME, "h1").text
    press(driver, "?")
    assert driver.find_element(By.ID, "help").is_displayed()
    press(driver, Keys.ESCAPE, "j")
    assert driver.find_element(By.CSS_SELECTOR, ".turn.chosen").get_attribute("id") == "turn-1"
    before = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    press(driver, "t")
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") != before
    driver.get(f"{address}/episodes")
    press(driver, "n")
    WebDriverWait(driver, 60).until(lambda d: "page=2" in d.current_url)


def test_one_cursor_crosses_all_plots(driver: WebDriver, address: str) -> None:
    driver.get(address)
    plots = driver.find_elements(By.CSS_SELECTOR, "svg.plot")
    assert len(plots) > 10
    ActionChains(driver).move_to_element(plots[0]).perform()
    step = int(re.sub(r"\D", "", driver.find_element(By.ID, "cursor-at").text))
    assert 1 < step < 20
    places = {line.get_attribute("x1") for line in driver.find_elements(By.CSS_SELECTOR, "svg.plot .cursor")}
    assert len(places) == 1 and float(places.pop()) > 0


def test_two_runs_are_compared_with_the_settings_that_differ_on_top(driver: WebDriver, address: str) -> None:
    driver.get(f"{address}/compare")
    first = driver.find_element(By.CSS_SELECTOR, "main table tbody").text.splitlines()
    assert first == ["steps 20 12", "learner.lr 0.0005 1e-06"]
    plot = driver.find_element(By.CSS_SELECTOR, "figure.card")
    assert len(plot.find_elements(By.CSS_SELECTOR, "polyline")) == 2
    labels = [label.text for label in plot.find_elements(By.CSS_SELECTOR, ".label")]
    assert labels == ["run<b>", "other <i>run"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_output_is_inert(driver: WebDriver, address: str, name: str) -> None:
    driver.get_log("browser")
    task = quote(HOSTILE[name][:200].replace("\ud800", "\ufffd"), safe="")
    for page in (f"/episode?id=hostile-{name}", f"/group?id=h-{name}", f"/task?id={task}"):
        driver.get(address + page)
        assert driver.title != "owned"
        assert not driver.find_elements(By.CSS_SELECTOR, "main script, main img")
        assert not driver.find_elements(By.CSS_SELECTOR, "section section section")
        assert "\u202e" not in driver.page_source and "\x1b" not in driver.page_source
        assert driver.get_log("browser") == [], page
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_a_phone_scrolls_only_down(driver: WebDriver, address: str) -> None:
    driver.set_window_size(500, 900)
    try:
        for page in PAGES:
            driver.get(address + page)
            assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth"), page
    finally:
        driver.set_window_size(1280, 1000)


def test_the_report_is_one_page_without_a_script(driver: WebDriver, made_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    command = [sys.executable, "-m", "cluster.front_door", "report", str(made_run), "--out", str(out)]
    subprocess.run(command, check=True, timeout=120)
    driver.get(out.as_uri())
    assert driver.get_log("browser") == []
    assert not driver.find_elements(By.CSS_SELECTOR, "script, img, link, iframe")
    assert len(driver.find_elements(By.CSS_SELECTOR, "svg.plot")) > 10
    titles = [title.text for title in driver.find_elements(By.TAG_NAME, "h2")]
    assert {"Solved episodes", "Unsolved episodes", "Versions under which it worked"} <= set(titles)
    assert "Audit what the machinery did to the run's episodes" in titles
    assert "owned" not in driver.title


def test_the_numbers_of_a_live_run_move_by_themselves(driver: WebDriver, tmp_path: Path) -> None:
    run = make_run(tmp_path / "live", 8, num_steps=3, is_over=False)
    log = run / "metrics.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])

    def say(version: int) -> None:
        line = last | {"time": time.time(), "step": 3, "replay.trained_version": version}
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")

    command = [sys.executable, "-m", "cluster.front_door", "console", str(run), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            address = process.stdout.readline().strip()

            def is_live() -> bool:
                say(1)  # a run that falls silent is live no more
                driver.get(address)
                return driver.find_element(By.ID, "state").text == "live"

            def shows(version: int) -> bool:
                say(version)
                return f"version {version}" in driver.find_element(By.ID, "now").text

            WebDriverWait(driver, 60).until(lambda _: is_live())
            driver.execute_script("window.untouched = true")
            WebDriverWait(driver, 60).until(lambda _: shows(41))
            WebDriverWait(driver, 60).until(lambda _: shows(42))
            assert driver.execute_script("return window.untouched")  # it was never loaded anew
        finally:
            driver.get("about:blank")
            process.stdin.close()
            process.wait(timeout=60)
