"""Twins of hidden tests: the same test again, which must pass with it, and with one assertion turned round, which must
fail where it passes.

A twin has the style, the fixtures and the meaning of its test, and stands somewhere among the others of its scope.
Every body is there twice, and which of the names belong to the true one is drawn: neither a name, nor a place, nor
what a test uses, nor a majority tells who fails.
Where an assertion compares with a literal, the twins hold other literals on a ladder on which the true one has no
certain place, so that one has to know the answer to know the twin. Only where nothing else can be had is an assertion
negated.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

from sandbox.judgement.turning import Turned, turn

NUM_TESTS = 3
"""Tests of a run that get twins; those that have to turn come first."""
_MOST = {1: 3, 2: 2}
"""Ways to turn one test round, where its literal allows so many, by the number of tests that have to turn."""

_LOOKS_AT_ITSELF = re.compile(
    r"\b(request|snapshot|inspect|traceback|linecache|lineno|currentframe|_getframe|getsource\w*|__name__|__file__|__doc__"
    r"|_testMethodName|shortDescription|\w*[Ss]kip\w*|xfail|_*exit|global|nonlocal|stacklevel|warns|doctest|pickle\w*|locals"
    r"|globals|__qualname__|__wrapped__|gc|weakref)\b"
)
_LINES_MATTER = re.compile(r"\b(lineno|linecache|currentframe|_getframe|getsource\w*|traceback|doctest|stacklevel)\b")

_Function = ast.FunctionDef


class Group(Struct, frozen=True):
    """One hidden test and its twins, by the ids under which they run."""

    test: str  # as the task names it
    true: tuple[str, ...]  # where its own body runs
    turned: tuple[str, ...]  # where bodies run that must fail

    @property
    def all(self) -> tuple[str, ...]:
        """Every id that has to do with it."""
        return (*self.true, *self.turned, self.test)


class _Home(Struct, frozen=True):
    """Where tests of one kind stand: the module or a class of it."""

    prefix: str  # of the ids
    tests: tuple[_Function, ...]


def add_twins(
    modules: Mapping[str, str],
    tests: Iterable[str],
    num_turning: int,
    draw_name: Callable[[], str],
    r: random.Random,
) -> tuple[dict[str, str], list[Group]]:
    """The text of `modules` with twins of some of `tests` (ids that must plainly pass, the most important first).

    Modules that cannot be parsed, and tests of which no twin is sure to fail, stay as they are.
    """
    wanted = list(tests)
    most = _MOST.get(num_turning, 1)
    together = "\n".join(modules.values())
    places: dict[str, tuple[str, _Home, _Function]] = {}
    for path, text in modules.items():
        for home in _homes(path, text, together):
            places |= {f"{home.prefix}::{test.name}": (path, home, test) for test in home.tests}
    sources, groups = dict(modules), list[Group]()
    edits: dict[str, list[tuple[int, int, str]]] = {}
    for test in wanted:
        if len(groups) == NUM_TESTS:
            break
        if test not in places:
            continue
        path, home, node = places[test]
        turned = _turned(modules[path], node, together, most, r)
        if turned is None:
            continue
        bodies = [text for text in (turned.true, *turned.texts) for _ in range(2)]
        drawn = [_in_style(draw_name(), node.name) for _ in bodies[1:]]
        names = r.sample([node.name, *drawn], len(bodies))
        texts = [_renamed(text, node.name, name) for text, name in zip(bodies, names, strict=True)]
        stays = names.index(node.name)  # this text takes the test's place; the others are put elsewhere
        edits.setdefault(path, []).extend(_edits(home, node, texts, stays, r))
        ids = tuple(f"{home.prefix}::{name}" for name in names)
        groups.append(Group(test, ids[:2], ids[2:]))
    for path, changes in edits.items():
        sources[path] = _edited(modules[path], changes)
    return sources, groups


def ids_of(path: str, text: str) -> list[str]:
    """The ids of the tests in a module that might get twins."""
    return [f"{home.prefix}::{test.name}" for home in _homes(path, text, text) for test in home.tests]


def settle(groups: Iterable[Group], outcomes: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The outcomes without twins, each test's under its own name; and by test what its twins did that they must not.

    A test has passed where its body did under both of its names. Turned twins say something only then: a wrong solution
    may be just what a twin asks for.
    """
    real = dict(outcomes)
    wrong: dict[str, str] = {}
    for group in groups:
        for test in group.all:
            real.pop(test, None)
        trues = [outcomes[test] for test in group.true if test in outcomes]
        if len(trues) < len(group.true):
            continue
        real[group.test] = min(trues, key=lambda outcome: outcome == "passed")
        seen = [outcomes.get(test, "not reported") for test in group.turned]
        if real[group.test] == "passed" and (others := [outcome for outcome in seen if outcome != "failed"]):
            wrong[group.test] = others[0]
    return real, wrong


