"""What a model might do, or be told to do, inside a sandbox. The host, its neighbours and the next command are fine."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from protocol.errors import SandboxError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.kubernetes.sandbox import KubernetesSandbox
from tests.waiting import sleepers, until

LIMITS = Limits(memory_mib=128, max_processes=40, disk_mib=64)
# Every answer of the kernel to a list of system calls, by number: what is refused must say so.
SYSCALL = """
import ctypes, errno, sys
libc = ctypes.CDLL(None, use_errno=True)
for call in sys.argv[1:]:
    number, *args = (int(word) for word in call.split(","))
    result = libc.syscall(number, *args)
    print(call, "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()])
"""


@pytest.fixture
async def sandbox(real_backend: Backend, run_name: str, source: Path) -> AsyncIterator[Sandbox]:
    spec = SandboxSpec(run=run_name, lease="hostile", source=source, limits=LIMITS)
    async with await real_backend.create(spec) as sandbox:
        yield sandbox


@pytest.fixture
async def neighbour(real_backend: Backend, run_name: str) -> AsyncIterator[Sandbox]:
    async with await real_backend.create(SandboxSpec(run=run_name, lease="neighbour")) as sandbox:
        yield sandbox


def core_pattern() -> str:
    return Path("/proc/sys/kernel/core_pattern").read_text()


async def still_works(sandbox: Sandbox) -> None:
    result = await sandbox.exec("echo fine > /tmp/fine && cat /tmp/fine", timeout=20)
    assert (result.exit_code, result.text) == (0, "fine\n")


async def test_fork_bomb(sandbox: Sandbox, neighbour: Sandbox) -> None:
    result = await sandbox.exec("bomb() { bomb | bomb & }; bomb; sleep 60", timeout=2)
    assert result.timed_out or result.exit_code != 0
    await still_works(neighbour)
    await sandbox.kill_all()
    await still_works(sandbox)
    assert int((await sandbox.exec("ls -d /proc/[0-9]* | wc -l", timeout=20)).text) < 10


async def test_memory_hog(sandbox: Sandbox, neighbour: Sandbox) -> None:
    result = await sandbox.exec("python3 -c 'bytearray(b\"x\") * (1 << 30)'; echo status $?", timeout=60)
    assert "status 0" not in result.text
    await still_works(sandbox)
    await still_works(neighbour)


async def test_disk_filler(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """One large file, then many small ones."""
    await sandbox.exec("head -c 1000000000 /dev/zero > big", timeout=30)
    assert int((await sandbox.exec("stat -c %s big; rm big", timeout=20)).text) <= LIMITS.disk_mib << 20
    if isinstance(sandbox, KubernetesSandbox):
        return  # the sum is the kubelet's to hold, which evicts the pod: tests/sandbox/kubernetes/test_ends.py
    many = "for i in $(seq 400); do head -c 1000000 /dev/zero > big$i || exit 28; sleep 0.02; done"
    result = await sandbox.exec(many, timeout=60)
    assert result.exit_code != 0
    assert int((await sandbox.exec("du -sm . | cut -f1; rm -f big*", timeout=20)).text) < 400
    await still_works(sandbox)
    await still_works(neighbour)


async def test_shared_memory_filler(sandbox: Sandbox, neighbour: Sandbox) -> None:
    await sandbox.exec("head -c 4000000000 /dev/zero > /dev/shm/big", timeout=30)
    stat = await sandbox.exec("stat -c %s /dev/shm/big; rm /dev/shm/big", timeout=20)
    assert int(stat.text) <= 128 << 20
    await sandbox.exec("head -c 4000000000 /dev/zero > /dev/big", timeout=30)
    await sandbox.exec("rm -f /dev/big", timeout=30)
    await still_works(sandbox)
    await still_works(neighbour)


async def test_a_gigabyte_of_output(sandbox: Sandbox) -> None:
    result = await sandbox.exec("head -c 1000000000 /dev/zero", timeout=60, max_output=10_000)
    assert result.total_bytes == 1_000_000_000 and len(result.head) == len(result.tail) == 5000
    await still_works(sandbox)


async def test_output_that_is_not_text(sandbox: Sandbox) -> None:
    binary = bytes(range(256))
    result = await sandbox.exec(["python3", "-c", "import sys; sys.stdout.buffer.write(bytes(range(256)) * 100)"], 60)
    assert result.head + result.tail == binary * 100
    assert "\ufffd" in result.text
    result = await sandbox.exec("head -c 3000000 /dev/zero | tr '\\0' x", timeout=60, max_output=2_000_000)
    assert result.head == result.tail == b"x" * 1_000_000 and result.truncated


@pytest.mark.parametrize("attack", ["kill -9 1", "for s in TERM STOP SEGV CHLD; do kill -$s 1; done", "kill -9 -1"])
async def test_killing_pid_1(sandbox: Sandbox, attack: str) -> None:
    await sandbox.exec(attack, timeout=20)
    await still_works(sandbox)


async def test_pipes_of_the_guest(sandbox: Sandbox) -> None:
    """Neither read, nor closed, nor flooded, nor fed with a reply of one's own."""
    forge = (
        "import os, struct\n"
        "frame = struct.pack('<IIB', 5, 1, 0)\n"
        "for fd in range(0, 64):\n"
        "    for path in (f'/proc/1/fd/{fd}', f'/proc/self/fd/{fd}', f'/dev/fd/{fd}'):\n"
        "        try: os.write(os.open(path, os.O_WRONLY | os.O_NONBLOCK), frame * 10000)\n"
        "        except OSError: pass\n"
        "    try: os.write(fd, frame)\n"
        "    except OSError: pass\n"
    )
    await sandbox.exec(["python3", "-c", forge], timeout=60)
    await sandbox.exec('exec 0<&- 1>&- 2>&-; for i in 3 4 5 6 7 8 9; do eval "exec $i>&-"; done; ls', timeout=20)
    looked = await sandbox.exec("ls /proc/1/fd; cat /proc/1/mem /proc/1/environ /proc/1/maps; readlink /proc/1/exe", 20)
    assert "denied" in looked.text.lower() and "longhaul-guest\n" not in looked.text
    await still_works(sandbox)


async def test_command_lines(sandbox: Sandbox) -> None:
    huge = await sandbox.exec(["true", "x" * 10_000_000], timeout=20)
    assert huge.exit_code == 126 and "rgument list too long" in huge.text
    assert (await sandbox.exec("echo said; : " + "x" * 100_000, timeout=20)).text == "said\n"
    for odd in ("\ud800", "\udcff", "a\0b"):  # whatever bash makes of it
        assert not (await sandbox.exec(f"exit 3; {odd}" + "x" * 100_000, timeout=20)).timed_out
    assert (await sandbox.exec("echo a\0b", timeout=20)).exit_code == 126
    assert (await sandbox.exec(["echo", "\udcff"], timeout=20)).head == b"\xff\n"
    await still_works(sandbox)


async def test_a_command_for_which_there_is_no_room_is_refused_and_the_place_is_well(sandbox: Sandbox) -> None:
    await sandbox.exec("cat /dev/zero > full 2>/dev/null; cat /dev/zero > /tmp/full 2>/dev/null", timeout=60)
    refused = await sandbox.exec("echo said; : " + "x" * 100_000, timeout=20)
    if isinstance(sandbox, KubernetesSandbox) and refused.text == "said\n":
        return  # its disk has no end of its own: the kubelet evicts a pod that has written too much
    assert refused.exit_code == 126 and "cannot run" in refused.text
    await sandbox.exec("rm full /tmp/full", timeout=20)
    await still_works(sandbox)


async def test_file_names(sandbox: Sandbox) -> None:
    for name in ("new\nline", "-rf", "'; touch pwned; '", "$(touch pwned)", "ü\udcff", "x" * 255):
        await sandbox.write(name, name.encode(errors="surrogateescape"))
        assert await sandbox.read(name) == name.encode(errors="surrogateescape")
    for name in ("..", "x" * 256, "a/" * 2500 + "b", "nul\0byte"):
        with pytest.raises(SandboxError):
            await sandbox.write(name, b"")
        with pytest.raises(SandboxError):
            await sandbox.read(name)
    assert (await sandbox.exec("ls pwned", timeout=20)).exit_code != 0
    await still_works(sandbox)


async def test_links_lead_nowhere_outside(sandbox: Sandbox, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("the host's")
    await sandbox.exec(["ln", "-s", str(target), "out"], timeout=20)
    await sandbox.exec("ln -s /etc/shadow shadow; ln -s /proc/self/environ env; ln -s loop loop; mkfifo f", timeout=20)
    for path in ("out", "shadow", "loop", "env", "f", "/proc/self/environ", "/proc/1/environ", "/dev/zero", "../.."):
        try:
            data = await sandbox.read(path)
        except SandboxError as error:
            assert error.kind in ("missing", "not_a_file"), path
        else:
            assert path == "shadow" and b"$" not in data, "the container's own file, not the host's"
    await sandbox.write("out", b"mine")
    assert await sandbox.read("out") == b"mine"
    assert target.read_text() == "the host's"
    await still_works(sandbox)


async def test_the_host_is_not_there(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = secrets.token_hex(16)
    hidden = tmp_path / "secret"
    hidden.write_text(secret)
    hidden.chmod(0o644)
    look = (
        f"exec 2>/dev/null; cat {hidden} /etc/shadow; ls /root/.ssh /home /var/run/docker.sock /run/docker.sock;"
        " cat /proc/*/environ; ls /tmp /mnt /srv /opt; find / -xdev -name '*.sock';"
        " ls -la /proc/1/root/ /proc/1/cwd/"
    )
    seen = (await sandbox.exec(look, timeout=60, max_output=1 << 20)).text
    assert secret not in seen and "pytest" not in seen and "docker.sock" not in seen
    for variable in ("PYTEST_CURRENT_TEST", "SSH", "TOKEN", socket.gethostname()):
        assert variable not in (await sandbox.exec("env; cat /proc/*/environ | tr '\\0' '\\n'; hostname", 20)).text
    assert "root:" not in seen, "nobody's password"


async def test_neighbours_do_not_see_each_other(sandbox: Sandbox, neighbour: Sandbox) -> None:
    await neighbour.write("/tmp/own", b"my own words")
    await neighbour.write("own", b"my own words")
    await neighbour.exec("sleep 7301 & true", timeout=20)
    look = "cat /tmp/own /testbed/own; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; kill -9 -1; killall sleep"
    seen = (await sandbox.exec(look, timeout=20)).text
    assert "my own words" not in seen and "7301" not in seen
    assert "7301" in (await neighbour.exec("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", timeout=20)).text


async def test_no_network(sandbox: Sandbox) -> None:
    with socket.socket() as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        abstract.bind(f"\0longhaul-{secrets.token_hex(4)}")
        abstract.listen()
        name = abstract.getsockname().decode()[1:]
        program = (
            "import socket\n"
            f"for family, address in ((socket.AF_INET, ('127.0.0.1', {listener.getsockname()[1]})),\n"
            f"                        (socket.AF_UNIX, '\\0{name}'), (socket.AF_INET, ('1.1.1.1', 53)),\n"
            "                        (40, (2, 1024)), (17, ('lo', 0)), (38, ('hash', 'sha256'))):\n"
            "    try:\n"
            "        s = socket.socket(family)\n"
            "        s.settimeout(2)\n"
            "        s.connect(address)\n"
            "        print('connected', family)\n"
            "    except OSError as error: print('refused')\n"
            "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen()\n"
            "socket.create_connection(s.getsockname()); print('own loopback works')\n"
        )
        seen = (await sandbox.exec(["python3", "-c", program], timeout=60)).text
    assert seen == "refused\n" * 6 + "own loopback works\n"
    assert (await sandbox.exec("cut -d: -f1 /proc/net/dev | tail -n +3", 20)).text.split() == ["lo"]


async def test_system_calls(sandbox: Sandbox) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers below are of x86_64")
    refused = {
        "mount": "165,0,0,0,0,0",
        "umount2": "166,0,0",
        "unshare": f"272,{0x10000000}",
        "setns": "308,0,0",
        "clone a namespace": f"56,{0x10000000 | 17},0,0,0,0",
        "ptrace": "101,16,1,0,0",
        "bpf": "321,0,0,0",
        "keyctl": "250,0,0",
        "add_key": "248,0,0,0,0,0",
        "perf_event_open": "298,0,0,0,0,0",
        "userfaultfd": "323,0",
        "io_uring_setup": "425,1,0",
        "process_vm_readv": "310,1,0,0,0,0,0",
        "pidfd_getfd": "438,0,0,0",
        "open_by_handle_at": "304,0,0,0",
        "settimeofday": "164,0,0",
        "clock_settime": "227,0,0",
        "kexec_load": "246,0,0,0,0",
        "init_module": "175,0,0,0",
        "reboot": "169,0,0,0,0",
        "swapon": "167,0,0",
        "chroot": "161,0",
        "pivot_root": "155,0,0",
        "personality of another ABI": f"{0x40000000 + 39}",
    }
    seen = await sandbox.exec(["python3", "-c", SYSCALL, *refused.values()], timeout=60)
    answers = dict(line.split(" ") for line in seen.text.splitlines())
    for name, call in refused.items():
        assert answers.get(call) in ("EPERM", "ENOSYS"), (name, seen.text)
    assert answers[refused["personality of another ABI"]] == "ENOSYS"


async def test_host_settings(sandbox: Sandbox) -> None:
    before = core_pattern()
    attack = (
        "echo '|/testbed/evil' > /proc/sys/kernel/core_pattern; echo b > /proc/sysrq-trigger; date -s 2001-01-01;"
        " echo 1 > /proc/sys/vm/drop_caches; hostname evil; echo -1000 > /proc/1/oom_score_adj;"
        " mknod /tmp/disk b 254 0 && cat /tmp/disk; mount -o remount,rw /; chmod u+s /bin/bash;"
        " for f in memory.limit_in_bytes memory.max pids.max; do"
        " find /sys/fs/cgroup -name $f 2>/dev/null | while read p; do echo 999999999999 > $p && echo raised; done; done"
    )
    seen = await sandbox.exec(attack, timeout=60)
    assert core_pattern() == before
    assert "raised" not in seen.text
    assert time.time() > 1.6e9
    privileges = await sandbox.exec("grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status", timeout=20)
    words = privileges.text.split()
    assert int(words[1], 16) & ~0b111011 == 0, "nothing beyond CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL"
    assert words[3] == "1" and words[5] == "2"


async def test_escape_by_user_namespace_and_su(sandbox: Sandbox) -> None:
    result = await sandbox.exec("unshare -Ur id; unshare -m id; sudo -n id; chroot / id", timeout=20)
    assert "uid=" not in result.text


async def test_namespaces_are_nobody_on_the_host(namespace_backend: Backend, run_name: str) -> None:
    marker = f"7{secrets.randbelow(10**8):08d}"
    async with await namespace_backend.create(SandboxSpec(run=run_name, lease="uid")) as sandbox:
        await sandbox.exec(f"sleep {marker} & true", timeout=20)
        await until(lambda: sleepers(marker))
        [process] = sleepers(marker)
        uids = set(process.uids())
        assert 0 not in uids and (os.geteuid() != 0 or min(uids) >= 1 << 16)
