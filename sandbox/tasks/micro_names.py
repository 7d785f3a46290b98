"""Made-up names for functions and modules; those of the held-out split are never seen in training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from random import Random
from typing import Literal, get_args

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

_STARTS = "ba ce di fo gu ha jo ki lu me ni po qua ro su ta vi wo xe ya ze bri cla dro".split()  # noqa: SIM905
_MIDDLES = "ra lo ni su ke va".split()  # noqa: SIM905
_ENDS = "lar min tok ver dex nal pit sor gam hun fel cus".split()  # noqa: SIM905


def all_names(split: Split) -> list[str]:
    """Every name of a split, in a fixed order. The parts of a name are seen in both splits, the whole in one only."""
    parts = itertools.product(enumerate(_STARTS), enumerate(_MIDDLES), enumerate(_ENDS))
    names = [(i + j + k, start + middle + end) for (i, start), (j, middle), (k, end) in parts]
    return [name for place, name in names if (place % 4 == 0) == (split == "heldout")]


def draw_names(r: Random, split: Split) -> Iterator[str]:
    """Distinct names of a split in random order; enough for one repository."""
    pool = all_names(split)
    return iter(r.sample(pool, len(pool)))
