"""Whose KV an episode's next turn may reuse for its history."""

from __future__ import annotations

import numpy as np

from actors.policy import Sampled


class Prefix:
    """Of one episode.

    Args:
        version: the policy's at the episode's start.
        reuse_versions: see `GeneratorSettings`.

    Attributes:
        version: no KV of older weights is reused.
        salt: KV is shared only between prompts of the same salt.
    """

    def __init__(self, episode_id: str, version: int, reuse_versions: int | None) -> None:
        self._episode_id = episode_id
        self._reuse_versions = reuse_versions
        self.version = version
        self.salt = str(version)

    def reused(self, sampled: Sampled) -> int | None:
        """The oldest version whose KV may lie behind a turn that was just sampled, beyond what its own stamps say.

        Weights that changed between the prompt's first piece and the first token leave KV of the old ones, too.
        """
        changed = bool((sampled.versions[:1] > self.version).any())
        return self.version if sampled.num_cached_tokens or changed else None

    def saw(self, versions: np.ndarray) -> None:
        """A turn was sampled under `versions` (int32 [n]): if what would be reused has grown too old, it is not."""
        newest = int(versions.max(initial=self.version))
        if self._reuse_versions is not None and newest - self.version > self._reuse_versions:
            self.version = newest
            self.salt = f"{newest}/{self._episode_id}"  # its own: not every generator may serve this version yet