def _in_style(name: str, like: str) -> str:
    return name if like.startswith("test_") else "test" + name.removeprefix("test_").title().replace("_", "")


def _homes(path: str, text: str, together: str) -> list[_Home]:
    if _LINES_MATTER.search(text) or "\r" in text:
        return []
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    homes = [_home(path, tree.body, text)]
    for node in tree.body:
        # what inherits from a class has its tests, too, under names of its own
        alone = isinstance(node, ast.ClassDef) and len(re.findall(rf"\b{node.name}\b", together)) == 1
        if isinstance(node, ast.ClassDef) and alone and not node.decorator_list:
            homes.append(_home(f"{path}::{node.name}", node.body, text))
    return homes


def _home(prefix: str, body: list[ast.stmt], text: str) -> _Home:
    tests = [node for node in body if isinstance(node, _Function) and node.name.startswith("test")]
    return _Home(prefix, tuple(test for test in tests if len(re.findall(rf"\bdef {test.name}\b", text)) == 1))


def _turned(text: str, node: _Function, together: str, most: int, r: random.Random) -> Turned | None:
    """The turned texts of a test, if it is one that runs to its end in one way and does not look at itself."""
    segment = _lines_of(text, node)
    if node.decorator_list or node.args.defaults or _LOOKS_AT_ITSELF.search(segment):
        return None
    if any(isinstance(part, ast.Return | ast.Yield | ast.YieldFrom | ast.Await) for part in ast.walk(node)):
        return None
    if len(re.findall(rf"\b{node.name}\b", together)) != 1 or re.search(r"\bdef assert\w*", together):
        return None
    return turn(segment, node, r, most)


def _lines_of(text: str, node: _Function) -> str:
    assert node.end_lineno is not None
    return "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno]) + "\n"


def _renamed(text: str, old: str, new: str) -> str:
    return re.sub(rf"\bdef {old}\b", f"def {new}", text, count=1)


def _edits(home: _Home, node: _Function, texts: list[str], stays: int, r: random.Random) -> list[tuple[int, int, str]]:
    """(first line, lines replaced, text): one text stays in the test's place, the others go before tests beside it."""
    assert node.end_lineno is not None
    gap = "\n" if node.col_offset else "\n\n"
    edits = [(node.lineno - 1, node.end_lineno - node.lineno + 1, texts[stays])]
    for text in [text for place, text in enumerate(texts) if place != stays]:
        before = r.choice(home.tests)
        first = min([before.lineno, *(decorator.lineno for decorator in before.decorator_list)]) - 1
        edits.append((first, 0, text + gap))
    return edits


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    """`text` with edits that do not overlap, from the last to the first; what replaces goes before what is put in."""
    lines = text.split("\n")
    for first, count, new in sorted(edits, key=lambda edit: (-edit[0], -edit[1])):
        lines[first : first + count] = new.removesuffix("\n").split("\n")
    return "\n".join(lines)
