"""Asks a vLLM server for log-probs of given token ids: `/v1/completions` with `prompt_logprobs`.

Whatever goes wrong is the infrastructure's: a server that is busy or away is asked again until the deadline, any other
answer than the log-probs of exactly these tokens is an error. Nothing is ever filled in.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np

from protocol.errors import ConfigError, LearnerError

_BUSY = frozenset({408, 409, 425, 429, *range(500, 600)})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_TRY_S = 300.0
_MAX_SHOWN = 300
_ABOVE_ONE = 1e-3
"""A log-prob may be so far above 0 by rounding."""


class TeacherEndpoint:
    """An open connection; for one event loop.

    Args:
        address: base address, such as `http://127.0.0.1:8000/v1`.
        model: name of the model there.
        api_key: sent as a bearer token; None sends none.
        timeout_s: deadline of every call, all tries together.
        max_requests: under way at the same time.
    """

    def __init__(
        self, address: str, model: str, api_key: str | None = None, *, timeout_s: float, max_requests: int = 8
    ) -> None:
        self.address = address.rstrip("/").removesuffix("/completions")
        self.model = model
        self.trouble = ""
        """Why it last gave no answer; empty since it gave one."""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(max_requests)

    async def __aenter__(self) -> TeacherEndpoint:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=min(_TRY_S, self._timeout_s))
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def logprobs(self, token_ids: np.ndarray) -> np.ndarray:
        """Log-prob of every token behind those before it, float32 [tokens]; entry 0, behind nothing, is 0.

        Raises:
            LearnerError: no answer until the deadline (kind `teacher_away`), a refusal (`teacher_refused`), or another
                answer than finite log-probs of these tokens (`teacher_malformed`).
        """
        ids: list[int] = token_ids.tolist()
        asked = {
            "model": self.model,
            "prompt": ids,
            "prompt_logprobs": 0,
            "max_tokens": 1,
            "add_special_tokens": False,
        }
        return _read(await self.ask("POST", f"{self.address}/completions", asked), ids, self.address)

    async def check_model(self, max_tokens: int) -> None:
        """It serves the model, and documents of `max_tokens`. Raises `ConfigError`, or `LearnerError` as `logprobs`."""
        listed = await self.ask("GET", f"{self.address}/models", None)
        try:
            models = {str(one["id"]): one.get("max_model_len") for one in listed["data"]}
        except (KeyError, TypeError, AttributeError):
            raise _malformed(self.address, "a list of models", listed) from None
        if self.model not in models:
            raise ConfigError(
                f"--learner.loss.reference-name {self.model}: {self.address} serves {', '.join(sorted(models))}",
                kind="teacher",
            )
        longest = models[self.model]
        if isinstance(longest, int) and longest <= max_tokens:  # scoring samples one token more
            raise ConfigError(
                f"{self.address} takes {longest} tokens, and scores of an episode of model.max_context {max_tokens} "
                f"need one more than that: start it with --max-model-len {max_tokens + 1} or more",
                kind="teacher",
            )

    async def ask(self, method: str, url: str, asked: dict[str, Any] | None) -> Any:
        """The JSON of a 200. Tries again where the server is busy or away. Raises `LearnerError` as `logprobs`."""
        try:
            async with self._slots, asyncio.timeout(self._timeout_s):
                return await self._ask_until_answered(method, url, asked)
        except TimeoutError:
            said = f"; last: {self.trouble}" if self.trouble else ""
            raise LearnerError(
                f"the reference policy at {self.address} gave no answer within {self._timeout_s:g} s{said}",
                kind="teacher_away",
            ) from None

    async def _ask_until_answered(self, method: str, url: str, asked: dict[str, Any] | None) -> Any:
        pause_s = _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            retry_after = ""
            try:
                async with self._session.request(method, url, json=asked) as response:
                    text = await response.text(errors="replace")
                    if response.status == 200:
                        self.trouble = ""
                        return _parsed(text, url)
                    if response.status not in _BUSY:
                        raise LearnerError(
                            f"the reference policy at {url} answered {response.status}: {text[:_MAX_SHOWN]}",
                            kind="teacher_refused",
                        )
                    retry_after = response.headers.get("Retry-After", "")
                    self.trouble = f"status {response.status}: {text[:_MAX_SHOWN]}"
            except TimeoutError:  # of this try
                self.trouble = f"silent for {time.monotonic() - began:.0f} s"
            except (aiohttp.ClientError, OSError) as error:
                self.trouble = f"{type(error).__name__}: {error}"
            wait_s = float(retry_after) if retry_after.isdecimal() else pause_s * random.uniform(0.5, 1.5)
            await asyncio.sleep(min(wait_s, _LONGEST_PAUSE_S))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _parsed(text: str, url: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed(url, "JSON", text) from None


def _read(answer: Any, ids: list[int], address: str) -> np.ndarray:
    """Log-probs of these tokens out of an answer: `prompt_logprobs` holds {id: {"logprob": ...}} by position."""
    try:
        rows = answer["choices"][0]["prompt_logprobs"]
        found = [0.0, *(float(row[str(token)]["logprob"]) for row, token in zip(rows[1:], ids[1:], strict=True))]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise _malformed(address, f"prompt_logprobs of the {len(ids)} tokens that were sent", answer) from None
    if not all(math.isfinite(value) and value <= _ABOVE_ONE for value in found):
        raise _malformed(address, "finite log-probs", [value for value in found if not value <= 0][:10])
    return np.array(found, np.float32)


def _malformed(address: str, expected: str, came: object) -> LearnerError:
    return LearnerError(
        f"the reference policy at {address}: expected {expected}, got {str(came)[:_MAX_SHOWN]}: it is to be a vLLM "
        "server",
        kind="teacher_malformed",
    )
