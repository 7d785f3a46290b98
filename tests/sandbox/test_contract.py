"""What every backend promises: Docker, namespaces and the shipped fake."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, Sandbox, SandboxSpec
from tests.waiting import until


@pytest.fixture
async def sandbox(backend: Backend, run_name: str, source: Path) -> AsyncIterator[Sandbox]:
    async with await backend.create(SandboxSpec(run=run_name, lease="lease", source=source)) as sandbox:
        yield sandbox


async def sleeping(sandbox: Sandbox, marker: str) -> str:
    """What sleeps there for a number of seconds that begins so; the look at it is none of it."""
    look = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep [{marker[0]}]{marker[1:]}[0-9]'"
    return (await sandbox.exec(look, timeout=60)).text


@pytest.fixture
def marker() -> str:
    """Seconds that nobody else on this host sleeps."""
    return str(10**6 + secrets.randbelow(10**8))


async def test_commands(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo out; echo err >&2; exit 3", timeout=20)
    assert (result.exit_code, result.head + result.tail, result.total_bytes) == (3, b"out\nerr\n", 8)
    assert not result.timed_out and not result.truncated and result.duration_s < 20

    assert (await sandbox.exec(["printf", "%s|", "a b", "$HOME"], timeout=20)).text == "a b|$HOME|"
    assert (await sandbox.exec("pwd", timeout=20)).text == "/testbed\n"
    assert (await sandbox.exec("pwd", timeout=20, cwd="/testbed/pkg")).text == "/testbed/pkg\n"
    assert (await sandbox.exec("pwd", timeout=20, cwd="pkg")).text == "/testbed/pkg\n"
    assert (await sandbox.exec("echo $WHO", timeout=20, env={"WHO": "me and you"})).text == "me and you\n"
    assert (await sandbox.exec("kill -TERM $$", timeout=20)).exit_code == -15
    long = await sandbox.exec(f": {'é' * 100_000}\necho $WHO; test ! -e $0; exit 3", timeout=20, env={"WHO": "me"})
    assert (long.exit_code, long.text) == (3, "me\n")
    assert (await sandbox.exec(["no-such-program"], timeout=20)).exit_code == 127
    nowhere = await sandbox.exec("true", timeout=20, cwd="/nowhere")
    assert nowhere.exit_code == 126 and "/nowhere" in nowhere.text
    assert (await sandbox.exec("cat", timeout=20)).text == "", "stdin is empty"
    with pytest.raises(ValueError, match="positive timeout"):
        await sandbox.exec("true", timeout=0)


async def test_source_appears_writable_and_itself_unchanged(sandbox: Sandbox, source: Path) -> None:
    assert (await sandbox.exec("cat pkg/code.py link && ./run.sh", timeout=20)).text == "ANSWER = 41\n" * 2 + "ran\n"
    result = await sandbox.exec("echo 'ANSWER = 42' > pkg/code.py && rm run.sh && mv pkg other && ls", timeout=20)
    assert result.text == "link\nother\n"
    assert (source / "pkg" / "code.py").read_text() == "ANSWER = 41\n"
    assert sorted(os.listdir(source)) == ["link", "pkg", "run.sh"]  # noqa: PTH208


async def test_tools(sandbox: Sandbox) -> None:
    assert (await sandbox.exec("python3 -c 'import json, ssl, sqlite3; print(6 * 7)'", timeout=60)).text == "42\n"
    assert (await sandbox.exec("git init -q . && git add -A && git status --short | wc -l", timeout=60)).text == "3\n"


async def test_files(sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 4096
    await sandbox.write("deep/er/file.bin", data)
    assert await sandbox.read("/testbed/deep/er/file.bin") == data
    await sandbox.write("tool", b"#!/bin/sh\necho tool\n", mode=0o755)
    assert (await sandbox.exec("./tool; stat -c %a deep/er/file.bin", timeout=20)).text == "tool\n644\n"
    await sandbox.write("empty", b"")
    assert await sandbox.read("empty") == b""
    for path, kind in {"absent": "missing", "deep": "not_a_file", "deep/er/file.bin": "too_large"}.items():
        with pytest.raises(SandboxError) as caught:
            await sandbox.read(path, max_bytes=1000)
        assert caught.value.kind == kind, path


async def test_output_is_cut_in_the_middle(sandbox: Sandbox) -> None:
    result = await sandbox.exec("seq 1 100000", timeout=30, max_output=1000)
    whole = b"".join(b"%d\n" % n for n in range(1, 100001))
    assert (result.head, result.tail, result.total_bytes) == (whole[:500], whole[-500:], len(whole))
    assert result.truncated and "bytes left out" in result.text


async def test_deadline_kills_every_descendant(sandbox: Sandbox, marker: str) -> None:
    sleeps = [f"sleep {marker}{number}" for number in range(4)]
    background = f"{sleeps[0]} & setsid {sleeps[1]} & (setsid {sleeps[2]} & )"
    result = await sandbox.exec(f"echo before; trap '' TERM INT; {background} ; {sleeps[3]}", timeout=4)
    assert result.timed_out and result.exit_code == -9 and result.text == "before\n"
    assert await sleeping(sandbox, marker) == ""


async def test_background_children_hold_no_reply_up_and_live_on(sandbox: Sandbox, marker: str) -> None:
    child = "(until [ -e go ]; do sleep 0.1; done; for i in 1 2 3 4; do echo $i; done; touch done) & echo started"
    result = await sandbox.exec(child, timeout=20)
    assert result.text == "started\n" and not result.timed_out
    await sandbox.exec("touch go", timeout=20)

    async def is_done() -> bool:
        return (await sandbox.exec("test -e done", timeout=20)).exit_code == 0

    await until(is_done)  # it is not killed by its closed output
    await sandbox.exec(f"sleep {marker}5 & true", timeout=20)
    await until(lambda: sleeping(sandbox, marker))
    await sandbox.kill_all()
    assert await sleeping(sandbox, marker) == ""


async def test_many_at_once(sandbox: Sandbox) -> None:
    results = await asyncio.gather(*(sandbox.exec(f"sleep 0.1; echo {n}", timeout=30) for n in range(16)))
    assert [result.text for result in results] == [f"{n}\n" for n in range(16)]


async def test_cancelling_kills_the_command(sandbox: Sandbox, marker: str) -> None:
    task = asyncio.create_task(sandbox.exec(f"sleep {marker}6; touch survived", timeout=600))
    await until(lambda: sleeping(sandbox, marker))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await sleeping(sandbox, marker) == ""
    assert "survived" not in (await sandbox.exec("ls", timeout=20)).text


async def test_closed_sandboxes_say_so(backend: Backend, run_name: str) -> None:
    sandbox = await backend.create(SandboxSpec(run=run_name, lease="lease"))
    waiting = asyncio.create_task(sandbox.exec("sleep 100", timeout=200))
    await asyncio.sleep(0.2)
    await sandbox.close()
    await sandbox.close()
    for call in (waiting, sandbox.exec("true", timeout=5), sandbox.read("x"), sandbox.kill_all()):
        with pytest.raises(SandboxError) as caught:
            await call
        assert caught.value.kind == "closed"


async def test_who_takes_a_lease_over_gets_its_sandbox(backend: Backend, run_name: str) -> None:
    specs = [SandboxSpec(run=run_name, lease=lease, kept=True) for lease in ("one", "two")]
    first, second = [await backend.create(spec) for spec in specs]
    await first.write("mine", b"one")
    adopted = await backend.adopt("one")
    assert adopted is not None and await adopted.read("mine") == b"one"
    await adopted.close()
    assert await backend.adopt("one") is None
    again = await backend.adopt("two")
    assert again is not None and again.spec == second.spec
    await again.close()
    await second.close()


async def test_snapshots_branch(backend: Backend, run_name: str, source: Path) -> None:
    spec = SandboxSpec(run=run_name, lease="lease", source=source)
    async with await backend.create(spec) as sandbox:
        await sandbox.exec("echo new > new; rm run.sh; echo changed > pkg/code.py", timeout=20)
        if backend.name == "kubernetes":  # a cluster keeps no file system of a container, and the backend says so
            assert "not had" in (await backend.probe()).limits["snapshots"]
            with pytest.raises(SandboxError) as refused:
                await sandbox.snapshot()
            assert refused.value.kind == "unsupported"
            return
        snapshot = await sandbox.snapshot()
        await sandbox.exec("echo later > new", timeout=20)
    branches = [
        await backend.create(SandboxSpec(run=run_name, lease=f"b{n}", source=source, from_snapshot=snapshot))
        for n in range(2)
    ]
    for branch in branches:
        assert (await branch.exec("cat new pkg/code.py; ls", timeout=20)).text == "new\nchanged\nlink\nnew\npkg\n"
        await branch.exec("rm -rf *", timeout=20)
        await branch.close()
    await backend.delete_snapshot(snapshot)
