"""Families of faults: each makes one small function, as it should be and as it is, with a sentence and checks.

A family is a pure function of a random source and a supply of names. Broken and fixed source differ (or the fault is in
an import), every check passes on the fixed source, and at least one fails on the broken one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, Literal

from msgspec import Struct

_ARGUMENTS = [("a", "b"), ("x", "y"), ("m", "n")]
_OPERATORS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("sum", lambda a, b: a + b),
    "-": ("difference", lambda a, b: a - b),
    "*": ("product", lambda a, b: a * b),
    "//": ("quotient", lambda a, b: a // b),
    "%": ("remainder", lambda a, b: a % b),
}
_TELLING_PAIRS = [(7, 3), (9, 4), (11, 3)]  # every operator above gives another value
_COMPARISONS: dict[str, tuple[str, Callable[[int, int], bool]]] = {
    "<": ("less than", lambda a, b: a < b),
    ">": ("greater than", lambda a, b: a > b),
    "<=": ("at most", lambda a, b: a <= b),
    ">=": ("at least", lambda a, b: a >= b),
    "==": ("equal to", lambda a, b: a == b),
}
_ASYMMETRIC: list[tuple[str, str, Callable[[int, int], Any]]] = [
    ("pow", "{a} to the power {b}", lambda a, b: a**b),
    ("divmod", "the quotient and remainder of {a} by {b}", divmod),
]
_POSITIONS = {"[0]": ("first", 0), "[1]": ("second", 1), "[-1]": ("last", -1), "[-2]": ("last but one", -2)}


class Piece(Struct, frozen=True, kw_only=True):
    """One function of a repository."""

    name: str
    arguments: tuple[str, ...]
    broken: str  # source of the whole function
    fixed: str
    sentence: str  # what it must do, without its name: "must return the sum of a and b."
    checks: tuple[tuple[tuple[Any, ...], Any], ...]  # (call arguments, expected value)
    helper: Piece | None = None  # a function that this one imports
    fault: Literal["body", "import", "helper"] = "body"  # unless "body", broken and fixed are the same

    @property
    def call(self) -> str:
        """The function as an issue names it, `name(a, b)`."""
        return f"{self.name}({', '.join(self.arguments)})"


Family = Callable[[Random, Iterator[str]], Piece]


def _piece(
    name: str, arguments: tuple[str, ...], broken: str, fixed: str, sentence: str, checks: Any, **more: Any
) -> Piece:
    head = f"def {name}({', '.join(arguments)}):\n"
    return Piece(
        name=name,
        arguments=arguments,
        broken=head + broken,
        fixed=head + fixed,
        sentence=sentence,
        checks=tuple(checks),
        **more,
    )


def _other(r: Random, options: Any, chosen: Any) -> Any:
    return r.choice([option for option in options if option != chosen])


def wrong_value(r: Random, names: Iterator[str]) -> Piece:
    """Another word than the one asked for."""
    name, good, bad = next(names), next(names), next(names)
    return _piece(name, (), f'    return "{bad}"\n', f'    return "{good}"\n', f'must return "{good}".', [((), good)])


def wrong_sum(r: Random, names: Iterator[str]) -> Piece:
    """Another operator where `+` belongs."""
    return _operation(r, names, "+", "the sum of {a} and {b}")


def operator(r: Random, names: Iterator[str]) -> Piece:
    """`a - b` for `a % b`, asked for in words."""
    good = r.choice(list(_OPERATORS))
    return _operation(r, names, good, f"the {_OPERATORS[good][0]} of {{a}} and {{b}}")


def formula(r: Random, names: Iterator[str]) -> Piece:
    """`a - b` for `a % b`, asked for as it is written."""
    good = r.choice(list(_OPERATORS))
    return _operation(r, names, good, f"{{a}} {good} {{b}}")


def _operation(r: Random, names: Iterator[str], good: str, asked: str) -> Piece:
    bad = _other(r, _OPERATORS, good)
    a, b = r.choice(_ARGUMENTS)
    reference = _OPERATORS[good][1]
    return _piece(
        next(names),
        (a, b),
        f"    return {a} {bad} {b}\n",
        f"    return {a} {good} {b}\n",
        f"must return {asked.format(a=a, b=b)}.",
        [(pair, reference(*pair)) for pair in r.sample(_TELLING_PAIRS, 2)],
    )


def comparison(r: Random, names: Iterator[str]) -> Piece:
    """`a < b` for `a >= b`."""
    good = r.choice(list(_COMPARISONS))
    bad = _other(r, _COMPARISONS, good)
    a, b = r.choice(_ARGUMENTS)
    word, reference = _COMPARISONS[good]
    return _piece(
        next(names),
        (a, b),
        f"    return {a} {bad} {b}\n",
        f"    return {a} {good} {b}\n",
        f"must tell if {a} is {word} {b}.",
        [(pair, reference(*pair)) for pair in [(2, 3), (3, 2), (3, 3)]],
    )


def constant(r: Random, names: Iterator[str]) -> Piece:
    """Another number than the one asked for."""
    good = r.randint(2, 9)
    bad = _other(r, range(2, 10), good)
    a = r.choice(_ARGUMENTS)[0]
    sign, word = r.choice([("+", "plus"), ("-", "minus"), ("*", "times")])
    return _piece(
        next(names),
        (a,),
        f"    return {a} {sign} {bad}\n",
        f"    return {a} {sign} {good}\n",
        f"must return {a} {word} {good}.",
        [((value,), _OPERATORS[sign][1](value, good)) for value in r.sample(range(3, 12), 2)],
    )


def off_by_one(r: Random, names: Iterator[str]) -> Piece:
    """A range that ends, or begins, one too early or too late."""
    a = r.choice(_ARGUMENTS)[0]
    first, last, word = r.choice(
        [("1", f"{a} + 1", f"1 to {a}"), ("0", a, f"0 to {a} - 1"), ("2", f"{a} + 1", f"2 to {a}")]
    )
    wrong_last = a if last != a else r.choice([f"{a} + 1", f"{a} - 1"])
    start, stop = int(first), 0 if last == a else 1
    return _piece(
        next(names),
        (a,),
        f"    return list(range({first}, {wrong_last}))\n",
        f"    return list(range({first}, {last}))\n",
        f"must list the numbers from {word}.",
        [((value,), list(range(start, value + stop))) for value in (3, 6)],
    )


def wrong_index(r: Random, names: Iterator[str]) -> Piece:
    """Another item than the one asked for."""
    good = r.choice(list(_POSITIONS))
    bad = _other(r, _POSITIONS, good)
    a = r.choice(_ARGUMENTS)[0]
    word, position = _POSITIONS[good]
    return _piece(
        next(names),
        (a,),
        f"    return {a}{bad}\n",
        f"    return {a}{good}\n",
        f"must return the {word} item of {a}.",
        [((items,), items[position]) for items in ([4, 8, 15, 16, 23],)],
    )


def wrong_variable(r: Random, names: Iterator[str]) -> Piece:
    """The argument where the intermediate value belongs."""
    a, b = r.choice(_ARGUMENTS)
    sign = r.choice(["+", "-", "*"])
    word, reference = _OPERATORS[sign]
    factor = r.randint(2, 5)
    body = f"    c = {a} * {factor}\n"
    return _piece(
        next(names),
        (a, b),
        body + f"    return {a} {sign} {b}\n",
        body + f"    return c {sign} {b}\n",
        f"must return the {word} of {factor} times {a} and {b}.",
        [(pair, reference(pair[0] * factor, pair[1])) for pair in r.sample(_TELLING_PAIRS, 2)],
    )


def swapped_arguments(r: Random, names: Iterator[str]) -> Piece:
    """`pow(b, a)` for `pow(a, b)`."""
    a, b = r.choice(_ARGUMENTS)
    function, sentence, reference = r.choice(_ASYMMETRIC)
    return _piece(
        next(names),
        (a, b),
        f"    return {function}({b}, {a})\n",
        f"    return {function}({a}, {b})\n",
        f"must return {sentence.format(a=a, b=b)}.",
        [(pair, reference(*pair)) for pair in [(7, 3), (2, 5)]],
    )


def missing_branch(r: Random, names: Iterator[str]) -> Piece:
    """The special case that the issue asks for is not there."""
    a, b = r.choice(_ARGUMENTS)
    sign = r.choice(["//", "%"])
    word, reference = _OPERATORS[sign]
    value = r.randint(0, 4)
    body = f"    return {a} {sign} {b}\n"
    return _piece(
        next(names),
        (a, b),
        body,
        f"    if {b} == 0:\n        return {value}\n" + body,
        f"must return the {word} of {a} and {b}, but {value} if {b} is 0.",
        [((7, 0), value), ((7, 3), reference(7, 3))],
    )


def wrong_import(r: Random, names: Iterator[str]) -> Piece:
    """The helper is imported from a module that does not have it."""
    helper = operator(r, names)
    a, b = helper.arguments
    factor = r.randint(2, 5)
    body = f"    return {helper.call} * {factor}\n"
    return _piece(
        next(names),
        (a, b),
        body,
        body,
        f"must return {factor} times {helper.call}.",
        [(arguments, value * factor) for arguments, value in helper.checks],
        helper=helper,
        fault="import",
    )


FAMILIES: dict[str, Family] = {
    family.__name__: family
    for family in (
        wrong_sum,
        operator,
        formula,
        wrong_value,
        comparison,
        constant,
        off_by_one,
        wrong_index,
        wrong_variable,
        swapped_arguments,
        missing_branch,
        wrong_import,
    )
}


def behind(piece: Piece, name: str) -> Piece:
    """A function that only calls the faulty `piece`: an issue that names it does not say where the fault is."""
    body = f"    return {piece.call}\n"
    return _piece(name, piece.arguments, body, body, piece.sentence, piece.checks, helper=piece, fault="helper")
