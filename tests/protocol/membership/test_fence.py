"""A part that comes back after it was replaced: nothing of it is accepted, and it ends by itself."""

import asyncio
import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from protocol.errors import WireError
from protocol.membership import fence
from protocol.membership.fence import FENCED, Fence, Member, member_of
from protocol.messages import HostBeat, HostLease
from protocol.sockets import BlockingClient, Client, Keys, Server

ROOT = Path(__file__).parents[3]
LONG_S = 60
members = st.builds(Member, st.sampled_from(["learner-0", "sandbox-actor-1", "generator.2"]), st.integers(0, 5))
# what a server goes through: the launcher says that a part is started again, or a process of it speaks
happenings = st.lists(st.tuples(st.sampled_from(["raised", "speaks"]), members), max_size=40)


@given(happenings)
def test_nothing_of_a_process_is_taken_once_a_newer_one_is_known(happenings):
    known = Fence()
    for i, (what, member) in enumerate(happenings):
        if what == "raised":
            known.raise_to(member.part, member.generation)
            continue
        newer = [m for _, m in happenings[:i] if m.part == member.part and m.generation > member.generation]
        assert known.admits(member) == (not newer)


@given(members)
def test_a_socket_names_its_process(member):
    one, other = member.identity(), member.identity()
    assert member_of(one) == member_of(other) == member
    assert one != other and len(one) < 256 and one[0] != 0  # what ZMQ takes


@given(st.binary(max_size=60))
def test_who_names_no_part_is_nobody_and_may_speak(identity):
    assert member_of(identity) is None
    assert Fence().admits(None)


KEYS = Keys.generate()


def of(generation, part="sandbox-actor-0"):
    return structs.replace(KEYS, member=Member(part, generation))


@contextlib.asynccontextmanager
async def serving():
    """A server that grants every beat, and whose beats it has granted."""
    server = Server("tcp://127.0.0.1:*", KEYS)
    granted = []

    async def serve():
        async for peer, message in server:
            granted.append((member_of(peer.identity), message.host))
            await server.send(peer, HostLease(goes_on=True))

    task = asyncio.create_task(serve())
    try:
        yield server, granted
    finally:
        task.cancel()
        server.close()


@pytest.fixture
def reasons():
    """What this process is told when it was replaced."""
    told = []
    fence.when_replaced(told.append)
    yield told
    fence._when_replaced.remove(told.append)


async def test_a_server_that_heard_of_a_newer_process_refuses_the_older(reasons):
    async with serving() as (server, granted), Client(server.endpoint, of(0)) as old:
        assert await old.request(HostBeat(host="first"), LONG_S) == HostLease(goes_on=True)
        async with Client(server.endpoint, of(1)) as new, Client(server.endpoint, of(0, "generator-0")) as other:
            await new.request(HostBeat(host="second"), LONG_S)
            with pytest.raises(WireError) as caught:
                await old.request(HostBeat(host="late"), LONG_S)
            assert caught.value.kind == FENCED
            await other.request(HostBeat(host="another part"), LONG_S)
        assert [host for _, host in granted] == ["first", "second", "another part"]
        assert reasons == [str(caught.value).partition(": ")[2]]
        assert "process 0 of sandbox-actor-0 was replaced by process 1" in reasons[0]


async def test_what_the_launcher_says_holds_before_the_newer_process_speaks(reasons):
    async with serving() as (server, granted), Client(server.endpoint, of(2)) as old:
        server.fence.raise_to("sandbox-actor-0", 3)
        with pytest.raises(WireError, match="must end"):
            await old.request(HostBeat(host="late"), LONG_S)
        stream = old.stream(HostBeat(host="late"), LONG_S)
        await anext(stream)
        await stream.aclose()
        assert not granted and len(reasons) == 2
        assert server.num_refused == 2


REPLACED = """
import os, signal, sys, time
import msgspec
from protocol.membership import fence
from protocol.messages import HostBeat
from protocol.sockets import BlockingClient, Keys
fence.when_replaced(lambda reason: (print(reason, flush=True), os.kill(os.getpid(), signal.SIGKILL)))
client = BlockingClient(sys.argv[1], msgspec.json.decode(sys.argv[2], type=Keys))
while True:
    client.request(HostBeat(host="working"), 60)
    print("works", flush=True)
    time.sleep(0.02)
"""


async def test_a_process_that_is_told_so_ends():
    import msgspec

    async with serving() as (server, _):
        words = [sys.executable, "-c", REPLACED, server.endpoint, msgspec.json.encode(of(0)).decode()]
        process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE, cwd=ROOT)
        assert await process.stdout.readline() == b"works\n"
        server.fence.raise_to("sandbox-actor-0", 1)
        rest, _ = await asyncio.wait_for(process.communicate(), LONG_S)
        assert process.returncode == -signal.SIGKILL
        assert b"was replaced by process 1" in rest.splitlines()[-1]


def test_a_blocking_client_names_itself_too():
    async def hear():
        async with serving() as (server, granted):
            client = BlockingClient(server.endpoint, of(4))
            await asyncio.to_thread(client.request, HostBeat(host="h"), LONG_S)
            client.close()
            return granted

    assert asyncio.run(hear()) == [(Member("sandbox-actor-0", 4), "h")]
