"""A second engine that differs in all that it can: untied, bfloat16, deltas over the socket, KV recomputed after an
update; the other pairs of tying and dtype; and one engine split over two workers."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
from transformers import Qwen2ForCausalLM

from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from learner.publishing.publisher import WeightPublisher
from protocol.config import GeneratorSettings, ModelSettings, Settings, WeightSettings
from protocol.errors import GeneratorError
from protocol.messages import Sampling
from tests.waiting import until
from tiny.model import build_model, save_random_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
Dtype = Literal["float32", "bfloat16"]
PROMPT = np.asarray([7, 300, 41, 5, 99, 250, 13, 8], np.int32)


def settings_for(model_dir: Path, workers: int = 1, dtype: Dtype = "bfloat16") -> Settings:
    return Settings(
        model=ModelSettings(path=str(model_dir), max_context=512, dtype=dtype),
        start_timeout_s=600,
        generator=GeneratorSettings(
            max_running=16, kv_cache_mib=32, recompute_kv=workers == 1, tensor_parallel=workers
        ),
        weights=WeightSettings(channel="zmq", full_every=3),
    )


class Serving(NamedTuple):
    settings: Settings
    publisher: WeightPublisher
    endpoint: str
    tied: bool


@contextlib.contextmanager
def serving(
    directory: Path, workers: int = 1, *, published: bool = True, tied: bool = False, dtype: Dtype = "bfloat16"
) -> Iterator[Serving]:
    model_dir = save_random_model(directory / "model", tied=tied)
    settings = settings_for(model_dir, workers, dtype)
    publisher = WeightPublisher(
        settings.weights, f"ipc://{directory}/w", f"test-{directory.name}", dtype=getattr(torch, dtype)
    )
    if published:
        publisher.publish(0, build_model(tied=tied).named_parameters())
    process = GeneratorProcess(settings, "untied", f"ipc://{directory}/g", publisher.endpoint)
    try:
        endpoint = process.endpoint
        if published:
            publisher.wait_adopted(0, 60)
        yield Serving(settings, publisher, endpoint, tied)
    finally:
        process.close()
        publisher.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("untied")) as made:
        yield made


def nudge(model: Qwen2ForCausalLM, seed: int) -> None:
    """Change some weights a little, as an optimizer step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            chosen = torch.rand(parameter.shape, generator=generator) < 0.02
            parameter.add_(torch.randn(parameter.shape, generator=generator) * chosen, alpha=0.3)


async def test_deltas_of_an_untied_bfloat16_model_change_what_it_says_to_what_transformers_says(served):
    await check_nudged_versions(served, 5)
    status = served.publisher.status()
    assert status["delta_share"] < 0.06
    assert status["sent_bytes"] < 4 * status["bytes"]  # two whole ones, three deltas


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("tied", "dtype"), [(True, "bfloat16"), (False, "float32")])
async def test_the_other_pairs_of_tying_and_dtype_say_what_transformers_says(tmp_path, tied, dtype):
    with serving(tmp_path, tied=tied, dtype=dtype) as other:
        await check_nudged_versions(other, 4)
        status = other.publisher.status()
        assert status["sent_bytes"] < 3 * status["bytes"]  # whole ones and deltas


@pytest.mark.timeout(600)
async def test_weights_are_split_over_two_workers_as_vllm_splits_them(tmp_path):
    with serving(tmp_path, workers=2, published=False) as split:
        await check_kv_from_before_the_first_version(split)
        await check_nudged_versions(split, 2)


async def check_kv_from_before_the_first_version(served: Serving) -> None:
    """It is never given to a request of that version, although the generator called its weights 0 all along."""
    settings, publisher, endpoint, _ = served
    client = GeneratorClient([endpoint], settings.generator)

    async def num_cached() -> int:
        sampled = await client.generate(
            Request(
                episode_id="e",
                token_ids=np.tile(PROMPT, 12),
                sampling=Sampling(max_tokens=2),
                stop_token_ids=[],
                cache_salt="0",
                timeout_s=60,
            )
        )
        return sampled.num_cached_tokens

    assert [await num_cached() for _ in range(2)] == [0, 64]
    publisher.publish(0, build_model(seed=5, tied=False).named_parameters())
    await asyncio.to_thread(publisher.wait_adopted, 0, 60)
    assert [await num_cached() for _ in range(2)] == [0, 64]
    await client.close()


