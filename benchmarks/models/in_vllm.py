"""Small models of many families in vLLM: the same log-probs as transformers, before and after new weights?

`python -m benchmarks.models.in_vllm OUT.json NAME...` runs the engines one after the other in this process and writes
what came of each family: the largest differences, or why it was refused.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from actors.generator.engine import check, engine_arguments, engine_environment
from benchmarks.models.made import made
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.errors import ConfigError

_PROMPTS = ([7, 300, 41, 5, 99, 250, 13, 8], list(range(40, 75)))
_TOKENS = 40


def examine(name: str, folder: Path, dtype: str = "float32") -> dict[str, Any]:
    """`before` and `after`: largest differences of sampled tokens' log-probs from transformers', with the weights as
    loaded and as pushed; or `refused` or `failed`, with the reason.
    """
    path = made(name, folder)
    settings = Settings.model_validate(
        {
            "model": ModelSettings(path=str(path), max_context=256, dtype=dtype),
            "generator": GeneratorSettings(max_running=4, kv_cache_mib=32),
        }
    )
    try:
        family = check(settings, path, on_gpu=False)
        family.check_trained(settings.model.max_context, lora_rank=0)
        family.check_pushed()
    except ConfigError as error:
        return {"refused": str(error)}
    try:
        return _compare(settings, path)
    except Exception as error:  # whatever a family's own code raises is what is asked for
        return {"failed": f"{type(error).__name__}: {error}"}


def _compare(settings: Settings, path: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM
    from vllm import LLM

    dtype = getattr(torch, settings.model.dtype)
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=dtype).eval()
    llm = LLM(**engine_arguments(settings, path, on_gpu=False))
    try:
        before = difference(llm, plain)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        _push(llm, plain, dtype)
        return {"before": before, "after": difference(llm, plain)}
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def difference(llm: Any, plain: Any) -> float:
    """Largest difference of log-probs from the plain model's over a few sampled continuations."""
    import torch
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    salt = uuid.uuid4().hex  # keys and values of older weights are not to be found again
    parameters = SamplingParams(max_tokens=_TOKENS, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0)
    prompts = [TokensPrompt(prompt_token_ids=ids, cache_salt=salt) for ids in _PROMPTS]
    worst = 0.0
    for ids, output in zip(_PROMPTS, llm.generate(prompts, parameters, use_tqdm=False), strict=True):
        sampled = list(output.outputs[0].token_ids)
        told = torch.tensor(
            [entry[token].logprob for token, entry in zip(sampled, output.outputs[0].logprobs, strict=True)]
        )
        row = torch.tensor([ids + sampled])
        with torch.no_grad():
            logits = plain(input_ids=row, use_cache=False).logits[0, len(ids) - 1 : -1].float()
        own = logits.log_softmax(-1).gather(1, row[0, len(ids) :, None])[:, 0]
        worst = max(worst, float((told - own).abs().max()))
    return worst


def _push(llm: Any, plain: Any, dtype: Any) -> None:
    from learner.training.file_names import FileNames, kept_buffers

    names = FileNames(plain)
    tensors = [named for name, tensor in plain.named_parameters() for named in names.of(name, tensor.detach())]
    tensors += [named for name, tensor in kept_buffers(plain) for named in names.of(name, tensor)]
    push_tensors(llm, tensors, dtype, tied=plain.config.tie_word_embeddings)


def push_tensors(llm: Any, tensors: list[tuple[str, Any]], dtype: Any, *, tied: bool) -> None:
    """What the learner's publisher and the generator's adopter do, without their sockets. Raises `ValueError` and
    `WeightsError`.
    """
    import msgspec

    from learner.publishing.buffers import WeightBuffers
    from protocol.messages import Manifest
    from protocol.weights.manifest import TensorSpec, verify_manifest, weights_checksum

    buffers = WeightBuffers(f"models-{uuid.uuid4().hex[:8]}", dtype, with_delta=False, full_every=1)
    try:
        entries = buffers.fill(1, tensors, on_begin=lambda: None)
        layout = [TensorSpec(n, d, tuple(s)) for n, d, s in llm.collective_rpc("adopt_layout")[0]]
        shared = {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}
        manifest = Manifest(
            version=1, tensors=entries, num_bytes=buffers.num_bytes, checksum=weights_checksum(entries), run="models"
        )
        verify_manifest(manifest, {spec.name: spec for spec in layout}, shared)
        plainly = [msgspec.to_builtins(entry) for entry in entries]
        llm.collective_rpc("adopt_stage", args=(buffers.path_of(1), 1, buffers.num_bytes, plainly))
        sums, deadline = None, time.monotonic() + 60
        while sums is None and time.monotonic() < deadline:
            (sums,) = llm.collective_rpc("adopt_result")
        if sums != [entry.checksum for entry in entries]:
            raise ValueError("what arrived is not what was sent")
        llm.collective_rpc("adopt_swap")
    finally:
        buffers.unlink()


def main(arguments: list[str]) -> int:
    """Examine the families named behind the output file. Returns 0."""
    os.environ |= engine_environment(GeneratorSettings()) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from tiny.families import FAMILIES

    out, *names = arguments
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names or sorted(FAMILIES):
            started = time.monotonic()
            found[name] = examine(name, Path(folder))
            Path(out).write_text(json.dumps(found, indent=2))
            print(f"{name}: {found[name]} ({time.monotonic() - started:.1f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
