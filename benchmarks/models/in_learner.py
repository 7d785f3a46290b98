"""A model of any family as the learner computes it, packed, against transformers, one document at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from learner.training.attention import register_document_attention
from learner.training.logprobs import TokenLogprobs
from learner.training.noise import silence

_LENGTHS = (40, 33, 64)


def learner_differences(path: Path) -> list[float]:
    """Largest difference of log-probs in each packed document, as the learner computes them, from the plain model's."""
    plain = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    trained = AutoModelForCausalLM.from_pretrained(path, attn_implementation=register_document_attention()).train()
    silence(trained)
    drawn = torch.Generator().manual_seed(1)
    documents = [torch.randint(3, plain.config.vocab_size, (n,), generator=drawn) for n in _LENGTHS]
    ids, positions = torch.cat(documents), torch.cat([torch.arange(n) for n in _LENGTHS])
    targets = torch.cat([d.roll(-1) for d in documents])
    with torch.no_grad():
        packed, *_ = TokenLogprobs(trained, chunk=50)(ids[None], positions[None], targets[None])
        alone = [
            plain(input_ids=d[None]).logits[0, :-1].log_softmax(-1).gather(1, d[1:, None])[:, 0] for d in documents
        ]
    return [float((p[:-1] - a).abs().max()) for p, a in zip(packed[0].split(_LENGTHS), alone, strict=True)]
