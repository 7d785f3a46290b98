"""Turns taken apart where vLLM is loaded: by a generator."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from actors.gateway.reading import ReadCall, Reading
from actors.policies.generator_client import GeneratorClient
from protocol.messages import TakeApart

DEADLINE_S = 60.0  # the first request loads vLLM's parsers


class GeneratorReader:
    """See `Reader`. Parsers are named as in `AgentSettings`."""

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
