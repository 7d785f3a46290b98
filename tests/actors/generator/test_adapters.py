"""Versions as adapters in a real engine, against transformers with the adapter merged."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.generator.adapters import MOST_HELD, EngineAdapters, adapter_arguments
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request, Sampled
from learner.publishing.publisher import WeightPublisher
from learner.training.adapters import add_adapters, exports, factors
from protocol.config import Settings
from protocol.errors import ConfigError, WeightsError
from protocol.messages import NEWEST, Sampling
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


async def sample(client: GeneratorClient, max_tokens: int, episode: str = "e", version: int = NEWEST) -> Sampled:
    return await client.generate(
        Request(
            episode_id=episode,
            token_ids=PROMPT,
            sampling=Sampling(max_tokens=max_tokens, version=version),
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


@pytest.mark.vllm
async def test_an_evaluation_samples_with_its_version_while_later_ones_train(served: Served) -> None:
    client = GeneratorClient([served.endpoint], served.settings.generator)
    try:
        scored = served.publish()
        evaluated = served.version
        await asyncio.to_thread(served.adopted)
        first = await sample(client, 20, "scored", evaluated)
        assert set(first.versions) == {evaluated} and difference(first, scored) < 2e-5
        for _ in range(4):
            newest = served.publish()
            await asyncio.to_thread(served.adopted)
            trains, counts = await asyncio.gather(sample(client, 40, "trains"), sample(client, 40, "scored", evaluated))
            assert set(trains.versions) == {served.version} and difference(trains, newest) < 2e-5
            assert set(counts.versions) == {evaluated} and difference(counts, scored) < 2e-5
        assert served.version == evaluated + 4
        await sample(client, 4, "scored", served.version)  # the next evaluation: the one before is needed no more
        for _ in range(4):
            newest = served.publish()
            await asyncio.to_thread(served.adopted)
        late = await sample(client, 20, "late", evaluated)
        assert set(late.versions) == {served.version} and difference(late, newest) < 2e-5, (
            "stamped with what sampled it"
        )
    finally:
        await client.close()


class Loras:
    """What an engine loads and drops of adapters."""

    def __init__(self) -> None:
        self.loaded: dict[int, Path] = {}
        self.most = 0

    async def add_lora(self, request: Any) -> bool:
        assert request.lora_int_id not in self.loaded, "vLLM would go on with what it has"
        self.loaded[request.lora_int_id] = Path(request.lora_path)
        self.most = max(self.most, len(self.loaded))
        return True

    async def remove_lora(self, number: int) -> None:
        del self.loaded[number]


@pytest.fixture
def held(tmp_path: Path) -> Iterator[tuple[EngineAdapters, Loras]]:
    loras = Loras()
    adapters = EngineAdapters(loras, tmp_path, RANK, "float32", patience_s=0.3)  # type: ignore[arg-type]
    yield adapters, loras
    adapters.close()


async def test_what_nobody_needs_is_dropped_but_for_the_newest_few(held: tuple[EngineAdapters, Loras]) -> None:
    adapters, loras = held
    assert adapters.take().version == 0, "the base, before the first version"
    for version in range(6):
        await adapters.swap(version)
    assert [adapters.take(v).version for v in (2, 3, 4, 5)] == [2, 3, 4, 5]
    assert adapters.take(1).version == 5 and adapters.status() == {"adapters_held": 4.0, "adapters_gone": 1.0}
    assert len(loras.loaded) == 4


async def test_the_named_version_stays_until_a_later_one_is_named(held: tuple[EngineAdapters, Loras]) -> None:
    adapters, _ = held
    for version in range(3):
        await adapters.swap(version)
    adapters.hold(1)
    for version in range(3, 12):
        await adapters.swap(version)
    adapters.give_back(adapters.take(1))
    assert adapters.take(1).version == 1
    adapters.hold(0)  # an earlier one is none
    adapters.hold(11)
    adapters.give_back(adapters.take())
    await adapters.swap(12)
    assert adapters.take(1).version == 1, "in use"


async def test_a_version_that_comes_again_is_another_adapter(held: tuple[EngineAdapters, Loras]) -> None:
    adapters, loras = held
    await adapters.swap(7)
    before = adapters.take()
    await adapters.swap(7)
    after = adapters.take(7)
    assert before.request is not None and after.request is not None
    assert before.request.lora_name != after.request.lora_name and len(set(loras.loaded.values())) == 2


async def test_never_are_more_held_than_vllm_has_room_for(held: tuple[EngineAdapters, Loras]) -> None:
    adapters, loras = held
    taken = []
    for version in range(MOST_HELD):
        await adapters.swap(version)
        taken.append(adapters.take())
    with pytest.raises(WeightsError, match=r"found no room for 0\.3 s: 8 older ones are in use"):
        await adapters.swap(MOST_HELD)
    adapters._patience_s = 60
    waiting = asyncio.create_task(adapters.swap(MOST_HELD))
    await asyncio.sleep(0)
    adapters.give_back(taken[2])
    await waiting
    assert adapters.take().version == MOST_HELD and adapters.take(2).version == MOST_HELD
    assert loras.most == MOST_HELD


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
