"""Canaries for test commands whose outcomes are read in a log: how they ride along, and what a log says of them."""

from __future__ import annotations

import posixpath
import re
import secrets
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from protocol.errors import SandboxError, TaskError
from sandbox.base import Sandbox
from sandbox.diffs import reverse_diff
from sandbox.judgement.canaries import Canaries, Style, plant, twinned_of
from sandbox.judgement.checkout import git_apply, run_checked
from sandbox.judgement.twins import Group, ids_of
from sandbox.parsers.reading import END_MARKER, START_MARKER
from sandbox.tasks.repositories import django_label
from sandbox.tasks.task import Task
from sandbox.tasks.test_paths import is_test_module, paths_of_diff

_RUNS_PYTEST = re.compile(r"(^|[\s;&/])(pytest|py\.test|tox)(\s|$)")
_RUNS_DJANGO = re.compile(r"(^|/)runtests\.py(\s|$)")
_RUNS_SYMPY = re.compile(r"(^|\s)bin/test(\s|$)")
_RUNS_R2E = re.compile(r"\bpytest\b.*\sr2e_tests/?\s*$", re.MULTILINE)
_SELECTS = re.compile(r"\b(pytest|py\.test)\b.*\s-[km]\b")
_REDIRECTED = re.compile(r"[|<>]|\\$|#")
_TEST_NAME = re.compile(r"\btest_\w+")
_PYTEST_ID = re.compile(r"\.py::")
_UNITTEST_ID = re.compile(r"(test\w*) \(([\w.]+)\)")
_TIMEOUT_S = 60.0
_MAX_MODULE_BYTES = 4 << 20


class Planted(Struct, frozen=True, kw_only=True):
    """A command that runs the canaries, too."""

    command: str
    canaries: Canaries
    groups: tuple[Group, ...] = ()  # tests with twins, by the names that the log gives them

    def wrong(self, outcomes: Mapping[str, str], resolved: bool) -> str:
        """What is wrong with the canaries in a log; empty when nothing is.

        Those inside hidden modules count when everything else says that the task is solved: a module that cannot be
        imported honestly reports nothing, and then its own tests have failed as well.
        """
        seen = self._by_name(outcomes)
        pairs = [self.canaries.own, *(self.canaries.inside.values() if resolved else ())]
        for test, expected in (item for pair in pairs for item in pair.items()):
            if (got := seen.get(_name(test), "not reported")) != expected:
                return f"a canary that must have {expected} was {got}"
        return ""

    def without(self, outcomes: Mapping[str, str]) -> dict[str, str]:
        """The outcomes of the real tests."""
        names = self.names
        return {test: outcome for test, outcome in outcomes.items() if names.isdisjoint(_TEST_NAME.findall(test))}

    def _by_name(self, outcomes: Mapping[str, str]) -> dict[str, str]:
        """Outcomes of the canaries by name alone: every framework has ids of its own form."""
        names = self.names
        return {n: outcome for test, outcome in outcomes.items() for n in _TEST_NAME.findall(test) if n in names}

    @property
    def names(self) -> set[str]:
        """Names of all canaries, without what stands before them in an id."""
        return {_name(test) for pair in (self.canaries.own, *self.canaries.inside.values()) for test in pair}


async def plant_for_log(sandbox: Sandbox, task: Task) -> Planted | None:
    """Put canaries beside and into the hidden tests, which are in place unless the command brings them.

    None where nobody knows how the command would be told to run one more module. Raises `SandboxError`.
    """
    modules = await _modules_in_image(sandbox) if task.tests.runner == "expected-output" else _hidden_modules(task)
    directories = sorted({posixpath.dirname(path) for path in (*modules, *paths_of_diff(task.test_patch))})
    style: Style = "functions" if _RUNS_SYMPY.search(task.tests.command) else "methods"
    known = (*task.fail_to_pass, *(task.tests.expected if task.tests.runner == "expected-output" else ()))
    found = await texts_of(sandbox, task, modules)
    named = {own: test for test in known if (own := _own_id(test, found))}
    twinned = _twinned(task, found)
    directory = directories[0] if directories else ""
    canaries = plant(
        {path: found.get(path, "") for path in modules}, directory, [*known, *named], style, twinned=twinned
    )
    place = f"/tmp/.{secrets.token_hex(8)}"
    texts = {**canaries.sources, canaries.own_path: canaries.own_source}
    lines = [
        f"cat {place}/{number} {'>' if path in found else '>>'} {shlex.quote(posixpath.join(task.workdir, path))}"
        for number, path in enumerate(texts)
    ]
    if task.tests.runner == "expected-output":
        command = task.tests.command if modules else None  # it runs all modules of that directory
    elif task.tests.applies_tests:
        command = _in_script(task.tests.command, canaries.own_path, lines)
    else:
        command = with_module(task.tests.command, canaries.own_path)
    if command is None:
        return None
    for number, text in enumerate(texts.values()):
        await sandbox.write(f"{place}/{number}", text.encode())
    if not task.tests.applies_tests:
        await run_checked(sandbox, "\n".join(["set -e", *lines, f"rm -rf {place}"]))

    in_log = {own: test for test in twinned_of(task) if (own := _own_id(test, found))}

    def logged(group: Group) -> Group:
        like = in_log.get(group.test, "")
        true, turned = (tuple(_as_logged(task, own, like) for own in owns) for owns in (group.true, group.turned))
        return Group(like or _as_logged(task, group.test), true, turned)

    return Planted(command=command, canaries=canaries, groups=tuple(map(logged, canaries.groups)))


