"""Adapters: how much a push of them alone takes of a whole one, and how far their log-probs are from merged weights'.

`python -m benchmarks.models.lora OUT.json` writes `merged_max_diff`: a small random model in an engine that serves its
adapter, against transformers with the adapter merged.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

from actors.generator.adapters import adapter_arguments
from actors.generator.engine import engine_arguments, engine_environment
from protocol.config import GeneratorSettings, Settings

RANK = 8


def push_bytes_share(path: Path) -> float:
    """Bytes of an adapter over those of the model's weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from learner.training.adapters import add_adapters, exports, factors

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        add_adapters(model, RANK, seed=0)
    alone = sum(p.numel() for each in factors(model) for p in each.parameters)
    whole = sum(each.parameters[0].numel() for each in exports(model))
    return alone / whole


def merged_max_diff(folder: Path) -> float:
    """In this process, whose environment is the engine's."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    from learner.training.adapters import adapter_config, add_adapters, exports, factors
    from tiny.families import save_random_family

    path = save_random_family(folder / "model", "llama")
    settings = Settings.model_validate(
        {
            "model": {"path": str(path), "max_context": 256, "dtype": "float32"},
            "generator": {"max_running": 4, "kv_cache_mib": 32},
            "learner": {"lora_rank": RANK},
        }
    )
    model = AutoModelForCausalLM.from_pretrained(path)
    add_adapters(model, RANK, seed=0)
    with torch.no_grad():
        for each in factors(model):
            each.parameters[0].normal_(0, 0.1)
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps(adapter_config(model, RANK, str(path))))
    tensors = {f"base_model.model.{e.name}": e.value().detach().contiguous() for e in factors(model)}
    save_file(tensors, adapter / "adapter_model.safetensors")
    merged = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    merged.load_state_dict({e.name: e.value().detach() for e in exports(model)}, strict=False)
    llm = LLM(**engine_arguments(settings, path, on_gpu=False) | adapter_arguments(settings))
    try:
        prompt = list(range(40, 75))
        parameters = SamplingParams(max_tokens=100, temperature=1.0, ignore_eos=True, detokenize=False, logprobs=0)
        (output,) = llm.generate(
            [TokensPrompt(prompt_token_ids=prompt)],
            parameters,
            lora_request=LoRARequest("1", 1, str(adapter)),
            use_tqdm=False,
        )
        sampled = list(output.outputs[0].token_ids)
        told = torch.tensor([e[t].logprob for t, e in zip(sampled, output.outputs[0].logprobs, strict=True)])
        row = torch.tensor([prompt + sampled])
        with torch.no_grad():
            logits = merged(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        own = logits.gather(1, row[0, len(prompt) :, None])[:, 0]
        return float((own - told).abs().max())
    finally:
        llm.llm_engine.engine_core.shutdown()


def main(arguments: list[str]) -> int:
    """Returns 0."""
    os.environ |= engine_environment(GeneratorSettings()) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    with tempfile.TemporaryDirectory() as folder:
        found = {"merged_max_diff": merged_max_diff(Path(folder))}
    Path(arguments[0]).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
