"""What a namespace sandbox sees of this host: bubblewrap's arguments, and a made-up `/etc`.

Nothing but `/usr`, the libraries' links, a few harmless files and the Python that runs us, without any package that is
installed or kept there (`foreign_packages.py`); all of it read-only.
"""

from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from sandbox.base import SandboxSpec

HOME = "/home/agent"
GUEST = "/.longhaul-guest"
USER = 1000  # inside
ETC_FILES = ("ld.so.cache", "localtime", "mime.types", "protocols", "services", "ssl/openssl.cnf")
ALTERNATIVES = Path("/etc/alternatives")  # links from /usr/bin into /usr/bin, hundreds of them
HELP_DEADLINE_S = 10.0


def bubblewrap_command(spec: SandboxSpec, hidden: Iterable[str] = ()) -> list[str]:
    """What `stage` becomes: bubblewrap with everything but the command. Sources under `/tmp` are those of `stage.c`.

    Args:
        hidden: directories that are shown empty.
    """
    if not spec.workdir.startswith("/") or spec.workdir == "/":
        raise ValueError(f"a work directory is an absolute path below /, not {spec.workdir!r}")
    bwrap = shutil.which("bwrap")
    assert bwrap is not None
    command = [bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1", *_newer_flags(bwrap)]
    command += ["--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox", "--cap-drop", "ALL", "--clearenv"]
    python = python_home()
    for name, value in _environment(python).items():
        command += ["--setenv", name, value]
    command += ["--ro-bind", "/usr", "/usr"]
    for link in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/") / link
        if path.is_symlink():
            command += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    command += ["--ro-bind", "/tmp/etc", "/etc", "--proc", "/proc", "--dev", "/dev", "--bind", "/tmp/shm", "/dev/shm"]
    command += ["--bind", "/tmp/tmp", "/tmp", "--bind", "/tmp/home", HOME]
    if ALTERNATIVES.is_dir():
        command += ["--ro-bind", "/tmp/alternatives", str(ALTERNATIVES)]
    if python is not None:
        command += ["--ro-bind", "/tmp/python", str(python)]
    for place in hidden:
        command += ["--ro-bind", "/tmp/empty", place]
    for i, inside in enumerate(spec.read_only_binds.values()):
        command += ["--ro-bind", f"/tmp/bind{i}", inside]
    command += ["--bind", "/tmp/work", spec.workdir, "--ro-bind", "/tmp/guest", GUEST]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", spec.workdir]


@functools.cache
def _newer_flags(bwrap: str) -> list[str]:
    """What bubblewrap knows since 0.8; before, the guest's filter of system calls alone refuses user namespaces."""
    told = subprocess.run([bwrap, "--help"], capture_output=True, text=True, timeout=HELP_DEADLINE_S, check=False)
    return ["--disable-userns"] if "--disable-userns" in told.stdout + told.stderr else []


def _environment(python: Path | None) -> dict[str, str]:
    own = f"{python}/bin:" if python is not None else ""
    path = f"{own}/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    return {"PATH": path, "HOME": HOME, "USER": "agent", "LANG": "C.UTF-8", "PAGER": "cat", "TERM": "dumb"}


@functools.cache
def python_home() -> Path | None:
    """The installation of the Python that runs us, where `/usr` does not show it anyway."""
    home = Path(sys.base_prefix).resolve()
    return None if home.is_relative_to("/usr") else home


def make_etc(path: Path) -> None:
    """What a sandbox sees as `/etc`: no user's name, no host's name, no secret."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "passwd").write_text(
        f"root:x:0:0:root:/root:/bin/sh\nagent:x:{USER}:{USER}:agent:{HOME}:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n"
    )
    (path / "group").write_text(f"root:x:0:\nagent:x:{USER}:\nnogroup:x:65534:\n")
    (path / "hosts").write_text("127.0.0.1 localhost sandbox\n::1 localhost sandbox\n")
    (path / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
    for name in ETC_FILES:
        source, target = Path("/etc") / name, path / name
        if target.exists() or not source.exists():
            continue
        target.parent.mkdir(exist_ok=True)
        with contextlib.suppress(PermissionError):
            shutil.copyfile(source, target)
    if ALTERNATIVES.is_dir():
        (path / ALTERNATIVES.name).mkdir(exist_ok=True)  # where they are mounted
    for made in [path, *path.rglob("*")]:  # whatever the caller's umask, sandboxes run as another user
        made.chmod(0o755 if made.is_dir() else 0o644)
