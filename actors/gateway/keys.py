"""One key a lease: it names the episode, is made when the episode starts and dies with it."""

from __future__ import annotations

import secrets
from collections import Counter, OrderedDict
from typing import Generic, TypeVar

from actors.gateway.asks import Refusal

T = TypeVar("T")

PREFIX = "lh-"
MOST_DEAD = 4096  # dead keys that are still told from wrong ones


class KeyRing(Generic[T]):
    """Keys and what they open. Pure.

    Attributes:
        refused: how many were refused, by reason: missing, wrong, expired, foreign.
    """

    def __init__(self) -> None:
        self._open: dict[str, T] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()
        self.refused: Counter[str] = Counter()

    def make(self, opens: T, key: str | None = None) -> str:
        """A new key, or one that was made elsewhere."""
        key = key or f"{PREFIX}{secrets.token_hex(24)}"
        self._open[key] = opens
        return key

    def end(self, key: str) -> None:
        """The key opens nothing any more."""
        if self._open.pop(key, None) is not None:
            self._dead[key] = None
            while len(self._dead) > MOST_DEAD:
                self._dead.popitem(last=False)

    def find(self, key: str | None, home: str | None = None) -> T:
        """What a key opens. Raises `Refusal` (401).

        Args:
            home: the only key that may come this way (from inside one sandbox).
        """
        if not key:
            raise self._refuse("missing", "no API key: send it as a bearer token, as x-api-key, or in the path")
        if home is not None and not secrets.compare_digest(key.encode(errors="replace"), home.encode()):
            raise self._refuse("foreign", "this API key is not this sandbox's")
        if key in self._open:
            return self._open[key]
        if key in self._dead:
            raise self._refuse("expired", "this API key's episode is over")
        raise self._refuse("wrong", "invalid API key")

    def _refuse(self, reason: str, message: str) -> Refusal:
        self.refused[reason] += 1
        return Refusal("unauthorized", message)

    def __len__(self) -> int:
        return len(self._open)
