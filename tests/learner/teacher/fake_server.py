"""A small server that answers as vLLM's does, in a thread of its own, or as it is told to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web
from tokenizers import Tokenizer


def scores(values: list[float], ids: list[int]) -> dict[str, Any]:
    """The body of a good answer: `values` of all tokens but the first."""
    rows = [{str(i): {"logprob": v, "rank": 1, "decoded_token": ""}} for i, v in zip(ids[1:], values, strict=True)]
    return {"choices": [{"prompt_logprobs": [None, *rows]}]}


class FakeTeacher:
    """Serves `model`, with the tokenizer of a directory.

    Attributes:
        replies: what `/v1/completions` answers first, one a request, before it scores.
        cut, spell: its `/tokenize` and `/detokenize`.
        asked: bodies that came to `/v1/completions`, and `headers` theirs.
    """

    def __init__(self, tokenizer: Tokenizer, score: Callable[[list[int]], list[float]] | None = None) -> None:
        self.address = ""
        self.max_model_len: int | None = 4096
        self.replies: list[web.Response | None] = []
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.cut: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
        self.spell: Callable[[list[int]], str] = lambda ids: tokenizer.decode(ids, skip_special_tokens=False)
        self._score = score or (lambda ids: [-0.5] * (len(ids) - 1))

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.asked.append(body)
        self.headers.append(dict(request.headers))
        reply = self.replies.pop(0) if self.replies else None
        return reply or web.json_response(scores(self._score(body["prompt"]), body["prompt"]))

    async def _models(self, _request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "teacher", "max_model_len": self.max_model_len}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": self.cut((await request.json())["prompt"])})

    async def _detokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"prompt": self.spell((await request.json())["tokens"])})

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application()
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await stop.wait()
        await runner.cleanup()


@contextmanager
def serving(fake: FakeTeacher) -> Iterator[FakeTeacher]:
    """It listens inside."""
    loop, started, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(fake.serve(started, stop),))
    thread.start()
    try:
        assert started.wait(60), "the fake server did not start"
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
