"""Mutations change one place of one function, and always the program."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sandbox
from sandbox.curation.faults import find_faults, inject

SOURCE = '''
"""Module."""
LIMIT = 10


def clip(value: int, low: int = 0, high: int = LIMIT) -> int:
    """Docstring with 1 and 2."""
    if not value:
        return low
    for step in range(3):
        if step == value:
            continue
    total = 0
    total += value * 2
    print(max(total, high))
    return value if low < value and value <= high else max(low, min(high, value))


class Box:
    size = 1

    def __repr__(self):
        return "Box" + str(1)

    def grow(self, by):
        self.size = self.size + by
        return True
'''


def test_every_fault_changes_one_line_of_one_function() -> None:
    faults = find_faults(SOURCE)
    for fault in faults:
        broken = inject(SOURCE, fault)
        changed = [
            i for i, (a, b) in enumerate(zip(SOURCE.splitlines(), broken.splitlines(), strict=True), 1) if a != b
        ]
        assert changed == [fault.line]
        assert SOURCE.encode()[fault.start : fault.end].decode() == fault.old
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(SOURCE))
    assert {fault.function for fault in faults} == {"clip", "Box.grow"}


@pytest.mark.parametrize(
    ("kind", "new"),
    [
        ("comparison", "step != value"),
        ("boolean", "low < value or value <= high"),
        ("arithmetic", "value + 2"),
        ("negation", "if value:"),
        ("off by one", "range(4)"),
        ("flag", "return False"),
        ("lost result", "return None"),
        ("loop", "break"),
        ("swapped arguments", "max(high, total)"),
        ("lost statement", "    pass"),
        ("condition", "if not (not value)"),
    ],
)
def test_each_kind_of_fault(kind: str, new: str) -> None:
    broken = [inject(SOURCE, fault) for fault in find_faults(SOURCE) if fault.kind == kind]
    assert any(new in text and new not in SOURCE for text in broken)


def test_signatures_constants_and_docstrings_are_left_alone() -> None:
    body = SOURCE.index('"""Docstring with 1 and 2."""') + len('"""Docstring with 1 and 2."""')
    assert all(fault.start >= body for fault in find_faults(SOURCE))


def test_what_is_not_ascii_keeps_its_place() -> None:
    source = 'def f(x):\n    name = "äöü", x == 1\n    return name\n'
    assert 'def f(x):\n    name = "äöü", x != 1\n    return name\n' in [inject(source, f) for f in find_faults(source)]


def test_faults_of_real_modules_are_programs() -> None:
    modules = sorted(Path(sandbox.__file__).parent.rglob("s*.py"))
    num_faults = 0
    for path in modules:
        source = path.read_text()
        for fault in find_faults(source):
            try:
                ast.parse(inject(source, fault))
            except SyntaxError as error:
                assert "changes nothing" in str(error), fault
            num_faults += 1
    assert num_faults > 50
