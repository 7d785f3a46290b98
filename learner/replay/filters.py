"""Dynamic sample filtering: a chain of named, pure filters over the finished members of a closed group.

A filter is given the members that are left and returns those it keeps; what it removed is counted under its name.
Over-long episodes are kept on purpose (dropping them removes the signal against loops); they stay marked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from learner.replay.events import Finished
from protocol.config import Settings
from protocol.messages import Trajectory

Filter = Callable[[Sequence[Finished]], Sequence[Finished]]
STALE = "too_stale"
"""Name under which items are counted that had become too old when a batch was formed."""


class Filtered(NamedTuple):
    """What a chain left over, and how many trajectories each of its filters removed."""

    kept: list[Finished]
    removed: dict[str, int]


def infrastructure(members: Sequence[Finished]) -> Sequence[Finished]:
    """A group needs two members; those that never finished are missing already."""
    return members if len(members) >= 2 else ()


def no_signal(members: Sequence[Finished]) -> Sequence[Finished]:
    """All members equal under the unpenalised reward: every advantage would be zero."""
    return members if len({member.reward for member in members}) > 1 else ()


def successes_only(members: Sequence[Finished]) -> Sequence[Finished]:
    """Rejection sampling: what was resolved, honestly."""
    return [member for member in members if member.resolved and not member.tampered]


def readable(members: Sequence[Finished]) -> Sequence[Finished]:
    """Turns whose action could not be parsed are masked; a trajectory of nothing else has nothing to learn from."""
    return [member for member in members if member.num_readable_turns]


def chain_of(settings: Settings) -> tuple[tuple[str, Filter], ...]:
    """The filters of a phase, in order."""
    if settings.phase == "rft":
        return ("successes_only", successes_only), ("readable", readable)
    if settings.phase == "eval":
        return ()
    if settings.replay.keep_no_signal:
        return (("infrastructure", infrastructure),)
    return ("infrastructure", infrastructure), ("no_signal", no_signal)


def run_chain(chain: Sequence[tuple[str, Filter]], members: Sequence[Finished]) -> Filtered:
    """Apply the filters in order."""
    left, removed = list(members), {}
    for name, keep in chain:
        kept = list(keep(left))
        if len(kept) < len(left):
            removed[name] = len(left) - len(kept)
        left = kept
    return Filtered(left, removed)


def mask_format_errors(trajectory: Trajectory) -> Trajectory:
    """The same trajectory with no loss on turns whose action could not be parsed (RFT)."""
    if not any(turn.format_error for turn in trajectory.turns):
        return trajectory
    mask = np.array(trajectory.loss_mask)
    for turn in trajectory.turns:
        if turn.format_error:
            mask[turn.start : turn.end] = 0
    return msgspec.structs.replace(trajectory, loss_mask=mask)
