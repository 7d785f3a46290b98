"""Memory of the log-prob stage: `python -m benchmarks.learner.logprobs LENGTH VOCABULARY CHUNK` prints MiB.

Forward and backward from hidden states to the log-probs of the targets; a chunk of LENGTH is what everybody did before
chunking: all logits at once.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from benchmarks.peak_memory import peak_bytes, reset_peak
from learner.training.logprobs import TokenLogprobs

_HIDDEN = 64


class _Head(nn.Module):
    """A causal language model without layers."""

    def __init__(self, vocabulary: int, hidden: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(_HIDDEN, vocabulary, bias=False)
        self.hidden = hidden
        self.config = SimpleNamespace(hidden_size=_HIDDEN)  # neither scales nor bounds its logits

    def get_decoder(self) -> object:
        return lambda **_: SimpleNamespace(last_hidden_state=self.hidden)

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def main(length: int, vocabulary: int, chunk: int) -> None:
    """Print the peak above what was there before."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    targets = torch.randint(0, vocabulary, (1, length))
    model = TokenLogprobs(_Head(vocabulary, torch.randn(1, length, _HIDDEN, requires_grad=True)), chunk)
    reset_peak()
    before = peak_bytes()
    logprobs, _ = model(targets, targets, targets)
    logprobs.sum().backward()
    print((peak_bytes() - before) / 2**20)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
