"""Bytes that are nearly right: valid trees with a node or two replaced, and valid bytes with a few of them changed."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec

Tree = Any
"""What JSON or msgpack hold."""

_MOST_BYTES = 1 << 16
_ODD: tuple[Tree, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    255,
    1 << 31,
    (1 << 63) - 1,
    -(1 << 63),
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
    "",
    "\0",
    "a\0b",
    "../../etc/passwd",
    "/",
    "x" * 300,
    "\u202e\U0001f600",
    "<|im_end|>",
    [],
    {},
    [[[[]]]],
    {"": {"": []}},
    [0] * 100,
    ["a", "a"],
)


def mutated_tree(rng: random.Random, tree: Tree) -> Tree:
    """`tree` with up to three of its nodes replaced, taken away, doubled or put elsewhere."""
    copy = _copied(tree)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(copy))
        if not places:
            return rng.choice(_ODD)
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1:
                other, name = rng.choice(places)
                holder[key] = _copied(other[name]) if _has(other, name) else None
            case 2 if isinstance(holder, list):
                holder.insert(key, _copied(holder[key]))
            case 2 | 3 if isinstance(holder, dict):
                holder[rng.choice(("", "extra", str(key) + "_"))] = holder.pop(key)
            case _:
                holder[key] = _copied(rng.choice(_ODD))
    return copy


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, taken away, doubled or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(changed))
        size = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(5):
            case 0:
                changed[at : at + size] = rng.randbytes(size)
            case 1:
                del changed[at : at + size]
            case 2:
                changed[at:at] = changed[at : at + size] * rng.choice((1, 2, 30))
            case 3:
                changed[at : at + size] = rng.choice((b"\xff", b"\x00", b"\x7f", b"[", b"{", b'"', b"\\")) * size
            case _:
                del changed[at:]
    return bytes(changed[:_MOST_BYTES])


def as_json(tree: Tree) -> bytes:
    """JSON of a tree, with what only lax writers write (NaN)."""
    return json.dumps(tree, default=str).encode()


def as_msgpack(tree: Tree) -> bytes:
    """msgpack of a tree."""
    return msgspec.msgpack.encode(tree)


def _copied(tree: Tree) -> Tree:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _places(tree: Tree) -> Any:
    """Every (holder, key) in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield tree, key
        yield from _places(value)


def _has(holder: Tree, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)
