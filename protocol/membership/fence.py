"""Fencing: of a part that was started again only the newest generation is heard. Pure, but for what a process does
when it learns that it was replaced.

The launcher counts the processes that it makes for one part: their generation. A process names itself in the identity
of every socket with which it asks; a server that has heard of a newer one, from it or from the launcher, refuses the
older one, and that ends. So leases, batches, submissions and versions of a part that comes back are accepted from
nobody but its newest process.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from msgspec import Struct

FENCED = "fenced"
"""Kind of the refusal."""
_IDENTITY = re.compile(rb"part/([A-Za-z0-9_.-]{1,100})/(\d{1,18})/[0-9a-f]{16}")


class Member(Struct, frozen=True):
    """A process of a run."""

    part: str  # its name in the plan
    generation: int  # how many processes were made for that part before it

    def identity(self) -> bytes:
        """Of a fresh socket."""
        return f"part/{self.part}/{self.generation}/{secrets.token_hex(8)}".encode()


def member_of(identity: bytes) -> Member | None:
    """Whose socket that is; None for one that names nobody."""
    found = _IDENTITY.fullmatch(identity)
    return Member(found[1].decode(), int(found[2])) if found else None


class Fence:
    """What one server knows of generations."""

    def __init__(self) -> None:
        self._newest: dict[str, int] = {}

    def raise_to(self, part: str, generation: int) -> None:
        """Nothing older of that part is heard from now on, for ever."""
        self._newest[part] = max(generation, self._newest.get(part, 0))

    def admits(self, member: Member | None) -> bool:
        """Whether a message may be taken; it also tells of its sender's generation. Who names no part may speak."""
        if member is None:
            return True
        self.raise_to(member.part, member.generation)
        return member.generation == self._newest[member.part]

    def newest(self, part: str) -> int:
        """The newest generation heard of, 0 if none."""
        return self._newest.get(part, 0)


_when_replaced: list[Callable[[str], None]] = []


def when_replaced(action: Callable[[str], None]) -> None:
    """Have this process do something when it is told that it was replaced; `action` is given the reason."""
    _when_replaced.append(action)


def replaced(reason: str) -> None:
    """A server refused this process as replaced."""
    for action in _when_replaced:
        action(reason)
