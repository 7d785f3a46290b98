"""Twins of hidden tests fail wherever their test passes, and nothing but the answer tells them apart."""

from __future__ import annotations

import ast
import asyncio
import inspect
import random
import re
from collections.abc import Mapping

import pytest

from sandbox.judgement.canaries import plant
from sandbox.judgement.twins import Group, settle
from sandbox.tasks.micro import make_tasks

SHAPES = {
    "number": "def test_a():\n    x = 5\n    assert x == 5\n",
    "negative": "def test_a():\n    assert 0 - 5 == -5\n",
    "float": "def test_a():\n    assert 1 / 2 == 0.5, 'half'\n",
    "text": "def test_a():\n    assert 'abc' + 'd' == 'abcd'\n",
    "text of signs": "def test_a():\n    assert '--' == '--'\n",
    "umlauts before it": "def test_a():\n    assert 'ä' and 'öü' == 'öü'\n    assert ('ä', 1) == ('ä', 1)\n",
    "bytes": "def test_a():\n    assert bytes(1) + b'a' and b'ab' == b'ab'\n    assert b'x' == b'x'\n",
    "nested": "def test_a():\n    assert {'a': [1, (2, None)], 3: set()} == {'a': [1, (2, None)], 3: set()}\n",
    "left": "def test_a():\n    x = [7]\n    assert [7] == x\n",
    "nothing": "def test_a():\n    assert [] == list()\n",
    "truth": "def test_a():\n    assert (1 <\n        2)\n",
    "in": "def test_a():\n    assert 3 in [1, 2, 3], 'not there'\n",
    "fixture": "import pytest\n@pytest.fixture\ndef five():\n    return 5\ndef test_a(five):\n    assert five == 5\n",
    "generator": "def test_a():\n    assert all(x for x in [1])\n",
    "unittest": "import unittest\nclass A(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(2, 2)\n",
    "true": "import unittest\nclass A(unittest.TestCase):\n    def test_a(self):\n        self.assertTrue(3)\n",
    "equal to a name": "def test_a():\n    five = 5\n    assert 5 == five\n",
    "equal in lines": "def test_a():\n    x = [5, 6]\n    assert x == [\n        x[0],\n        x[1],\n    ], 'x'\n",
    "raises": "import pytest\ndef test_a():\n    with pytest.raises(ValueError, match='x') as caught:\n"
    "        int('x')\n    assert caught.value.args\n",
    "annotated": "def test_b():\n    pass\n\nclass C:\n    pass\n\ndef test_a(x: C):\n    assert x == 5\n",
    "raises alone": "import pytest\ndef test_a():\n    with pytest.raises((ValueError, KeyError)):\n        int('x')\n",
    "raises in a class": "import unittest\nclass A(unittest.TestCase):\n    def test_a(self):\n"
    "        with self.assertRaises(ValueError):\n            int('x')\n",
    **{
        name: "import unittest\nclass A(unittest.TestCase):\n    def test_a(self):\n"
        f"        x = {{}}\n        self.{call}\n"
        for name, call in {
            "dict": "assertDictEqual({}, x)",
            "almost": "assertAlmostEqual(0.1 + 0.2, 0.3, places=5)",
            "less": "assertLess(len(x), 3)",
            "regex": "assertRegex('abc', r'b')",
            "instance": "assertIsInstance(x, dict, 'no dict')",
        }.items()
    },
    "async": "async def f():\n    return 5\nasync def test_a():\n    assert await f() == 5\n",
    "async in a class": "class A:\n    async def test_a(self):\n        assert 5 == 5\n",
    "a function inside": "def test_a():\n    def f():\n        return 5\n    assert f() == 5\n",
    "a request that is no fixture": "def test_a():\n    request = 5\n    assert request == 5\n",
    "a helper": "import unittest\nassert_same = unittest.TestCase().assertEqual\ndef test_a():\n    x = 5\n"
    "    assert_same(\n        x, x\n    )\n",
    "a helper, a literal": "import unittest\nassert_equal = unittest.TestCase().assertEqual\ndef test_a():\n"
    "    assert_equal(5, 5)\n",
    "a mock": "from unittest import mock\ndef test_a():\n    m = mock.Mock()\n    m(1)\n"
    "    m.assert_called_once_with(1)\n",
    "methods of a project": "import unittest\nclass A(unittest.TestCase):\n    def test_a(self):\n"
    "        self.assertRaises(ValueError, int, 'x')\n",
    "form feed": "\x0c\nx = 1\x0c\ndef test_a():\n    assert x == 1\n\n\ndef test_b():\n    assert x == 1\n",
}
LEFT_ALONE = {
    "decorated": "import pytest\n@pytest.mark.xfail\ndef test_a():\n    assert 1 == 1\n",
    "returns early": "def test_a():\n    if 1:\n        return\n    assert 1 == 2\n",
    "yields": "def test_a():\n    yield\n    assert 1 == 2\n",
    "awaited by nobody": "import unittest\nclass A(unittest.TestCase):\n    async def test_a(self):\n"
    "        self.assertEqual(1, 1)\n",
    "in a branch": "def test_a():\n    if 1 == 2:\n        assert 1 == 2\n",
    "skips": "import pytest\ndef test_a():\n    pytest.importorskip('x')\n    assert 1 == 2\n",
    "looks at its name": "def test_a(request):\n    assert request.node.name == 'test_a'\n",
    "line numbers": "import sys\ndef f():\n    return sys._getframe().f_lineno\ndef test_a():\n    assert f() == 3\n",
    "base class": "class A:\n    def test_a(self):\n        assert 1 == 1\nclass TestB(A):\n    pass\n",
    "used elsewhere": "def test_a():\n    assert 1 == 1\nalso = test_a\n",
    "ends more": "import pytest\ndef test_a():\n    with pytest.raises(SystemExit):\n        raise SystemExit\n",
    "no python": "def test_a(:\n",
    "own assertions": "class TestA:\n    def assertEqual(self, a, b):\n        pass\n"
    "    def test_a(self):\n        self.assertEqual(1, 1)\n",
}


