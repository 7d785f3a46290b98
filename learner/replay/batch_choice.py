"""Which of the ready items go into a batch: the oldest, and among equals those that fill the learner's micro-batches.

Only items whose oldest tokens are of one version change places, so no choice makes anything staler, and nothing waits
longer than its version: older versions always go first. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from learner.packing import plan_bins
from learner.replay.state import Item

_MOST_TRIED = 8
"""Exchanges whose micro-batches are really planned."""
_MOST_LOOKED_AT = 64
"""Items on either side of an exchange, and micro-batches past which one more or less no longer matters."""


def choose(ready: Mapping[int, Sequence[Item]], places: int, budget: int) -> list[Item]:
    """Items for a batch, oldest version first.

    Args:
        ready: items by oldest version, in the order they came; together they fill at least `places`.
        places: of the batch.
        budget: most tokens of one of the learner's micro-batches.
    """
    chosen: list[Item] = []
    taken = 0
    for version in sorted(ready):
        for item in ready[version]:
            if taken >= places:
                break
            chosen.append(item)
            taken += item.places
    newest = ready[chosen[-1].oldest]
    num_newest = sum(item.oldest == chosen[-1].oldest for item in chosen)
    return _filled(chosen, num_newest, newest[num_newest:], budget)


def _filled(chosen: list[Item], num_free: int, spare: Sequence[Item], budget: int) -> list[Item]:
    """`chosen` with at most one of its last `num_free` items exchanged for a spare one."""
    total = sum(map(num_tokens, chosen))
    if total > _MOST_LOOKED_AT * budget:
        return chosen
    free = range(len(chosen) - num_free, len(chosen))[-_MOST_LOOKED_AT:]
    others = spare[:_MOST_LOOKED_AT]
    exchanges = [(i, other) for i in free for other in others if other.places == chosen[i].places]

    def unused(exchange: tuple[int, Item]) -> int:
        i, other = exchange
        return -(total - num_tokens(chosen[i]) + num_tokens(other)) % budget

    best, best_share = chosen, used_share(chosen, budget)
    for i, other in sorted(exchanges, key=unused)[:_MOST_TRIED]:
        candidate = [*chosen[:i], other, *chosen[i + 1 :]]
        share = used_share(candidate, budget)
        if share > best_share:
            best, best_share = candidate, share
    return best


def num_tokens(item: Item) -> int:
    """Tokens of all its trajectories."""
    return sum(member.num_tokens for member in item.finished)


def used_share(items: Sequence[Item], budget: int) -> float:
    """Share of the micro-batches' room that the items' tokens fill when they are packed into as few as possible."""
    lengths = [min(member.num_tokens, budget) for item in items for member in item.finished]
    return sum(lengths) / (budget * len(plan_bins(lengths, 1, budget)))
