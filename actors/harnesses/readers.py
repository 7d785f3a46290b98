"""Who takes sampled turns apart: vLLM's parsers where the generators load them, our own reading elsewhere."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from actors.agent.chat import ChatTokenizer
from actors.gateway.reading import HermesReader, ReadCall, Reader, Reading
from actors.policies.generator_client import GeneratorClient
from actors.policy import Policy
from protocol.config import AgentSettings
from protocol.messages import TakeApart

DEADLINE_S = 60.0  # the first request loads vLLM's parsers


class GeneratorReader:
    """See `Reader`: where vLLM is loaded, by a generator. Parsers are named as in `AgentSettings`."""

    def __init__(self, client: GeneratorClient, tool_parser: str, reasoning_parser: str) -> None:
        self._client = client
        self._tool_parser, self._reasoning_parser = tool_parser, reasoning_parser

    async def read(self, prompt_ids: np.ndarray, token_ids: np.ndarray, tools: list[dict[str, Any]]) -> Reading:
        """See `Reader.read`."""
        message = TakeApart(
            prompt_ids=prompt_ids,
            token_ids=token_ids,
            tools=msgspec.json.encode(tools).decode(),
            tool_parser=self._tool_parser,
            reasoning_parser=self._reasoning_parser,
        )
        taken = await self._client.take_apart(message, DEADLINE_S)
        return Reading(
            content=taken.content,
            reasoning=taken.reasoning,
            calls=[ReadCall(name=name, arguments=arguments) for name, arguments in taken.calls],
            num_reasoning_tokens=taken.num_reasoning_tokens,
        )


def make_reader(settings: AgentSettings, policy: Policy, tokenizer: ChatTokenizer) -> Reader:
    """The reader of a policy's turns."""
    if isinstance(policy, GeneratorClient):
        return GeneratorReader(policy, settings.tool_parser, settings.reasoning_parser)
    return HermesReader(tokenizer)
