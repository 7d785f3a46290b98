"""What one request costs, and how many there can be."""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import time
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from actors.gateway.reading import HermesReader
from actors.gateway.seat import Seat
from actors.gateway.server import Gateway
from actors.gateway.turns import Terms, Turns
from actors.history.conversation import Conversation
from actors.policies.scripted import ScriptedPolicy
from actors.policy import Request
from benchmarks.gateway.world import tools_tokenizer
from protocol.messages import Sampling

CLIENTS = 32
TURNS = 20  # of one conversation, before the next begins


async def measure(model_dir: Path, seconds: float) -> dict[str, float | None]:
    """`added_latency_p50_ms`, `requests_per_s`, `cpu_ms_per_request` (of the gateway's process alone)."""
    tokenizer = tools_tokenizer(model_dir)
    policy = ScriptedPolicy(tokenizer, "ls -la src")
    gateway = Gateway("m")
    await gateway.start(listen=True)

    def open_seat(name: str) -> str:
        terms = Terms(
            episode_id=name,
            version=0,
            sampling=Sampling(),
            max_turns=10**9,
            max_context=10**6,
            max_turn_tokens=512,
            wall_time_s=3600,
        )
        return gateway.open(Seat(Turns(terms, Conversation(tokenizer), policy, tokenizer, HermesReader(tokenizer))))

    try:
        added = await _added(gateway, open_seat("latency"), policy, tokenizer, seconds)
        # a client a lease, and a lease an episode, so that histories do not grow for ever
        keys = [[open_seat(f"load-{i}-{j}") for j in range(40)] for i in range(CLIENTS)]
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe(duplex=False)
        load = context.Process(target=_load, args=(gateway.url, keys, seconds, theirs))
        load.start()
        before = time.process_time()
        count, took = await asyncio.to_thread(ours.recv)
        cpu_s = time.process_time() - before
        await asyncio.to_thread(load.join, 30)
    finally:
        await gateway.stop()
    return {
        "added_latency_p50_ms": added,
        "requests_per_s": count / took,
        "cpu_ms_per_request": 1000 * cpu_s / count,
    }


async def _added(gateway: Gateway, key: str, policy: ScriptedPolicy, tokenizer: Any, seconds: float) -> float:
    """Milliseconds of a request over those of the policy, in a conversation of `TURNS` turns; in turn."""
    through: list[float] = []
    bare: list[float] = []
    prompt = tokenizer.encode_prompt([{"role": "user", "content": "x" * 4000}])
    request = Request(
        episode_id="bare", token_ids=prompt, sampling=Sampling(), stop_token_ids=[2], cache_salt="", timeout_s=10
    )
    async with aiohttp.ClientSession(gateway.url, headers={"Authorization": f"Bearer {key}"}) as session:
        until = time.monotonic() + seconds
        for number in itertools.count():
            if time.monotonic() > until:
                break
            messages = [{"role": "user", "content": f"{number} {'x' * 200}"}]
            for _ in range(TURNS):
                began = time.perf_counter()
                async with session.post("/v1/chat/completions", json={"messages": messages}) as response:
                    answer = await response.json()
                through.append(time.perf_counter() - began)
                began = time.perf_counter()
                await policy.generate(request)
                bare.append(time.perf_counter() - began)
                messages += [answer["choices"][0]["message"], {"role": "user", "content": "y" * 200}]
    return 1000 * (median(through) - median(bare))


def _load(url: str, keys: list[list[str]], seconds: float, told: Any) -> None:
    told.send(asyncio.run(_ask(url, keys, seconds)))


async def _ask(url: str, keys: list[list[str]], seconds: float) -> tuple[int, float]:
    """Requests that were answered, and seconds."""
    count = 0
    began = time.monotonic()

    async def client(session: aiohttp.ClientSession, mine: list[str]) -> None:
        nonlocal count
        for key in itertools.cycle(mine):
            messages = [{"role": "user", "content": "x" * 500}]
            for _ in range(8):
                if time.monotonic() - began > seconds:
                    return
                headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
                body = json.dumps({"messages": messages}).encode()
                async with session.post("/v1/chat/completions", data=body, headers=headers) as response:
                    answer = await response.json()
                count += 1
                messages += [answer["choices"][0]["message"], {"role": "user", "content": "y" * 200}]

    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, mine) for mine in keys))
    return count, time.monotonic() - began
