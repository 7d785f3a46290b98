"""What a decoder is fed next, and whether its answer was one of its own."""

from __future__ import annotations

import random

from benchmarks.fuzz.mutations import mutated_bytes, mutated_tree
from benchmarks.fuzz.targets import Target

_MOST_NOISE = 400


def next_input(target: Target, rng: random.Random) -> bytes:
    """Bytes for `target`: of a tree that is nearly right, of bytes that are, or noise."""
    kind = rng.random()
    if target.seeds and kind < 0.7:
        tree = mutated_tree(rng, rng.choice(target.seeds))
        try:
            data = target.write(tree)
        except (TypeError, ValueError, OverflowError, RecursionError):
            data = b""  # no writer can say it
        return mutated_bytes(rng, data) if kind < 0.1 else data
    examples = [*target.raw, *(target.write(seed) for seed in target.seeds[:1])]
    if kind < 0.95:
        example = rng.choice(examples)
        return example if kind > 0.93 else mutated_bytes(rng, example)
    return rng.randbytes(rng.randint(0, _MOST_NOISE))


def feed(target: Target, data: bytes) -> bool:
    """Whether `target` took `data`; False: it refused it, as its boundary does. Anything else is raised."""
    try:
        target.read(data)
    except target.own:
        return False
    return True
