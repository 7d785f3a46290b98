"""What a command took of the processors, and how long it waited for one, as the guest tells it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, ExecResult, Sandbox, SandboxSpec
from tests.sandbox.starving import AT_A_DISADVANTAGE, busy
from tests.waiting import until

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


async def _written(sandbox: Sandbox, path: str) -> bytes:
    """A line of a file there, as soon as it is whole."""
    said = b""

    async def is_whole() -> bool:
        nonlocal said
        with contextlib.suppress(SandboxError):
            said = await sandbox.read(path)
        return said.endswith(b"\n")

    await until(is_whole)
    return said


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
    code = "import time; open('had', 'w').write(open('/proc/self/schedstat').read()); time.sleep(1e6)"
    asleep = asyncio.create_task(ran(sandbox, code, timeout=12))
    cpu_ns, waited_ns, _ = map(int, (await _written(sandbox, "had")).split())  # by a start that was busy itself
    with busy():
        result = await asleep
    assert result.waited_s - waited_ns / 1e9 < result.duration_s / 3
    assert result.cpu_s - cpu_ns / 1e9 < 1


async def test_of_one_that_ends_by_itself_its_children_counted(sandbox: Sandbox) -> None:
    spin = "import time; end = time.process_time() + 2\nwhile time.process_time() < end: pass"
    code = f"import subprocess; subprocess.run(['python3', '-c', {spin!r}])"
    result = await sandbox.exec(["python3", "-c", code], timeout=120)
    assert result.exit_code == 0 and 1.9 < result.cpu_s < 10