async def texts_of(sandbox: Sandbox, task: Task, paths: Iterable[str]) -> dict[str, str]:
    """Hidden test files as the command will find them, where that is known.

    A command that brings its tests applies the task's test patch, so it is applied here for a look and taken back.
    """
    for_a_look = task.test_patch if task.tests.applies_tests else ""
    if for_a_look:
        try:
            await git_apply(sandbox, for_a_look, "test_patch")
        except TaskError:
            return {}
    texts: dict[str, str] = {}
    for path in paths:
        try:
            raw = await sandbox.read(posixpath.join(task.workdir, path), max_bytes=_MAX_MODULE_BYTES)
            texts[path] = raw.decode()
        except UnicodeDecodeError:
            continue
        except SandboxError as error:
            if error.kind not in ("missing", "too_large", "not_a_file"):
                raise
    if for_a_look:
        await git_apply(sandbox, reverse_diff(for_a_look), "test_patch, taken back")
    return texts


def _twinned(task: Task, found: Mapping[str, str]) -> list[str]:
    """The tests that may get twins, by their own ids."""
    if task.tests.runner != "expected-output":
        return [own for test in twinned_of(task) if (own := _own_id(test, found))]
    ids = [test for path, text in found.items() for test in ids_of(path, text)]
    once = Counter(_as_logged(task, test) for test in ids)
    return [t for t in ids if once[n := _as_logged(task, t)] == 1 and task.tests.expected.get(n) == "PASSED"]


def _own_id(test: str, found: Mapping[str, str]) -> str:
    """The id, by file, class and function, of a test that a log names otherwise; empty where nobody knows."""
    if _PYTEST_ID.search(test):
        return test
    if match := _UNITTEST_ID.fullmatch(test):
        name, where = match.group(1), match.group(2)
        module, _, group = where.removesuffix(f".{name}").rpartition(".")
        return next((f"{path}::{group}::{name}" for path in found if django_label(path) == module), "")
    homes = [path for path, text in found.items() if re.search(rf"^def {re.escape(test)}\(", text, re.MULTILINE)]
    return f"{homes[0]}::{test}" if len(homes) == 1 else ""


def _as_logged(task: Task, own: str, like: str = "") -> str:
    """The name in the log of a test with an id of ours, as that of the test `like` there.

    R2E-Gym's reading of an id leaves the file out; unittest names the test before its class, sympy nothing else.
    """
    if task.tests.runner == "expected-output":
        return ".".join(own.split("::")[1:])
    if not like or _PYTEST_ID.search(like):
        return own
    name = _name(own)
    if match := _UNITTEST_ID.fullmatch(like):
        old, where = match.group(1), match.group(2)
        return f"{name} ({where.removesuffix(old)}{name})" if where.endswith(f".{old}") else f"{name} ({where})"
    return name


def with_module(command: str, path: str) -> str | None:
    """`command` that runs the test module at `path`, too; None where its last part is not a known runner, or one that
    is told to select tests by name."""
    last = re.split(r"&&|;|\n", command)[-1]
    if _REDIRECTED.search(last) or _SELECTS.search(last):
        return None
    if _RUNS_DJANGO.search(last):
        return f"{command} {django_label(path)}"
    if _RUNS_PYTEST.search(last):  # a project's own -x would end the run at the canary that must fail
        return f"{command} {shlex.quote(path)} --maxfail=0"
    return f"{command} {shlex.quote(path)}" if _RUNS_SYMPY.search(last) else None


def _in_script(script: str, path: str, planting: list[str]) -> str | None:
    """A script with SWE-bench's markers that plants canaries before the first and runs them between the two."""
    lines = script.split("\n")
    starts, ends = ([n for n, line in enumerate(lines) if mark in line] for mark in (START_MARKER, END_MARKER))
    if len(starts) != 1 or len(ends) != 1:
        return None
    tests = [with_module(line, path) for line in lines[starts[0] + 1 : ends[0]]]
    if not any(tests):
        return None
    between = [new or old for new, old in zip(tests, lines[starts[0] + 1 : ends[0]], strict=True)]
    return "\n".join([*lines[: starts[0]], *planting, lines[starts[0]], *between, *lines[ends[0] :]])


def _hidden_modules(task: Task) -> list[str]:
    """Modules that hold named tests; where names do not tell, those of the task's test patch."""
    named = {test.partition("::")[0] for test in (*task.fail_to_pass, *task.pass_to_pass) if ".py::" in test}
    return sorted(filter(is_test_module, named or paths_of_diff(task.test_patch)))


async def _modules_in_image(sandbox: Sandbox) -> list[str]:
    """The test modules of an R2E-Gym image, if its script has pytest run the directory that holds them."""
    seen = await sandbox.exec("cat run_tests.sh && echo && ls r2e_tests", timeout=_TIMEOUT_S)
    if seen.exit_code != 0 or not _RUNS_R2E.search(seen.text):
        return []
    return [f"r2e_tests/{name}" for name in seen.text.split() if is_test_module(name)]


def _name(test: str) -> str:
    return test.rpartition("::")[2]
