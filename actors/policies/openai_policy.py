"""An OpenAI-compatible chat endpoint as a `Policy`: for evaluation only, its tokens are not the model's own.

The agent keeps its history in tokens, so the conversation is written in ChatML (`transcript_tokenizer`) and read back
from the ids: only the template writes control tokens, so nothing that a model or a sandbox says can forge a message.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from actors.agent.chat import Chat, ChatTokenizer
from actors.policy import Request, Sampled
from protocol.errors import DeadlineError, GeneratorError
from protocol.messages import Sampling

_START, _END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TRY_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_MAX_SHOWN = 500
_CONTEXT_WORDS = ("context_length", "context length", "maximum context", "too long")


def transcript_tokenizer(model_dir: Path) -> ChatTokenizer:
    """The tokenizer of `model_dir` with a plain ChatML template. It measures the context: the nearer it is to the
    endpoint's own, the truer are the limits in tokens. Raises `ConfigError`.
    """
    return ChatTokenizer.load(model_dir).with_template(_TEMPLATE, _END, [_START, _END])


class OpenAIPolicy:
    """Asks `{endpoint}/chat/completions`. Log-probs and versions are 0.

    Args:
        endpoint: base address, such as `http://127.0.0.1:8000/v1`.
        model: name of the model there.
        tokenizer: from `transcript_tokenizer`; the agent must use the same.
        api_key: sent as a bearer token; None sends none.
        max_requests: requests under way at the same time.
    """

    def __init__(
        self, endpoint: str, model: str, tokenizer: ChatTokenizer, api_key: str | None = None, max_requests: int = 64
    ) -> None:
        self._address = f"{endpoint.rstrip('/')}/chat/completions"
        self._model = model
        self._tokenizer = tokenizer
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._slots = asyncio.Semaphore(max_requests)
        self._session: aiohttp.ClientSession | None = None

    async def generate(self, request: Request) -> Sampled:
        """See `Policy.generate`. Tries again where the endpoint is busy or unreachable, until the deadline."""
        body = self._body(read_transcript(self._tokenizer, request.token_ids), request.sampling)
        try:
            async with asyncio.timeout(request.timeout_s), self._slots:
                choice = await self._ask_until_answered(body)
        except TimeoutError:
            raise DeadlineError(
                f"no answer from {self._address} within {request.timeout_s:g} s", kind="generate"
            ) from None
        return self._sampled(choice, request.sampling.max_tokens)

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()

    def _body(self, messages: Chat, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        return body

    async def _ask_until_answered(self, asked: dict[str, Any]) -> dict[str, Any]:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                status, retry_after, body = await self._ask(asked)
            except aiohttp.ClientError:
                retry_after = ""
            else:
                if status == 200:
                    return self._choice(body)
                if status not in _TRY_AGAIN:
                    raise self._refusal(status, str(body)[:_MAX_SHOWN])
            wait_s = float(retry_after) if retry_after.isdecimal() else pause_s * random.uniform(0.5, 1.5)
            await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _ask(self, asked: dict[str, Any]) -> tuple[int, str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        async with self._session.post(self._address, json=asked) as response:
            try:
                body = await response.json(content_type=None)
            except ValueError:
                body = await response.text(errors="replace")
            return response.status, response.headers.get("Retry-After", ""), body

    def _choice(self, body: Any) -> dict[str, Any]:
        try:
            choice: dict[str, Any] = body["choices"][0]
            if isinstance(choice["message"].get("content") or "", str):
                return choice
        except (KeyError, IndexError, TypeError, AttributeError):
            pass
        raise GeneratorError(
            f"{self._address}: expected choices[0].message.content, got {str(body)[:_MAX_SHOWN]}", kind="malformed"
        )

    def _refusal(self, status: int, said: str) -> GeneratorError:
        overflow = status in (400, 413, 422) and any(words in said.lower() for words in _CONTEXT_WORDS)
        return GeneratorError(f"{self._address} answered {status}: {said}", kind="context" if overflow else "refused")

    def _sampled(self, choice: dict[str, Any], max_tokens: int) -> Sampled:
        ids = self._tokenizer.encode(choice["message"].get("content") or "")
        complete = choice.get("finish_reason") != "length"
        if complete or not len(ids):
            ids = np.append(ids, np.int32(self._tokenizer.stop_token_ids[0]))
        fits = len(ids) <= max_tokens
        ids = ids[:max_tokens]
        return Sampled(
            token_ids=ids,
            logprobs=np.zeros(len(ids), np.float32),
            versions=np.zeros(len(ids), np.int32),
            finish_reason="stop" if complete and fits else "length",
        )


def read_transcript(tokenizer: ChatTokenizer, token_ids: np.ndarray) -> Chat:
    """The messages of a history written by `transcript_tokenizer`; the assistant's turn that is to come is left out."""
    start, end = tokenizer.control_id(_START), tokenizer.control_id(_END)
    messages: Chat = []
    part: list[int] = []
    for token in token_ids.tolist():
        if token == start:
            part = []
        elif token == end:
            role, _, content = tokenizer.decode(part).partition("\n")
            messages.append({"role": role, "content": content})
        else:
            part.append(token)
    return messages
