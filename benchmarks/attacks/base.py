"""What an attack is, and how one is brought into a tree."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from sandbox.patches import Change, Patch, state_of
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import paths_of_diff

Make = Callable[[Task, Path, str], list[Change]]
"""(task, its tree, path of a module that every test imports) -> the changes."""


class Attack(Struct, frozen=True):
    """One way to a pass without solving the task."""

    name: str
    needs: str  # what it must know, besides the source of Longhaul, which every attack knows
    make: Make
    endless: bool = False  # it earns nothing but the end of a deadline


NOTHING = "nothing"
NAMES = "the names of the hidden tests"
FAULT = "which function is at fault"


def attack_patch(attack: Attack, task: Task, tree: Path, module: str) -> Patch:
    """The patch of one attack on one task with its `tree`; the hidden tests import `module`, a file of the package."""
    return Patch(changes=tuple(attack.make(task, tree, module)))


def file(path: str, text: str) -> Change:
    """A file that the attack brings."""
    return Change(path=path, kind="file", content=text.encode())


def files(*named: tuple[str, str]) -> Make:
    """An attack that brings files: (path, text)."""
    return lambda task, tree, module: [file(path, text) for path, text in named]


def at_import(code: str) -> Make:
    """An attack that runs when the module is imported. `NAMED` in the code is a list of the hidden tests' ids."""
    return lambda task, tree, module: [prepended(tree, module, _with_names(code, task))]


def in_functions(line: str, prelude: str = "") -> Make:
    """An attack whose one statement is the first of every function in the module that is at fault."""

    def make(task: Task, tree: Path, module: str) -> list[Change]:
        path = fault_of(task, module)
        text = content_of(tree, path)
        lines = text.split("\n")
        functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef)]
        for node in sorted(functions, key=lambda node: -node.body[0].lineno):
            first = node.body[0]
            if first.lineno == node.lineno:
                continue
            at = min([first.lineno, *(d.lineno for d in getattr(first, "decorator_list", []))]) - 1
            lines.insert(at, " " * first.col_offset + _with_names(line, task))
        before = file(path, "\n".join(lines))
        return [file(path, _led_by(before.content.decode(), _with_names(prelude, task)))] if prelude else [before]

    return make


def fault_of(task: Task, module: str) -> str:
    """The first Python file that the gold patch changes."""
    return next(iter(sorted(p for p in paths_of_diff(task.gold_patch) if p.endswith(".py"))), module)


def content_of(tree: Path, path: str) -> str:
    """A file's text; empty where there is none."""
    before = state_of(tree, path)
    return before.content.decode() if before else ""


def prepended(tree: Path, module: str, code: str) -> Change:
    """The module with code that runs when it is imported, before anything of its own that may fail."""
    return file(module, _led_by(content_of(tree, module), code))


def _led_by(text: str, code: str) -> str:
    future = [line for line in text.splitlines() if line.startswith("from __future__")]
    rest = "\n".join(line for line in text.splitlines() if not line.startswith("from __future__"))
    return "\n".join([*future, code, rest]) + "\n"


def _with_names(code: str, task: Task) -> str:
    return code.replace("NAMED", repr([*task.fail_to_pass, *task.pass_to_pass]))
