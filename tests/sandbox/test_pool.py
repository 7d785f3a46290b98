"""Warm starts: the stock against its rules, the pool against a real backend."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import SandboxError
from sandbox.base import Backend, Limits, Sandbox, SandboxSpec
from sandbox.host_room import HostState, missing_room, read_host_state, wait_for_room
from sandbox.pool import Pool, Stock
from sandbox.tasks.images import host_image

KINDS = st.sampled_from("abc")
STEPS = st.lists(st.tuples(st.sampled_from(["ask", "ready", "fail"]), KINDS), max_size=60)


@given(STEPS, st.integers(0, 4), st.integers(1, 6))
def test_stock(steps: list[tuple[str, str]], target: int, most: int) -> None:
    """Nothing is lost, nothing is given twice, and no bound is broken."""
    stock: Stock[int] = Stock(target, most)
    starting: Counter[str] = Counter()
    held: dict[int, str] = {}
    made = 0
    for step, kind in steps:
        if step == "ask":
            item = stock.take(kind)
            ready = [number for number, its_kind in held.items() if its_kind == kind]
            assert item == (min(ready) if ready else None), "the oldest of its kind"
            if item is not None:
                del held[item]
            number = stock.num_to_start(kind)
            starting[kind] += number
            assert sum(its_kind == kind for its_kind in held.values()) + starting[kind] >= min(target, most)
            assert starting[kind] <= target
        elif starting[kind]:
            starting[kind] -= 1
            if step == "fail":
                stock.failed(kind)
                continue
            made += 1
            held[made] = kind
            for leaving in stock.add(kind, made):
                del held[leaving]
        assert stock.num_ready == len(held) <= most


async def _room(limits: Limits) -> None:
    return None


@pytest.mark.docker
async def test_the_second_sandbox_of_an_image_is_there_already(
    docker_backend: Backend, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await docker_backend.create(SandboxSpec(run=run_name, lease="image")):
        pass  # makes the image
    pool = Pool(docker_backend, warm=1, make_room=_room)
    spec = SandboxSpec(run=run_name, lease="first", image=host_image())
    first = await pool.create(spec)
    async with asyncio.timeout(60):
        while not pool.num_warm:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    nothing_is_made = asyncio.Event()
    making = docker_backend.create

    async def create_later(spec: SandboxSpec) -> Sandbox:
        await nothing_is_made.wait()
        return await making(spec)

    monkeypatch.setattr(docker_backend, "create", create_later)
    second = await pool.create(SandboxSpec(run=run_name, lease="second", image=host_image()))
    nothing_is_made.set()
    assert second.spec.lease == "second"
    assert (await first.exec("echo one", timeout=20)).text + (
        await second.exec("echo two", timeout=20)
    ).text == "one\ntwo\n"
    other_limits = SandboxSpec(run=run_name, lease="third", image=host_image(), limits=Limits(memory_mib=200))
    third = await pool.create(other_limits)
    assert third.spec.limits.memory_mib == 200
    await pool.close()


async def test_what_is_not_kept_warm_comes_from_the_backend(namespace_backend: Backend, run_name: str) -> None:
    pool = Pool(namespace_backend, warm=2, make_room=_room)
    async with await pool.create(SandboxSpec(run=run_name, lease="one")) as sandbox:
        assert (await sandbox.exec("echo one", timeout=20)).text == "one\n"
    assert pool.num_warm == 0


def test_room() -> None:
    enough = HostState(memory_mib=4096, disk_mib=50_000, runnable_per_core=1.0)
    limits = Limits(memory_mib=512)
    assert missing_room(enough, limits) == ""
    assert missing_room(HostState(memory_mib=600, disk_mib=50_000, runnable_per_core=1.0), limits).startswith("memory")
    assert missing_room(HostState(memory_mib=4096, disk_mib=100, runnable_per_core=1.0), limits).startswith("disk")
    assert missing_room(HostState(memory_mib=4096, disk_mib=50_000, runnable_per_core=500.0), limits).startswith("proc")
    here = read_host_state()
    assert here.memory_mib > 0 and here.disk_mib > 0


async def test_room_is_waited_for_and_named() -> None:
    full = HostState(memory_mib=100, disk_mib=50_000, runnable_per_core=1.0)
    states = iter([full, HostState(memory_mib=9000, disk_mib=50_000, runnable_per_core=1.0)])
    await wait_for_room(Limits(), lambda: next(states))
    with pytest.raises(SandboxError, match=r"no room for a sandbox.*memory: 100 MiB") as caught:
        await wait_for_room(Limits(), lambda: full, deadline_s=0.1)
    assert caught.value.kind == "no_room"