_Function = ast.FunctionDef | ast.AsyncFunctionDef


def ids_of(text: str) -> list[str]:
    found = []
    for node in ast.parse(text).body:
        if isinstance(node, _Function) and node.name.startswith("test"):
            found.append(f"t.py::{node.name}")
        if isinstance(node, ast.ClassDef):
            found += [f"t.py::{node.name}::{n.name}" for n in node.body if isinstance(n, _Function)]
    return [test for test in found if "::test" in test]


def outcomes_of(text: str) -> dict[str, str]:
    """Every test called as its framework would."""
    import unittest

    module: dict[str, object] = {"__name__": "t"}
    exec(compile(text, "t.py", "exec"), module)
    outcomes = {}
    for test in ids_of(text):
        _, *names = test.split("::")
        try:
            thing = module[names[0]]
            if isinstance(thing, type) and issubclass(thing, unittest.TestCase):
                result = unittest.TestResult()
                thing(names[1]).run(result)
                outcomes[test] = "passed" if result.wasSuccessful() else "failed"
                continue
            thing = getattr(thing, names[-1], thing)
            done = thing(*[5] * thing.__code__.co_argcount)  # type: ignore[attr-defined, operator]
            if inspect.iscoroutine(done):
                asyncio.run(done)
            outcomes[test] = "passed"
        except (AssertionError, ValueError):
            outcomes[test] = "failed"
    return outcomes


@pytest.mark.parametrize("shape", SHAPES)
def test_twins_fail_where_the_test_passes(shape: str) -> None:
    text = SHAPES[shape]
    tests = [test for test in ids_of(text) if test.endswith("test_a")]
    seen_true_elsewhere = False
    for _ in range(12):
        planted = plant({"t.py": text}, "", tests, twinned=tests)
        [group] = planted.groups
        assert group.test == tests[0]
        outcomes = outcomes_of(planted.sources["t.py"])
        assert [outcomes[test] for test in group.true] == ["passed", "passed"]
        assert {outcomes[test] for test in group.turned} == {"failed"}
        assert settle(planted.groups, outcomes) == ({**without(outcomes, group), group.test: "passed"}, {})
        seen_true_elsewhere |= group.test not in group.true
    assert seen_true_elsewhere, "the name must not tell which body is the true one"


def without(outcomes: Mapping[str, str], group: Group) -> dict[str, str]:
    return {test: o for test, o in outcomes.items() if test not in group.all}


@pytest.mark.parametrize("shape", LEFT_ALONE)
def test_what_is_left_alone(shape: str) -> None:
    text = LEFT_ALONE[shape]
    named = ["t.py::test_a", "t.py::A::test_a", "t.py::TestA::test_a"]
    planted = plant({"t.py": text}, "", named, twinned=named)
    assert planted.groups == ()
    assert planted.sources["t.py"].startswith(text.rstrip())


