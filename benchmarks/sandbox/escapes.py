"""Tries to get out of a sandbox, or at the host through it: the list that `escapes` counts over.

Each is a program run inside, as the agent would run it, that prints ESCAPED when it got what it tried for. What it is
looking for on the host is planted there first.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

from sandbox.base import Backend, Limits, SandboxSpec

DEADLINE_S = 60.0
LIMITS = Limits(memory_mib=256, max_processes=60, disk_mib=64)
_SYSCALL = "import ctypes, os; c = ctypes.CDLL(None, use_errno=True).syscall; "
SHELL: dict[str, str] = {
    "read the host's secret by its path": "cat {secret} 2>/dev/null | grep -q {word} && echo ESCAPED",
    "read it through /proc/1/root": "cat /proc/1/root{secret} 2>/dev/null | grep -q {word} && echo ESCAPED",
    "read it through a link": "ln -s {secret} l; cat l 2>/dev/null | grep -q {word} && echo ESCAPED",
    "read it through a cwd of the past": "for p in /proc/[0-9]*/cwd; do cat $p/../../..{secret} 2>/dev/null; done"
    " | grep -q {word} && echo ESCAPED",
    "find it anywhere": "grep -rls {word} / --exclude-dir=proc --exclude-dir=sys --exclude-dir=dev 2>/dev/null"
    " | grep -v /testbed | grep -q . && echo ESCAPED",
    "the engine's socket": "ls /var/run/docker.sock /run/docker.sock /run/containerd/containerd.sock 2>/dev/null"
    " | grep -q sock && echo ESCAPED",
    "the host's shadow file": "grep -q '^root:[$]' /etc/shadow 2>/dev/null && echo ESCAPED",
    "keys of the host": "cat /root/.ssh/id_* /home/*/.ssh/id_* 2>/dev/null | grep -q PRIVATE && echo ESCAPED",
    "the owner's environment": "cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -q {word} && echo ESCAPED",
    "processes of the host": "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -q '{process}' &&"
    " echo ESCAPED",
    "core_pattern": "echo '|/testbed/evil' > /proc/sys/kernel/core_pattern 2>/dev/null && echo ESCAPED",
    "modprobe path": "echo /testbed/evil > /proc/sys/kernel/modprobe 2>/dev/null && echo ESCAPED",
    "sysrq": "echo h > /proc/sysrq-trigger 2>/dev/null && echo ESCAPED",
    "binfmt_misc": "echo ':x:M::xx::/testbed/evil:' > /proc/sys/fs/binfmt_misc/register 2>/dev/null && echo ESCAPED",
    "uevent helper": "echo /testbed/evil > /sys/kernel/uevent_helper 2>/dev/null && echo ESCAPED",
    "release agent": "for f in $(find /sys/fs/cgroup -name release_agent 2>/dev/null); do echo /testbed/evil > $f"
    " && echo ESCAPED; done 2>/dev/null",
    "raise one's memory limit": "for f in $(find /sys/fs/cgroup -name 'memory.limit_in_bytes' -o -name memory.max"
    " 2>/dev/null); do echo 99999999999 > $f && echo ESCAPED; done 2>/dev/null",
    "a block device": "mknod /tmp/d b 254 0 2>/dev/null && head -c 512 /tmp/d 2>/dev/null | grep -q . && echo ESCAPED",
    "the kernel's memory": "head -c 1 /dev/mem /dev/kmem /proc/kcore 2>/dev/null | grep -q ELF && echo ESCAPED",
    "the kernel's log": "dmesg 2>/dev/null | grep -q . && echo ESCAPED; head -c 1 /dev/kmsg 2>/dev/null | grep -q . &&"
    " echo ESCAPED",
    "a user namespace": "unshare -Ur id 2>/dev/null | grep -q uid && echo ESCAPED",
    "a mount namespace": "unshare -m true 2>/dev/null && echo ESCAPED",
    "a mount": "mount -t tmpfs x /mnt 2>/dev/null && echo ESCAPED",
    "unmount what covers": "for d in /testbed /etc /usr /tmp; do umount -l $d 2>/dev/null && echo ESCAPED; done",
    "remount writable": "mount -o remount,rw / 2>/dev/null && touch /w 2>/dev/null && echo ESCAPED",
    "replace the command server": "{{ rm -f /.longhaul-guest || mv /.longhaul-guest /g; }} 2>/dev/null && echo ESCAPED",
    "write the command server": "echo x >> /.longhaul-guest 2>/dev/null && echo ESCAPED",
    "cover the command server": "ln -sf /bin/true /.longhaul-guest 2>/dev/null && echo ESCAPED",
    "kill the command server": "kill -9 1; kill -STOP 1; sleep 0.2; grep -q '^State:.*[TZ]' /proc/1/status"
    " && echo ESCAPED",
    "the command server's pipes": "for n in 0 1 10 11 12; do echo x > /proc/1/fd/$n && echo ESCAPED; done 2>/dev/null",
    "the command server's memory": "head -c 1 /proc/1/mem 2>/dev/null && echo ESCAPED; cat /proc/1/maps 2>/dev/null"
    " | grep -q heap && echo ESCAPED",
    "a setuid program": "cp /bin/bash s; chmod u+s s; ./s -p -c 'grep -q \"CapEff:.*3fffffffff\" /proc/self/status' &&"
    " echo ESCAPED",
    "su and sudo": "echo | su -c id 2>/dev/null | grep -q uid=0.root..gid=0 && echo ESCAPED; sudo -n id 2>/dev/null",
    "all capabilities": "grep -q 'CapEff:.0*1ffffffffff' /proc/self/status && echo ESCAPED",
    "new privileges": "grep -q 'NoNewPrivs:.0' /proc/self/status && echo ESCAPED",
    "no filter": "grep -q 'Seccomp:.0' /proc/self/status && echo ESCAPED",
    "set the clock": "date -s 2001-01-01 >/dev/null 2>&1 && echo ESCAPED",
    "name the host": "hostname evil 2>/dev/null && echo ESCAPED",
    "another interface": "tail -n +3 /proc/net/dev | grep -v ' lo:' | grep -q . && echo ESCAPED",
    "the git hooks of the host": "git config --system core.hooksPath /testbed 2>/dev/null && ls -la /etc/gitconfig"
    " | grep -q {word} && echo ESCAPED",
    "a later release in a cache": "find / -xdev \\( -name '*.whl' -o -path '*/pip/cache/*' \\) 2>/dev/null | grep -q ."
    " && echo ESCAPED",
}
PYTHON: dict[str, str] = {
    "a service of the host on loopback": "import socket; socket.create_connection(('127.0.0.1', {port}), 2);"
    " print('ESCAPED')",
    "an abstract socket of the host": "import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{abstract}');"
    " print('ESCAPED')",
    "the network": "import socket; socket.create_connection(('1.1.1.1', 53), 2); print('ESCAPED')",
    "the cloud's metadata": "import socket; socket.create_connection(('169.254.169.254', 80), 2); print('ESCAPED')",
    "the engine's gateway": "import socket; socket.create_connection(('172.17.0.1', 22), 2); print('ESCAPED')",
    "the hypervisor": "import socket; s = socket.socket(40, socket.SOCK_STREAM); print('ESCAPED')",
    "raw packets": "import socket; s = socket.socket(17, socket.SOCK_RAW); print('ESCAPED')",
    "the kernel's crypto": "import socket; s = socket.socket(38, socket.SOCK_SEQPACKET); print('ESCAPED')",
    "io_uring": f"{_SYSCALL}print('ESCAPED' if c(425, 8, ctypes.create_string_buffer(200)) >= 0 else '')",
    "ptrace a neighbour": f"{_SYSCALL}p = os.fork() or os.execlp('sleep', 'sleep', '5');"
    " print('ESCAPED' if c(101, 16, p, 0, 0) >= 0 else '')",
    "ptrace the command server": f"{_SYSCALL}print('ESCAPED' if c(101, 16, 1, 0, 0) >= 0 else '')",
    "memory of another": f"{_SYSCALL}print('ESCAPED' if c(310, 1, 0, 0, 0, 0, 0) >= 0 else '')",
    "descriptors of another": f"{_SYSCALL}f = os.pidfd_open(1); print('ESCAPED' if c(438, f, 0, 0) >= 0 else '')",
    "files by handle": f"{_SYSCALL}print('ESCAPED' if c(304, -100, ctypes.create_string_buffer(40), 0) >= 0 else '')",
    "bpf": f"{_SYSCALL}print('ESCAPED' if c(321, 0, ctypes.create_string_buffer(100), 100) >= 0 else '')",
    "userfaultfd": f"{_SYSCALL}print('ESCAPED' if c(323, 0) >= 0 else '')",
    "perf": f"{_SYSCALL}print('ESCAPED' if c(298, ctypes.create_string_buffer(120), 0, -1, -1, 0) >= 0 else '')",
    "keys": f"{_SYSCALL}print('ESCAPED' if c(250, 0, -3, 1) >= 0 else '')",
    "chroot out": "import os; os.mkdir('j'); os.chroot('j'); [os.chdir('..') for _ in range(99)]; os.chroot('.');"
    " print('ESCAPED')",
    "setns": f"{_SYSCALL}f = os.open('/proc/1/ns/mnt', os.O_RDONLY); print('ESCAPED' if c(308, f, 0) >= 0 else '')",
    "a new namespace by clone": f"{_SYSCALL}r = c(56, 0x10000000 | 17, 0, 0, 0, 0); r or os._exit(0);"
    " print('ESCAPED' if r > 0 else '')",
    "a module": f"{_SYSCALL}print('ESCAPED' if c(175, b'', 0, b'') >= 0 else '')",
    "32-bit calls": f"{_SYSCALL}print('ESCAPED' if c(0x40000000 + 39) >= 0 else '')",
    "mounts by the new calls": f"{_SYSCALL}print('ESCAPED' if c(430, b'tmpfs', 0) >= 0 or c(428, -100, b'/', 1)"
    " >= 0 else '')",
    "more disk than allowed": "import os\nn = 0\ntry:\n    for i in range(40):\n"
    "        f = os.open(f'/tmp/b{{i}}', 66)\n        os.posix_fallocate(f, 0, 16 << 20)\n        n += 16\n"
    "except OSError:\n    pass\nprint('ESCAPED' if n > 128 else '')",
    "more files than allowed": "import os\nn = 0\ntry:\n    for i in range(300):\n        os.mkdir(f'/tmp/m{{i}}')\n"
    "        for k in range(1000):\n            os.close(os.open(f'/tmp/m{{i}}/{{k}}', 66)); n += 1\n"
    "except OSError:\n    pass\nprint('ESCAPED' if n > 250000 else '')",
}


class Planted(Struct, frozen=True):
    """What is to be found on the host."""

    secret: str
    word: str
    port: int
    abstract: str
    process: str  # a pattern that finds a process of the host's by its command line, and not the one that looks for it


@contextmanager
def planted() -> Iterator[Planted]:
    """A secret file, an environment variable, a listener, an abstract socket and a child of this process."""
    word = secrets.token_hex(16)
    os.environ["LONGHAUL_BENCHMARK_SECRET"] = word
    abstract = f"longhaul-{secrets.token_hex(4)}"
    child = subprocess.Popen([word, "600"], executable=shutil.which("sleep"))
    with tempfile.TemporaryDirectory() as folder, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        path = Path(folder) / "secret"
        path.write_text(word)
        path.chmod(0o644)
        path.parent.chmod(0o755)
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        unix.bind(f"\0{abstract}")
        unix.listen()
        try:
            yield Planted(str(path), word, tcp.getsockname()[1], abstract, f"[{word[0]}]{word[1:]}")
        finally:
            child.kill()
            child.wait()
    del os.environ["LONGHAUL_BENCHMARK_SECRET"]


async def escapes(backend: Backend, run: str, found: Planted) -> list[str]:
    """The names of the tries that got what they tried for."""
    values = {name: getattr(found, name) for name in found.__struct_fields__}
    got: list[str] = []
    spec = SandboxSpec(run=run, lease="escapes", limits=LIMITS)
    async with await backend.create(spec) as sandbox:
        for name, program in SHELL.items():
            seen = await sandbox.exec(program.format(**values), timeout=DEADLINE_S)
            got += [name] * ("ESCAPED" in seen.text)
        for name, program in PYTHON.items():
            seen = await sandbox.exec(["python3", "-c", program.format(**values)], timeout=DEADLINE_S)
            got += [name] * ("ESCAPED" in seen.text)
            await sandbox.exec("rm -rf /tmp/b* /tmp/m*", timeout=DEADLINE_S)
    return got
