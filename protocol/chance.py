"""Chance that is the same for everybody who asks: which episodes are recorded, judged twice and the like."""

from __future__ import annotations

import hashlib


def draw(episode_id: str, what: str = "") -> float:
    """A number in [0, 1) that looks random over ids and is the same for one id whenever asked."""
    return int.from_bytes(hashlib.blake2b((episode_id + what).encode(), digest_size=4).digest()) / 2**32
