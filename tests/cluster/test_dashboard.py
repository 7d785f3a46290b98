"""Ray's dashboard, where Ray asks for a token: what the start says of it opens it, in a real browser."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support import expected_conditions
from selenium.webdriver.support.ui import WebDriverWait

from tests.console.chromium import chromium, needs_chromium

ROOT = Path(__file__).parents[2]
START = """
import sys
from cluster import run_files
from cluster.placement import Cluster
from protocol.config import Settings
settings = Settings(network={"dashboard_port": 0}, run_dir=sys.argv[1])
cluster = Cluster(settings, run_files.claim(run_files.choose_directory(settings)))
cluster.start()
print(f"Ray's dashboard {cluster.dashboard_url}{cluster.way_in}", flush=True)
sys.stdin.read()
cluster.stop()
"""


@needs_chromium
@pytest.mark.slow
def test_what_the_start_says_opens_the_dashboard(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    (tmp_path / "token").write_text(secrets.token_hex(32))  # as `ray get-auth-token --generate` makes one
    command = [sys.executable, "-c", START, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:  # type: ignore[call-overload]
        try:
            said = process.stdout.readline()
            found = re.fullmatch(
                r"Ray's dashboard (http://127\.0\.0\.1:\d+), which asks for what `(.+)` prints\n", said
            )
            assert found, said
            address, prints_it = found.groups()
            with pytest.raises(urllib.error.HTTPError, match="401"):
                urllib.request.urlopen(f"{address}/api/jobs/", timeout=30)
            printed = subprocess.run(prints_it.split(), env=environment, check=True, capture_output=True, timeout=60)
            token = printed.stdout.decode().strip().splitlines()[-1]
            assert token == (tmp_path / "token").read_text()
            with chromium() as driver:
                driver.get(address)
                wait = WebDriverWait(driver, 60)
                wait.until(lambda d: "Token" in d.find_element(By.TAG_NAME, "body").text)
                asked = (By.CSS_SELECTOR, "[role=dialog] input")
                wait.until(expected_conditions.element_to_be_clickable(asked)).send_keys(token)
                driver.find_elements(By.CSS_SELECTOR, "[role=dialog] button")[-1].click()  # another shows the token
                wait.until(lambda d: "Cluster" in d.find_element(By.TAG_NAME, "body").text)
                wait.until(lambda d: not d.find_elements(By.CSS_SELECTOR, "[role=dialog]"))
                driver.get(f"{address}/#/actors")
                wait.until(lambda d: "Actors" in d.find_element(By.TAG_NAME, "body").text)
        finally:
            process.stdin.close()
        assert process.wait(timeout=120) == 0
