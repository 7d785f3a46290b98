"""How fast do many multi-turn episodes sample, through the whole path and without it?

    python -m benchmarks.generator [--quick] [--save]

The same episodes (each turn adds an observation of 32 tokens to the history and samples an answer) run through client,
ZMQ and engine (`tok_s_N`, N at once), through `LLM.generate` on the bare engine (`bare_tok_s_N`) and through vLLM's
OpenAI server over HTTP (`openai_tok_s_N`), on one thread each. All three are up; they are measured in turn, so that
whatever else the machine does falls on all alike: medians of three rounds (`--quick`: of one). `tok_s_updates_share`
is the speed with new weights every second over that without, in turn as well; `start_s` and `first_token_s` begin with
an empty process on an idle machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import numpy as np

from actors.generator.engine import engine_arguments, engine_environment
from actors.generator.lifeline import guard_children
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from benchmarks.report import parser, report
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.messages import GeneratorStatus, GeneratorStatusRequest, Sampling
from protocol.sockets import Client

if TYPE_CHECKING:
    from learner.publishing.publisher import WeightPublisher

WIDTHS = (64, 256, 512)
OBSERVATION = 32
UPDATE_WIDTH = 256
_START_TIMEOUT_S = 600


class Load(NamedTuple):
    """What every episode does, and how often all of it is measured."""

    turns: int
    tokens: int  # sampled in each turn
    rounds: int


Turn = Callable[[str, np.ndarray, int], Awaitable[np.ndarray]]
"""(episode, history, tokens to sample) -> sampled tokens."""

Measure = Callable[[int, str], Awaitable[float]]
"""(episodes at once, a name that finds nothing in any prefix cache) -> sampled tokens a second."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/generator.json")
    options = arguments.parse_args()
    load = Load(3, 16, 1) if options.quick else Load(4, 64, 3)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        from tiny.model import save_random_model

        model_dir = save_random_model(Path(directory) / "model")
        settings = Settings(
            model=ModelSettings(path=str(model_dir), max_context=1024, dtype="float32"),
            generator=GeneratorSettings(kv_cache_mib=768),
            start_timeout_s=_START_TIMEOUT_S,
        )
        figures = asyncio.run(measure(settings, Path(directory), load))
    report("generator", figures, load._asdict() | {"widths": WIDTHS}, save=options.save)


async def measure(settings: Settings, directory: Path, load: Load) -> dict[str, float | None]:
    """All figures."""
    figures: dict[str, float | None] = {}
    async with AsyncExitStack() as stack:
        path = await stack.enter_async_context(whole_path(settings, directory))
        figures |= path.start_figures
        ways = {
            "tok_s": partial(run_episodes, path.turn_of, load),
            "bare_tok_s": await stack.enter_async_context(bare_engine(settings, load)),
            "openai_tok_s": partial(run_episodes, await stack.enter_async_context(openai_server(settings)), load),
        }
        await take_turns(ways, 64, 1, "warm")
        for width in WIDTHS:
            speeds = await take_turns(ways, width, load.rounds, "all")
            figures |= {f"{name}_{width}": speed for name, speed in speeds.items()}
        figures["prefix_hit_share"] = (await path.status()).prefix_hit_share

        async def with_updates(width: int, name: str) -> float:
            async with path.updated_every_second():
                return await run_episodes(path.turn_of, load, width, name)

        speeds = await take_turns({"plain": ways["tok_s"], "updated": with_updates}, UPDATE_WIDTH, load.rounds, "")
        figures["tok_s_updates_share"] = speeds["updated"] / speeds["plain"]
    return figures


