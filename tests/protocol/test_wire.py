import asyncio

import msgspec
import numpy as np
import pytest
from msgspec import Struct

from protocol.errors import ConfigError, DeadlineError, WireError
from protocol.messages import LeaseReply, LeaseRequest, Refused, Submit, Tokens, Trajectory, Turn
from protocol.sockets import BlockingClient, Client, Keys, Server
from protocol.wire import Codec

LONG_S = 60


def trajectory(num_tokens: int = 7) -> Trajectory:
    return Trajectory(
        episode_id="g/0",
        lease_id="l",
        task_id="t",
        group_id="g",
        member=0,
        attempt=1,
        resolved=True,
        reward=1.0,
        end_reason="submitted",
        turns=[Turn(start=2, end=5, format_error=True)],
        token_ids=np.arange(num_tokens, dtype=np.int32),
        loss_mask=np.array([0, 0, 1, 1, 1, 0, 0], np.uint8)[:num_tokens],
        logprobs=np.linspace(-1, 0, num_tokens, dtype=np.float32),
        versions=np.array([-1, -1, 4, 4, 5, -1, -1], np.int32)[:num_tokens],
        started_at=1.5,
        finished_at=2.5,
    )


def as_tree(straight: Trajectory) -> Trajectory:
    arrays = {"segment_starts": np.array([0, 4], np.int32), "segment_parents": np.array([-1, 2], np.int32)}
    return msgspec.structs.replace(straight, drift={"template": 3}, **arrays)


class BeforeTrees(Struct, frozen=True, kw_only=True):
    """A trajectory as it was written before histories could branch."""

    episode_id: str
    lease_id: str
    task_id: str
    group_id: str
    member: int
    attempt: int
    resolved: bool
    reward: float
    end_reason: str
    turns: list[Turn]
    token_ids: np.ndarray
    loss_mask: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    started_at: float
    finished_at: float
    tampered: bool = False
    overlong: bool = False


def test_what_was_written_before_there_were_trees_is_read_and_a_straight_history_is_no_longer():
    codec = Codec()
    straight = trajectory()
    old = BeforeTrees(**{name: getattr(straight, name) for name in BeforeTrees.__struct_fields__})
    before = codec.encode(Submit(actor="a", trajectory=old))
    now = codec.encode(Submit(actor="a", trajectory=straight))
    assert sum(map(len, now)) <= sum(map(len, before))
    assert len(now) == len(before)
    got = codec.decode(before).trajectory
    assert got.token_ids.tolist() == straight.token_ids.tolist()
    assert got.segment_starts is got.segment_parents is None
    assert got.drift == {}


@pytest.mark.parametrize("of", [trajectory(), as_tree(trajectory())])
def test_round_trip_keeps_every_field_and_array(of):
    codec = Codec()
    sent = Submit(actor="a", trajectory=of)
    got = codec.decode(codec.encode(sent))
    assert isinstance(got, Submit)
    for name in Trajectory.__struct_fields__:
        left, right = getattr(sent.trajectory, name), getattr(got.trajectory, name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            assert left.tolist() == right.tolist()
        else:
            assert left == right
    assert got.trajectory.oldest_version == 4


def test_decoding_copies_nothing_and_is_read_only():
    codec = Codec()
    frames = [bytes(f) for f in codec.encode(Submit(actor="a", trajectory=trajectory()))]
    got = codec.decode(frames)
    assert isinstance(got, Submit)
    ids = got.trajectory.token_ids
    assert np.shares_memory(ids, np.frombuffer(frames[1], np.uint8))
    with pytest.raises(ValueError, match="read-only"):
        ids[0] = 1


def test_empty_arrays_travel():
    codec = Codec()
    empty = Tokens(
        request_id="r",
        token_ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        versions=np.zeros(0, np.int32),
    )
    got = codec.decode(codec.encode(empty))
    assert isinstance(got, Tokens)
    assert got.token_ids.shape == (0,)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lambda f: [], "malformed"),
        (lambda f: [b"XX" + bytes(f[0])[2:], *f[1:]], "malformed"),
        (lambda f: [b"LH\x63\x00" + bytes(f[0])[4:], *f[1:]], "version"),
        (lambda f: [bytes(f[0])[:-3], *f[1:]], "malformed"),
        (lambda f: f[:2], "malformed"),
        (lambda f: [f[0], b"123", *f[2:]], "malformed"),
        (lambda f: [*f, *[b""] * 100], "size"),
        (lambda f: [*f, b"x" * 5000], "size"),
        (lambda f: [b"LH\x01\x00\x81\xa4type\xa5Bogus"], "malformed"),
        (lambda f: [b"LH\x01\x00" + b"\x91" * 900], "malformed"),
    ],
)
def test_damaged_messages_are_one_wire_error(damage, kind):
    codec = Codec(max_bytes=4096, max_frames=32)
    frames = damage(codec.encode(Submit(actor="a", trajectory=trajectory())))
    with pytest.raises(WireError) as caught:
        codec.decode(frames)
    assert caught.value.kind == kind


def test_unknown_dtype_is_refused_when_sent():
    bad = Tokens(
        request_id="r",
        token_ids=np.zeros(1, np.complex64),
        logprobs=np.zeros(1, np.float32),
        versions=np.zeros(1, np.int32),
    )
    with pytest.raises(WireError, match="complex64"):
        Codec().encode(bad)


@pytest.fixture(params=["ipc", "tcp", "curve"])
def endpoint(request, tmp_path):
    if request.param == "ipc":
        return f"ipc://{tmp_path}/s", None
    return "tcp://127.0.0.1:*", Keys.generate() if request.param == "curve" else None


