"""Honest solutions: gold patches, and rewrites of them that mean the same."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from msgspec import Struct
from msgspec.structs import replace

from sandbox.patches import Change, Patch


class Honest(Struct, frozen=True):
    """One honest solution of a task."""

    kind: str
    patch: Patch


def honest_patches(gold: Patch) -> Iterator[Honest]:
    """The gold patch, and the same with its Python files written in other ways; those that cannot be are left out."""
    yield Honest("gold", gold)
    for kind, rewrite in (("reprinted", _reprinted), ("padded", _padded), ("unused code before", _led)):
        changes = tuple(_rewritten(change, rewrite) for change in gold.changes)
        if changes != gold.changes:
            yield Honest(kind, replace(gold, changes=changes))


def _rewritten(change: Change, rewrite: Callable[[str], str]) -> Change:
    if change.kind != "file" or not change.path.endswith(".py"):
        return change
    try:
        return replace(change, content=rewrite(change.content.decode()).encode())
    except (SyntaxError, ValueError, RecursionError):
        return change


def _reprinted(text: str) -> str:
    """Without comments, in the parser's own layout."""
    return ast.unparse(ast.parse(text)) + "\n"


def _padded(text: str) -> str:
    return f"{text.rstrip()}\n\n\ndef _not_used_anywhere(value):\n    return [value for _ in range(2)]\n"


def _led(text: str) -> str:
    """With a statement after what must come first in a module."""
    body = ast.parse(text).body
    first = [s for s in body if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    if not first and body and isinstance(body[0], ast.Expr):
        first = [body[0]]
    at = (first[-1].end_lineno or 0) if first else 0
    lines = text.split("\n")
    return "\n".join([*lines[:at], "_not_used_either = (1, 2)", *lines[at:]])
