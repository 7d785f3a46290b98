"""A sandbox ends with its owner, however the owner ends; what is left is reaped by the next."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandbox import owners
from sandbox.base import Backend, SandboxSpec
from sandbox.kubernetes.backend import KubernetesBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.owners import Owner, _namespaces, is_leftover, new_owner, parse_owner, purge_state, state_dir, state_root
from tests.waiting import sleepers, until

ROOT = Path(__file__).parents[2]

OWNER = """
import asyncio, sys
from protocol.config.sandbox.kubernetes import KubernetesSettings
from sandbox.base import SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.kubernetes.backend import KubernetesBackend
from sandbox.namespace.backend import NamespaceBackend

def pods(run):
    return KubernetesBackend(run, KubernetesSettings.model_validate_json(sys.argv[5]))

async def main():
    kinds = {"docker": DockerBackend, "namespace": NamespaceBackend, "kubernetes": pods}
    backend = kinds[sys.argv[1]](sys.argv[2])
    specs = [SandboxSpec(run=sys.argv[2], lease=str(n)) for n in range(int(sys.argv[3]))]
    sandboxes = await asyncio.gather(*(backend.create(spec) for spec in specs))
    for sandbox in sandboxes:
        await sandbox.exec(f"setsid sleep {sys.argv[4]} & (setsid sleep {sys.argv[4]} &) ; true", timeout=30)
    print("ready", flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def left_of(owner: str) -> list[Path]:
    """Directories and control groups of an owner, by the beginning of its name (a pattern)."""
    return [*state_root().glob(f"{owner}*"), *Path("/sys/fs/cgroup").glob(f"*/longhaul/{owner}*")]


async def test_killed_owner(real_backend: Backend, run_name: str) -> None:
    marker, num = str(10**6 + secrets.randbelow(10**8)), 4
    async with await real_backend.create(SandboxSpec(run=run_name, lease="warm up")):
        pass  # what is built once is built
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", OWNER, real_backend.name, run_name, str(num), marker),
        *([real_backend.settings.model_dump_json()] if isinstance(real_backend, KubernetesBackend) else []),
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout is not None
    async with asyncio.timeout(100):
        assert await owner.stdout.readline() == b"ready\n"
    await until(lambda: len(sleepers(marker)) == 2 * num)  # those in the background are on their way
    os.kill(owner.pid, signal.SIGKILL)
    await owner.wait()
    owner._transport.close()  # type: ignore[attr-defined]
    await until(lambda: not sleepers(marker))
    await real_backend.purge("")
    assert not left_of(f"{run_name}@*-{owner.pid}.")


async def test_reaping_spares_the_living(run_name: str) -> None:
    backend, other = NamespaceBackend(run_name), NamespaceBackend(run_name)
    if not (await backend.probe()).available:
        await backend.close()
        pytest.skip("no namespaces here")
    async with await backend.create(SandboxSpec(run=run_name, lease="living")) as sandbox:
        await other.purge("")
        await other.close()
        assert (await sandbox.exec("echo alive", timeout=20)).text == "alive\n"
    await backend.close()


def test_owner_names() -> None:
    owner = new_owner("2026-01-31_run.7")
    assert parse_owner(owner.name) == owner and owner.is_alive()
    assert not Owner(owner.run, owner.pid, owner.start + 1, 1).is_alive(), "the pid is another process's by now"
    assert parse_owner("somebody's directory") is None
    for run in ("", "../up", "a/b", "x" * 101, "a@b"):
        with pytest.raises(ValueError, match="a run name is"):
            new_owner(run)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace")
def test_owners_in_other_pid_namespaces_are_dead_only_where_all_processes_are_seen() -> None:
    """Two pods may share their control groups and see nothing of each other's processes."""
    program = (
        "import time; from sandbox.owners import new_owner; print(new_owner('pod').name, flush=True); time.sleep(600)"
    )
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c"]
    with subprocess.Popen([*apart, program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as pod:
        assert pod.stdout is not None
        owner = parse_owner(pod.stdout.readline().strip())
        assert owner is not None and owner.namespace != new_owner("here").namespace
        assert owner.is_alive()
        ask = f"from sandbox.owners import parse_owner; print(parse_owner({owner.name!r}).is_alive())"
        asked = subprocess.run([*apart, ask], capture_output=True, text=True, cwd=ROOT, timeout=60)
        assert asked.stdout == "True\n", "what cannot be seen may live"
        assert not is_leftover(owner, "pod"), "it clears its own host"
        pod.kill()
    while owner.namespace in _namespaces():
        time.sleep(0.01)
    assert not owner.is_alive()
    assert is_leftover(owner, "pod") and not is_leftover(owner, "another")


def test_state_of_dead_owners_is_removed_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "state_root", lambda: tmp_path)  # others on this host have theirs, and purge it
    living = new_owner("state-test")
    dead = Owner("state-test", living.pid, 1, 1)
    foreign = tmp_path / "not-ours"
    foreign.mkdir()
    for owner in (living, dead):
        (state_dir(owner) / "file").write_text("x")
    assert purge_state("") == 1
    assert (tmp_path / living.name).exists() and not (tmp_path / dead.name).exists()
    assert purge_state("state-test") == 1
    assert foreign.exists()
