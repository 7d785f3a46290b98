"""A run that must fail, where no twin of a test that has to turn vouches for an outcome: for commands in whose log no
canary rides (`reward` files, readers of a dataset's own), and for tests of which no twin can be made.

Code under test runs as whoever writes such an outcome, so one run of it proves nothing. A patch that is to be rewarded
is run again in other fresh sandboxes, in drawn order: where the hidden tests ask for the opposite it must fail, where
they are as they were it must pass. An outcome that does not follow the tests was not theirs.

To fail is not enough where tests have names: each that has to turn must, as far as it does for the gold patch.
"""

from __future__ import annotations

import ast
import posixpath
import random
import re
import secrets
import shlex
from collections.abc import Mapping

from msgspec import Struct

from sandbox.base import Sandbox
from sandbox.judgement.checkout import HIDE_HISTORY, run_checked
from sandbox.judgement.log_canaries import texts_of
from sandbox.judgement.turning import turn
from sandbox.parsers.reading import START_MARKER
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import paths_of_diff

_SCRIPT_ERROR = 'throw new Error("not to be loaded");'
_FAILS_LOADED = {  # what makes a file of tests fail after it has loaded what it tests
    **dict.fromkeys((".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".mts", ".cts"), _SCRIPT_ERROR),
    ".go": 'func init() { panic("not to be loaded") }',
}
_NAME = re.compile(r"\w+")
_ASSIGNS = re.compile(r"\s*(?:export\s+|declare\s+|local\s+)?([A-Za-z_]\w*)=")
_SCRIPTS = (".sh", ".bash")
_ONE_OUTCOME = ("reward",)  # parsers


class Turning(Struct, frozen=True):
    """One way to turn the tests of a task. The same turning gives the same texts."""

    seed: bytes
    number: int  # of this run among those of one patch: each asks in another way, where there are several


def turnings(how_many: int) -> list[Turning]:
    """So many that nobody knows before."""
    return [Turning(secrets.token_bytes(16), number) for number in range(how_many)]


def before_tests(script: str, lines: list[str]) -> str | None:
    """A script with SWE-bench's markers that runs `lines` before its tests; None where it has not one first marker."""
    parts = script.split("\n")
    starts = [number for number, line in enumerate(parts) if START_MARKER in line]
    if len(starts) != 1:
        return None
    return "\n".join([*parts[: starts[0]], *lines, *parts[starts[0] :]])


def with_nothing_before(task: Task, script: str, place: str) -> tuple[str, str]:
    """The script of a task that brings its tests, so that code under test finds nothing of what was before them: what
    runs first, and what it leaves to a shell of its own, to be put at `place`; empty where nobody knows where to part.

    Its history is gone: among the commits may be the solution, and code under test can read as well as git. So is the
    shell that brought the tests, whose command line and memory hold their text: it tells true tests from turned ones.
    """
    parts = script.split("\n")
    starts = [number for number, line in enumerate(parts) if START_MARKER in line]
    if len(starts) != 1:
        return script, ""
    before, rest = parts[: starts[0]], "\n".join(parts[starts[0] :])
    tree = shlex.quote(task.workdir)
    set_there = sorted({match.group(1) for line in before if (match := _ASSIGNS.match(line))})
    new_shell = [
        f"({{ cd {tree} && {HIDE_HISTORY}; }} >/dev/null 2>&1 || rm -rf {tree}/.git)",
        *([f"export {' '.join(set_there)}"] if set_there else []),
        "{ longhaul_options=$(shopt -p; declare -f; set +o); set +x; } 2>/dev/null",
        f"printf '%s\\n' \"$longhaul_options\" | cat - {place} > {place}.sh && rm {place} && exec bash {place}.sh",
    ]
    return "\n".join([*before, *new_shell]), f'rm -f -- "$0"\n{rest}\n'


async def turn_tests(sandbox: Sandbox, task: Task, command: str, turning: Turning) -> str | None:
    """Have the hidden tests, which are in place unless the command brings them, ask for the opposite of what they ask.

    The command that runs them then; None where there is nothing of them that can be turned. Raises `SandboxError`.
    """
    own = {path: text for path, text in task.test_files.items() if text is not None}
    outside = {path: text for path, text in own.items() if path.startswith("/") and not path.endswith(_SCRIPTS)}
    brought = await texts_of(sandbox, task, sorted(paths_of_diff(task.test_patch)))
    modules = {path: text for path, text in own.items() if not path.startswith("/")} | brought
    texts = modules if modules else outside if not task.test_patch else {}
    turned = turned_texts(task, texts, turning)
    if not turned:
        return None
    place = f"/tmp/.{secrets.token_hex(8)}"
    lines = []
    for number, (path, text) in enumerate(turned.items()):
        await sandbox.write(f"{place}/{number}", text.encode("utf-8", "surrogateescape"))
        lines.append(f"cat {place}/{number} > {shlex.quote(posixpath.join(task.workdir, path))}")
    lines.append(f"rm -rf {place}")
    if task.tests.applies_tests:
        return before_tests(command, lines)
    await run_checked(sandbox, "\n".join(["set -e", *lines]))
    return command


def turned_texts(task: Task, texts: Mapping[str, str], turning: Turning) -> dict[str, str]:
    """Those of the test files `texts` that can ask for the opposite, and how they do.

    Where all that comes out is one outcome, any test that fails would hide one that does not: then a single test of
    them asks for the opposite, if the gold patch can show that it decides.
    """
    r = random.Random(turning.seed)
    alone = task.tests.parser in _ONE_OUTCOME and bool(task.gold_patch)
    paths = r.sample(sorted(texts), len(texts))
    turned = {path: new for path in paths if (new := turned_text(task, path, texts[path], r, turning.number, alone))}
    return dict(list(turned.items())[:1]) if alone else turned


def turned_text(task: Task, path: str, text: str, r: random.Random, number: int, alone: bool = False) -> str | None:
    """A test file that loads what it tests as before and fails then: with assertions turned round where that can be
    done (`alone`: in one test), in named tests without such by one that fails before all else, or by an error once the
    file is loaded. None for languages in which nothing of this is known."""
    if not path.endswith(".py"):
        added = _FAILS_LOADED.get(posixpath.splitext(path)[1])
        return None if added is None else f"{text}\n{added}\n"
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    named = {name for test in (*task.fail_to_pass, *task.pass_to_pass) for name in _NAME.findall(test)}
    tests = [
        n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test")
    ]
    lines, is_turned = text.split("\n"), False
    for node in r.sample(tests, len(tests)) if alone else sorted(tests, key=lambda node: -node.lineno):
        assert node.end_lineno is not None
        found = turn("\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n", node, r, 1)
        if found is not None:
            new = found.texts[number % len(found.texts)]
            lines[node.lineno - 1 : node.end_lineno] = new.removesuffix("\n").split("\n")
        elif alone or node.name not in named or not _fails_at_once(lines, node):
            continue
        is_turned = is_turned or alone or node.name in named or path.startswith("/")
        if alone:
            break
    if is_turned:
        return "\n".join(lines)
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    at = imports[-1].end_lineno or 0 if imports else 0
    return "\n".join([*text.split("\n")[:at], "raise AssertionError", *text.split("\n")[at:]])


def _fails_at_once(lines: list[str], node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Have a test fail as the first that it does; whether that could be written."""
    first = node.body[0]
    decorators = getattr(first, "decorator_list", [])
    at = min([first.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    if at < node.lineno or lines[at - 1].rstrip().endswith("\\") or len(indent) != first.col_offset:
        return False
    lines.insert(at, f"{indent}raise AssertionError")
    return True
