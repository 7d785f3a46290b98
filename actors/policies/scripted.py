"""The shipped fake policy: it writes texts from a script or a function, as tokens, with log-prob 0 and version 0."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from actors.agent.chat import ChatTokenizer
from actors.policy import Request, Sampled
from protocol.errors import DeadlineError, GeneratorError

Script = Callable[[str, str, int], str]
"""(episode id, history as text with control tokens, turn from 0) -> the text of the next turn."""


def replay(texts: Sequence[str]) -> Script:
    """Every episode writes `texts` in order; one more turn than that is an error."""

    def script(episode_id: str, history: str, turn: int) -> str:
        if turn >= len(texts):
            raise GeneratorError(f"the script of {episode_id} ends after {len(texts)} turns", kind="script")
        return texts[turn]

    return script


def replay_each(texts: Mapping[str, Sequence[str]]) -> Script:
    """Every episode writes its own texts, by episode id."""
    return lambda episode_id, history, turn: replay(texts[episode_id])(episode_id, history, turn)


class ScriptedPolicy:
    """A `Policy` without a model.

    Args:
        script: what it writes, by the history; or the one text that it always writes, and then reads no history.
        latency_s: seconds that every turn takes.
        version: policy version stamped on the tokens.
    """

    def __init__(
        self, tokenizer: ChatTokenizer, script: Script | str, *, latency_s: float = 0.0, version: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._script = script
        self._latency_s = latency_s
        self.version = version
        self._turns: dict[str, int] = {}
        self._prompt_tokens: dict[str, int] = {}
        self.salts: dict[str, str] = {}  # by episode id, as last seen

    async def generate(self, request: Request) -> Sampled:
        """The script's next text, cut at `sampling.max_tokens`. A history that did not grow starts the script anew."""
        episode_id, max_tokens = request.episode_id, request.sampling.max_tokens
        restarted = len(request.token_ids) <= self._prompt_tokens.get(episode_id, 0)
        turn = 0 if restarted else self._turns.get(episode_id, 0)
        self._turns[episode_id], self._prompt_tokens[episode_id] = turn + 1, len(request.token_ids)
        self.salts[episode_id] = request.cache_salt
        await self._wait(request.timeout_s)
        text = self._script
        if not isinstance(text, str):
            text = text(episode_id, self._tokenizer.decode(request.token_ids, keep_special=True), turn)
        ids = np.append(self._tokenizer.encode(text), np.int32(request.stop_token_ids[0]))
        fits = len(ids) <= max_tokens
        ids = ids[:max_tokens]
        return Sampled(
            token_ids=ids,
            logprobs=np.zeros(len(ids), np.float32),
            versions=np.full(len(ids), self.version, np.int32),
            finish_reason="stop" if fits else "length",
        )

    async def _wait(self, timeout_s: float) -> None:
        await asyncio.sleep(min(self._latency_s, timeout_s))
        if self._latency_s > timeout_s:
            raise DeadlineError(f"the script was not done within {timeout_s:g} s", kind="generate")

    async def close(self) -> None:
        """Forget all episodes."""
        self._turns.clear()
        self._prompt_tokens.clear()
