"""Which task comes next: pass rates with counts, the pool of a stage, and a seeded sampler. Pure.

The stage-2 pool drops tasks that were never solved and tasks solved too often. Within the pool the sampler prefers
tasks whose groups are expected to carry signal: with pass rate p, a group of G has members that differ with
probability `1 - p^G - (1 - p)^G`. Every task keeps a floor of probability, so that none is judged for good by its
first groups. Draw number k depends on the seed, k and the pass rates only: a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

FLOOR_SHARE = 0.2
"""Share of the draws that is uniform over the pool."""
_PRIOR = 1.0  # one imagined success and one imagined failure a task
_UNIT = 1 << 20  # weight of a task that is sure to carry signal
_MASK = (1 << 64) - 1
_ROUNDS_KEPT = 2
_OF_SOURCES = 0x5DEECE66D  # draws of sources are others than draws of tasks


class PassRate(Struct, kw_only=True, array_like=True):
    """Accepted trajectories of a task, and how many of them resolved it."""

    num_runs: int = 0
    num_resolved: int = 0

    @property
    def rate(self) -> float:
        """Observed share; 0 without runs."""
        return self.num_resolved / self.num_runs if self.num_runs else 0.0

    @property
    def expected(self) -> float:
        """Posterior mean under a uniform prior."""
        return (self.num_resolved + _PRIOR) / (self.num_runs + 2 * _PRIOR)


def tasks_to_drop(rates: Mapping[str, PassRate], drop_solved_above: float, drop_unsolved: bool) -> list[str]:
    """Tasks that leave the pool at the start of a stage, by what earlier stages showed (the paper's stage-2 rule).

    A task that was never run stays. `drop_solved_above` = 1 keeps even those that were always solved.
    """
    return [
        task
        for task, seen in rates.items()
        if seen.num_runs
        and ((drop_unsolved and not seen.num_resolved) or (drop_solved_above < 1 and seen.rate >= drop_solved_above))
    ]


def signal(expected_rate: float, group_size: int) -> float:
    """Probability that a group's members do not all end alike."""
    return 1.0 - expected_rate**group_size - (1.0 - expected_rate) ** group_size


def uniform(seed: int, draw: int) -> float:
    """A number in [0, 1) for draw number `draw`: splitmix64 as a counter-based generator (Steele et al., 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (draw + 1) * 0xBF58476D1CE4E5B9) & _MASK
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = ((z ^ (z >> shift)) * factor) & _MASK
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


class WeightTree:
    """Weights of n things; changing one and finding the owner of a point on their sum both cost log n (Fenwick).

    Weights are whole numbers: a tree built after a restart equals one that was changed step by step.
    """

    def __init__(self, weights: Iterable[int]) -> None:
        self._weights = list(weights)
        self._tree = [0, *self._weights]
        for i in range(1, len(self._tree)):
            parent = i + (i & -i)
            if parent < len(self._tree):
                self._tree[parent] += self._tree[i]
        self._top = 1 << max(len(self._weights).bit_length() - 1, 0)

    @property
    def total(self) -> int:
        """Sum of the weights."""
        i, total = len(self._weights), 0
        while i:
            total += self._tree[i]
            i -= i & -i
        return total

    def __getitem__(self, index: int) -> int:
        return self._weights[index]

    def set(self, index: int, weight: int) -> None:
        """Change one weight."""
        change = weight - self._weights[index]
        self._weights[index] = weight
        i = index + 1
        while i < len(self._tree):
            self._tree[i] += change
            i += i & -i

    def find(self, point: float) -> int:
        """The index whose stretch of the summed weights holds `point`."""
        position, step = 0, self._top
        while step:
            ahead = position + step
            if ahead < len(self._tree) and self._tree[ahead] <= point:
                position = ahead
                point -= self._tree[ahead]
            step >>= 1
        return min(position, len(self._weights) - 1)


class Curriculum:
    """Draws tasks from a pool.

    Args:
        pool: task ids, in a fixed order.
        rates: pass rates seen so far, by task id.
        group_size: members of a group.
        seed: seed of the draws.
        adaptive: prefer tasks that carry signal; else shuffled rounds over the pool.
    """

    def __init__(
        self, pool: Sequence[str], rates: Mapping[str, PassRate], group_size: int, seed: int, adaptive: bool
    ) -> None:
        if not pool:
            raise ValueError("the task pool is empty: nothing can be drawn")
        self.pool = list(pool)
        self._index = {task: i for i, task in enumerate(self.pool)}
        self._group_size = group_size
        self._seed = seed
        self._adaptive = adaptive
        self._tree = WeightTree(self._weight(rates.get(task, PassRate())) for task in self.pool)
        self._orders: dict[int, list[int]] = {}  # of the last rounds that were asked for: draws are told ahead

    def update(self, task: str, seen: PassRate) -> None:
        """A task's pass rate changed."""
        index = self._index.get(task)
        if index is not None:
            self._tree.set(index, self._weight(seen))

    def draw(self, number: int) -> str:
        """The task of draw `number`."""
        if not self._adaptive:
            return self.pool[self._shuffled(number // len(self.pool))[number % len(self.pool)]]
        point = uniform(self._seed, number)
        if point < FLOOR_SHARE:
            return self.pool[int(point / FLOOR_SHARE * len(self.pool))]
        return self.pool[self._tree.find((point - FLOOR_SHARE) / (1 - FLOOR_SHARE) * self._tree.total)]

    def probability(self, task: str) -> float:
        """Chance that an adaptive draw gives `task`."""
        weight = self._tree[self._index[task]]
        return FLOOR_SHARE / len(self.pool) + (1 - FLOOR_SHARE) * weight / self._tree.total

    def chance(self, task: str) -> float:
        """That a draw gives `task`; 0 for one that is not in the pool."""
        if task not in self._index:
            return 0.0
        return self.probability(task) if self._adaptive else 1 / len(self.pool)

    def _weight(self, seen: PassRate) -> int:
        return 1 + round(signal(seen.expected, self._group_size) * _UNIT)

    def _shuffled(self, round_number: int) -> list[int]:
        if round_number not in self._orders:
            base = round_number * len(self.pool)
            keys = [uniform(self._seed, base + i) for i in range(len(self.pool))]
            self._orders[round_number] = sorted(range(len(self.pool)), key=keys.__getitem__)
            if len(self._orders) > _ROUNDS_KEPT:
                del self._orders[next(iter(self._orders))]
        return self._orders[round_number]


class Mixture:
    """Draws from several curricula by weight; each keeps its own order, rates and floor.

    Draw `k` of the run depends on the seed and `k` alone for its source, and is the source's own draw number `j` if `j`
    of the draws before it went there.

    Args:
        curricula: by source, each of a pool that is not empty.
        weights: by source.
    """

    def __init__(self, curricula: Mapping[str, Curriculum], weights: Mapping[str, float], seed: int) -> None:
        self._curricula = dict(curricula)
        self._names = sorted(curricula)
        total = sum(weights[name] for name in self._names)
        self._shares = [weights[name] / total for name in self._names]
        self._seed = seed ^ _OF_SOURCES
        self._drawn: list[tuple[str, int]] = []  # source and its own number, by draw
        self._counts = dict.fromkeys(self._names, 0)

    def update(self, task: str, seen: PassRate) -> None:
        """A task's pass rate changed."""
        for curriculum in self._curricula.values():
            curriculum.update(task, seen)

    def draw(self, number: int) -> str:
        """The task of draw `number`."""
        while len(self._drawn) <= number:
            name = self._source(len(self._drawn))
            self._drawn.append((name, self._counts[name]))
            self._counts[name] += 1
        name, own = self._drawn[number]
        return self._curricula[name].draw(own)

    def chance(self, task: str) -> float:
        """That a draw gives `task`."""
        shares = zip(self._names, self._shares, strict=True)
        return sum(share * self._curricula[name].chance(task) for name, share in shares)

    def _source(self, number: int) -> str:
        point = uniform(self._seed, number)
        for name, share in zip(self._names, self._shares, strict=True):
            point -= share
            if point < 0:
                return name
        return self._names[-1]
