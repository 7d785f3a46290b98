"""When weights change during an episode, is its older prefix worth keeping?

    python -m benchmarks.prefix_reuse [--quick] [--save]

Speed: the same multi-turn episodes under new weights every second, with every turn reusing the KV of its history
(`tok_s_reuse`, the default), and with the history prefilled again whenever the version has moved (`tok_s_reprefill`,
`generator.reuse_versions = 0`).

Error: log-probs of an episode's last turn, computed over KV that is four optimizer steps old, against those without
older KV: mean absolute difference (`stale_kv_diff_*`), beside what the same four steps change in the log-probs of the
policy (`policy_diff_*`), at the learning rate of the paper's recipe and of configs/micro.
"""

from __future__ import annotations

import asyncio
import copy
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from actors.agent.chat import ChatTokenizer
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from benchmarks.report import parser, report
from learner.publishing.publisher import WeightPublisher
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.messages import Sampling

BASE = Path(__file__).parent.parent / "assets" / "tiny"
VERSIONS = 4
LEARNING_RATES = {"lr_1e-6": 1e-6, "lr_5e-4": 5e-4}
OBSERVATION = 96
SAMPLED = 16


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/prefix_reuse.json")
    options = arguments.parse_args()
    width, turns, episodes = (32, 4, 16) if options.quick else (96, 8, 64)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        figures = asyncio.run(speeds(Path(directory), width, turns))
    for name, rate in LEARNING_RATES.items():
        figures |= {f"{key}_{name}": value for key, value in differences(rate, episodes).items()}
    settings = {"episodes_at_once": width, "turns": turns, "observation_tokens": OBSERVATION, "sampled_tokens": SAMPLED}
    report("prefix_reuse", figures, settings | {"versions": VERSIONS}, save=options.save)


async def speeds(directory: Path, width: int, turns: int) -> dict[str, float | None]:
    """Sampled tokens a second, both ways, on one generator."""
    from tiny.model import build_model, save_random_model

    settings = Settings(
        model=ModelSettings(path=str(save_random_model(directory / "model")), max_context=1024, dtype="float32"),
        generator=GeneratorSettings(kv_cache_mib=768),
        start_timeout_s=600,
    )
    publisher = WeightPublisher(settings.weights, f"ipc://{directory}/w", directory.name)
    models = [list(build_model(seed=seed).named_parameters()) for seed in (0, 1)]
    publisher.publish(0, models[0])
    process = GeneratorProcess(settings, "g0", f"ipc://{directory}/g", publisher.endpoint)
    try:
        client = GeneratorClient([await asyncio.to_thread(lambda: process.endpoint)], settings.generator)
        await asyncio.to_thread(publisher.wait_adopted, 0, 60)
        await play(client, "warm", width, 2, renew=False)
        updating = asyncio.create_task(update_every_second(publisher, models))
        figures: dict[str, float | None] = {
            "tok_s_reuse": await play(client, "reuse", width, turns, renew=False),
            "tok_s_reprefill": await play(client, "renew", width, turns, renew=True),
        }
        updating.cancel()
        await client.close()
    finally:
        process.close()
        publisher.close()
    return figures


async def update_every_second(publisher: WeightPublisher, models: list[list[tuple[str, torch.nn.Parameter]]]) -> None:
    """Publish other weights every second until cancelled."""
    version = 0
    while True:
        version += 1
        await asyncio.to_thread(publisher.publish, version, models[version % 2])
        await asyncio.sleep(1)


async def play(client: GeneratorClient, name: str, width: int, turns: int, *, renew: bool) -> float:
    """Episodes of growing histories; with `renew` KV is shared only under the version that the last turn saw."""

    async def episode(number: int) -> None:
        rng = np.random.default_rng(number)
        history, newest = np.zeros(0, np.int32), 0
        for _ in range(turns):
            history = np.concatenate([history, rng.integers(3, 512, OBSERVATION).astype(np.int32)])
            salt = f"{name}-{number}-{newest if renew else 0}"
            sampled = await client.generate(
                Request(
                    episode_id=f"{name}-{number}",
                    token_ids=history,
                    sampling=Sampling(max_tokens=SAMPLED),
                    stop_token_ids=[],
                    cache_salt=salt,
                    timeout_s=600,
                )
            )
            history, newest = np.concatenate([history, sampled.token_ids]), int(sampled.versions.max())

    started = time.perf_counter()
    await asyncio.gather(*(episode(i) for i in range(width)))
    return width * turns * SAMPLED / (time.perf_counter() - started)


def differences(learning_rate: float, num_episodes: int) -> dict[str, float]:
    """Mean absolute differences of log-probs over the last turns of expert episodes."""
    from tiny.imitate import Example, Recipe, episodes

    def last_turn(example: Example) -> int:
        sampled = (example.labels >= 0).int()
        return int((sampled[1:] - sampled[:-1] == 1).nonzero()[-1]) + 1

    recipe = Recipe()
    examples = episodes(recipe, recipe.lessons[-1], ChatTokenizer.load(BASE), 0, num_episodes)
    old = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    new = copy.deepcopy(old)
    optimizer = torch.optim.AdamW(new.parameters(), lr=learning_rate, weight_decay=0.0)
    for step in range(VERSIONS):
        optimizer.zero_grad()
        for example in examples[step::VERSIONS]:
            new(example.ids[None], labels=example.labels[None]).loss.backward()
        torch.nn.utils.clip_grad_norm_(new.parameters(), 1.0)
        optimizer.step()
    stale, policy = [], []
    with torch.no_grad():
        for example in examples:
            ids, start = example.ids[None], last_turn(example)
            kept = old(ids[:, : start - 1], use_cache=True).past_key_values
            over_old_kv = _logprobs(new(ids[:, start - 1 : -1], past_key_values=kept).logits, ids[:, start:])
            whole = [_logprobs(m(ids).logits[:, start - 1 : -1], ids[:, start:]) for m in (old, new)]
            stale.append((over_old_kv - whole[1]).abs().mean())
            policy.append((whole[0] - whole[1]).abs().mean())
    return {"stale_kv_diff": float(torch.stack(stale).mean()), "policy_diff": float(torch.stack(policy).mean())}


def _logprobs(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]


if __name__ == "__main__":
    main()
