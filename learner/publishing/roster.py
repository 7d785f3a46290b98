"""Who serves which version: the publisher's view of the generators, a pure state machine."""

from __future__ import annotations

from msgspec import Struct

from protocol.messages import WeightsPoll

SILENT_AFTER_S = 10.0
"""A generator polls at least once a second, also while it takes a version."""
_KEPT_CHECKSUMS = 64


class _Generator(Struct):
    version: int
    seen_at: float
    taking: int | None = None
    failure: str = ""


class Roster:
    """Times are `time.monotonic` seconds.

    Args:
        expected: nothing counts as adopted before so many generators have joined.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._generators: dict[str, _Generator] = {}
        self._checksums: dict[int, str] = {}
        self._complete = expected == 0  # whether all expected ones have been here
        self._reported = -1
        self.num_lost = 0

    def __len__(self) -> int:
        return len(self._generators)

    def published(self, version: int, checksum: str) -> None:
        """`version` may be adopted from now on."""
        self._checksums[version] = checksum
        while len(self._checksums) > _KEPT_CHECKSUMS:
            del self._checksums[min(self._checksums)]

    def heard(self, poll: WeightsPoll, now: float) -> None:
        """A generator asked, which says what it serves."""
        taking = poll.taking if poll.taking >= 0 else None
        state = _Generator(version=poll.version, seen_at=now, taking=taking, failure=poll.failure)
        expected = self._checksums.get(poll.version)
        if not poll.failure and expected is not None and poll.checksum != expected:
            state.failure = f"serves version {poll.version} with checksum {poll.checksum}, the learner has {expected}"
        self._generators[poll.generator] = state
        self._complete = self._complete or len(self._generators) >= self._expected

    def offered(self, generator: str, version: int) -> None:
        """`generator` is about to take `version`."""
        if state := self._generators.get(generator):
            state.taking = version

    def drop_silent(self, now: float) -> None:
        """Forget generators that have not been heard of for too long; a restarted one joins again."""
        self.drop([name for name, g in self._generators.items() if now > g.seen_at + SILENT_AFTER_S])

    def drop(self, names: list[str]) -> None:
        """Forget generators."""
        for name in names:
            del self._generators[name]
            self.num_lost += 1

    def readers_of(self, version: int | None) -> list[str]:
        """Generators that may be reading the bytes of `version` (None: no bytes, no readers)."""
        return [] if version is None else [name for name, g in self._generators.items() if g.taking == version]

    def adopted(self, version: int) -> bool:
        """Whether every live generator serves `version` or a newer one."""
        return version in self._checksums and not self.missing(version)

    def missing(self, version: int) -> str:
        """Who keeps `version` from being adopted; empty when nobody does."""
        if not self._complete:
            return f"{len(self._generators)} of {self._expected} generators have joined"
        if not self._generators:
            return "no generator is alive"
        late = [f"{name} serves {g.version}" for name, g in self._generators.items() if g.version < version]
        return ", ".join(sorted(late))

    def newly_adopted(self) -> int | None:
        """The newest version that everybody serves, if that has not been told before."""
        if not self._complete or not self._generators or self.failure():
            return None
        version = min(g.version for g in self._generators.values())
        if version <= self._reported or version not in self._checksums:
            return None
        self._reported = version
        return version

    def failure(self) -> str:
        """The first generator that gave up, and why; empty when none did."""
        return next((f"{name}: {g.failure}" for name, g in self._generators.items() if g.failure), "")
