"""The benchmark of log-prob memory runs on the learner's own stage."""

from __future__ import annotations

import pytest
import torch

from benchmarks.learner import logprobs


@pytest.mark.parametrize("chunk", [8, 64])
def test_memory_is_measured(chunk: int, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        logprobs.main(64, 128, chunk)
    finally:
        torch.set_num_threads(threads)
    assert float(capsys.readouterr().out) >= 0
