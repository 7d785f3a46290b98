"""A copied Python runs where nothing else is."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from actors.harnesses import own_python
from actors.harnesses.own_python import copy_python
from protocol.errors import ConfigError

LOOK = "import sys, ssl, ctypes, sqlite3, hashlib, zlib, platform; print(platform.python_version(), sys.prefix)"


def test_it_runs_in_a_root_without_a_library(tmp_path: Path) -> None:
    target = tmp_path / "root" / "opt" / "agent"
    copy_python(target, [])
    bare = {"PATH": "/usr/bin:/bin"}  # of the shell that starts it
    done = subprocess.run([target / "bin" / "python3", "-I", "-c", LOOK], env=bare, capture_output=True, timeout=120)
    assert done.stdout.decode().split() == [platform.python_version(), str(target)], done.stderr
    enter = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
    if subprocess.run([*enter, "chroot", "/", "true"], capture_output=True).returncode:
        pytest.skip("no chroot here")
    native = "/opt/agent/native"
    start = [f"{native}/loader", "--library-path", native, "--argv0", "/opt/agent/bin/python3", f"{native}/python"]
    command = [*enter, shutil.which("chroot") or "chroot", tmp_path / "root", *start, "-I", "-c", LOOK]
    done = subprocess.run(command, env={}, capture_output=True, timeout=120)
    assert done.stdout.decode().split() == [platform.python_version(), "/opt/agent"], done.stderr


def test_libraries_of_packages_go_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the packages do not bring them."""
    site, target = tmp_path / "site", tmp_path / "agent"
    site.mkdir()
    for name in ("libtheirs.so", "elsewhere.so", "plain.so"):
        (site / name).write_text(name)
    (tmp_path / "elsewhere.so").write_text("of the machine")
    listed = f"""x:
\tlinux-vdso.so.1 (0x0)
\telsewhere.so => {tmp_path}/elsewhere.so (0x0)
\tlibtheirs.so => {target}/site/libtheirs.so (0x0)
\tmissing.so => not found
\t{tmp_path}/ld-linux-any.so.2 (0x0)
"""
    (tmp_path / "ld-linux-any.so.2").write_text("the loader")
    asked: list[Path] = []

    def ldd(files: list[Path]) -> str:
        asked.extend(files)
        return listed

    monkeypatch.setattr(own_python, "_ldd", ldd)
    copy_python(target, [site])
    assert {site / "libtheirs.so", site / "plain.so"} <= set(asked)
    assert (target / "native" / "elsewhere.so").read_text() == "of the machine"
    assert (target / "native" / "loader").read_text() == "the loader"
    assert not (target / "native" / "libtheirs.so").exists()
    monkeypatch.setattr(own_python, "_ldd", lambda files: "\tstatically linked\n")
    with pytest.raises(ConfigError, match="names no loader"):
        copy_python(tmp_path / "static", [])
