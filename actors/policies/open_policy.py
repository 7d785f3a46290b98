"""Which policy a run's episodes ask: its generators, or in an evaluation a foreign endpoint."""

from __future__ import annotations

import os
from pathlib import Path

from actors.agent.chat import ChatTokenizer
from actors.policies.generator_client import GeneratorClient
from actors.policies.openai_policy import OpenAIPolicy, transcript_tokenizer
from protocol.config import Settings
from protocol.sockets import Keys


def open_policy(
    settings: Settings, generator_endpoints: list[str], keys: Keys | None
) -> tuple[GeneratorClient | OpenAIPolicy, ChatTokenizer]:
    """The policy, and the tokenizer that the agent must use with it."""
    model_dir = Path(settings.model.path)
    if settings.phase != "eval" or settings.eval.endpoint is None:
        return GeneratorClient(generator_endpoints, settings.generator, keys), ChatTokenizer.load(
            model_dir, settings.model.template_values()
        )
    assert settings.eval.model is not None, "the settings say both or neither"
    tokenizer = transcript_tokenizer(model_dir)
    api_key = os.environ.get(settings.eval.api_key_variable)
    return OpenAIPolicy(settings.eval.endpoint, settings.eval.model, tokenizer, api_key), tokenizer
