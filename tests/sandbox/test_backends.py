"""Which backend a run gets, and what it is told when it cannot have one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from protocol.config import SandboxSettings
from protocol.errors import ConfigError, SandboxError
from sandbox.backends import AutoBackend, make_limits, open_backend
from sandbox.base import SandboxSpec
from sandbox.fake import FakeBackend

ORDINARY_USER = 23456
AS_ORDINARY_USER = """
import asyncio, os, sys
from pathlib import Path
from sandbox.base import Limits, SandboxSpec
from sandbox.namespace.backend import NamespaceBackend

async def main():
    source = Path(sys.argv[1]) / "source"
    source.mkdir()
    (source / "file").write_text("before\\n")
    backend = NamespaceBackend("ordinary")
    capabilities = await backend.probe()
    if not capabilities.available:
        print("unavailable:", capabilities.reason)
        return
    limits = Limits(memory_mib=100, max_processes=20, disk_mib=16)
    for tree in (source, Path("/etc/alternatives")):
        spec = SandboxSpec(run="ordinary", lease="x", source=tree, limits=limits)
        async with await backend.create(spec) as sandbox:
            assert (await sandbox.exec("echo after > file && cat file", 30)).text == "after\\n"
            assert (await sandbox.exec("f() { f | f & }; f; sleep 60", 2)).exit_code != 0
            assert (await sandbox.exec("head -c 50000000 /dev/zero > big", 30)).exit_code != 0
            assert (await sandbox.exec("rm big; cat /etc/shadow", 30)).exit_code != 0
            snapshot = await sandbox.snapshot()
        branch = SandboxSpec(run="ordinary", lease="y", source=tree, from_snapshot=snapshot)
        async with await backend.create(branch) as sandbox:
            assert (await sandbox.exec("cat file", 30)).text == "after\\n"
    assert (source / "file").read_text() == "before\\n"
    await backend.close()
    print("fine", os.geteuid())

asyncio.run(main())
"""


def test_limits_are_those_of_the_settings() -> None:
    limits = make_limits(SandboxSettings(memory_mib=1, max_processes=2, cpus=3.0, disk_mib=4))
    assert (limits.memory_mib, limits.max_processes, limits.cpus, limits.disk_mib) == (1, 2, 3.0, 4)


async def test_no_daemon_is_a_mistake_of_the_settings(tmp_path: Path, run_name: str) -> None:
    settings = SandboxSettings(backend="docker", docker_hosts=[f"unix://{tmp_path}/none.sock"])
    with pytest.raises(ConfigError, match=r"docker does not work here: no daemon answers.*none\.sock.*namespace"):
        await open_backend(settings, run_name)


async def test_images_without_a_daemon_are_an_error_of_the_sandbox(tmp_path: Path, run_name: str) -> None:
    backend = await open_backend(SandboxSettings(docker_hosts=[f"unix://{tmp_path}/none.sock"]), run_name)
    with pytest.raises(SandboxError, match="image some:image needs Docker: no daemon answers"):
        await backend.create(SandboxSpec(run=run_name, lease="x", image="some:image"))
    await backend.close()


async def test_auto_sends_images_to_docker_and_trees_to_namespaces(run_name: str) -> None:
    """Two fakes: the one for images refuses them by its own words."""
    trees, images = FakeBackend(run_name), FakeBackend(run_name)
    backend = AutoBackend(trees, images, "")
    async with await backend.create(SandboxSpec(run=run_name, lease="x")) as sandbox:
        assert sandbox in trees.living and not images.living
    with pytest.raises(SandboxError, match="an image needs the docker backend"):
        await backend.create(SandboxSpec(run=run_name, lease="x", image="some:image"))
    await backend.close()


async def test_the_unisolated_backend_has_to_be_asked_for_by_its_name(run_name: str) -> None:
    backend = await open_backend(SandboxSettings(backend="unisolated-for-debugging"), run_name)
    assert (await backend.probe()).isolation == "none"
    await backend.close()


def test_an_ordinary_user_has_namespaces_too(tmp_path: Path) -> None:
    """Run as root, this starts the same as nobody special; run as anybody else, every other test has shown it."""
    if os.geteuid() != 0:
        pytest.skip("not root: all other tests ran as an ordinary user")
    python = next((p for p in (sys.executable, "/usr/bin/python3") if _may_run(p)), None)
    if python is None:
        pytest.skip("no Python of this version that an ordinary user may run")
    home = Path(tempfile.mkdtemp(prefix="longhaul-ordinary-", dir="/tmp"))  # pytest's own is root's alone
    os.chown(home, ORDINARY_USER, ORDINARY_USER)
    try:
        done = _as_ordinary_user([python, "-c", AS_ORDINARY_USER, str(home)], home)
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True, timeout=60)
    if done.stdout.startswith("unavailable:"):
        pytest.skip(done.stdout)
    assert done.stdout == f"fine {ORDINARY_USER}\n", done.stderr[-3000:]


def _may_run(python: str) -> bool:
    code = f"import sys, msgspec, sandbox.base; assert sys.version_info[:2] == {sys.version_info[:2]}"
    try:
        return _as_ordinary_user([python, "-c", code], Path("/tmp")).returncode == 0
    except OSError:
        return False


def _as_ordinary_user(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(Path(__file__).parents[2]), str(Path(msgspec.__file__).parents[1])]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(paths), "TMPDIR": str(home)}
    ids = {"user": ORDINARY_USER, "group": ORDINARY_USER, "extra_groups": []}
    return subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=120, check=False, **ids
    )