async def check_nudged_versions(served: Serving, num_versions: int) -> None:
    """Push small changes and compare what the engine says after each with transformers: log-probs, greedy choices."""
    settings, publisher, endpoint, tied = served
    dtype = getattr(torch, settings.model.dtype)
    mean, largest = (0.02, 0.15) if dtype == torch.bfloat16 else (1e-5, 1e-4)  # activations are rounded, too
    model = build_model(tied=tied)
    client = GeneratorClient([endpoint], settings.generator)
    for version in range(1, num_versions + 1):
        nudge(model, version)
        publisher.publish(version, model.named_parameters())
        publisher.wait_adopted(version, 60)
        reference = build_model(tied=tied)
        reference.load_state_dict(model.state_dict())
        reference = reference.to(dtype).float()
        for sampling in (Sampling(max_tokens=60), Sampling(max_tokens=60, temperature=0.0)):
            sampled = await client.generate(
                Request(
                    episode_id="e",
                    token_ids=PROMPT,
                    sampling=sampling,
                    stop_token_ids=[],
                    cache_salt=str(version),
                    timeout_s=60,
                )
            )
            assert set(sampled.versions.tolist()) == {version}
            ids = torch.from_numpy(np.concatenate([PROMPT, sampled.token_ids]).astype(np.int64))[None]
            with torch.no_grad():
                expected = reference(ids).logits[0, len(PROMPT) - 1 : -1].log_softmax(-1)
            chosen = expected.gather(1, ids[0, len(PROMPT) :, None])[:, 0]
            if sampling.temperature:
                difference = np.abs(sampled.logprobs - chosen.numpy())
                assert difference.mean() < mean
                assert difference.max() < largest
            else:
                assert (expected.max(-1).values - chosen).max() < largest
    await client.close()


async def test_recomputed_kv_makes_the_rest_that_of_the_new_weights_alone(served, received):
    settings, publisher, endpoint, _ = served
    version = int(publisher.status()["version"])
    models = []
    for seed in (71, 72):
        model = build_model(seed=seed, tied=False)
        models.append(model.to(torch.bfloat16).float())
    publisher.publish(version + 1, models[0].named_parameters())
    publisher.wait_adopted(version + 1, 60)
    client = GeneratorClient([endpoint], settings.generator)
    received.clear()
    running = asyncio.create_task(
        client.generate(
            Request(
                episode_id="r",
                token_ids=PROMPT,
                sampling=Sampling(max_tokens=480),
                stop_token_ids=[],
                cache_salt="recompute",
                timeout_s=60,
            )
        )
    )
    await until(lambda: received)
    publisher.publish(version + 2, models[1].named_parameters())
    sampled = await running
    await client.close()
    change = sampled.versions.tolist().index(version + 2)
    assert 0 < change < 480
    ids = torch.from_numpy(np.concatenate([PROMPT, sampled.token_ids]).astype(np.int64))[None]
    boundary = len(PROMPT) + change - 1
    with torch.no_grad():
        kept = models[0](ids[:, :boundary], use_cache=True).past_key_values
        with_old_kv = models[1](ids[:, boundary:-1], past_key_values=kept).logits[0]
        alone = models[1](ids).logits[0, boundary:-1]
    errors = [
        np.abs(
            sampled.logprobs[change:] - logits.log_softmax(-1).gather(1, ids[0, boundary + 1 :, None])[:, 0].numpy()
        ).mean()
        for logits in (alone, with_old_kv)
    ]
    assert errors[0] < 0.02
    assert errors[0] < errors[1] / 2


def test_a_model_that_vllm_does_not_know_is_one_line(tmp_path):
    model_dir = save_random_model(tmp_path / "model")
    config = (model_dir / "config.json").read_text().replace("Qwen2ForCausalLM", "NoSuchModel")
    (model_dir / "config.json").write_text(config)
    with (
        GeneratorProcess(settings_for(model_dir), "bad", f"ipc://{tmp_path}/g") as process,
        pytest.raises(GeneratorError, match="does not know the architecture NoSuchModel") as caught,
    ):
        print(process.endpoint)
    assert caught.value.kind == "architecture"
    assert "\n" not in str(caught.value)


def test_a_failed_start_shows_the_error_of_vllm_itself(tmp_path):
    model_dir = save_random_model(tmp_path / "model")
    weights = model_dir / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    with (
        GeneratorProcess(settings_for(model_dir), "bad", f"ipc://{tmp_path}/g") as process,
        pytest.raises(
            GeneratorError, match=r"expected vLLM to start with .*model, got .*deserializing header"
        ) as caught,
    ):
        print(process.endpoint)
    assert caught.value.kind == "start"
    assert "\n" not in str(caught.value)
