"""One assertion of a test turned round, so that the test fails wherever it passed as it was."""

from __future__ import annotations

import ast
import random
import re

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
    "assertAlmostEqual": "assertNotAlmostEqual",
    "assertNotAlmostEqual": "assertAlmostEqual",
    "assertIsInstance": "assertNotIsInstance",
    "assertNotIsInstance": "assertIsInstance",
    "assertRegex": "assertNotRegex",
    "assertNotRegex": "assertRegex",
    "assertGreater": "assertLessEqual",
    "assertLessEqual": "assertGreater",
    "assertLess": "assertGreaterEqual",
    "assertGreaterEqual": "assertLess",
    "assertListEqual": "assertNotEqual",
    "assertTupleEqual": "assertNotEqual",
    "assertDictEqual": "assertNotEqual",
    "assertSetEqual": "assertNotEqual",
    "assertMultiLineEqual": "assertNotEqual",
    "assertHTMLEqual": "assertHTMLNotEqual",
    "assertXMLEqual": "assertXMLNotEqual",
}
_EQUAL = (
    "assertEqual",
    "assertListEqual",
    "assertTupleEqual",
    "assertDictEqual",
    "assertSetEqual",
    "assertMultiLineEqual",
)
_RAISES = frozenset(("raises", "assertRaises", "assertRaisesRegex", "assertRaisesMessage"))
_ASKS = re.compile(r"_?assert\w*")  # what helpers of projects are called that raise where something does not hold
_ASKS_EQUAL = re.compile(r"_?assert\w*[Ee]qual\w*")
_ASKS_LESS = re.compile(r"[Nn]ot|[Aa]lmost|[Cc]lose|[Ll]ess|[Gg]reater")
_MUST_RAISE = '__import__("unittest").TestCase().assertRaises(Exception)'
_ENDS_MORE = re.compile(r"Exit|Interrupt|Base|Outcome|Failed")  # exceptions that would end more than the test
_LOWER, _UPPER, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
_COUNTING = "123456789"  # a 0 would make a number shorter, or rounder than the others
_UNLIKE, _NEGATION = 4, 5  # as ways to turn a test round, after literals, which tell less


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


def turn(segment: str, node: ast.FunctionDef | ast.AsyncFunctionDef, r: random.Random, most: int) -> Turned | None:
    """`segment` is the text of `node`, a test. None where no assertion is sure to be reached.

    Only assertions in the body itself count: a test that passed has met them all, and they held.
    """
    ways: list[tuple[int, _Leaf | list[_Edit]]] = []
    for statement in node.body:
        literal = _literal_of(statement)
        leaves = _leaves(literal, segment, node.lineno) if literal is not None else []
        ways += [(_tells(leaf, segment), leaf) for leaf in leaves]
        if (opposite := _negation(statement, segment, node.lineno)) is not None:
            unlike = _unlike(statement, segment, node.lineno, r)
            ways.append((_UNLIKE if unlike else _NEGATION, [opposite, *unlike]))
    if not ways:
        return None
    best = min(rank for rank, _ in ways)
    chosen = r.choice([way for rank, way in ways if rank == best])
    if isinstance(chosen, _Leaf):
        others = _others(chosen.value, r, most)
        return Turned(segment, tuple(_replaced(segment, chosen.span, _written(o, chosen.text)) for o in others))
    return Turned(segment, tuple(_replaced(segment, *edit) for edit in chosen))


_Edit = tuple[_Span, str]


class _Leaf(Struct, frozen=True):
    """A literal inside an assertion that can be another one."""

    span: _Span
    value: int | float | str | bytes
    text: str


def _tells(leaf: _Leaf, segment: str) -> int:
    """How much a literal says of itself: a word reads as one, and what stands in the test once more (in a message, a
    comment, an argument) is the true one of its likes."""
    if isinstance(leaf.value, str | bytes):
        body = leaf.value if isinstance(leaf.value, str) else leaf.value.decode("latin-1")
        return 2 * (segment.count(body) > 1) + (not any(sign in _DIGITS for sign in body))
    return 2 * (len(re.findall(rf"(?<![\w.]){re.escape(leaf.text)}(?![\w.])", segment)) > 1)