async def take_turns(ways: dict[str, Measure], width: int, rounds: int, name: str) -> dict[str, float]:
    """Median speed of every way, measured one after the other in every round."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for each in range(rounds):
        for way, measured in ways.items():
            speeds[way].append(await measured(width, f"{name}-{way}-{width}-{each}"))
    return {way: median(of) for way, of in speeds.items()}


def observation(episode: int, turn: int) -> np.ndarray:
    """What the world answers: random tokens, the same for every way of sampling."""
    return np.random.default_rng((episode, turn)).integers(3, 512, OBSERVATION).astype(np.int32)


async def run_episodes(turn_of: Turn, load: Load, width: int, name: str) -> float:
    """Sampled tokens a second of `width` episodes at once."""

    async def episode(number: int) -> None:
        history = np.zeros(0, np.int32)
        for turn in range(load.turns):
            history = np.concatenate([history, observation(number, turn)])
            sampled = await turn_of(f"{name}-{number}", history, load.tokens)
            assert len(sampled) == load.tokens, (len(sampled), load.tokens)
            history = np.concatenate([history, sampled])

    started = time.perf_counter()
    await asyncio.gather(*(episode(i) for i in range(width)))
    return width * load.turns * load.tokens / (time.perf_counter() - started)


class WholePath:
    """Client, ZMQ and a generator that adopts weights."""

    def __init__(self, publisher: WeightPublisher, endpoint: str, client: GeneratorClient) -> None:
        from tiny.model import build_model

        self._publisher = publisher
        self._endpoint = endpoint
        self._client = client
        self._version = 0
        self._models = [list(build_model(seed=seed).named_parameters()) for seed in (0, 1)]
        self.start_figures: dict[str, float | None] = {}

    async def turn_of(self, episode: str, history: np.ndarray, num_tokens: int) -> np.ndarray:
        """See `Turn`."""
        sampling = Sampling(max_tokens=num_tokens)
        return (
            await self._client.generate(
                Request(
                    episode_id=episode,
                    token_ids=history,
                    sampling=sampling,
                    stop_token_ids=[],
                    cache_salt=episode,
                    timeout_s=600,
                )
            )
        ).token_ids

    async def status(self) -> GeneratorStatus:
        """What the generator says of itself."""
        async with Client(self._endpoint) as control:
            status = await control.request(GeneratorStatusRequest(), 10)
        assert isinstance(status, GeneratorStatus)
        return status

    @asynccontextmanager
    async def updated_every_second(self) -> AsyncIterator[None]:
        """Inside this context other weights are published every second."""

        async def update() -> None:
            while True:
                self._version += 1
                await asyncio.to_thread(self._publisher.publish, self._version, self._models[self._version % 2])
                await asyncio.sleep(1)

        updating = asyncio.create_task(update())
        try:
            yield
        finally:
            updating.cancel()
            await asyncio.gather(updating, return_exceptions=True)


@asynccontextmanager
async def whole_path(settings: Settings, directory: Path) -> AsyncIterator[WholePath]:
    """It has sampled its first token."""
    from learner.publishing.publisher import WeightPublisher
    from tiny.model import build_model

    publisher = WeightPublisher(settings.weights, f"ipc://{directory}/w", directory.name)
    publisher.publish(0, build_model(seed=0).named_parameters())
    started = time.perf_counter()
    process = GeneratorProcess(settings, "g0", f"ipc://{directory}/g", publisher.endpoint)
    try:
        endpoint = await asyncio.to_thread(lambda: process.endpoint)
        start_s = time.perf_counter() - started
        client = GeneratorClient([endpoint], settings.generator)
        path = WholePath(publisher, endpoint, client)
        await path.turn_of("first", observation(0, 0), 1)
        path.start_figures = {"start_s": start_s, "first_token_s": time.perf_counter() - started}
        yield path
        await client.close()
    finally:
        process.close()
        publisher.close()


@asynccontextmanager
async def bare_engine(settings: Settings, load: Load) -> AsyncIterator[Measure]:
    """`LLM.generate` in a process of its own, all episodes turn by turn."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_bare, args=(theirs, settings.model_dump_json(), load))
    process.start()
    theirs.close()

    async def measured(width: int, name: str) -> float:
        ours.send_bytes(json.dumps([width, name]).encode())
        if not await asyncio.to_thread(ours.poll, _START_TIMEOUT_S):
            raise TimeoutError(f"the bare engine gave no figure within {_START_TIMEOUT_S} s")
        return float(ours.recv_bytes())

    try:
        yield measured
    finally:
        ours.close()  # it ends
        await asyncio.to_thread(process.join, 30)
        if process.is_alive():
            process.kill()


def _bare(parent: Connection, settings_json: str, load: Load) -> None:
    settings = Settings.model_validate_json(settings_json)
    os.environ.update(engine_environment(settings.generator))
    guard_children()
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(**engine_arguments(settings, Path(settings.model.path), on_gpu=False))
    parameters = SamplingParams(
        max_tokens=load.tokens, ignore_eos=True, detokenize=False, logprobs=0, flat_logprobs=True
    )

    def once(width: int, name: str) -> float:
        histories = [np.zeros(0, np.int32) for _ in range(width)]
        started = time.perf_counter()
        for turn in range(load.turns):
            histories = [np.concatenate([h, observation(i, turn)]) for i, h in enumerate(histories)]
            prompts = [
                TokensPrompt(prompt_token_ids=h.tolist(), cache_salt=f"{name}-{i}") for i, h in enumerate(histories)
            ]
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            histories = [
                np.concatenate([h, np.asarray(o.outputs[0].token_ids, np.int32)])
                for h, o in zip(histories, outputs, strict=True)
            ]
        return width * load.turns * load.tokens / (time.perf_counter() - started)

    with contextlib.suppress(EOFError):
        while True:
            width, name = json.loads(parent.recv_bytes())
            parent.send_bytes(repr(once(width, name)).encode())


@asynccontextmanager
async def openai_server(settings: Settings) -> AsyncIterator[Turn]:
    """vLLM's own HTTP server with the same engine settings, token ids in and out."""
    with _server(settings) as url:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=600)) as session:
            await _until_healthy(session, url)

            async def turn_of(episode: str, history: np.ndarray, num_tokens: int) -> np.ndarray:
                body = {
                    "model": settings.model.path,
                    "prompt": history.tolist(),
                    "max_tokens": num_tokens,
                    "temperature": 1.0,
                    "ignore_eos": True,
                    "logprobs": 0,
                    "return_token_ids": True,
                    "cache_salt": episode,
                }
                async with session.post(f"{url}/v1/completions", json=body) as reply:
                    said = await reply.json()
                    return np.asarray(said["choices"][0]["token_ids"], np.int32)

            yield turn_of


@contextmanager
def _server(settings: Settings) -> Iterator[str]:
    arguments = engine_arguments(settings, Path(settings.model.path), on_gpu=False)
    for of_ours in ("skip_tokenizer_init", "worker_cls", "disable_log_stats", "stream_interval"):
        arguments.pop(of_ours)
    flags = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in arguments.items()
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    command += [f"--port={port}", "--host=127.0.0.1", "--disable-log-stats", "--disable-uvicorn-access-log"]
    environment = os.environ | engine_environment(settings.generator)
    server = subprocess.Popen(command, env=environment, stdout=sys.stderr)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()


async def _until_healthy(session: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(f"{url}/health") as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(0.5)


if __name__ == "__main__":
    main()