def test_the_true_literal_has_no_certain_place() -> None:
    places = set()
    for true in [*range(10, 100, 10), *(digit / 10 for digit in range(1, 10))] * 20:
        text = f"def test_a():\n    x = {true}\n    assert x == {true}\n"
        planted = plant({"t.py": text}, "", ["t.py::test_a"], twinned=["t.py::test_a"])
        values = sorted(
            node.comparators[0].value
            for node in ast.walk(ast.parse(planted.sources["t.py"]))
            if isinstance(node, ast.Compare) and isinstance(node.comparators[0], ast.Constant)
        )
        assert len(values) == 12
        assert {len(repr(value)) for value in values} == {len(repr(true))}
        places.add(values.index(true) // 2)
    assert places == set(range(6))


def test_the_true_body_has_no_certain_place() -> None:
    """Whoever takes the child over reads the module: what comes first or last of its like must not be the answer."""
    text = "def test_a():\n    assert f() == 5\n"
    firsts, lasts = list[int](), list[int]()
    for _ in range(60):
        planted = plant({"t.py": text}, "", ["t.py::test_a"], twinned=["t.py::test_a"])
        put_in = planted.sources["t.py"].partition("def test_a():")[0]
        found = [int(value) for value in re.findall(r"assert f\(\) == (\d)", put_in)]
        firsts.append(found[0])
        lasts.append(found[-1])
    assert firsts.count(5) < 30, "a sixth is to be expected"
    assert lasts.count(5) < 30


def test_what_twins_say() -> None:
    group = Group("m::a", ("m::drawn", "m::again"), ("m::a", "m::other"))
    honest = {"m::drawn": "passed", "m::again": "passed", "m::a": "failed", "m::other": "failed", "m::b": "passed"}
    assert settle([group], honest) == ({"m::a": "passed", "m::b": "passed"}, {})
    # whoever forces the name that it knows to pass
    assert settle([group], {**honest, "m::a": "passed"})[1] == {"m::a": "passed"}
    assert settle([group], {t: o for t, o in honest.items() if t != "m::other"})[1] == {"m::a": "not reported"}
    assert settle([group], {**honest, "m::other": "skipped"})[1] == {"m::a": "skipped"}
    # a wrong solution may give just what a twin asks for: no tampering, and no pass
    for wrong in ("m::drawn", "m::again"):
        assert settle([group], {**honest, wrong: "failed", "m::other": "passed"}) == (
            {"m::a": "failed", "m::b": "passed"},
            {},
        )
        assert settle([group], {t: o for t, o in honest.items() if t != wrong}) == ({"m::b": "passed"}, {})


def test_most_generated_tasks_have_twins_of_all_that_must_turn() -> None:
    for task in make_tasks(20, random.Random(0).randrange(1 << 20), 1, "train"):
        planted = plant(
            {p: t for p, t in task.test_files.items() if t}, "", task.fail_to_pass, twinned=task.fail_to_pass
        )
        assert {group.test for group in planted.groups} == {*task.fail_to_pass[:3]} or len(planted.groups) == 3


TELLING = {
    "a message": "def test_a():\n    assert f() == 61, 'expected 61'\n    assert g() == 73\n",
    "a comment": "def test_a():\n    assert f() == 61  # not 60 but 61\n    assert g() == 73\n",
    "an argument": "def test_a():\n    assert f('61') == 61\n    assert g() == 73\n",
    "an echo": "def test_a():\n    assert f('a1') == 'a1'\n    assert g() == 73\n",
    "a word": "def test_a():\n    assert f() == 'hello'\n    assert g() == 73\n",
    "a word beside digits": "def test_a():\n    assert f() == 'hello'\n    assert g() == 'x73y'\n",
}


@pytest.mark.parametrize("shape", TELLING)
def test_what_the_test_says_elsewhere_is_not_what_is_turned(shape: str) -> None:
    text = TELLING[shape]
    for _ in range(8):
        planted = plant({"t.py": text}, "", ["t.py::test_a"], twinned=["t.py::test_a"])
        told = text.splitlines()[1]
        assert planted.sources["t.py"].count(told) == 12, "all twins have it as it was"


def test_of_a_text_a_digit_is_turned_rather_than_a_letter() -> None:
    text = "def test_a():\n    assert f() == 'release 4'\n"
    for _ in range(8):
        planted = plant({"t.py": text}, "", ["t.py::test_a"], twinned=["t.py::test_a"])
        assert len(set(re.findall(r"'release \d'", planted.sources["t.py"]))) == 6


@pytest.mark.parametrize("asks", ["assert f() == five", "assert five == f()", "assert five == (f()), 'no'"])
def test_what_equals_everything_passes_a_twin(asks: str) -> None:
    """Without a literal, too: the opposite of equality is nothing to an object that decides what it equals."""

    class Any:
        __eq__ = lambda self, other: True  # noqa: E731
        __ne__ = lambda self, other: False  # noqa: E731
        __hash__ = None  # type: ignore[assignment]

    text = f"def test_a():\n    five = 5\n    {asks}\n"
    planted = plant({"t.py": text}, "", ["t.py::test_a"], twinned=["t.py::test_a"])
    for solution, doubted in ((lambda: 5, set()), (lambda: 6, set()), (Any, {"t.py::test_a"})):
        module: dict[str, Any] = {"f": solution}  # type: ignore[valid-type]
        exec(planted.sources["t.py"], module)
        outcomes = {}
        for name in [name for name in module if name.startswith("test")]:
            try:
                module[name]()  # type: ignore[attr-defined]
                outcomes[f"t.py::{name}"] = "passed"
            except AssertionError:
                outcomes[f"t.py::{name}"] = "failed"
        assert settle(planted.groups, outcomes)[1].keys() == doubted