async def echo(server: Server) -> None:
    async for peer, message in server:
        assert isinstance(message, LeaseRequest)
        if message.capacity == 0:
            await server.send(peer, Refused(kind="replay.test", reason="no room"))
        elif message.capacity > 0:
            await asyncio.sleep(0.002 * (message.capacity % 7))
            await server.send(peer, LeaseReply(leases=[], retry_after_s=message.capacity))


async def test_many_requests_at_once_each_get_their_own_answer(endpoint):
    address, keys = endpoint
    server = Server(address, keys)
    serving = asyncio.create_task(echo(server))
    async with Client(server.endpoint, keys) as client:
        replies = await asyncio.gather(
            *(client.request(LeaseRequest(actor="a", capacity=n), timeout_s=LONG_S) for n in range(1, 50))
        )
        assert [r.retry_after_s for r in replies] == list(range(1, 50))
        with pytest.raises(WireError, match="no room"):
            await client.request(LeaseRequest(actor="a", capacity=0), timeout_s=LONG_S)
        with pytest.raises(DeadlineError, match=r"LeaseRequest within 0\.1 s"):
            await client.request(LeaseRequest(actor="a", capacity=-1), timeout_s=0.1)
    serving.cancel()
    server.close()


async def test_a_client_with_other_keys_gets_no_answer():
    server = Server("tcp://127.0.0.1:*", Keys.generate())
    serving = asyncio.create_task(echo(server))
    for keys in (None, Keys.generate()):
        async with Client(server.endpoint, keys) as stranger:
            with pytest.raises(DeadlineError):
                await stranger.request(LeaseRequest(actor="a", capacity=1), timeout_s=0.5)
    serving.cancel()
    server.close()


async def test_a_bad_message_is_refused_counted_and_harms_nobody(tmp_path):
    server = Server(f"ipc://{tmp_path}/s")
    serving = asyncio.create_task(echo(server))
    async with Client(server.endpoint) as client:
        client._socket._socket.send_multipart([b"12345678", b"garbage"])
        client._socket._socket.send_multipart([b"short"])
        reply = await client.request(LeaseRequest(actor="a", capacity=3), timeout_s=LONG_S)
        assert reply.retry_after_s == 3
    assert server.num_refused == 2
    serving.cancel()
    server.close()


async def test_the_blocking_client_speaks_the_same_protocol(tmp_path):
    server = Server(f"ipc://{tmp_path}/s")

    async def late() -> None:
        """The first answer is there just before the second."""
        first, second = await anext(messages), await anext(messages)
        for peer, message in (first, second):
            await server.send(peer, LeaseReply(leases=[], retry_after_s=message.capacity))

    messages = aiter(server)
    serving = asyncio.create_task(late())
    client = BlockingClient(server.endpoint)
    with pytest.raises(DeadlineError):
        await asyncio.to_thread(client.request, LeaseRequest(actor="a", capacity=6), 0.001)
    reply = await asyncio.to_thread(client.request, LeaseRequest(actor="a", capacity=3), LONG_S)
    assert reply.retry_after_s == 3
    client.close()
    serving.cancel()
    server.close()


async def test_a_request_that_died_with_its_server_reaches_the_next_one(tmp_path):
    first = Server(f"ipc://{tmp_path}/s")
    client = BlockingClient(first.endpoint)
    asked = asyncio.create_task(asyncio.to_thread(client.request, LeaseRequest(actor="a", capacity=3), LONG_S, 0.2))
    async for _ in first:  # it has the request, and dies with it
        break
    first.close()
    second = Server(f"ipc://{tmp_path}/s")
    serving = asyncio.create_task(echo(second))
    assert (await asked).retry_after_s == 3
    client.close()
    serving.cancel()
    second.close()


async def test_a_slow_answer_to_what_was_asked_twice_is_taken(tmp_path):
    server = Server(f"ipc://{tmp_path}/s")
    client = BlockingClient(server.endpoint)
    asked = asyncio.create_task(asyncio.to_thread(client.request, LeaseRequest(actor="a", capacity=3), LONG_S, 0.1))
    heard = []
    async for peer, message in server:
        heard.append((peer, message))
        if len(heard) == 3:
            break
    await server.send(heard[0][0], LeaseReply(leases=[], retry_after_s=7))
    assert (await asked).retry_after_s == 7
    client.close()
    server.close()


def test_listening_beyond_loopback_needs_keys():
    with pytest.raises(ConfigError, match="beyond loopback"):
        Server("tcp://0.0.0.0:*")


async def test_a_taken_port_is_a_config_error():
    server = Server("tcp://127.0.0.1:*")
    with pytest.raises(ConfigError, match="cannot listen"):
        Server(server.endpoint)
    server.close()


def test_a_body_has_a_limit_of_its_own():
    """What is decoded into objects costs sixty times its size; arrays cost nothing."""
    small = Codec(max_body_bytes=1000)
    with pytest.raises(WireError, match="body of") as caught:
        small.decode([b"LH\x01\x00" + bytes(2000)])
    assert caught.value.kind == "size"
    with pytest.raises(WireError, match="body of"):
        small.encode(Refused(kind="k", reason="x" * 2000))


def test_no_frame_is_named_twice():
    """A few bytes a name, a call of Python each: a million names would take the server's time."""
    codec = Codec()
    frames = [bytes(frame) for frame in codec.encode(Submit(actor="a", trajectory=trajectory()))]
    first, second = (msgspec.msgpack.encode({"@": n})[1:] for n in (1, 2))
    assert second in frames[0]
    with pytest.raises(WireError, match="twice"):
        codec.decode([frames[0].replace(second, first), *frames[1:]])
