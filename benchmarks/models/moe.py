"""A small mixture of experts in bfloat16: how far are the learner's log-probs from the engine's, by its own routes and
by those that the engine recorded?

`python -m benchmarks.models.moe OUT.json [FAMILY [DTYPE]]` writes `moe_mismatch` and `moe_mismatch_replay`, means over
tokens, and for comparison `moe_mismatch_wrong`, by routes that are another token's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from actors.generator.engine import engine_arguments, engine_environment
from protocol.config import GeneratorSettings, Settings

_PROMPTS, _PROMPT_TOKENS, _TOKENS = 16, 32, 96


def measure(family: str, folder: Path, dtype: str = "bfloat16") -> dict[str, float]:
    """In this process, whose environment is the engine's."""
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    from actors.generator.requests import routes_before_last
    from learner.training.attention import register_document_attention
    from learner.training.logprobs import TokenLogprobs
    from learner.training.routing import Routing
    from tiny.families import save_random_family

    path = save_random_family(folder / family, family)
    settings = Settings.model_validate(
        {
            "model": {"path": str(path), "max_context": 256, "dtype": dtype},
            "generator": {"max_running": _PROMPTS, "kv_cache_mib": 64},
        }
    )
    llm = LLM(**engine_arguments(settings, path, on_gpu=False))
    try:
        llm.collective_rpc("record_routes")
        drawn, salt = np.random.default_rng(0), uuid.uuid4().hex
        prompts = [drawn.integers(3, 200, _PROMPT_TOKENS).tolist() for _ in range(_PROMPTS)]
        parameters = SamplingParams(max_tokens=_TOKENS, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0)
        asked = [TokensPrompt(prompt_token_ids=ids, cache_salt=salt) for ids in prompts]
        outputs: list[Any] = llm.generate(asked, parameters, use_tqdm=False)
        routes = [llm.collective_rpc("take_routes", args=(output.request_id,))[0] for output in outputs]
    finally:
        llm.llm_engine.engine_core.shutdown()
    model = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation=register_document_attention(), dtype=getattr(torch, dtype)
    ).train()
    routing, learner = Routing(model), TokenLogprobs(model, chunk=256)
    rows, told, recorded = [], [], []
    for ids, output, found in zip(prompts, outputs, routes, strict=True):
        sampled = list(output.outputs[0].token_ids)
        rows.append(torch.tensor(ids + sampled))
        told += [e[t].logprob for t, e in zip(sampled, output.outputs[0].logprobs, strict=True)]
        own = routes_before_last(*found, len(rows[-1]))
        assert own is not None and len(own) == len(rows[-1]) - 1, "all tokens but the last were computed here"
        recorded.append(np.concatenate([own.astype(np.int64), np.full((1, *own.shape[1:]), -1, np.int64)]))
    packed = (
        torch.cat(rows)[None],
        torch.cat([torch.arange(len(row)) for row in rows])[None],
        torch.cat([row.roll(-1) for row in rows])[None],
    )
    figures = {}
    replayed = torch.from_numpy(np.concatenate(recorded))
    ways = {"moe_mismatch": None, "moe_mismatch_replay": replayed, "moe_mismatch_wrong": replayed.roll(7, 0)}
    for name, experts in ways.items():
        routing.replay(experts)
        with torch.no_grad():
            logprobs, *_ = learner(*packed)
        parts = logprobs[0].split([len(row) for row in rows])
        own = torch.cat([part[_PROMPT_TOKENS - 1 : -1] for part in parts])
        distance = (own - torch.tensor(told)).abs()
        figures |= {name: float(distance.mean()), f"{name}_max": float(distance.max())}
    return figures


def main(arguments: list[str]) -> int:
    """Returns 0."""
    os.environ |= engine_environment(GeneratorSettings()) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    out, family, dtype = (*arguments, *("qwen3_moe", "bfloat16")[len(arguments) - 1 :])
    with tempfile.TemporaryDirectory() as folder:
        Path(out).write_text(json.dumps(measure(family, Path(folder), dtype)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
