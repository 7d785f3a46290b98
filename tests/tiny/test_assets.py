"""The base model in the repository: small, loadable, well-formed, and with something left to learn."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.agent.chat import ChatTokenizer
from tiny.evaluate import evaluate, summarize

ASSETS = Path(__file__).parents[2] / "assets" / "tiny"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(ASSETS, dtype=torch.float32)


def test_it_is_small_and_loads_in_transformers(model):
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 2_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    text = AutoTokenizer.from_pretrained(ASSETS).apply_chat_template(
        [{"role": "user", "content": "issue"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nissue<|im_end|>\n<|im_start|>assistant\n"


def test_it_writes_well_formed_actions_and_solves_about_a_tenth(model):
    score = summarize(evaluate(model, ChatTokenizer.load(ASSETS), count=192, max_context=512))
    assert 0.03 <= score.pass_rate <= 0.17, score
    assert score.format_errors < 0.1, score
