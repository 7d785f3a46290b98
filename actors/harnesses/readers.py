"""Who takes sampled turns apart: vLLM's parsers where the generators load them, our own reading elsewhere."""

from __future__ import annotations

from actors.agent.chat import ChatTokenizer
from actors.gateway.generator_reader import GeneratorReader
from actors.gateway.reading import HermesReader, Reader
from actors.policies.generator_client import GeneratorClient
from actors.policy import Policy
from protocol.config import AgentSettings


def make_reader(settings: AgentSettings, policy: Policy, tokenizer: ChatTokenizer) -> Reader:
    """The reader of a policy's turns."""
    if isinstance(policy, GeneratorClient):
        return GeneratorReader(policy, settings.tool_parser, settings.reasoning_parser)
    return HermesReader(tokenizer)
