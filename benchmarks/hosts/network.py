"""Hosts made of namespaces, to see what happens between hosts: a network of their own with nothing else on it.

Everything is inside one outer network namespace, the switch: a bridge, and a cable to every host. The machine's own
interfaces and firewall are never touched (a Docker daemon's rules would drop bridged packets), and all of it ends with
the switch's first process. A host has its own network, processes, names, IPC, `/tmp`, `/dev/shm`, `/run`, `/etc/hosts`
and `/proc`; the kernel, its boot id, the control groups and the rest of the file system are shared, as between pods.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from msgspec import structs

from cluster.security.listeners import Listener, listeners, owner_name

_READY_S = 20.0
_IDLE = "ray::IDLE"
_CACHES = "torchinductor_"  # of a user, for whatever runs of torch
_RAY_FILES = "/tmp/ray/"
# The first process of a namespace reaps what is orphaned there, and ends with whoever made it.
_INIT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("up", flush=True)
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.05)
"""
_OWN_PLACES = """
set -e
mount --make-rprivate /
for place in /tmp /dev/shm /run; do mount -t tmpfs -o mode=1777 host $place; done
printf "%s" "$HOSTS_FILE" > /run/hosts
mount --bind /run/hosts /etc/hosts
hostname "$HOST_NAME"
ip link set lo up
exec "$0" "$@"
"""


class CannotMakeHosts(Exception):
    """This machine does not let us; the message says why."""


