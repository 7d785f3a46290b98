"""Which Python packages a host shows besides the standard library: what a sandbox must not see, and what it may.

An agent that finds a later release of its task's package need not solve the task. So every place where packages are
installed or kept is covered with an empty directory, and a task whose package is to be had all the same is refused.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from protocol.errors import TaskError

USR = Path("/usr")
_PACKAGE_PLACES = frozenset(
    (
        *("site-packages", "dist-packages", "python-wheels", "_bundled", "wheelhouse"),
        *("_vendor", "vendored", "third_party"),  # copies that tools bring for themselves
    )
)
_CACHES_OF_A_HOME = ("pkgs", "envs", "conda-meta")
_ARCHIVES = (".whl", ".conda", ".egg")
_NO_PYTHON = frozenset(("share/doc", "share/man", "share/locale", "share/zoneinfo", "include", "src", "games"))


class Foreign(Struct, frozen=True):
    """What is found below some roots."""

    hidden: tuple[str, ...]  # directories to cover, none inside another
    visible: Mapping[str, str]  # import name of what stays in sight outside of the standard library: where


def foreign_packages(roots: Iterable[Path], homes: Iterable[Path]) -> Foreign:
    """Walk the roots of what is shown. Blocking, seconds for a whole `/usr`.

    Args:
        homes: installations of Python among or below the roots, whose standard libraries are no foreign packages.
    """
    own = {str(library) for home in homes for library in home.glob("lib/python3.*")}
    hidden: list[str] = [str(home / name) for home in homes for name in _CACHES_OF_A_HOME if (home / name).is_dir()]
    hidden = [place for place in hidden if not place.startswith("/usr/")]
    visible: dict[str, str] = {}
    inside: set[str] = set()  # folders of packages: what lies in them has no import name of its own
    for root in roots:
        passed_over = {f"{root}/{name}" for name in _NO_PYTHON} | set(hidden)
        for folder, folders, files in os.walk(root):
            name = Path(folder).name
            if folder in passed_over or name == "__pycache__":
                folders.clear()
            elif name in _PACKAGE_PLACES or any(file.endswith(_ARCHIVES) for file in files):
                hidden.append(folder)
                folders.clear()
            elif folder in own or any(folder.startswith(f"{library}/") for library in own):
                continue
            elif str(Path(folder).parent) in inside:
                inside.add(folder)
            elif "__init__.py" in files:
                inside.add(folder)
                visible.setdefault(name, folder)
            else:
                visible |= {f[:-3]: f"{folder}/{f}" for f in files if f.endswith(".py") and f[:-3] not in visible}
    return Foreign(tuple(sorted(hidden)), visible)


@functools.cache
def foreign_packages_here(home: Path | None) -> Foreign:
    """What a namespace sandbox on this host would show, were nothing covered: `/usr`, and the Python that runs us."""
    homes = [USR, USR / "local", *([home] if home is not None else [])]
    return foreign_packages([USR, *([home] if home is not None else [])], homes)


def refuse_visible(absent: Iterable[str], binds: Iterable[Path], visible: Mapping[str, str], lease: str) -> None:
    """Raise `TaskError` (kind: visible) when a package that must not be in sight is: in the standard library, among
    what is shown, or in a directory that is bound into a sandbox."""
    for name in absent:
        place = "the standard library" if name in sys.stdlib_module_names else visible.get(name, "")
        for bind in binds:
            if (bind / name).is_dir() or (bind / f"{name}.py").is_file() or list(bind.glob(f"{name}.*.so")):
                place = f"what its tests require ({bind})"
        if place:
            raise TaskError(
                f"{lease}: package {name!r}, which the task is about, can be imported from outside its tree: {place}",
                kind="visible",
            )
