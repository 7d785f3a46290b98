"""The console beside a run: it listens, it says where, and it ends with the block."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientSession

from benchmarks.console.made_run import make_run
from cluster.reporting import console
from cluster.reporting.console import console_beside
from cluster.session import _write_page
from console.run_data.settings import _PACKAGES, versions
from protocol.config import ConsoleSettings, Settings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    (tmp_path / "settings.json").write_text(Settings().model_dump_json())
    return tmp_path


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run does not wait long for its console; here it is what is looked at, however busy the host is."""
    monkeypatch.setattr(console, "_START_S", 60.0)
    monkeypatch.setattr(console, "_STOP_S", 60.0)


async def test_it_serves_the_run_and_ends_with_it(directory: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with console_beside(ConsoleSettings(), directory) as beside:
        said = await beside.where()
        async with ClientSession() as session, session.get(said.removeprefix("console ")) as answer:
            assert "The run starts" in await answer.text()
    assert {child.pid for child in psutil.Process().children()} <= before
    assert (directory / "logs" / "console.log").read_text() == ""


async def test_one_that_cannot_listen_is_said_and_harms_nothing(directory: Path) -> None:
    with console_beside(ConsoleSettings(), directory) as beside:
        port = int((await beside.where()).rstrip("/").rpartition(":")[2])
        with console_beside(ConsoleSettings(port=port), directory) as second:
            assert (await second.where()).startswith("the console did not start: see ")
    assert f"--port {port}: cannot listen there" in (directory / "logs" / "console.log").read_text()


async def test_where_it_is_not_wanted_nothing_is_started(directory: Path) -> None:
    with console_beside(ConsoleSettings(serve=False), directory) as beside:
        assert await beside.where() == ""
    assert not (directory / "logs" / "console.log").exists()


def test_the_report_of_a_run_that_did_nothing_is_a_page(directory: Path) -> None:
    _write_page(directory)
    assert "Nothing was measured" in (directory / "report.html").read_text()


def test_the_report_of_a_run_shows_its_audit_its_versions_and_a_few_images(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "run", 16, num_steps=12)
    _write_page(directory)
    page = (directory / "report.html").read_text()
    assert "rewards of 0 that nothing explains" in page and "1 of 64: owner1__project1-1" in page
    assert "under which it worked" in page and "2.13.0+cpu" in page
    images = sorted(path.name for path in (directory / "plots").iterdir())
    assert images == sorted(
        f"{name}.png" for name in ("entropy", "mismatch-of-log-probs", "reward", "throughput", "time-of-a-step")
    )
    for name in images:
        assert (directory / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_are_no_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make_run(tmp_path / "run", 16, num_steps=12)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    _write_page(directory)
    assert (directory / "report.html").is_file() and not (directory / "plots").exists()


def test_an_audit_or_versions_that_are_none_leave_a_page(directory: Path) -> None:
    for text in ("torn", "[]", '{"episodes": 7}', "null"):
        (directory / "audit.json").write_text(text)
        (directory / "versions.json").write_text(text)
        _write_page(directory)
        page = (directory / "report.html").read_text()
        assert "rewards of 0" not in page
    assert "the run recorded none" in page


def test_the_versions_name_everything_that_the_code_stands_on() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = [project["optional-dependencies"][name] for name in ("cpu", "gpu", "lora", "grading", "hub")]
    needed = {re.match(r"[\w-]+", line)[0] for line in sum(extras, project["dependencies"])}
    assert needed <= set(_PACKAGES)
    assert {"system", "python", "torch", "ray"} <= set(versions())
