"""Injected faults: small mutations of one function, made on the syntax tree and written into the text. Pure."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from msgspec import Struct

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "+",
    ast.FloorDiv: "*",
    ast.Div: "//",
    ast.Mod: "//",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.LShift: ">>",
    ast.RShift: "<<",
}
_DUNDERS_WORTH_BREAKING = frozenset(
    {"__init__", "__call__", "__iter__", "__next__", "__getitem__", "__len__", "__eq__"}
)


class Fault(Struct, frozen=True, kw_only=True):
    """One mutation: the text `old` at (line, column) of the module becomes `new`."""

    function: str  # qualified name inside its module
    kind: str
    line: int  # 1-based
    start: int  # offset in the module's bytes
    end: int
    old: str
    new: str


def find_faults(source: str) -> list[Fault]:
    """Every fault that could be injected into the functions of a module, in order of position.

    Positions in annotations, default values, decorators and docstrings are left alone. Raises `SyntaxError`.
    """
    lines = _Offsets(source)
    return sorted(
        (
            fault
            for name, function in _functions(ast.parse(source), "")
            for statement in function.body
            for fault in _faults_in(statement, name, lines)
        ),
        key=lambda fault: (fault.start, fault.kind),
    )


def inject(source: str, fault: Fault) -> str:
    """The module with the fault in it. Always another syntax tree; raises `SyntaxError` if it is not a module."""
    data = source.encode()
    broken = (data[: fault.start] + fault.new.encode() + data[fault.end :]).decode()
    if ast.dump(ast.parse(broken)) == ast.dump(ast.parse(source)):
        raise SyntaxError(f"{fault.old!r} -> {fault.new!r} changes nothing")
    return broken


class _Offsets:
    """Positions of syntax tree nodes as offsets in the module's bytes."""

    def __init__(self, source: str) -> None:
        self.data = source.encode()
        self._starts = [0]
        for line in self.data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def of(self, line: int, column: int) -> int:
        """Offset of a 1-based line and a column in bytes."""
        return self._starts[line - 1] + column

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Where a node starts and ends."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        return self.of(node.lineno, node.col_offset), self.of(node.end_lineno, node.end_col_offset)

    def text(self, start: int, end: int) -> str:
        """The text between two offsets."""
        return self.data[start:end].decode()


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            special = child.name.startswith("__") and child.name not in _DUNDERS_WORTH_BREAKING
            if not special:
                yield f"{prefix}{child.name}", child


def _faults_in(node: ast.AST, function: str, text: _Offsets) -> Iterator[Fault]:
    def fault(kind: str, line: int, start: int, end: int, new: str) -> Fault:
        return Fault(function=function, kind=kind, line=line, start=start, end=end, old=text.text(start, end), new=new)

    def between(left: ast.expr, right: ast.expr, kind: str, new: str) -> Iterator[Fault]:
        start, end = text.span(left)[1], text.span(right)[0]
        gap = text.text(start, end)
        if gap.strip().replace(" ", "").isprintable() and "(" not in gap and ")" not in gap and "\n" not in gap:
            yield fault(kind, left.lineno, start, end, f" {new} ")

    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield from between(node.left, node.comparators[0], "comparison", _COMPARE[type(node.ops[0])])
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC and not _is_text(node.left):
        yield from between(node.left, node.right, "arithmetic", _ARITHMETIC[type(node.op)])
    elif isinstance(node, ast.BoolOp):
        new = "or" if isinstance(node.op, ast.And) else "and"
        yield from between(node.values[0], node.values[1], "boolean", new)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        start, end = text.span(node)
        yield fault("negation", node.lineno, start, end, text.text(*text.span(node.operand)))
    elif isinstance(node, ast.Constant) and type(node.value) is int and not node.value >> 31:
        yield fault("off by one", node.lineno, *text.span(node), str(node.value + 1))
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield fault("flag", node.lineno, *text.span(node), str(not node.value))
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare | ast.Constant):
        start, end = text.span(node.test)
        yield fault("condition", node.lineno, start, end, f"not ({text.text(start, end)})")
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield fault("lost result", node.lineno, *text.span(node), "return None")
    elif isinstance(node, ast.Continue):
        yield fault("loop", node.lineno, *text.span(node), "break")
    elif isinstance(node, ast.Call) and len(node.args) == 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        (a, b), (c, d) = text.span(node.args[0]), text.span(node.args[1])
        swapped = text.text(c, d) + text.text(b, c) + text.text(a, b)
        yield fault("swapped arguments", node.lineno, a, d, swapped)
    elif isinstance(node, ast.AugAssign | ast.Expr) and not _is_text(getattr(node, "value", None)):
        call = isinstance(node, ast.AugAssign) or isinstance(node.value, ast.Call)
        if call:
            yield fault("lost statement", node.lineno, *text.span(node), "pass")

    for child in ast.iter_child_nodes(node):
        nested = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not isinstance(child, ast.arguments) and not (nested and not isinstance(node, ast.stmt)):
            yield from _faults_in(child, function, text)


def _is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
