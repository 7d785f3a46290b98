"""Which policy a run's settings name."""

from __future__ import annotations

from pathlib import Path

from actors.policies.generator_client import GeneratorClient
from actors.policies.open_policy import open_policy
from actors.policies.openai_policy import OpenAIPolicy
from protocol.config import Settings


def settings(tokenizer_dir: Path, **changes: object) -> Settings:
    return Settings.model_validate({"model": {"path": str(tokenizer_dir)}, **changes})


async def test_a_run_asks_its_generators(tokenizer_dir: Path, tmp_path: Path) -> None:
    policy, tokenizer = open_policy(settings(tokenizer_dir), [f"ipc://{tmp_path}/generator"], None)
    assert isinstance(policy, GeneratorClient)
    assert "\n<|im_start|>assistant" in tokenizer.render([{"role": "user", "content": "x"}])
    await policy.close()


async def test_an_evaluation_asks_its_endpoint(tokenizer_dir: Path) -> None:
    foreign = {"endpoint": "http://127.0.0.1:1/v1", "model": "some-model"}
    policy, _ = open_policy(settings(tokenizer_dir, phase="eval", eval=foreign), [], None)
    assert isinstance(policy, OpenAIPolicy)
    await policy.close()