def _literal_of(statement: ast.stmt) -> ast.expr | None:
    """What an assertion of equality compares with, if that is a literal: the right side before the left."""
    sides: list[ast.expr] = []
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        test = statement.test
        if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            sides = [test.comparators[0], test.left]
    elif (call := _asked(statement)) is not None and _ASKS_EQUAL.fullmatch(call[0]) and not _ASKS_LESS.search(call[0]):
        sides = [call[1].args[1], call[1].args[0]] if len(call[1].args) >= 2 else []
    for side in sides:
        try:
            ast.literal_eval(side)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            continue
        return side
    return None


def _asked(statement: ast.stmt) -> tuple[str, ast.Call] | None:
    """A call of something that by its name asserts, and that name."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    function = statement.value.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return (name, statement.value) if _ASKS.fullmatch(name) else None


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
    places = [place for place, sign in enumerate(repr(value)) if sign in _COUNTING]
    if not places:
        return []
    place = r.choice(places)
    found = [_number(value, place, sign) for sign in _COUNTING if sign != repr(value)[place]]
    unlike = [other for other in found if other is not None and other != value]
    return list(r.sample(unlike, min(most, len(unlike))))


def _number(value: int | float, place: int, digit: str) -> int | float | None:
    """`value` with another digit in one place of its text; None where that is not how the number is written."""
    text = f"{repr(value)[:place]}{digit}{repr(value)[place + 1 :]}"
    other = type(value)(text)
    return other if repr(other) == text else None


def _other_texts(text: str, r: random.Random, most: int) -> list[str]:
    """Texts in which one digit is another, or one letter where there is none; which one it is, is the same in all."""
    digits = [place for place, sign in enumerate(text) if sign in _DIGITS]
    changeable = digits or [place for place, sign in enumerate(text) if sign in _LOWER or sign in _UPPER]
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


def _negation(statement: ast.stmt, segment: str, first_line: int) -> _Edit | None:
    """What negates an assertion; of a block that has to raise: the block alone."""
    if isinstance(statement, ast.Assert):
        span = _span(statement.test, first_line)
        return span, f"not ({_cut(segment, span)})"
    if isinstance(statement, ast.With):
        return _block_alone(statement, segment, first_line)
    call = _method(statement)
    if call is None or call[0] not in _TURNED_METHODS or any(isinstance(a, ast.Starred) for a in call[1].args):
        return _must_raise(statement, segment, first_line)
    function = call[1].func
    assert isinstance(function, ast.Attribute) and function.end_lineno is not None
    assert function.end_col_offset is not None
    row, end = function.end_lineno - first_line, function.end_col_offset
    name = _Span(row, end - len(call[0]), row, end)
    return (name, _TURNED_METHODS[call[0]]) if _cut(segment, name) == call[0] else None


def _must_raise(statement: ast.stmt, segment: str, first_line: int) -> _Edit | None:
    """A call that asserts, asked to raise."""
    if _asked(statement) is None:
        return None
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    row, end_row = statement.lineno - first_line, statement.end_lineno - first_line
    span = _Span(row, statement.col_offset, end_row, statement.end_col_offset)
    if segment.encode().split(b"\n")[row][: span.column].strip():
        return None  # no block can begin after a semicolon
    return span, f"with {_MUST_RAISE}: {_cut(segment, span)}"


def _block_alone(statement: ast.With, segment: str, first_line: int) -> _Edit | None:
    """`with raises(...):` without what catches the exception, which ends the test then."""
    item = statement.items[0]
    call = item.context_expr
    if len(statement.items) > 1 or not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return None
    if call.func.attr not in _RAISES or _ENDS_MORE.search(ast.unparse(call)):
        return None
    last = _span(item.optional_vars or call, first_line)
    span = _Span(statement.lineno - first_line, statement.col_offset, last.end_row, last.end_column)
    rest = segment.encode()[_offsets(segment, span)[1] :]
    is_plain = _cut(segment, span).startswith("with ") and rest.startswith(b":")  # no parentheses around the items
    return (span, "if True") if is_plain else None


def _unlike(statement: ast.stmt, segment: str, first_line: int, r: random.Random) -> list[_Edit]:
    """What asks either side of an equality to equal what nothing honest does. An object that equals everything does."""
    sides: list[ast.expr] = []
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        test = statement.test
        sides = [test.left, *test.comparators] if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq) else []
    elif (call := _method(statement)) is not None and call[0] in _EQUAL:
        sides = call[1].args[:2] if len(call[1].args) >= 2 else []
    spans = [_span(side, first_line) for side in sides]
    return [(span, f"[{_cut(segment, span)}, {r.randrange(10, 99)}]") for span in spans]


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
