"""Counters of a sandbox actor, under a clock of our own."""

from __future__ import annotations

import msgspec
import numpy as np

from actors.episodes.board import Board
from protocol.errors import SandboxError
from tiny.trajectories import random_trajectory


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_is_booked_to_the_state_it_was_spent_in() -> None:
    clock = Clock()
    board = Board(clock)
    for now, state in enumerate(["queued", "starting", "generating", "executing", "generating"]):
        clock.now = float(now)
        board.enter("a", state)
    clock.now = 10.0
    board.enter("b", "grading")
    clock.now = 12.0
    board.leave("a")
    figures = board.metrics()
    assert (figures["seconds_queued"], figures["seconds_starting"], figures["seconds_executing"]) == (1, 1, 1)
    assert figures["seconds_generating"] == 1 + 8
    assert figures["seconds_grading"] == 2  # still there: counted up to now
    assert (figures["episodes_running"], figures["episodes_grading"], figures["episodes_generating"]) == (1, 1, 0)


def test_failures_are_counted_by_label() -> None:
    board = Board(Clock())
    board.failed(SandboxError("x", kind="start"))
    board.failed(SandboxError("y", kind="start"))
    figures = board.metrics()
    assert figures["failed_sandbox_start"] == figures["episodes_failed"] == 2
    assert "reward_mean" not in figures


def test_leaving_twice_is_leaving() -> None:
    board = Board(Clock())
    board.leave("nobody")
    board.enter("a", "queued")
    board.leave("a")
    board.leave("a")
    assert board.metrics()["episodes_running"] == 0


def test_branches_and_drift_are_counted() -> None:
    board = Board(Clock())
    straight = random_trajectory(np.random.default_rng(0), 20)
    board.finished(straight)
    assert board.metrics()["branches_mean"] == 1
    arrays = {"segment_starts": np.array([0, 10], np.int32), "segment_parents": np.array([-1, 3], np.int32)}
    board.finished(msgspec.structs.replace(straight, drift={"template": 7}, **arrays))
    figures = board.metrics()
    assert figures["branches_mean"] == 1.5
    assert figures["drift_tokens_template"] == 7
