"""Canary tests, under names nobody knows before the run, made of the words of the real tests' names.

The twins of hidden tests (`twins.py`) cannot be told from them without knowing the answers. Besides, every module gets
one plain test that must pass and one that must fail, which show that the module was run as it is.
"""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

from sandbox.judgement.twins import Group, add_twins, function_of
from sandbox.tasks.task import Task

Style = Literal["functions", "methods"]
"""As what canaries are written: functions for our own runners, methods of a `unittest` class for most frameworks."""

_PLAIN_WORDS = ("case", "edge", "value", "order", "range", "input")
_TEST_NAME = re.compile(r"\btest_([a-z0-9_]+)")


class Canaries(Struct, frozen=True, kw_only=True):
    """The canaries of one graded run. `own` is a module of nothing else; `inside` rides along in hidden modules."""

    own_path: str
    own_source: str
    own: dict[str, str]  # test id -> the outcome it must have
    inside: dict[str, dict[str, str]]  # path of a hidden module -> the same
    sources: dict[str, str]  # path of a hidden module -> its text with canaries and twins
    groups: tuple[Group, ...] = ()  # hidden tests that have twins

    @property
    def plain(self) -> dict[str, str]:
        """The outcomes that the plain canaries must have."""
        return {test: outcome for pair in (self.own, *self.inside.values()) for test, outcome in pair.items()}


def plant(
    modules: Mapping[str, str],
    directory: str,
    tests: Iterable[str] = (),
    style: Style = "functions",
    twinned: Iterable[str] = (),
) -> Canaries:
    """Canaries for a run of the hidden `modules` (path -> text), with a module of their own in `directory`.

    `tests` are the ids of the tests that have to turn, whose words the canaries' names are made of. Some of those in
    `twinned`, which must plainly pass, get twins: first those that have to turn.
    """
    turning, allowed = dict.fromkeys(tests), list(twinned)
    names = _Names(modules, turning)
    first, second = ([t for t in allowed if (t in turning) == turns] for turns in (True, False))
    wanted = [*names.random.sample(first, len(first)), *names.random.sample(second, len(second))]
    texts, groups = add_twins(modules, wanted, len(set(map(function_of, first))), names.draw, names.random)
    inside: dict[str, dict[str, str]] = {}
    sources: dict[str, str] = {}
    for path, text in texts.items():
        added, expected = _pair(names, path, style)
        sources[path] = f"{text.rstrip()}\n\n\n{added}"
        inside[path] = expected
    own_path = f"{directory}/{names.draw()}.py".removeprefix("/")
    own_source, own = _pair(names, own_path, style)
    return Canaries(
        own_path=own_path, own_source=own_source, own=own, inside=inside, sources=sources, groups=tuple(groups)
    )


def twinned_of(task: Task) -> list[str]:
    """The named tests that may get twins: of a function with parameters all named cases, or none."""
    left_out = {*task.tests.untwinned, *task.flaky}
    named = (*task.fail_to_pass, *task.pass_to_pass)

    def may(test: str) -> bool:
        is_whole = test.count("[") <= test.count("]")
        return task.tests.expected_outcome(test) == "passed" and test not in left_out and is_whole

    kept = {function_of(test) for test in named if not may(test)}
    return [test for test in named if function_of(test) not in kept]


def disturbed(canaries: Canaries, outcomes: Mapping[str, str]) -> str:
    """What is wrong with the canaries of a run that reached its end; empty when nothing is."""
    for test, expected in canaries.own.items():
        if outcomes.get(test) != expected:
            return f"a canary that must have {expected} was {outcomes.get(test, 'not reported')}"
    for path, pair in canaries.inside.items():
        others = [o for t, o in outcomes.items() if t.startswith(f"{path}::") and t not in pair]
        for test, expected in pair.items():
            got = outcomes.get(test)
            if got != expected and (got == "passed" or "passed" in others):
                return f"a canary in {path} that must have {expected} was {got or 'not reported'}"
    return ""


class _Names:
    """Names of tests that do not exist yet."""

    def __init__(self, modules: Mapping[str, str], tests: Iterable[str]) -> None:
        self.random = random.Random(secrets.token_bytes(16))
        known = {name for text in (*modules.values(), *tests) for name in _TEST_NAME.findall(text)}
        self._words = sorted({word for name in known for word in name.split("_") if word} | set(_PLAIN_WORDS))
        self._taken = known

    def draw(self) -> str:
        """A new `test_...` name."""
        while True:
            words = self.random.sample(self._words, self.random.randrange(2, 5))
            name = "_".join(words)
            if name not in self._taken:
                self._taken.add(name)
                return f"test_{name}"


def _pair(names: _Names, path: str, style: Style) -> tuple[str, dict[str, str]]:
    good, bad = names.draw(), names.draw()
    a, b, c, d = (names.random.randrange(10, 99) for _ in range(4))
    checks = {good: f"[{min(a, b)}, {max(a, b)}]", bad: f"[{max(c, d) + 1}, {min(c, d)}]"}
    numbers = {good: f"[{a}, {b}]", bad: f"[{c}, {d}]"}
    order = names.random.sample([good, bad], 2)
    if style == "functions":
        tests = [f"def {name}():\n    assert sorted({numbers[name]}) == {checks[name]}\n" for name in order]
        return "\n\n".join(tests), {f"{path}::{good}": "passed", f"{path}::{bad}": "failed"}
    title = names.draw().title().replace("_", "")
    tests = [f"    def {name}(self):\n        assert sorted({numbers[name]}) == {checks[name]}\n" for name in order]
    text = f"import unittest\n\n\nclass {title}(unittest.TestCase):\n" + "\n".join(tests)
    return text, {f"{path}::{title}::{good}": "passed", f"{path}::{title}::{bad}": "failed"}
