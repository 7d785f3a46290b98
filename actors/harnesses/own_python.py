"""A Python for images that have none, or another: a copy of the one that runs here, whole.

With its standard library go all shared libraries that it and the packages load, and their loader, so that nothing of an
image is needed but a kernel and a shell, and what pip compiled or chose for this Python fits.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from protocol.errors import ConfigError

LEFT_OUT = ("test", "*tkinter*", "idlelib", "turtledemo", "ensurepip", "site-packages", "dist-packages", "config-*")
START = """\
#!/bin/sh
here=$(cd "${0%/*}/.." && pwd)
exec "$here/native/loader" --library-path "$here/native" --argv0 "$here/bin/python3" "$here/native/python" "$@"
"""
_LIBRARY = re.compile(r"^\s+\S+ => (/\S+) \(", re.MULTILINE)
_LOADER = re.compile(r"^\s+(/\S*ld-\S+) \(", re.MULTILINE)
_LDD_DEADLINE_S = 60
_AT_ONCE = 100  # files of one `ldd`


def copy_python(target: Path, packages: Sequence[Path]) -> None:
    """Make `target/bin/python3`, which runs from wherever `target` is shown.

    Args:
        packages: directories of packages that it is to run; their libraries are copied, they are not.

    Raises `ConfigError` where this Python is not loaded by a loader of its own.
    """
    program = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
    standard = Path(sysconfig.get_path("stdlib"))
    native = target / "native"
    native.mkdir(parents=True)
    modules = [path for folder in (standard / "lib-dynload", *packages) for path in folder.rglob("*.so*")]
    said = _ldd([program, *(path for path in modules if "tkinter" not in path.name)])
    loader = _LOADER.search(said)
    if loader is None:
        raise ConfigError(f"{program} names no loader: it cannot be shown to sandboxes", kind="agent")
    shutil.copy2(loader[1], native / "loader")
    shutil.copy2(program, native / "python")
    for library in sorted(set(_LIBRARY.findall(said))):
        if not Path(library).is_relative_to(target):
            shutil.copy2(library, native / Path(library).name)
    inside = target / "lib" / standard.name
    shutil.copytree(standard, inside, ignore=shutil.ignore_patterns(*LEFT_OUT), ignore_dangling_symlinks=True)
    start = target / "bin" / "python3"
    start.parent.mkdir()
    start.write_text(START)
    start.chmod(0o755)


def _ldd(files: Sequence[Path]) -> str:
    """What `ldd` says of all of them; of a file that is no program it says nothing of use."""
    said = []
    for start in range(0, len(files), _AT_ONCE):
        try:
            command = ["ldd", *map(str, files[start : start + _AT_ONCE])]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LDD_DEADLINE_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"the libraries of Python cannot be listed: {error}", kind="agent") from error
        said.append(done.stdout)
    return "\n".join(said)
