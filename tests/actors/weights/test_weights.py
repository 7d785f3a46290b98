"""Publisher and adopter together, over every channel that needs no GPU."""

import asyncio
import contextlib
import os
import resource
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from actors.weights.adopter import WeightAdopter
from actors.weights.memory import MemoryWeights
from learner.publishing.buffers import WeightBuffers
from learner.publishing.publisher import WeightPublisher
from protocol.config import WeightSettings
from protocol.errors import DeadlineError, WeightsError
from protocol.membership.fence import Member
from protocol.messages import WeightsPoll
from protocol.sockets import BlockingClient, Keys
from protocol.weights.manifest import TensorSpec
from protocol.weights.segments import DIRECTORY, Segment, segment_path
from tests.waiting import LONG_S, until

SPECS = [
    TensorSpec("embed", "float32", (300, 40)),
    TensorSpec("norm", "float32", (40,)),
    TensorSpec("head", "float32", (300, 40)),
]
CHANNELS = {
    "shm": WeightSettings(channel="shm"),
    "zmq": WeightSettings(channel="zmq", delta=False, bucket_mib=1),
    "nccl": WeightSettings(channel="nccl", bucket_mib=1, timeout_s=20),
    "zmq-delta": WeightSettings(channel="zmq", delta=True, full_every=4),
}


def model(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {s.name: torch.randn(s.shape, generator=generator) for s in SPECS}


def nudged(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """A few elements changed, as one step at a small learning rate does."""
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.where(torch.rand(t.shape, generator=generator) < 0.02, t * 1.001, t) for n, t in tensors.items()}


def raw(tensor: torch.Tensor) -> list[int]:
    return tensor.flatten().view(torch.uint8).tolist()


@pytest.fixture(params=CHANNELS)
def settings(request: pytest.FixtureRequest) -> WeightSettings:
    return CHANNELS[request.param]


@pytest.fixture
def publisher(settings: WeightSettings, tmp_path: Path) -> Iterator[WeightPublisher]:
    publisher = WeightPublisher(settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    yield publisher
    publisher.close()
    assert not list(DIRECTORY.glob(f"longhaul-test-{tmp_path.name}-*"))


@contextlib.asynccontextmanager
async def adopting(
    publisher: WeightPublisher, settings: WeightSettings, name: str = "g0", holder: MemoryWeights | None = None
) -> AsyncIterator[tuple[MemoryWeights, WeightAdopter]]:
    holder = holder or MemoryWeights(SPECS)
    adopter = WeightAdopter(holder, name, publisher.endpoint, settings, tied={})
    running = asyncio.create_task(adopter.run())
    try:
        yield holder, adopter
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, WeightsError):
            await running
        await adopter.close()


async def test_every_version_arrives_bit_for_bit(publisher, settings):
    tensors = model(0)
    async with adopting(publisher, settings) as (holder, adopter):
        for version in range(7):
            publisher.publish(version, tensors.items())
            await asyncio.to_thread(publisher.wait_adopted, version, LONG_S)
            assert {n: raw(t) for n, t in tensors.items()} == {n: a.tolist() for n, a in holder.tensors.items()}
            tensors = nudged(tensors, version)
        assert holder.labels == list(range(7))
        assert adopter.num_refetched == 0
    if settings.channel == "zmq" and settings.delta:
        assert publisher.status()["delta_share"] < 0.05


async def test_all_generators_adopt_and_that_is_told_once_per_version(settings, tmp_path):
    told: list[int] = []
    publisher = WeightPublisher(
        settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}", expected_generators=2, on_adopted=told.append
    )
    publisher.publish(0, model(0).items())
    async with adopting(publisher, settings, "g0"):
        await until(lambda: publisher.status()["num_generators"] == 1)
        with pytest.raises(DeadlineError, match="1 of 2 generators have joined"):
            await asyncio.to_thread(publisher.wait_adopted, 0, 0.5)
        async with adopting(publisher, settings, "g1"):
            for version in (0, 1, 2):
                if version:
                    publisher.publish(version, model(version).items())
                await asyncio.to_thread(publisher.wait_adopted, version, LONG_S)
    publisher.close()
    assert told == [0, 1, 2]


async def test_a_late_joiner_gets_the_current_version_alone(publisher, settings):
    async with adopting(publisher, settings, "early"):
        for version in range(3):
            publisher.publish(version, model(version).items())
            await asyncio.to_thread(publisher.wait_adopted, version, LONG_S)
        async with adopting(publisher, settings, "late") as (late, _):
            await until(lambda: late.labels)
            assert late.labels == [2]
            assert late.tensors["norm"].tolist() == raw(model(2)["norm"])


