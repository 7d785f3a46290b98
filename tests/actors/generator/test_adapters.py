"""Versions as adapters in a real engine, against transformers with the adapter merged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.generator.adapters import adapter_arguments
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request, Sampled
from learner.publishing.publisher import WeightPublisher
from learner.training.adapters import add_adapters, exports, factors
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.messages import Sampling
from tiny.model import build_model, save_random_model

PROMPT = np.asarray([7, 300, 41, 5, 99, 250, 13, 8], np.int32)
RANK = 4


def settings_of(path: Path, **learner: Any) -> Settings:
    return Settings.model_validate(
        {
            "model": {"path": str(path), "max_context": 1024},
            "generator": {"max_running": 8, "kv_cache_mib": 64},
            "learner": {"lora_rank": RANK} | learner,
        }
    )


class Served:
    """A generator, and the publisher that its adapters come from."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings_of(save_random_model(folder / "model"))
        self.causal_lm = build_model()
        add_adapters(self.causal_lm, RANK, seed=0)
        self.publisher = WeightPublisher(self.settings.weights, f"ipc://{folder}/weights", f"test-{folder.name}")
        self.version = -1
        self.publish()
        self.process = GeneratorProcess(self.settings, "g0", f"ipc://{folder}/g0", self.publisher.endpoint)
        self.endpoint = self.process.endpoint

    def publish(self) -> Any:
        """Another version: the same adapters, moved (the first one is the base). Its model, merged."""
        self.version += 1
        if self.version:
            torch.manual_seed(self.version)
            with torch.no_grad():
                for parameter in self.causal_lm.parameters():
                    if parameter.requires_grad:
                        parameter.add_(torch.randn_like(parameter), alpha=0.1)
        named = ((e.name, e.value().detach()) for e in factors(self.causal_lm))
        self.publisher.publish(self.version, named)
        merged = build_model()
        merged.load_state_dict({e.name: e.value().detach().clone() for e in exports(self.causal_lm)}, strict=False)
        return merged

    def adopted(self) -> None:
        self.publisher.wait_adopted(self.version, 60)

    def close(self) -> None:
        self.process.close()
        self.publisher.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("adapters"))
    yield served
    served.close()


async def sample(client: GeneratorClient, max_tokens: int, episode: str = "e") -> Sampled:
    return await client.generate(
        Request(
            episode_id=episode,
            token_ids=PROMPT,
            sampling=Sampling(max_tokens=max_tokens),
            stop_token_ids=[],
            cache_salt="s",
            timeout_s=60.0,
        )
    )


def difference(sampled: Sampled, causal_lm: Any) -> float:
    row = torch.from_numpy(np.concatenate([PROMPT, sampled.token_ids]).astype(np.int64))[None]
    with torch.no_grad():
        logits = causal_lm(row).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
    own = logits.gather(1, row[0, len(PROMPT) :, None])[:, 0].numpy()
    return float(np.abs(own - sampled.logprobs).max())


@pytest.mark.vllm
async def test_each_version_is_its_adapter_on_the_base_and_a_request_keeps_its_own(served: Served) -> None:
    client = GeneratorClient([served.endpoint], served.settings.generator)
    try:
        served.adopted()
        first = await sample(client, 40)
        assert set(first.versions) == {0} and difference(first, build_model()) < 2e-5
        models = {0: build_model()}
        running = []
        for _ in range(3):
            running.append(asyncio.create_task(sample(client, 500, f"e{served.version}")))
            await asyncio.sleep(0.1)  # it has begun
            merged = served.publish()
            models[served.version] = merged
            await asyncio.to_thread(served.adopted)
            newest = await sample(client, 40, "new")
            assert set(newest.versions) == {served.version}
            assert difference(newest, models[served.version]) < 2e-5
        for sampled in await asyncio.gather(*running):
            (version,) = set(sampled.versions.tolist())
            apart = {v: difference(sampled, model) for v, model in models.items()}
            assert apart[version] < 5e-5 and min(d for v, d in apart.items() if v != version) > 1e-2
        status = served.publisher.status()
        whole = sum(p.numel() * p.element_size() for p in build_model().parameters())
        assert status["num_lost"] == 0 and status["bytes"] < whole / 5
    finally:
        await client.close()


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (4, 8), (8, 8), (33, 64), (512, 512)])
def test_vllm_makes_room_for_the_next_rank_that_it_knows(rank: int, room: int, tmp_path: Path) -> None:
    assert adapter_arguments(settings_of(tmp_path, lora_rank=rank))["max_lora_rank"] == room


def test_a_rank_beyond_vllms_is_refused_and_merged_weights_need_no_room(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rank 512 at most: lower it, or set weights.adapters merged"):
        adapter_arguments(settings_of(tmp_path, lora_rank=513))
    merged = settings_of(tmp_path, lora_rank=513).model_copy(
        update={"weights": Settings().weights.model_copy(update={"adapters": "merged"})}
    )
    assert adapter_arguments(merged) == {}
    assert adapter_arguments(settings_of(tmp_path, lora_rank=0)) == {}
