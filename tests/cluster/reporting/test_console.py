"""The console beside a run: it listens, it says where, and it ends with the block."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from aiohttp import ClientSession

from cluster.reporting.console import console_beside
from cluster.session import _write_page
from protocol.config import ConsoleSettings, Settings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    (tmp_path / "settings.json").write_text(Settings().model_dump_json())
    return tmp_path


async def test_it_serves_the_run_and_ends_with_it(directory: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    with console_beside(ConsoleSettings(), directory) as console:
        said = await console.where()
        async with ClientSession() as session, session.get(said.removeprefix("console ")) as answer:
            assert "The run starts" in await answer.text()
    assert {child.pid for child in psutil.Process().children()} <= before
    assert (directory / "logs" / "console.log").read_text() == ""


async def test_one_that_cannot_listen_is_said_and_harms_nothing(directory: Path) -> None:
    with console_beside(ConsoleSettings(), directory) as console:
        port = int((await console.where()).rstrip("/").rpartition(":")[2])
        with console_beside(ConsoleSettings(port=port), directory) as second:
            assert (await second.where()).startswith("the console did not start: see ")
    assert f"--port {port}: cannot listen there" in (directory / "logs" / "console.log").read_text()


async def test_where_it_is_not_wanted_nothing_is_started(directory: Path) -> None:
    with console_beside(ConsoleSettings(serve=False), directory) as console:
        assert await console.where() == ""
    assert not (directory / "logs" / "console.log").exists()


def test_the_report_of_a_run_that_did_nothing_is_a_page(directory: Path) -> None:
    _write_page(directory)
    assert "Nothing was measured" in (directory / "report.html").read_text()
