"""What a command took of the processors, and how long it waited for one, as the guest tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, ExecResult, Sandbox, SandboxSpec
from tests.sandbox.starving import AT_A_DISADVANTAGE, busy

SPIN = "while True: pass"
COME_AND_GO = "import subprocess\nwhile True: subprocess.run(['python3', '-S', '-c', 'sum(range(200000))'])"


@pytest.fixture
async def sandbox(real_backend: Backend, run_name: str) -> AsyncIterator[Sandbox]:
    async with await real_backend.create(SandboxSpec(run=run_name, lease="lease")) as sandbox:
        yield sandbox


async def ran(sandbox: Sandbox, code: str, timeout: float = 4.0) -> ExecResult:
    result = await sandbox.exec(["python3", "-c", AT_A_DISADVANTAGE + code], timeout=timeout)
    assert result.timed_out
    return result


async def _is_there(sandbox: Sandbox, path: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await sandbox.read(path)
            except SandboxError:
                await asyncio.sleep(0.05)
            else:
                return


@pytest.mark.parametrize("code", [SPIN, f"import threading\nthreading.Thread(target=lambda: exec({SPIN!r})).start()"])
async def test_of_a_process_that_others_starve(sandbox: Sandbox, code: str) -> None:
    with busy():
        result = await ran(sandbox, code)
    assert result.waited_s > result.duration_s / 2 > result.cpu_s


async def test_of_processes_that_come_and_go(sandbox: Sandbox) -> None:
    with busy():
        result = await ran(sandbox, COME_AND_GO, timeout=8)
    assert result.waited_s > result.duration_s / 2


async def test_of_one_that_sleeps_beside_them(sandbox: Sandbox) -> None:
    asleep = asyncio.create_task(ran(sandbox, "open('here', 'w'); import time; time.sleep(1e6)", timeout=10))
    await _is_there(sandbox, "here")  # an interpreter that starts beside them waits, and is right to say so
    with busy():
        result = await asleep
    assert result.waited_s < result.duration_s / 3
    assert result.cpu_s < 1


async def test_of_one_that_ends_by_itself_its_children_counted(sandbox: Sandbox) -> None:
    spin = "import time; end = time.process_time() + 2\nwhile time.process_time() < end: pass"
    code = f"import subprocess; subprocess.run(['python3', '-c', {spin!r}])"
    result = await sandbox.exec(["python3", "-c", code], timeout=120)
    assert result.exit_code == 0 and 1.9 < result.cpu_s < 10
