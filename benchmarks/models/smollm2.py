"""SmolLM2-135M in one precision: does the learner compute what the engine sampled, how fast are samples and pushes?

`python -m benchmarks.models.smollm2 OUT.json float32|bfloat16` writes `mismatch`, `rounding` (between two attentions
of transformers that compute the same), `push_s` and `tok_s`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from actors.generator.engine import engine_arguments, engine_environment
from protocol.config import GeneratorSettings, Settings
from tiny.smollm2 import smollm2

_PROMPTS, _PROMPT_TOKENS, _TOKENS = 8, 64, 64
Sampled = list[tuple[list[int], list[int], list[float]]]
"""Prompt, continuation and its log-probs, of each request."""


def measure(dtype: str) -> dict[str, float]:
    """In this process, whose environment is the engine's."""
    from vllm import LLM

    path = smollm2()
    settings = Settings.model_validate(
        {
            "model": {"path": str(path), "max_context": 512, "dtype": dtype},
            "generator": {"max_running": _PROMPTS, "kv_cache_mib": 256},
        }
    )
    llm = LLM(**engine_arguments(settings, path, on_gpu=False))
    try:
        _sample(llm)  # what is made at the first batch is not measured
        started = time.monotonic()
        sampled = _sample(llm)
        seconds = time.monotonic() - started
        figures = _against_learner(path, dtype, sampled) | {"tok_s": sum(len(t) for _, t, _ in sampled) / seconds}
        return figures | {"push_s": _push(llm, path, dtype)}
    finally:
        llm.llm_engine.engine_core.shutdown()


def _sample(llm: Any) -> Sampled:
    import numpy as np
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    drawn = np.random.default_rng(0)
    prompts = [drawn.integers(100, 40_000, _PROMPT_TOKENS).tolist() for _ in range(_PROMPTS)]
    salt = uuid.uuid4().hex
    parameters = SamplingParams(max_tokens=_TOKENS, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0)
    outputs = llm.generate(
        [TokensPrompt(prompt_token_ids=ids, cache_salt=salt) for ids in prompts], parameters, use_tqdm=False
    )
    found = []
    for ids, output in zip(prompts, outputs, strict=True):
        tokens = list(output.outputs[0].token_ids)
        entries = output.outputs[0].logprobs
        found.append((ids, tokens, [e[t].logprob for t, e in zip(tokens, entries, strict=True)]))
    return found


def _against_learner(path: Path, dtype: str, sampled: Sampled) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from learner.training.attention import register_document_attention
    from learner.training.logprobs import TokenLogprobs

    def load(attention: str) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention, dtype=getattr(torch, dtype))

    def alone(attention: str) -> torch.Tensor:
        model, parts = load(attention).eval(), []
        for ids, tokens, _ in sampled:
            row = torch.tensor([ids + tokens])
            logits = model(input_ids=row, use_cache=False).logits[0, len(ids) - 1 : -1].float()
            parts.append(logits.log_softmax(-1).gather(1, row[0, len(ids) :, None])[:, 0])
        return torch.cat(parts)

    rows = [torch.tensor(ids + tokens) for ids, tokens, _ in sampled]
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    targets = torch.cat([row.roll(-1) for row in rows])
    with torch.no_grad():
        learner = TokenLogprobs(load(register_document_attention()).train(), chunk=256)
        packed, *_ = learner(torch.cat(rows)[None], positions[None], targets[None])
        parts = packed[0].split([len(row) for row in rows])
        own = torch.cat([p[len(ids) - 1 : -1] for p, (ids, _, _) in zip(parts, sampled, strict=True)])
        told = torch.tensor([value for _, _, logprobs in sampled for value in logprobs])
        rounding = (alone("eager") - alone("sdpa")).abs().mean()
    distance = (own - told).abs()
    return {"mismatch": float(distance.mean()), "mismatch_max": float(distance.max()), "rounding": float(rounding)}


def _push(llm: Any, path: Path, dtype: str) -> float:
    """Seconds of a whole version from the learner's memory into force; the second one, into warm segments."""
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.models.in_vllm import push_tensors

    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    tensors = [(name, p.detach()) for name, p in model.named_parameters()]
    seconds = []
    for _ in range(2):
        started = time.monotonic()
        push_tensors(llm, tensors, getattr(torch, dtype), tied=True)
        seconds.append(time.monotonic() - started)
    return seconds[-1]


def main(arguments: list[str]) -> int:
    """Returns 0."""
    os.environ |= engine_environment(GeneratorSettings()) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    out, dtype = arguments
    Path(out).write_text(json.dumps(measure(dtype)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