class Host:
    """One made host. Commands run on it with `run` and `start`; `address` is its own on the common network."""

    def __init__(self, network: Network, name: str, address: str) -> None:
        self.name, self.address = name, address
        self._network = network
        self._made: subprocess.Popen[str] | None = None
        self._first = 0  # pid of its first process, as this machine counts

    def _boot(self) -> None:
        hosts_file = "127.0.0.1 localhost\n" + "".join(f"{h.address} {h.name}\n" for h in self._network.hosts)
        flags = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        self._made = subprocess.Popen(
            [
                *self._network.enter,
                "unshare",
                *flags,
                "sh",
                "-c",
                _OWN_PLACES,
                sys.executable,
                "-c",
                _INIT,
            ],
            env=os.environ | {"HOSTS_FILE": hosts_file, "HOST_NAME": self.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._first = _first_process(self._made)
        cable = self.cable
        self._network.ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", str(self._first))
        self._network.ip("link", "set", cable, "master", "switch", "up")
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    @property
    def cable(self) -> str:
        """The switch's end of its cable."""
        return f"to-{self.name}"

    def path(self, there: str) -> Path:
        """A path of its own, as this machine reaches it."""
        return Path(f"/proc/{self._first}/root{there}")

    @property
    def enter(self) -> list[str]:
        """What runs a command there."""
        user = ["--user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", f"--target={self._first}", *user, "--net", "--mount", "--uts", "--ipc", "--pid"]

    def run(self, *command: str, timeout_s: float = 60, **more: Any) -> str:
        """Output of a command there. Raises `AssertionError`, which has all that it said."""
        done = subprocess.run(
            [*self.enter, *command], capture_output=True, text=True, timeout=timeout_s, check=False, **more
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, *command: str, **more: Any) -> subprocess.Popen[str]:
        """A command that goes on there; it ends with its host."""
        return subprocess.Popen([*self.enter, *command], text=True, **more)

    def processes(self) -> list[psutil.Process]:
        """What runs there, its first process left out."""
        there = _processes_of(self._first)
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid != self._first and _processes_of(pid) == there:
                    found.append(psutil.Process(pid))
        return found

    def running(self, words: str) -> list[psutil.Process]:
        """Those whose command line has these words; some may have ended since."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def listeners(self) -> list[Listener]:
        """What listens there; `0.0.0.0` and `::` are given as its own address."""
        found = listeners(self.processes(), Path(f"/proc/{self._first}/net"))
        anywhere = ("0.0.0.0", "::")
        return [structs.replace(one, address=self.address) if one.address in anywhere else one for one in found]

    def left(self) -> list[str]:
        """Files of runs that are still there: private directories, shared memory, what sandboxes keep in /run."""
        script = "ls -d /tmp/longhaul-* /dev/shm/longhaul-* /run/longhaul/* 2>/dev/null; true"
        return self.run("sh", "-c", script).split()

    def traces(self) -> set[str]:
        """All that a run could leave there: processes, files that vanish with a host, mounts, sockets; without Ray's
        files and its workers without work, which are its own to end, and torch's cache of its user. The difference
        between two times counts."""
        found = {f"listens: {one.owner} at {one.address}:{one.port}" for one in self.listeners() if one.owner != _IDLE}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if owner_name(process.cmdline()) != _IDLE and process.status() != psutil.STATUS_ZOMBIE:
                    found.add(f"process: {process.pid} {' '.join(process.cmdline())[:120]}")
        for place in ("/tmp", "/dev/shm", "/run"):
            inside = self.path(place)
            below = [*inside.glob("*"), *inside.glob("longhaul/*")]
            kept = [path for path in below if not path.name.startswith(_CACHES)]
            found |= {f"file: {place}/{path.relative_to(inside)}" for path in kept}
        own = Path(f"/proc/{self._first}")
        found |= {f"mount: {line.split()[1]}" for line in (own / "mounts").read_text().splitlines()}
        bound = [line.split(maxsplit=7) for line in (own / "net" / "unix").read_text().splitlines()[1:]]
        paths = {words[7] for words in bound if len(words) == 8}
        found |= {f"socket: {path}" for path in paths if not path.startswith(_RAY_FILES)}
        return found

    def cut(self) -> None:
        """Take its cable out."""
        self._network.ip("link", "set", self.cable, "down")

    def mend(self) -> None:
        """Put the cable back."""
        self._network.ip("link", "set", self.cable, "up")

    def kill(self) -> None:
        """As if its power were cut."""
        if self._made is not None:
            if self._first:  # 0 would be all of our own group
                os.kill(self._first, 9)
            else:
                self._made.kill()
            self._made.wait()
            _close(self._made)
            self._made = None


CREDENTIALS = "/run/ray"
"""Folder of a host's credentials."""
RAY = {"LONGHAUL_CLUSTER": CREDENTIALS}
"""Environment of whoever joins Ray on a host."""


def start_ray(network: Network, folder: Path, cpus: float = 2, hosts: Sequence[Host] = ()) -> str:
    """Ray by `longhaul cluster up` over `hosts` (default: all), the network's first one its head; its address.

    Args:
        folder: for the cluster's own credentials, and for what takes the place of ssh.
        hosts: without the head they join the cluster that is up.
    """
    head, hosts = network.hosts[0].address, hosts or network.hosts
    flags = [f"--flags=--num-cpus={cpus:g} --object-store-memory=100000000"]
    _cluster(network, folder, "up", hosts, *flags, *([f"--join={head}"] if network.hosts[0] not in hosts else []))
    return f"{head}:6379"


def stop_ray(network: Network, folder: Path, hosts: Sequence[Host]) -> None:
    """End it on these hosts."""
    _cluster(network, folder, "down", hosts)


def _cluster(network: Network, folder: Path, command: str, hosts: Sequence[Host], *flags: str) -> None:
    words = [sys.executable, "-m", "cluster.front_door", "cluster", command, *(host.address for host in hosts)]
    words += [f"--ssh={network.ssh(folder)}", f"--there={CREDENTIALS}", *flags]
    own = {"LONGHAUL_CLUSTER": str(folder / "cluster"), "PYTHONPATH": str(Path(__file__).parents[2])}
    # what a run of this host only leaves in its process, and no ssh would carry there
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    done = subprocess.run(words, env=inherited | own, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise AssertionError(f"{done.stdout}\n{done.stderr}")


class Network:
    """`with Network(2) as network`: that many hosts, `network.hosts`, joined by a switch.

    Raises `CannotMakeHosts` where the machine does not allow it.
    """

    def __init__(self, num_hosts: int) -> None:
        self.hosts = [Host(self, f"host{i}", f"10.77.0.{i + 1}") for i in range(num_hosts)]
        self._switch: subprocess.Popen[str] | None = None
        self._first = 0

    def __enter__(self) -> Network:
        for tool in ("unshare", "nsenter", "ip"):
            if shutil.which(tool) is None:
                raise CannotMakeHosts(f"{tool} is not installed")
        for path in (Path(sys.executable).absolute(), Path(__file__)):
            if path.is_relative_to("/tmp") or path.is_relative_to("/run") or path.is_relative_to("/dev/shm"):
                raise CannotMakeHosts(f"a host has places of its own where {path} is")
        user = ["--user", "--map-root-user"] if os.geteuid() else []
        flags = [*user, "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        self._switch = subprocess.Popen(
            ["unshare", *flags, sys.executable, "-c", _INIT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            self._first = _first_process(self._switch)
            self.ip("link", "add", "switch", "type", "bridge")
            self.ip("link", "set", "switch", "up")
            for host in self.hosts:
                host._boot()
        except BaseException as error:
            self.close()
            if isinstance(error, (OSError, subprocess.CalledProcessError, AssertionError)):
                raise CannotMakeHosts(str(error)) from error
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def enter(self) -> list[str]:
        """What runs a command beside the hosts, at the switch."""
        user = ["--user", "--preserve-credentials"] if os.geteuid() else []
        return ["nsenter", f"--target={self._first}", *user, "--net", "--mount", "--pid"]

    def ip(self, *words: str) -> None:
        """`ip` at the switch; pids are as this machine counts them."""
        user = ["--user", "--preserve-credentials"] if os.geteuid() else []
        command = ["nsenter", f"--target={self._first}", *user, "--net", "ip", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        if done.returncode:
            raise CannotMakeHosts(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def part(self, *hosts: Host) -> None:
        """These do not reach each other any more; all others reach them."""
        self._isolate(hosts, "on")

    def rejoin(self, *hosts: Host) -> None:
        """They do again."""
        self._isolate(hosts, "off")

    def _isolate(self, hosts: Sequence[Host], state: str) -> None:
        for host in hosts:
            self.ip("link", "set", "dev", host.cable, "type", "bridge_slave", "isolated", state)

    def ssh(self, folder: Path) -> Path:
        """A program that runs a command on a host by its address, as ssh does."""
        program = folder / "ssh"
        cases = "\n".join(f'{host.address}) exec {shlex.join(host.enter)} sh -c "$*";;' for host in self.hosts)
        program.write_text(f'#!/bin/sh\naddress=$1; shift\ncase "$address" in\n{cases}\nesac\nexit 255\n')
        program.chmod(0o755)
        return program

    def close(self) -> None:
        """Nothing of it is left."""
        for host in self.hosts:
            host.kill()
        if self._switch is not None:
            self._switch.kill()
            self._switch.wait()
            _close(self._switch)
            self._switch = None


def _first_process(made: subprocess.Popen[str]) -> int:
    """The pid, as this machine counts, of the `_INIT` that came to run below `made`."""
    assert made.stdout is not None and made.stderr is not None
    if made.stdout.readline() != "up\n":
        made.wait(timeout=_READY_S)
        raise CannotMakeHosts(f"namespaces are not allowed here: {made.stderr.read().strip()}")
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        below = psutil.Process(made.pid).children(recursive=True)
        found = [child.pid for child in below if _INIT in child.cmdline()]
        if found:
            return found[-1]
        time.sleep(0.01)
    raise CannotMakeHosts("the first process of a host did not appear")


def _processes_of(pid: int) -> Path | None:
    """The namespace that a process lives in."""
    try:
        return Path(f"/proc/{pid}/ns/pid").readlink()
    except OSError:
        return None


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
