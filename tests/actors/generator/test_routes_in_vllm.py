"""Routes that a real engine records are those of transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.generator.engine import check
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.messages import Sampling
from tiny.families import save_random_family

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


async def test_a_generator_sends_the_routes_of_all_that_it_computed(tmp_path: Path) -> None:
    path = save_random_family(tmp_path / "model", "qwen3_moe")
    settings = Settings.model_validate(
        {
            "model": {"path": str(path), "max_context": 256},
            "generator": {"max_running": 4, "kv_cache_mib": 32},
            "learner": {"routing_replay": True},
        }
    )
    prompt = np.arange(40, 120, dtype=np.int32)

    def asked(ids: np.ndarray) -> Request:
        return Request(
            episode_id="e",
            token_ids=ids,
            sampling=Sampling(max_tokens=20),
            stop_token_ids=[],
            cache_salt="s",
            timeout_s=60,
        )

    with GeneratorProcess(settings, "g0", f"ipc://{tmp_path}/g0") as generator:
        client = GeneratorClient([generator.endpoint], settings.generator)
        try:
            first = await client.generate(asked(prompt))
            longer = np.concatenate([prompt, first.token_ids])
            second = await client.generate(asked(longer))
        finally:
            await client.close()
    assert first.experts is not None and first.experts.shape == (len(prompt) + 19, 2, 2)
    cached = second.num_cached_tokens
    assert cached > 0 and second.experts is not None and len(second.experts) == len(longer) + 19 - cached
    for context, sampled in ((prompt, first), (longer, second)):
        row = torch.from_numpy(np.concatenate([context, sampled.token_ids])[:-1].astype(np.int64))[None]
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
        with torch.no_grad():
            logits = model(input_ids=row, output_router_logits=True).router_logits
        own = torch.stack([layer.topk(2, -1).indices for layer in logits], 1).numpy()
        assert sampled.experts is not None
        assert np.array_equal(np.sort(own[-len(sampled.experts) :]), np.sort(sampled.experts))


def test_routes_of_a_model_without_experts_are_refused(tmp_path: Path) -> None:
    path = save_random_family(tmp_path / "model", "qwen3")
    settings = Settings.model_validate(
        {"model": {"path": str(path), "max_context": 256}, "learner": {"routing_replay": True}}
    )
    with pytest.raises(ConfigError, match="routing_replay is for mixtures of experts"):
        check(settings, path, on_gpu=False)
