"""One assertion of a test turned round, so that the test fails wherever it passed as it was."""

from __future__ import annotations

import ast
import random

from msgspec import Struct

_TURNED_METHODS = {
    "assertTrue": "assertFalse",
    "assertFalse": "assertTrue",
    "assertEqual": "assertNotEqual",
    "assertNotEqual": "assertEqual",
    "assertIs": "assertIsNot",
    "assertIsNot": "assertIs",
    "assertIsNone": "assertIsNotNone",
    "assertIsNotNone": "assertIsNone",
    "assertIn": "assertNotIn",
    "assertNotIn": "assertIn",
}
_LOWER, _UPPER, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
_MAX_TRIES = 40


class Turned(Struct, frozen=True):
    """A test as it was, and texts of it that must fail."""

    true: str
    texts: tuple[str, ...]


class _Span(Struct, frozen=True):
    """Part of one line or of several: rows from 0 within the test, columns in bytes of UTF-8."""

    row: int
    column: int
    end_row: int
    end_column: int


def turn(segment: str, node: ast.FunctionDef, r: random.Random, most: int) -> Turned | None:
    """`segment` is the text of `node`, a test. None where no assertion is sure to be reached.

    Only assertions in the body itself count: a test that passed has met them all, and they held.
    """
    ways: list[tuple[int, _Leaf | list[tuple[_Span, str]]]] = []
    for statement in node.body:
        literal = _literal_of(statement)
        leaves = _leaves(literal, segment, node.lineno) if literal is not None else []
        ways += [(0, leaf) for leaf in leaves]
        if (change := _negation(statement, segment, node.lineno)) is not None:
            ways.append((1, change))
    if not ways:
        return None
    best = min(rank for rank, _ in ways)
    chosen = r.choice([way for rank, way in ways if rank == best])
    if isinstance(chosen, _Leaf):
        others = _others(chosen.value, r, most)
        return Turned(segment, tuple(_replaced(segment, chosen.span, _written(o, chosen.text)) for o in others))
    text = segment
    for span, new in sorted(chosen, key=lambda edit: (edit[0].row, edit[0].column), reverse=True):
        text = _replaced(text, span, new)
    return Turned(segment, (text,))


class _Leaf(Struct, frozen=True):
    """A literal inside an assertion that can be another one."""

    span: _Span
    value: int | float | str | bytes
    text: str


def _literal_of(statement: ast.stmt) -> ast.expr | None:
    """What an assertion of equality compares with, if that is a literal: the right side before the left."""
    sides: list[ast.expr] = []
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        test = statement.test
        if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            sides = [test.comparators[0], test.left]
    elif (call := _method(statement)) is not None and call[0] == "assertEqual":
        sides = [call[1].args[1], call[1].args[0]] if len(call[1].args) >= 2 else []
    for side in sides:
        try:
            ast.literal_eval(side)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        return side
    return None


def _method(statement: ast.stmt) -> tuple[str, ast.Call] | None:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    function = statement.value.func
    own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self"
    return (function.attr, statement.value) if own and isinstance(function, ast.Attribute) else None


def _leaves(literal: ast.expr, segment: str, first_line: int) -> list[_Leaf]:
    """The parts of a literal that stand on one line and are written plainly."""
    leaves = []
    for part in ast.walk(literal):
        if not isinstance(part, ast.Constant) or isinstance(part.value, bool) or not part.value:
            continue  # of nothing (0, "") there is no like
        if not isinstance(part.value, int | float | str | bytes):
            continue
        span = _span(part, first_line)
        text = _cut(segment, span)
        if span.row == span.end_row and _is_plain(text, part.value) and _others(part.value, random.Random(0), 1):
            leaves.append(_Leaf(span, part.value, text))
    return leaves


def _is_plain(text: str, value: int | float | str | bytes) -> bool:
    if isinstance(value, str | bytes):
        body = text.removeprefix("b")
        plain = len(body) == len(value) + 2 and body[:1] in "'\"" and "\\" not in body
        return plain and (isinstance(value, bytes) == text.startswith("b"))
    return text == repr(value)


def _others(value: int | float | str | bytes, r: random.Random, most: int) -> list[int | float | str | bytes]:
    """Unlike values of the same look, unequal to `value` and to each other, whatever case or spaces count for."""
    if isinstance(value, bytes):
        return [other.encode("latin-1") for other in _other_texts(value.decode("latin-1"), r, most)]
    if isinstance(value, str):
        return list(_other_texts(value, r, most))
    step = r.randrange(1, max(3, abs(int(value)) // 4) + 1) if abs(value) < 1e15 else 1
    below = min(r.randrange(most + 1), int(value) // step) if value > 0 else 0
    ladder = [value + step * (place - below) for place in range(most + 1)]
    found: list[int | float | str | bytes] = [other for other in ladder if other != value]
    return r.sample(found, len(found))


def _other_texts(text: str, r: random.Random, most: int) -> list[str]:
    """Texts in which one letter or digit is another; which one it is, is the same in all."""
    changeable = [place for place, sign in enumerate(text) if any(sign in kind for kind in (_LOWER, _UPPER, _DIGITS))]
    if not changeable:
        return []
    place = r.choice(changeable)
    kind = next(kind for kind in (_LOWER, _UPPER, _DIGITS) if text[place] in kind)
    signs = r.sample([sign for sign in kind if sign != text[place]], most)
    return [text[:place] + sign + text[place + 1 :] for sign in signs]


def _written(value: int | float | str | bytes, like: str) -> str:
    if isinstance(value, str | bytes):
        body = value if isinstance(value, str) else value.decode("latin-1")
        start = like.index(like[-1])
        return f"{like[:start]}{like[-1]}{body}{like[-1]}"
    return repr(value)


def _negation(statement: ast.stmt, segment: str, first_line: int) -> list[tuple[_Span, str]] | None:
    """Edits that negate an assertion."""
    if isinstance(statement, ast.Assert):
        span = _span(statement.test, first_line)
        return [(span, f"not ({_cut(segment, span)})")]
    call = _method(statement)
    if call is None or call[0] not in _TURNED_METHODS or any(isinstance(a, ast.Starred) for a in call[1].args):
        return None
    function = call[1].func
    assert isinstance(function, ast.Attribute) and function.end_lineno is not None
    assert function.end_col_offset is not None
    row, end = function.end_lineno - first_line, function.end_col_offset
    name = _Span(row, end - len(call[0]), row, end)
    return [(name, _TURNED_METHODS[call[0]])] if _cut(segment, name) == call[0] else None


def _span(node: ast.expr, first_line: int) -> _Span:
    assert node.end_lineno is not None and node.end_col_offset is not None
    return _Span(node.lineno - first_line, node.col_offset, node.end_lineno - first_line, node.end_col_offset)


def _offsets(segment: str, span: _Span) -> tuple[int, int]:
    starts = [0]
    for line in segment.encode().split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts[span.row] + span.column, starts[span.end_row] + span.end_column


def _cut(segment: str, span: _Span) -> str:
    first, last = _offsets(segment, span)
    return segment.encode()[first:last].decode()


def _replaced(segment: str, span: _Span, new: str) -> str:
    first, last = _offsets(segment, span)
    raw = segment.encode()
    return (raw[:first] + new.encode() + raw[last:]).decode()
