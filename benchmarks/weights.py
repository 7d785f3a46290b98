"""What does a weight push cost? From the learner's tensors to proved weights in force in a vLLM engine.

    python -m benchmarks.weights [--quick] [--save]

For a model of about 100M parameters, and again (`*_tiny`) for one of half a million, in float32 on one thread each:
`push_s` runs from `publish` until the generator has reported the learner's checksum. `stall_ms` is by how much the wait
for the next token grows when an update falls into it (95th percentile over the updates, 8 generations running),
`decode_step_ms` the usual wait. `disk_reload_s` is the way through a file: write, read, copy into place.
`delta_bytes_share` is what changed, as sent, after real AdamW steps at 1e-6 on bfloat16 weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from benchmarks.report import parser, report
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.messages import Cancel, Generate, Sampling, Tokens
from protocol.sockets import Client
from protocol.weights.manifest import encode_delta

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

    from learner.publishing.publisher import WeightPublisher

LARGE = {"vocab_size": 32000, "hidden": 768, "layers": 14, "heads": 12, "kv_heads": 4}
TINY = {"vocab_size": 512, "hidden": 128, "layers": 2, "heads": 4, "kv_heads": 2}
NUM_GENERATIONS = 8
PROMPT = np.arange(3, 35, dtype=np.int32)


class Served(NamedTuple):
    """A model, the publisher of its weights, and a generator that serves it."""

    model: Qwen2ForCausalLM
    publisher: WeightPublisher
    endpoint: str
    settings: Settings


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/weights.json")
    options = arguments.parse_args()
    num_updates = 5 if options.quick else 30
    import torch

    torch.set_num_threads(1)
    figures: dict[str, float | None] = {}
    for shape, suffix in ((LARGE, ""), (TINY, "_tiny")):
        with serving(shape) as served:
            measured = push_figures(served, num_updates)
            measured |= asyncio.run(stall_figures(served, num_updates))
            measured["logprob_max_abs_diff"] = asyncio.run(logprob_difference(served))
            if not suffix:
                measured["delta_bytes_share"] = delta_share(served.model, num_steps=1 if options.quick else 3)
        figures |= {name + suffix: value for name, value in measured.items()}
    report("weights", figures, {"updates": num_updates, "large": LARGE, "tiny": TINY}, save=options.save)


@contextlib.contextmanager
def serving(shape: dict[str, int]) -> Iterator[Served]:
    """A running generator of a random model with the weights of version 0."""
    import torch

    from learner.publishing.publisher import WeightPublisher
    from tiny.model import build_model

    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        model = build_model(**shape)  # type: ignore[arg-type]
        model.save_pretrained(f"{directory}/model")
        settings = Settings(
            model=ModelSettings(path=f"{directory}/model", max_context=4096, dtype="float32"),
            generator=GeneratorSettings(max_running=32, kv_cache_mib=512, stream_tokens=1),
            start_timeout_s=600,
        )
        run = Path(directory).name
        publisher = WeightPublisher(settings.weights, f"ipc://{directory}/w", run, dtype=torch.float32)
        try:
            publisher.publish(0, model.named_parameters())
            with GeneratorProcess(settings, "g0", f"ipc://{directory}/g", publisher.endpoint) as process:
                endpoint = process.endpoint
                publisher.wait_adopted(0, 60)
                yield Served(model, publisher, endpoint, settings)
        finally:
            publisher.close()


def push_figures(served: Served, num_updates: int) -> dict[str, float | None]:
    """Pushes to an idle engine, and the same bytes by other ways."""
    pushes, blocked = [], []
    for _ in range(num_updates + 3):  # the first ones make the second segment and the staged weights
        started = time.perf_counter()
        push(served)
        pushes.append(time.perf_counter() - started)
        blocked.append(served.publisher.status()["learner_blocked_s"])
    push_s = statistics.median(pushes[3:])
    num_bytes = served.publisher.status()["bytes"]
    return {
        "push_s": push_s,
        "push_gb_s": num_bytes / push_s / 1e9,
        "memcpy_gb_s": num_bytes / memcpy_s(served.model) / 1e9,
        "disk_reload_s": disk_reload_s(served.model),
        "learner_blocked_ms": 1e3 * statistics.median(blocked[3:]),
    }


def push(served: Served) -> None:
    """Publish and wait until it is proved. Over shared memory all bytes travel, however few have changed."""
    import torch

    version = int(served.publisher.status()["version"]) + 1
    with torch.no_grad():
        next(served.model.parameters()).mul_(1.0001)
    served.publisher.publish(version, served.model.named_parameters())
    served.publisher.wait_adopted(version, 60)


def memcpy_s(model: Qwen2ForCausalLM) -> float:
    """Copying every tensor once, into memory that is there already."""
    import torch

    targets = [torch.zeros_like(p) for p in model.parameters()]

    def copy() -> None:
        with torch.no_grad():
            for target, parameter in zip(targets, model.parameters(), strict=True):
                target.copy_(parameter)

    return best_of(copy, 5)


def disk_reload_s(model: Qwen2ForCausalLM) -> float:
    """Write a file, read it, copy it into place."""
    from safetensors.torch import load_file, save_file

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:

        def reload() -> None:
            save_file({n: p.detach() for n, p in model.named_parameters()}, file.name)
            loaded = load_file(file.name)
            for name, parameter in model.named_parameters():
                parameter.data.copy_(loaded[name])

        return best_of(reload, 2)


def best_of(action: object, times: int) -> float:
    """Shortest of several runs, in seconds."""
    durations = []
    for _ in range(times):
        started = time.perf_counter()
        action()  # type: ignore[operator]
        durations.append(time.perf_counter() - started)
    return min(durations)


async def stall_figures(served: Served, num_updates: int) -> dict[str, float | None]:
    """Gaps between tokens while versions are pushed, against those without."""
    stop = asyncio.Event()
    async with Client(served.endpoint) as client:
        streams = [asyncio.create_task(arrivals(client, f"s{i}", stop)) for i in range(NUM_GENERATIONS)]
        await asyncio.sleep(3)
        swaps = []
        for _ in range(num_updates):
            started = time.perf_counter()
            await asyncio.to_thread(push, served)
            swaps.append((started, time.perf_counter()))
            await asyncio.sleep(0.3)
        stop.set()
        arrived = [pair for stream in await asyncio.gather(*streams) for pair in stream]
    quiet = [end - begin for begin, end in arrived if not any(begin < t1 and t0 < end for t0, t1 in swaps)]
    usual = statistics.median(quiet)
    stalls = [
        max((end - begin for begin, end in arrived if begin < t1 and t0 < end), default=usual) - usual
        for t0, t1 in swaps
    ]
    return {
        "stall_ms": 1e3 * float(np.percentile(stalls, 95)),
        "stall_median_ms": 1e3 * statistics.median(stalls),
        "decode_step_ms": 1e3 * usual,
    }


async def arrivals(client: Client, name: str, stop: asyncio.Event) -> list[tuple[float, float]]:
    """(previous, this) arrival of every token, over one generation after another."""
    gaps: list[tuple[float, float]] = []
    number = 0
    while not stop.is_set():
        number += 1
        request = Generate(
            request_id=f"{name}-{number}",
            token_ids=PROMPT,
            sampling=Sampling(max_tokens=1024),
            stop_token_ids=[],
            cache_salt="stall",
            timeout_s=120,
            stream=True,
        )
        previous: float | None = None
        async with contextlib.aclosing(client.stream(request, 60)) as replies:
            async for reply in replies:
                assert isinstance(reply, Tokens), reply
                now = time.perf_counter()
                if previous is not None:
                    gaps.append((previous, now))
                previous = now
                if reply.finish_reason is not None:
                    break
                if stop.is_set():
                    await client.request(Cancel(request_id=request.request_id), 10)
                    return gaps
    return gaps


async def logprob_difference(served: Served) -> float:
    """Largest difference of sampled log-probs between the generator and transformers with the same weights."""
    import torch

    client = GeneratorClient([served.endpoint], served.settings.generator)
    sampled = await client.generate(
        Request(
            episode_id="canary",
            token_ids=PROMPT,
            sampling=Sampling(max_tokens=48),
            stop_token_ids=[],
            cache_salt="canary",
            timeout_s=60,
        )
    )
    await client.close()
    ids = torch.from_numpy(np.concatenate([PROMPT, sampled.token_ids]).astype(np.int64))[None]
    with torch.no_grad():
        logits = served.model(ids).logits[0, len(PROMPT) - 1 : -1]
    reference = logits.log_softmax(-1).gather(1, ids[0, len(PROMPT) :, None])[:, 0].numpy()
    return float(np.abs(sampled.logprobs - reference).max())


def delta_share(model: Qwen2ForCausalLM, num_steps: int) -> float:
    """Bytes of the deltas over the bytes of the bfloat16 weights, mean over real AdamW steps at 1e-6."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.1)
    data = torch.Generator().manual_seed(0)
    shares = []
    for _ in range(num_steps + 1):  # the first step has no momentum yet: every element moves by the learning rate
        before = [p.detach().bfloat16().flatten().view(torch.uint8).numpy().copy() for p in model.parameters()]
        ids = torch.randint(0, model.config.vocab_size, (2, 64), generator=data)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sent = total = 0
        for old, parameter in zip(before, model.parameters(), strict=True):
            new = parameter.detach().bfloat16().flatten().view(torch.uint8).numpy()
            delta = encode_delta(old, new, 2)
            sent += new.nbytes if delta is None else delta.nbytes
            total += new.nbytes
        shares.append(sent / total)
    return statistics.mean(shares[1:])


if __name__ == "__main__":
    main()
