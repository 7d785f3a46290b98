"""One rank alone: meeting, broadcasting and being fed, and what happens when the other side does not come."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from learner.ranks.feed import BatchFeed
from learner.ranks.group import RankGroup
from protocol.errors import DeadlineError, LearnerError
from protocol.messages import Batch, BatchRequest, BatchWait
from protocol.sockets import BlockingClient, Server
from tests.ports import free_port
from tiny.trajectories import random_batch


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def group(port: int) -> Iterator[RankGroup]:
    environment = dict(os.environ)
    group = RankGroup(0, 1, "127.0.0.1", port, sequence_parallel=1, start_timeout_s=60, timeout_s=60)
    yield group
    group.close()
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def replay(tmp_path: Path) -> Iterator[str]:
    """A server that has no batch for version 0 and one for version 1."""
    endpoint = f"ipc://{tmp_path}/replay"
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        server = Server(endpoint)
        try:
            async for peer, message in server:
                assert isinstance(message, BatchRequest)
                if message.version:
                    batch = random_batch(np.random.default_rng(0), [20, 30], group_size=2)
                    await server.send(peer, Batch(batch_id=message.version + 1, trajectories=batch))
                else:
                    await server.send(peer, BatchWait(retry_after_s=0.01, waiting_for="3 more of 64 trajectories"))
        finally:
            server.close()

    serving = loop.create_task(serve())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait([serving])))
    thread.start()
    yield endpoint
    loop.call_soon_threadsafe(serving.cancel)
    thread.join()
    loop.close()


@pytest.fixture
def client(replay: str) -> Iterator[BlockingClient]:
    client = BlockingClient(replay)
    yield client
    client.close()


def test_a_rank_that_never_comes_is_a_deadline_and_not_a_hang(port: int) -> None:
    with pytest.raises(DeadlineError, match=r"rank 0 waited 1 s at .* for all 2 learner ranks"):
        RankGroup(0, 2, "127.0.0.1", port, sequence_parallel=1, start_timeout_s=1, timeout_s=20)


def test_frames_come_through_a_broadcast_as_they_were(group: RankGroup) -> None:
    for frames in ([b"stop"], [b"", b"abc", b""], [bytes(range(256)) * 1000, b"x"]):
        assert group.broadcast_frames(list(frames)) == frames


def test_only_failures_of_collectives_are_blamed_on_other_ranks(group: RankGroup) -> None:
    with pytest.raises(RuntimeError, match="out of paper"), group.doing("printing"):
        raise RuntimeError("out of paper")
    with (
        pytest.raises(LearnerError, match="rank 0, adding up: all ranks are alive") as caught,
        group.doing("adding up"),
    ):
        raise RuntimeError("[gloo] Connection closed by peer")
    assert caught.value.kind == "rank_lost"


def test_the_feed_hands_on_a_batch_unchanged(group: RankGroup, client: BlockingClient) -> None:
    batch = BatchFeed(group, client, threading.Event(), silence_s=60).next(1)
    assert batch is not None
    expected = random_batch(np.random.default_rng(0), [20, 30], group_size=2)
    assert batch.batch_id == 2
    for got, sent in zip(batch.trajectories, expected, strict=True):
        assert (got.token_ids == sent.token_ids).all()
        assert (got.logprobs == sent.logprobs).all()


def test_a_waiting_feed_says_for_what_and_stops_when_told(group: RankGroup, client: BlockingClient) -> None:
    stop = threading.Event()
    feed = BatchFeed(group, client, stop, silence_s=60)
    seen = []

    def watch() -> None:
        while not feed.waiting_for:
            time.sleep(0.01)
        seen.append(feed.waiting_for)
        stop.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    assert feed.next(0) is None
    watcher.join()
    assert seen == ["3 more of 64 trajectories"]


def test_a_silent_replay_server_is_a_deadline(group: RankGroup, tmp_path: Path) -> None:
    nobody = BlockingClient(f"ipc://{tmp_path}/nobody")
    feed = BatchFeed(group, nobody, threading.Event(), silence_s=0.2, request_s=0.1)
    with pytest.raises(DeadlineError, match="the replay server was silent for"):
        feed.next(0)
    assert "an answer of the replay server" in feed.waiting_for
    nobody.close()
