"""Twins of hidden tests: the same test again, which must pass with it, and with one assertion turned round, which must
fail where it passes.

A twin has the style, the fixtures and the meaning of its test, and stands somewhere among the others of its scope.
Every body is there twice, and which of the names belong to the true one is drawn: neither a name, nor a place, nor
what a test uses, nor a majority tells who fails.
Where an assertion compares with a literal, the twins hold others that differ from it in one sign, so that one has to
know the answer to know the twin. Only where nothing else can be had is an assertion negated.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import UnionType

from msgspec import Struct

from sandbox.judgement.turning import Turned, turn

NUM_TESTS = 3
"""Test functions of a run that get twins; those that have to turn come first."""
_MOST_CASES = 40
"""Named cases of one function with parameters."""
_MOST_TURNED_CASES = 20
"""Runs of turned twins of one function, where it can be turned so often: each twin runs every case."""
_MOST = {1: 5, 2: 3}
_MOST_OF_MANY = 2
"""Ways to turn one test round, where its literal allows so many, by the number of tests that have to turn."""

_LOOKS_AT_ITSELF = re.compile(
    r"\b(snapshot|inspect|traceback|linecache|lineno|currentframe|_getframe|getsource\w*|__name__|__file__|__doc__"
    r"|_testMethodName|shortDescription|\w*[Ss]kip\w*|xfail|_*exit|global|nonlocal|stacklevel|warns|doctest|pickle\w*|locals"
    r"|globals|__qualname__|__wrapped__|gc|weakref)\b"
)
_KEEPS_A_TEST = re.compile(r"pytest\.mark\.(parametrize|usefixtures|filterwarnings|django_db|asyncio|anyio)\b")
"""Decorators under which a copy of a test is a test like it."""
_LINES_MATTER = re.compile(r"\b(lineno|linecache|currentframe|_getframe|getsource\w*|traceback|doctest|stacklevel)\b")

_Function = ast.FunctionDef | ast.AsyncFunctionDef


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

    Of a function with parameters `tests` has every case that is named anywhere, or none. Modules that cannot be parsed,
    and tests of which no twin is sure to fail, stay as they are.
    """
    wanted: dict[str, list[str]] = {}
    for test in tests:
        wanted.setdefault(function_of(test), []).append(test)
    most = _MOST.get(num_turning, _MOST_OF_MANY)
    together = "\n".join(modules.values())
    places: dict[str, tuple[str, _Home, _Function]] = {}
    for path, text in modules.items():
        for home in _homes(path, text, together):
            places |= {f"{home.prefix}::{test.name}": (path, home, test) for test in home.tests}
    sources, groups = dict(modules), list[Group]()
    edits: dict[str, list[tuple[int, int, str]]] = {}
    num_twinned = 0
    for function, cases in wanted.items():
        if num_twinned == NUM_TESTS:
            break
        if function not in places or len(cases) > _MOST_CASES:
            continue
        path, home, node = places[function]
        turned = _turned(modules[path], node, together, min(most, max(1, _MOST_TURNED_CASES // len(cases))), r)
        if turned is None:
            continue
        bodies = [text for text in (turned.true, *turned.texts) for _ in range(2)]
        drawn = [_in_style(draw_name(), node.name) for _ in bodies[1:]]
        names = r.sample([node.name, *drawn], len(bodies))
        texts = [_renamed(text, node.name, name) for text, name in zip(bodies, names, strict=True)]
        stays = names.index(node.name)  # this text takes the test's place; the others are put elsewhere
        edits.setdefault(path, []).extend(_edits(modules[path], home, node, texts, stays, r))
        num_twinned += 1
        for case in cases:
            ids = tuple(f"{home.prefix}::{name}{case.removeprefix(function)}" for name in names)
            groups.append(Group(case, ids[:2], ids[2:]))
    for path, changes in edits.items():
        # those put at one place stand there in this order, which must not be that of the bodies: true ones first
        sources[path] = _edited(modules[path], r.sample(changes, len(changes)))
    return sources, groups


def function_of(test: str) -> str:
    """A test's id without its parameters."""
    return test.partition("[")[0]


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
    homes = [_home(path, tree.body, text, _Function)]
    for node in tree.body:
        # what inherits from a class has its tests, too, under names of its own
        alone = isinstance(node, ast.ClassDef) and len(re.findall(rf"\b{node.name}\b", together)) == 1
        if isinstance(node, ast.ClassDef) and alone and not node.decorator_list:
            # a `TestCase` that awaits nothing passes whatever an `async` test of it holds
            awaits = not node.bases or any("Async" in ast.unparse(base) for base in node.bases)
            kinds = _Function if awaits else ast.FunctionDef
            homes.append(_home(f"{path}::{node.name}", node.body, text, kinds))
    return homes


def _home(prefix: str, body: list[ast.stmt], text: str, kinds: UnionType | type[ast.FunctionDef]) -> _Home:
    tests = [node for node in body if isinstance(node, kinds) and node.name.startswith("test")]
    return _Home(prefix, tuple(test for test in tests if len(re.findall(rf"\bdef {test.name}\b", text)) == 1))


def _turned(text: str, node: _Function, together: str, most: int, r: random.Random) -> Turned | None:
    """The turned texts of a test, if it is one that runs to its end in one way and does not look at itself."""
    segment = _lines_of(text, node)
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if not all(_KEEPS_A_TEST.match(text) for text in decorators) or _LOOKS_AT_ITSELF.search("\n".join(decorators)):
        return None
    if node.args.defaults or _LOOKS_AT_ITSELF.search(segment) or any(arg.arg == "request" for arg in node.args.args):
        return None
    if any(isinstance(part, ast.Return | ast.Yield | ast.YieldFrom) for part in _own_parts(node)):
        return None
    if len(re.findall(rf"\b{node.name}\b", together)) != 1 or re.search(r"\bdef assert\w*", together):
        return None
    return turn(segment, node, r, most)


def _own_parts(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without what is in functions inside it."""
    for part in ast.iter_child_nodes(node):
        yield part
        if not isinstance(part, _Function | ast.Lambda):
            yield from _own_parts(part)


def _lines_of(text: str, node: _Function) -> str:
    assert node.end_lineno is not None
    return "\n".join(text.split("\n")[node.lineno - 1 : node.end_lineno]) + "\n"


def _renamed(text: str, old: str, new: str) -> str:
    return re.sub(rf"\bdef {old}\b", f"def {new}", text, count=1)


def _edits(
    module: str, home: _Home, node: _Function, texts: list[str], stays: int, r: random.Random
) -> list[tuple[int, int, str]]:
    """(first line, lines replaced, text): one text stays in the test's place, the others go before tests beside it.

    Where its head uses names, which may mean something else, or nothing yet, in another place: before the test itself.
    """
    assert node.end_lineno is not None
    gap = "\n" if node.col_offset else "\n\n"
    own = _first_line(node)
    decorators = "".join(f"{line}\n" for line in module.split("\n")[own - 1 : node.lineno - 1])
    annotated = any(arg.annotation for arg in (*node.args.args, *node.args.kwonlyargs)) or node.returns is not None
    edits = [(node.lineno - 1, node.end_lineno - node.lineno + 1, texts[stays])]
    for text in [text for place, text in enumerate(texts) if place != stays]:
        before = node if decorators or annotated else r.choice(home.tests)
        edits.append((_first_line(before) - 1, 0, decorators + text + gap))
    return edits


def _first_line(node: _Function) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _edited(text: str, edits: list[tuple[int, int, str]]) -> str:
    """`text` with edits that do not overlap, from the last to the first; what replaces goes before what is put in."""
    lines = text.split("\n")
    for first, count, new in sorted(edits, key=lambda edit: (-edit[0], -edit[1])):
        lines[first : first + count] = new.removesuffix("\n").split("\n")
    return "\n".join(lines)
