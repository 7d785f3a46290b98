"""How fast do many multi-turn episodes sample, through the whole path and without it?

    python -m benchmarks.generator [--quick] [--save]

The same episodes (each turn adds an observation of 32 tokens to the history and samples an answer) run through client,
ZMQ and engine (`tok_s_N`, N at once), through `LLM.generate` on the bare engine (`bare_tok_s_N`) and through vLLM's
OpenAI server over HTTP (`openai_tok_s_N`), one after the other, on one thread each: medians of three runs (`--quick`:
of one). `tok_s_updates_share` is the speed with new weights every second over that without; `start_s` and
`first_token_s` begin with an empty process.
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
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import aiohttp
import numpy as np

from actors.engine import engine_arguments, engine_environment
from actors.generator_client import GeneratorClient
from actors.generator_process import GeneratorProcess
from actors.lifeline import guard_children
from benchmarks.report import parser, report
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.messages import GeneratorStatus, GeneratorStatusRequest, Sampling
from protocol.sockets import Client

WIDTHS = (64, 256, 512)
OBSERVATION = 32
UPDATE_WIDTH = 256
_START_TIMEOUT_S = 600


class Load(NamedTuple):
    """What every episode does, and how often all of it is measured."""

    turns: int
    tokens: int  # sampled in each turn
    runs: int


WARM = Load(turns=2, tokens=16, runs=1)

Turn = Callable[[str, np.ndarray, int], Awaitable[np.ndarray]]
"""(episode, history, tokens to sample) -> sampled tokens."""


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/generator.json")
    options = arguments.parse_args()
    load = Load(3, 16, 1) if options.quick else Load(4, 64, 3)
    figures: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        from tiny.model import save_random_model

        model_dir = save_random_model(Path(directory) / "model")
        settings = Settings(
            model=ModelSettings(path=str(model_dir), max_context=1024, dtype="float32"),
            generator=GeneratorSettings(kv_cache_mib=768),
            start_timeout_s=_START_TIMEOUT_S,
        )
        figures |= asyncio.run(whole_path(settings, Path(directory), load))
        figures |= bare_engine(settings, load)
        figures |= asyncio.run(openai_server(settings, load))
    report("generator", figures, load._asdict() | {"widths": WIDTHS}, save=options.save)


def observation(episode: int, turn: int) -> np.ndarray:
    """What the world answers: random tokens, the same for every way of sampling."""
    return np.random.default_rng((episode, turn)).integers(3, 512, OBSERVATION).astype(np.int32)


async def run_episodes(turn_of: Turn, width: int, load: Load, name: str = "") -> float:
    """Sampled tokens a second of `width` episodes at once: the median of all runs.

    Episodes of another width or `name` find nothing of these in the prefix cache.
    """
    return median([await _run_once(turn_of, width, load, f"{name}-{width}-{run}") for run in range(load.runs)])


async def _run_once(turn_of: Turn, width: int, load: Load, name: str) -> float:
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


async def whole_path(settings: Settings, directory: Path, load: Load) -> dict[str, float | None]:
    """Through the client, ZMQ and a generator that adopts weights."""
    from learner.weights import WeightPublisher
    from tiny.model import build_model

    publisher = WeightPublisher(settings.weights, f"ipc://{directory}/w", directory.name)
    models = [list(build_model(seed=seed).named_parameters()) for seed in (0, 1)]
    publisher.publish(0, models[0])
    figures: dict[str, float | None] = {}
    started = time.perf_counter()
    process = GeneratorProcess(settings, "g0", settings.model.path, f"ipc://{directory}/g", publisher.endpoint)
    try:
        endpoint = await asyncio.to_thread(lambda: process.endpoint)
        figures["start_s"] = time.perf_counter() - started
        client = GeneratorClient([endpoint], settings.generator)

        async def turn_of(episode: str, history: np.ndarray, num_tokens: int) -> np.ndarray:
            sampling = Sampling(max_tokens=num_tokens)
            return (await client.generate(episode, history, sampling, [], episode, 600)).token_ids

        await turn_of("first", observation(0, 0), 1)
        figures["first_token_s"] = time.perf_counter() - started
        await run_episodes(turn_of, 64, WARM, "warm")
        for width in WIDTHS:
            figures[f"tok_s_{width}"] = await run_episodes(turn_of, width, load)
        async with Client(endpoint) as control:
            status = await control.request(GeneratorStatusRequest(), 10)
        assert isinstance(status, GeneratorStatus)
        figures["prefix_hit_share"] = status.prefix_hit_share
        plain = await run_episodes(turn_of, UPDATE_WIDTH, load, "plain")
        updating = asyncio.create_task(update_every_second(publisher, models))
        updated = await run_episodes(turn_of, UPDATE_WIDTH, load, "updated")
        updating.cancel()
        figures["tok_s_updates_share"] = updated / plain
        await client.close()
    finally:
        process.close()
        publisher.close()
    return figures


async def update_every_second(publisher: Any, models: list[Any]) -> None:
    """Publish other weights every second until cancelled."""
    version = 0
    while True:
        version += 1
        await asyncio.to_thread(publisher.publish, version, models[version % 2])
        await asyncio.sleep(1)


def bare_engine(settings: Settings, load: Load) -> dict[str, float | None]:
    """`LLM.generate` in a process of its own, all episodes turn by turn."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_bare, args=(theirs, settings.model_dump_json(), load))
    process.start()
    theirs.close()
    try:
        if not ours.poll(_START_TIMEOUT_S):
            raise TimeoutError(f"the bare engine gave no figures within {_START_TIMEOUT_S} s")
        figures: dict[str, float | None] = json.loads(ours.recv_bytes())
        return figures
    finally:
        process.join(30)
        if process.is_alive():
            process.kill()


def _bare(to_parent: Connection, settings_json: str, load: Load) -> None:
    settings = Settings.model_validate_json(settings_json)
    os.environ.update(engine_environment(settings.generator))
    guard_children()
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(**engine_arguments(settings, Path(settings.model.path), on_gpu=False))
    parameters = SamplingParams(
        max_tokens=load.tokens, ignore_eos=True, detokenize=False, logprobs=0, flat_logprobs=True
    )

    def once(width: int, run: int) -> float:
        histories = [np.zeros(0, np.int32) for _ in range(width)]
        started = time.perf_counter()
        for turn in range(load.turns):
            histories = [np.concatenate([h, observation(i, turn)]) for i, h in enumerate(histories)]
            prompts = [
                TokensPrompt(prompt_token_ids=h.tolist(), cache_salt=f"{run}-{width}-{i}")
                for i, h in enumerate(histories)
            ]
            outputs = llm.generate(prompts, parameters, use_tqdm=False)
            histories = [
                np.concatenate([h, np.asarray(o.outputs[0].token_ids, np.int32)])
                for h, o in zip(histories, outputs, strict=True)
            ]
        return width * load.turns * load.tokens / (time.perf_counter() - started)

    once(65, 0)  # warm
    medians = {f"bare_tok_s_{w}": median([once(w, run) for run in range(load.runs)]) for w in WIDTHS}
    to_parent.send_bytes(json.dumps(medians).encode())


async def openai_server(settings: Settings, load: Load) -> dict[str, float | None]:
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

            await run_episodes(turn_of, 64, WARM, "warm")
            return {f"openai_tok_s_{w}": await run_episodes(turn_of, w, load) for w in WIDTHS}


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
