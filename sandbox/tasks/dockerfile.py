"""The one thing that a task directory's Dockerfile is asked: where commands run in the image that it makes."""

from __future__ import annotations

import posixpath
import re

_CONTINUED = re.compile(r"\\[ \t]*\r?\n")
_STAGE = re.compile(r"FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?", re.IGNORECASE)
_WORKDIR = re.compile(r"WORKDIR\s+(.+)", re.IGNORECASE)


def workdir_of(dockerfile: str) -> str:
    """The absolute working directory that the last stage sets, by itself or by the stage that it is made from.

    Empty where the text does not tell: none is set, one relative to another image's, one with a variable in it.
    """
    stages: dict[str, str] = {}
    name = place = ""
    for line in map(str.strip, _CONTINUED.sub(" ", dockerfile).split("\n")):
        if begun := _STAGE.fullmatch(line):
            name, place = (begun[2] or "").lower(), stages.get(begun[1].lower(), "")
        elif named := _WORKDIR.fullmatch(line):
            place = _joined(place, named[1].strip().strip("\"'"))
        stages[name] = place
    return place


def _joined(place: str, more: str) -> str:
    if "$" in more or not (place or more.startswith("/")):
        return ""
    return posixpath.normpath(posixpath.join(place, more))
