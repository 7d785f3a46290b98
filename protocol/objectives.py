"""Which objectives there are: the files of `learner/objectives/table/`, each says on its first line what it is.

Settings are validated on the ground floor, objectives computed two floors up. So the folder is listed here, and its
files are never imported: a new file there is a new name everywhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).parent.parent / "learner" / "objectives" / "table"


@cache
def objectives() -> Mapping[str, str]:
    """Name of every objective and what it is in one sentence, by name."""
    files = sorted(path for path in _TABLE.glob("*.py") if path.stem != "__init__")
    return {path.stem: _first_line(path) for path in files}


def known_objective(name: str) -> str:
    """`name`, if an objective has it; raises `ValueError` with the nearest name otherwise."""
    if name not in objectives():
        nearest = difflib.get_close_matches(name, objectives(), n=1, cutoff=0.0)[0]
        raise ValueError(f"no objective has this name: did you mean {nearest}? There are {', '.join(objectives())}")
    return name


def help_text() -> str:
    """What `--help` says of the setting: every name with its sentence."""
    return "The objective. " + " ".join(f"{name}: {what}" for name, what in objectives().items())


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().removeprefix('"""').removesuffix('"""')
