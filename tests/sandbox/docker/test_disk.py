"""What a container may write is bounded, in bytes and in files; what it wrote never keeps it from being removed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from benchmarks.sandbox.bounds import DEEP, MANY
from sandbox.base import Limits, SandboxSpec
from sandbox.docker.backend import DockerBackend
from sandbox.docker.container import DockerSandbox
from sandbox.docker.seccomp import seccomp_profile

pytestmark = pytest.mark.docker

LIMITS = Limits(memory_mib=256, disk_mib=64)
ALLOCATE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for place in sys.argv[1:]:
    for n in range(100):
        try:
            fd = os.open(f"{place}/big{n}", os.O_RDWR | os.O_CREAT)
            if libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(32 << 20)):
                break
        except OSError:
            break
"""
REFUSED = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
calls = {"ptrace": (101, 0, 0, 0, 0), "io_uring": (425, 1, 0), "mount": (165, 0, 0, 0, 0, 0), "bpf": (321, 0, 0, 0),
         "unshare": (272, 0x10000000), "clone3": (435, 0, 0), "fallocate": (285, 1, 0, 0, 1)}
for name, call in calls.items():
    assert libc.syscall(*call) < 0
    print(name, errno.errorcode[ctypes.get_errno()])
for family in (40, 17, 38):
    try: socket.socket(family, socket.SOCK_STREAM if family != 17 else socket.SOCK_RAW)
    except OSError as error: print(family, errno.errorcode[error.errno])
import threading; threading.Thread(target=print, args=("threads",)).start()
"""


@pytest.fixture
async def sandbox(docker_backend: DockerBackend, run_name: str) -> AsyncIterator[DockerSandbox]:
    async with await docker_backend.create(SandboxSpec(run=run_name, lease="disk", limits=LIMITS)) as sandbox:
        assert isinstance(sandbox, DockerSandbox)
        if not sandbox.covered:
            pytest.skip(f"no disk of its own size: {sandbox.host.no_cover or 'Longhaul is not root'}")
        yield sandbox


async def test_bytes_are_bounded_however_they_are_taken(sandbox: DockerSandbox) -> None:
    await sandbox.exec(["python3", "-c", ALLOCATE, "/testbed", "/root", "/var/tmp", "/usr"], timeout=60)
    used = await sandbox.exec("cat /testbed/big* /root/big* /var/tmp/big* /usr/big* | wc -c", timeout=60)
    assert 0 < int(used.text) <= LIMITS.disk_mib << 20
    assert (await sandbox.exec("rm -f /testbed/big* /root/big* /usr/big*; echo x > f; echo x > /file; cat f", 30)).text
    assert "Read-only" in (await sandbox.exec("echo x > /file", timeout=30)).text


async def test_files_are_bounded(sandbox: DockerSandbox) -> None:
    made = await sandbox.exec(["python3", "-c", MANY], timeout=120)
    assert 100_000 < int(made.text) < 200_000


async def test_binds_volumes_and_the_hosts_file_keep_their_places(sandbox: DockerSandbox) -> None:
    seen = await sandbox.exec("mount | cut -d' ' -f3 | grep -vE '^/(proc|sys|dev)' | sort; ls -d /.longhaul-disk", 30)
    assert "No such file" in seen.text and "/testbed" in seen.text.split()


async def test_deep_trees_do_not_block_removal(docker_backend: DockerBackend, run_name: str) -> None:
    """`benchmarks.sandbox` does the same where a container has no disk of its own size, in minutes."""
    spec = SandboxSpec(run=run_name, lease="deep", limits=LIMITS)
    sandboxes = [await docker_backend.create(spec) for _ in range(2)]
    done = await sandboxes[0].exec(["python3", "-c", DEEP], timeout=120)
    assert done.exit_code == 0, done.text
    await asyncio.gather(*(sandbox.close() for sandbox in sandboxes))
    wanted = json.dumps({"label": [f"longhaul.run={run_name}"]})
    assert await docker_backend.hosts[0].client.containers.list(all=1, filters=wanted) == []


async def test_without_a_guest_there_is_a_filter(run_name: str) -> None:
    backend = DockerBackend(run_name, with_guest=False)
    async with await backend.create(SandboxSpec(run=run_name, lease="plain")) as sandbox:
        seen = (await sandbox.exec(["python3", "-c", REFUSED], timeout=60)).text
    await backend.close()
    refused = dict(line.split() for line in seen.splitlines()[:-1])
    assert seen.endswith("threads\n")
    assert refused.pop("clone3") == "ENOSYS" and refused.pop("fallocate") in ("ENOTSUP", "EOPNOTSUPP")
    assert {refused.pop(family) for family in ("40", "17", "38")} == {"EAFNOSUPPORT"}
    assert set(refused.values()) == {"EPERM"}
    json.loads(seccomp_profile())


async def test_places_at_the_root_are_there_and_bounded(docker_backend: DockerBackend, run_name: str) -> None:
    """Nothing else can be made there once a container has a disk of its own."""
    spec = SandboxSpec(run=run_name, lease="l", limits=LIMITS, places=("/tests", "/logs"))
    async with await docker_backend.create(spec) as sandbox:
        await sandbox.write("/tests/deep/test.sh", b"echo ran\n")
        seen = await sandbox.exec("bash /tests/deep/test.sh; mkdir -p /logs/verifier && echo 1 > /logs/verifier/r", 20)
        assert (seen.exit_code, seen.text) == (0, "ran\n")


async def test_what_is_sealed_stays(docker_backend: DockerBackend, run_name: str) -> None:
    """For root as well, and whatever way it is tried."""
    spec = SandboxSpec(run=run_name, lease="l", limits=LIMITS, places=("/tests",))
    async with await docker_backend.create(spec) as sandbox:
        await sandbox.write("/tests/test.sh", b"echo sound\n")
        await sandbox.write("hidden.py", b"SOUND = 1\n")
        await sandbox.exec("ln -s hidden.py link", 20)
        await sandbox.seal(["/tests/test.sh", "hidden.py", "link", "absent.py", "/usr", "/bin", "/absent"])
        for attack in (
            "echo bad > /tests/test.sh",
            "rm -f /tests/test.sh",
            "mv hidden.py other.py",
            "cp /bin/true hidden.py",
            "ln -sf /bin/true hidden.py",
            "umount hidden.py",
            "mount -o remount,rw /usr",
            "rm -f /usr/bin/env",
            "rm /usr/local/bin/python3",
            "touch /bin/new",
        ):
            assert (await sandbox.exec(attack, 20)).exit_code != 0, attack
        seen = await sandbox.exec("bash /tests/test.sh; cat hidden.py; echo mine > beside.py; cat beside.py; ls", 20)
        assert seen.text == "sound\nSOUND = 1\nmine\nbeside.py\nhidden.py\nlink\n"
