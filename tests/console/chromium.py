"""A real Chromium without a screen, and a console as a person starts it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not CHROMIUM or not DRIVER, reason="no chromium and chromedriver here (Debian's packages)"
)


@contextlib.contextmanager
def chromium() -> Iterator[WebDriver]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1000",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = WebDriver(options=options, service=Service(str(DRIVER)))
    try:
        found.set_page_load_timeout(60)
        yield found
    finally:
        found.quit()


@contextlib.contextmanager
def console(*runs: Path) -> Iterator[str]:
    """The address of one, in a process of its own."""
    command = [sys.executable, "-m", "cluster.front_door", "console", *map(str, runs), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield process.stdout.readline().strip().rstrip("/")
        finally:
            process.stdin.close()  # its end is the console's
        assert process.wait(timeout=60) == 0


def assert_silent(driver: WebDriver, address: str, pages: Sequence[str]) -> None:
    """Every page has a heading and no line on the browser's console, and asks nobody but the console."""
    driver.get_log("performance")
    for page in pages:
        driver.get(address + page)
        assert driver.find_elements(By.CSS_SELECTOR, "main h1"), page
        assert driver.get_log("browser") == [], page
    asked = {
        urlsplit(message["params"]["request"]["url"]).netloc
        for entry in driver.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"] == "Network.requestWillBeSent"
    }
    assert asked == {urlsplit(address).netloc}
