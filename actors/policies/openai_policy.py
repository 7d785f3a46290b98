"""An OpenAI-compatible chat endpoint as a `Policy`: for evaluation only, its tokens are not the model's own.

The agent keeps its history in tokens, so the conversation is written in ChatML (`transcript_tokenizer`) and read back
from the ids: only the template writes control tokens, so nothing that a model or a sandbox says can forge a message.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from actors.agent.chat import Chat, ChatTokenizer
from actors.policies.parameters import Parameters
from actors.policy import Request, Sampled
from protocol.errors import DeadlineError, GeneratorError
from protocol.messages import Sampling

log = logging.getLogger(__name__)

_START, _END = "<|im_start|>", "<|im_end|>"
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TRY_AGAIN = frozenset({408, 409, 425, 429, *range(500, 600)})  # gateways have numbers of their own above 504
_OF_PARAMETERS = (400, 422)
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
        self._address = f"{endpoint.rstrip('/').removesuffix('/chat/completions')}/chat/completions"
        self._model = model
        self._tokenizer = tokenizer
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._slots = asyncio.Semaphore(max_requests)
        self._session: aiohttp.ClientSession | None = None
        self._parameters = Parameters()
        self._trouble = ""  # why it last gave no answer; empty since it gave one
        self._troubled_since = 0.0

    async def generate(self, request: Request) -> Sampled:
        """See `Policy.generate`. Tries again where the endpoint is busy or unreachable, until the deadline.

        It begins once there is a slot: those who hold one have deadlines of their own. Neither that wait nor one for an
        endpoint in trouble is the model's time.
        """
        body = self._body(read_transcript(self._tokenizer, request.token_ids), request.sampling)
        with request.pause():
            await self._slots.acquire()
        try:
            async with asyncio.timeout(request.timeout_s):
                choice = await self._ask_until_answered(body, request)
        except TimeoutError:
            because = f"; it last said: {self._trouble}" if self._trouble else ""
            raise DeadlineError(
                f"no answer from {self._address} within {request.timeout_s:g} s{because}", kind="generate"
            ) from None
        finally:
            self._slots.release()
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

    async def _ask_until_answered(self, asked: dict[str, Any], request: Request) -> dict[str, Any]:
        pause_s = _FIRST_PAUSE_S
        while True:
            sent = self._parameters.of(asked)
            try:
                status, retry_after, body = await self._ask(sent)
            except (aiohttp.ClientError, OSError) as error:
                retry_after = ""
                self._note(f"{type(error).__name__}: {error}")
            else:
                if status == 200:
                    choice = self._choice(body)
                    self._well()
                    return choice
                if status not in _TRY_AGAIN:
                    refusal = self._refusal(status, str(body)[:_MAX_SHOWN])
                    of_parameters = status in _OF_PARAMETERS and refusal.kind != "context"
                    refused = self._parameters.learn(sent, body) if of_parameters else ""
                    if refused:
                        new = self._parameters.changes[refused]
                        log.warning(
                            "%s takes no %r: %s", self._address, refused, f"{new!r} instead" if new else "left out"
                        )
                        continue
                    if of_parameters and self._parameters.of(asked) != sent:
                        continue  # another request has learnt it meanwhile
                    raise refusal
                self._note(f"status {status}: {str(body)[:_MAX_SHOWN]}")
            wait_s = float(retry_after) if retry_after.isdecimal() else pause_s * random.uniform(0.5, 1.5)
            with request.pause():
                await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _ask(self, asked: dict[str, Any]) -> tuple[int, str, Any]:
        if self._session is None:
            forever = aiohttp.ClientTimeout(total=None)  # the request's own deadline is the only one
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=forever)
        async with self._session.post(self._address, json=asked) as response:
            try:
                body = await response.json(content_type=None)
            except (ValueError, RecursionError):
                body = await response.text(errors="replace")
            return _status(response.status, body), response.headers.get("Retry-After", ""), body

    def _note(self, trouble: str) -> None:
        """The endpoint is in trouble: said when it begins; the requests of every episode wait for it."""
        if not self._trouble:
            self._troubled_since = time.monotonic()
            log.warning("%s does not answer (%s): waiting", self._address, trouble[:_MAX_SHOWN])
        self._trouble = trouble[:_MAX_SHOWN]

    def _well(self) -> None:
        if self._trouble:
            log.warning("%s answers again, after %.0f s", self._address, time.monotonic() - self._troubled_since)
            self._trouble = ""

    def _choice(self, body: Any) -> dict[str, Any]:
        try:
            choice: dict[str, Any] = body["choices"][0]
            choice["message"]["content"] = _text(choice["message"].get("content"))
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


def _status(status: int, body: Any) -> int:
    """The status that an answer amounts to: routers tell what their own source refused in the body of a 200."""
    error = body.get("error") if isinstance(body, dict) and not body.get("choices") else None
    if status != 200 or not error:
        return status
    code = str(error.get("code", error.get("status"))) if isinstance(error, dict) else ""
    return int(code) if code.isdecimal() and 400 <= int(code) < 600 else 502


def _text(content: Any) -> str:
    """A message's text: none, one, or parts of which those of text count. Whatever is no character is replaced.

    Raises `TypeError` for anything else.
    """
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if not isinstance(content or "", str):
        raise TypeError(f"expected text, got {type(content).__name__}")
    return (content or "").encode("utf-8", "replace").decode("utf-8")


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