async def test_weights_that_are_already_there_are_not_sent_again(publisher, settings):
    holder = MemoryWeights(SPECS)
    for name, tensor in model(0).items():
        holder.tensors[name][:] = raw(tensor)
    publisher.publish(0, model(0).items())
    async with adopting(publisher, settings, holder=holder) as (_, adopter):
        await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)
        assert adopter.swap_s == 0
        assert holder.labels == [0]


@pytest.mark.parametrize("is_alike", [True, False], ids=["alike", "rounded-otherwise"])
async def test_a_publisher_that_comes_back_at_an_older_version_is_heeded_once_it_has_caught_up(
    settings, tmp_path, is_alike
):
    """As ranks that start again do: the generator keeps what it serves until something newer comes."""
    told: list[int] = []
    where = (settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    first = WeightPublisher(*where)
    for version in range(4):
        first.publish(version, model(version).items())
    async with adopting(first, settings) as (holder, _):
        await asyncio.to_thread(first.wait_adopted, 3, LONG_S)
        first.close()
        second = WeightPublisher(*where, on_adopted=told.append)
        for version in (2, 3, 4):
            second.publish(version, model(version if is_alike or version == 4 else version + 100).items())
            if version == 3:
                await until(lambda: told == [3])
        await asyncio.to_thread(second.wait_adopted, 4, LONG_S)
        assert holder.labels == ([3, 4] if is_alike else [3, 3, 4])
        assert {n: raw(t) for n, t in model(4).items()} == {n: a.tolist() for n, a in holder.tensors.items()}
        second.close()
    assert told == [3, 4]


def test_a_version_waits_for_room_in_shared_memory(tmp_path):
    """A limit on the size of files stands in for a full /dev/shm: the kernel refuses the same call."""
    buffers = WeightBuffers(f"test-{tmp_path.name}", None, with_delta=False, full_every=1, patience_s=30)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    buffers.fill(0, model(0).items(), on_begin=lambda: None)
    filled = []
    waiting = threading.Thread(target=lambda: filled.append(buffers.fill(1, model(1).items(), on_begin=lambda: None)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        waiting.start()
        time.sleep(0.3)
        assert waiting.is_alive() and not filled
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        waiting.join(LONG_S)
        buffers.unlink()
    assert len(filled[0]) == len(SPECS)


def test_a_first_version_without_room_is_refused_in_words(tmp_path):
    buffers = WeightBuffers(f"test-{tmp_path.name}", None, with_delta=False, full_every=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WeightsError, match="free shared memory"):
            buffers.fill(0, model(0).items(), on_begin=lambda: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(DIRECTORY.glob(f"longhaul-test-{tmp_path.name}-*"))


def test_who_waits_for_the_bytes_of_a_dead_writer_learns_that_none_will_come(tmp_path):
    path = segment_path(f"test-{tmp_path.name}", "weights-0")
    written = Segment.create(path, 100)
    written.begin(5)
    written.advance(50)
    reader = Segment.open(path, 100)
    reader.wait_written(5, 50)
    WeightBuffers(f"test-{tmp_path.name}", None, with_delta=False, full_every=1)  # of the learner that comes after
    with pytest.raises(WeightsError, match="was removed before it held version 5") as caught:
        reader.wait_written(5, 100)
    assert caught.value.kind == "withdrawn"


@pytest.mark.parametrize("moved_on_to", [1, 2])
async def test_a_generator_that_is_slower_than_the_learner_takes_what_is_there(settings, tmp_path, moved_on_to):
    """While it looks at version 0 the learner publishes more; of two versions more, the second overwrites 0."""
    publisher = WeightPublisher(settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    publisher._settings = settings.model_copy(update={"timeout_s": 2})  # after so long it overwrites what is read
    looking, go = asyncio.Event(), asyncio.Event()

    class Slow(MemoryWeights):
        async def layout(self):
            looking.set()
            await go.wait()
            return await super().layout()

    publisher.publish(0, model(0).items())
    async with adopting(publisher, settings, holder=Slow(SPECS)) as (holder, _):
        await looking.wait()
        for version in range(1, moved_on_to + 1):
            await asyncio.to_thread(publisher.publish, version, model(version).items())
        go.set()
        await asyncio.to_thread(publisher.wait_adopted, moved_on_to, LONG_S)
        assert holder.labels == [0, 1] if moved_on_to == 1 else holder.labels in ([2], [1, 2])
        assert holder.tensors["norm"].tolist() == raw(model(moved_on_to)["norm"])
    publisher.close()


async def test_an_older_version_that_comes_late_is_ignored(publisher, settings):
    publisher.publish(5, model(5).items())
    async with adopting(publisher, settings) as (holder, adopter):
        await asyncio.to_thread(publisher.wait_adopted, 5, LONG_S)
        assert publisher._current is not None
        await adopter._adopt(msgspec.structs.replace(publisher._current, version=4))
        assert holder.labels == [5]
    with pytest.raises(WeightsError, match="not newer than 5"):
        publisher.publish(5, model(5).items())


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({k: v for k, v in model(1).items() if k != "head"}, "ends before head"),
        (model(1) | {"norm": torch.zeros(41)}, "expected"),
        (model(1) | {"norm": torch.zeros(40, dtype=torch.bfloat16)}, "expected"),
        (model(1) | {"more": torch.zeros(1)}, "expected None"),
    ],
)
async def test_a_version_of_another_shape_is_refused_and_the_next_good_one_is_not(publisher, settings, tensors, says):
    publisher.publish(0, model(0).items())
    async with adopting(publisher, settings) as (holder, _):
        await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)
        for version in (1, 2):
            with pytest.raises(WeightsError, match=says):
                publisher.publish(version, tensors.items())
        publisher.publish(3, model(3).items())
        await asyncio.to_thread(publisher.wait_adopted, 3, LONG_S)
        assert holder.labels == [0, 3]


async def test_flipped_bits_on_the_way_stop_the_generator_and_name_the_tensor(publisher, settings):
    publisher.publish(0, model(0).items())
    holder = MemoryWeights(SPECS)
    adopter = WeightAdopter(holder, "g0", publisher.endpoint, settings, tied={})
    assert await adopter.poll()
    publisher.publish(1, model(1).items())
    await until(lambda: publisher.status()["version"] == 1)
    publisher._buffers._segments[1].buffer[publisher._buffers.entries[1].offset] ^= 1
    with pytest.raises(WeightsError, match="norm arrived with checksum"):
        await adopter.poll()
    assert adopter.num_refetched == 3
    assert holder.labels == [0]
    await adopter.close()


async def test_a_delta_on_damaged_bytes_is_caught_and_then_all_bytes_are_sent(tmp_path):
    settings = CHANNELS["zmq-delta"]
    publisher = WeightPublisher(settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    holder, tensors, sent = MemoryWeights(SPECS), model(0), []
    adopter = WeightAdopter(holder, "g0", publisher.endpoint, settings, tied={})
    for version in range(3):
        publisher.publish(version, tensors.items())
        await until(lambda v=version: publisher.status()["version"] == v)
        if version == 2:
            assert adopter._receiver.segment is not None
            adopter._receiver.segment.buffer[1000] ^= 1
        assert await adopter.poll()
        assert {n: raw(t) for n, t in tensors.items()} == {n: a.tolist() for n, a in holder.tensors.items()}
        sent.append(publisher.status()["sent_bytes"])
        tensors = nudged(tensors, version)
    assert adopter.num_refetched == 1
    whole = sent[0]
    assert sent[1] - sent[0] < 0.05 * whole
    assert whole < sent[2] - sent[1] < 1.05 * whole
    await adopter.close()
    publisher.close()


async def test_a_pair_that_is_lost_is_met_again(tmp_path):
    settings = CHANNELS["nccl"]
    publisher = WeightPublisher(settings, f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    async with adopting(publisher, settings) as (holder, adopter):
        for version in range(4):
            publisher.publish(version, model(version).items())
            await asyncio.to_thread(publisher.wait_adopted, version, LONG_S)
            assert holder.tensors["head"].tolist() == raw(model(version)["head"])
            await until(lambda: publisher._caster._pairs)
            if version == 1:
                publisher._caster.close()
        assert adopter.num_refetched == 1
    publisher.close()


async def test_half_a_version_is_never_in_force(publisher, settings):
    """A segment whose writer says that it is done, while half of its bytes are those of the version before."""
    publisher.publish(0, model(0).items())
    holder = MemoryWeights(SPECS)
    adopter = WeightAdopter(holder, "g0", publisher.endpoint, settings, tied={})
    assert await adopter.poll()
    publisher.publish(1, model(1).items())
    await until(lambda: publisher.status()["version"] == 1)
    old, new = (publisher._buffers._segments[v].buffer for v in (0, 1))
    half = publisher._buffers.num_bytes // 2
    new[:half] = old[:half]
    with pytest.raises(WeightsError, match="embed arrived with checksum"):
        await adopter.poll()
    assert holder.labels == [0]
    await adopter.close()


async def test_a_segment_that_was_cut_short_is_refused_and_the_generator_says_so(tmp_path):
    publisher = WeightPublisher(CHANNELS["shm"], f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    publisher.publish(0, model(0).items())
    await until(lambda: publisher.status()["version"] == 0)
    os.truncate(publisher._buffers.path_of(0), 100)
    async with adopting(publisher, CHANNELS["shm"]) as (holder, _):
        with pytest.raises(WeightsError, match=r"g0: .* has 100 bytes, expected at least"):
            await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)
    assert holder.labels == []
    publisher.close()


class Halting:
    """The tensors of `model(seed)`; after the first one it waits for `go`, and then goes on or fails."""

    def __init__(self, seed: int, *, fails: bool) -> None:
        self._seed, self._fails = seed, fails
        self.go = threading.Event()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, tensor) in enumerate(model(self._seed).items()):
            if number == 1:
                assert self.go.wait(LONG_S)
                if self._fails:
                    raise RuntimeError("a rank was lost")
            yield name, tensor


async def test_a_version_is_received_while_it_is_written_and_in_force_only_when_it_is_whole(tmp_path):
    publisher = WeightPublisher(CHANNELS["shm"], f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    publisher.publish(0, model(0).items())
    async with adopting(publisher, CHANNELS["shm"]) as (holder, adopter):
        await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)
        for version, fails in ((1, False), (2, True), (3, False), (4, True), (5, False)):
            halting = Halting(version, fails=fails)
            publishing = asyncio.create_task(asyncio.to_thread(publisher.publish, version, halting))
            await until(lambda v=version: publisher._roster.readers_of(v) == ["g0"])
            assert adopter.version < version
            halting.go.set()
            if fails:
                with pytest.raises(RuntimeError, match="a rank was lost"):
                    await publishing
                continue
            await publishing
            await asyncio.to_thread(publisher.wait_adopted, version, LONG_S)
            assert {n: raw(t) for n, t in model(version).items()} == {n: a.tolist() for n, a in holder.tensors.items()}
        assert holder.labels == [0, 1, 3, 5]
        assert adopter.num_refetched == 0
    publisher.close()
    assert not list(DIRECTORY.glob(f"longhaul-test-{tmp_path.name}-*"))


async def test_weights_that_the_engine_staged_wrongly_are_never_in_force(publisher, settings):
    class Forgetful(MemoryWeights):
        async def stage(self, path, version, num_bytes, entries):
            checksums = await super().stage(path, version, num_bytes, entries)
            return [*checksums[:-1], "something else"]

    publisher.publish(0, model(0).items())
    holder = Forgetful(SPECS)
    async with adopting(publisher, settings, holder=holder):
        with pytest.raises(WeightsError, match=r"g0.*gave up after 3 tries: version 0: head arrived with checksum"):
            await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)
    assert holder.labels == []


async def test_weights_for_another_model_are_refused(publisher, settings):
    publisher.publish(0, model(0).items())
    other = MemoryWeights([*SPECS[:2], TensorSpec("lm_head", "float32", (300, 40))])
    async with adopting(publisher, settings, holder=other):
        with pytest.raises(WeightsError, match="brings head, unknown"):
            await asyncio.to_thread(publisher.wait_adopted, 0, LONG_S)


def test_a_generator_that_serves_something_else_is_named(tmp_path):
    publisher = WeightPublisher(WeightSettings(), f"ipc://{tmp_path}/w", f"test-{tmp_path.name}")
    publisher.publish(0, model(0).items())
    client = BlockingClient(publisher.endpoint)
    client.request(WeightsPoll(generator="liar", version=-1), LONG_S)
    client.request(WeightsPoll(generator="liar", version=0, checksum="made up"), LONG_S)
    with pytest.raises(WeightsError, match="liar: serves version 0 with checksum made up"):
        publisher.wait_adopted(0, LONG_S)
    client.close()
    publisher.close()


def test_tensors_are_converted_to_what_the_generators_compute_in(tmp_path):
    publisher = WeightPublisher(WeightSettings(), f"ipc://{tmp_path}/w", f"test-{tmp_path.name}", dtype=torch.bfloat16)
    for version in range(3):
        publisher.publish(version, model(version).items())
        held = np.frombuffer(publisher._buffers._segments[version].buffer, np.uint8)
        for entry, (name, tensor) in zip(publisher._buffers.entries, model(version).items(), strict=True):
            assert (entry.name, entry.dtype) == (name, "bfloat16")
            wanted = raw(tensor.to(torch.bfloat16))
            assert held[entry.offset : entry.offset + entry.num_bytes].tolist() == wanted
    publisher.close()


async def test_weights_of_a_publisher_that_was_replaced_are_nobodys(tmp_path):
    """The newer process publishes; then the one that it replaced is back at that address, further on than ever."""
    settings, keys, holder = CHANNELS["zmq"], Keys.generate(), MemoryWeights(SPECS)
    adopter: WeightAdopter | None = None
    for generation, version in ((1, 3), (0, 9), (1, 4)):
        publisher = WeightPublisher(
            settings,
            f"ipc://{tmp_path}/w",
            f"test-{tmp_path.name}",
            msgspec.structs.replace(keys, member=Member("learner-0", generation)),
        )
        publisher.publish(version, model(version).items())
        adopter = adopter or WeightAdopter(holder, "g0", publisher.endpoint, settings, tied={})
        while not await adopter.poll():
            pass
        publisher.close()
    assert holder.labels == [3, 4]
    await adopter.close()
