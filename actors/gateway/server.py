"""The gateway of one process: who asks (`keys.py`), in which API's words (the dialects), for which episode (`seat.py`).

A sandbox reaches it through its own channel (`accept`); only what runs in this process uses the port on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from msgspec import Struct

from actors.gateway.asks import Answer, Ask, Refusal
from actors.gateway.bodies import Body
from actors.gateway.chat_completions import ChatCompletions
from actors.gateway.dialect import Dialect
from actors.gateway.keys import KeyRing
from actors.gateway.messages import Messages
from actors.gateway.responses import Responses
from actors.gateway.seat import Seat

log = logging.getLogger(__name__)

MOST_BODY = 16 << 20  # bytes of a request
READ_S = 60.0  # for a request's body to arrive
WRITE_S = 60.0  # for an answer to be taken
KEEP_ALIVE_S = 5.0  # silence in a stream
MOST_NAMES = 64  # fields told by name in the log
CLOSE_S = 5.0
PATH = re.compile(r"(?:/k/(?P<key>[\w-]{1,200}))?(?P<path>/.*)", re.DOTALL)
CHAT, RESPONSES, MESSAGES = ChatCompletions(), Responses(), Messages()
DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": CHAT,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": MESSAGES,
}


class Exchange(Struct, frozen=True, kw_only=True):
    """One request with what became of it, for people who look at a new agent."""

    path: str
    body: bytes
    status: int
    answer: Answer | None
    said: str = ""


class _Home(NamedTuple):
    """Where a connection comes from."""

    key: str  # the only one that counts there
    connection: int  # its number


class Gateway:
    """Serves seats. Belongs to one asyncio loop.

    Args:
        model: name of the model that agents are shown.
        on_exchange: hears of every request that had a valid key.
    """

    def __init__(self, model: str, on_exchange: Callable[[Exchange], None] = lambda exchange: None) -> None:
        self._model = model
        self._on_exchange = on_exchange
        self._keys: KeyRing[Seat] = KeyRing()
        self._homes: dict[RequestHandler, _Home] = {}  # connections from sandboxes
        self._joining: set[RequestHandler] = set()  # those of them that are not connected yet
        self._counts: Counter[str] = Counter()
        self._named: set[str] = set()
        self._runner: web.AppRunner | None = None
        self._address: tuple[str, int] | None = None

    async def start(self, *, listen: bool = False) -> None:
        """Be ready for `accept`; with `listen` also on a port of loopback."""
        app = web.Application(client_max_size=MOST_BODY)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        app.on_response_prepare.append(self._one_exchange)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        if listen:
            await web.TCPSite(self._runner, "127.0.0.1", 0).start()
            self._address = self._runner.addresses[0]

    async def stop(self) -> None:
        """End every connection."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        """Where it listens on loopback."""
        assert self._address is not None, "start(listen=True) comes first"
        return f"http://{self._address[0]}:{self._address[1]}"

    def open(self, seat: Seat, key: str | None = None) -> str:
        """The key of a seat, valid until `close`; `key`: the one that it has, from another process."""
        return self._keys.make(seat, key)

    def close(self, key: str) -> None:
        """The key's episode is over, and so are the connections of its sandbox."""
        self._keys.end(key)
        for handler, home in list(self._homes.items()):
            if home.key == key:
                del self._homes[handler]
                handler.force_close()
                if handler.transport is not None:
                    handler.transport.abort()

    def accept(self, key: str) -> Callable[[socket.socket, int], Awaitable[None]]:
        """Takes connections that come from where `key` is the only one that counts, each with its number there."""

        async def take(connection: socket.socket, number: int) -> None:
            assert self._runner is not None and self._runner.server is not None, "start() comes first"
            handler = self._runner.server()
            lives = {handler for handler in self._homes if handler.transport is not None} | self._joining
            self._homes = {handler: home for handler, home in self._homes.items() if handler in lives}
            self._homes[handler] = _Home(key, number)
            self._joining.add(handler)
            try:
                await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, connection)
            finally:
                self._joining.discard(handler)
            if handler not in self._homes and handler.transport is not None:  # the episode ended meanwhile
                handler.transport.abort()

        return take

    def status(self) -> dict[str, float]:
        """Counters by metric name."""
        refused = {f"gateway_keys_{reason}": float(count) for reason, count in self._keys.refused.items()}
        counts = {f"gateway_{name}": float(count) for name, count in self._counts.items()}
        return {"gateway_seats": float(len(self._keys)), **refused, **counts}

    # -- below: one request

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self._counts["requests"] += 1
        found = PATH.fullmatch(request.path)
        path = found["path"] if found else request.path
        dialect = DIALECTS.get(path) or (MESSAGES if "anthropic-version" in request.headers else CHAT)
        try:
            if request.method == "HEAD":
                return web.Response()
            home = self._homes.get(request.protocol)
            if home is None and _is_of_sandbox(request):
                raise Refusal("unauthorized", "this connection's episode is over")
            seat = self._keys.find((found and found["key"]) or _key(request), home and home.key)
            if request.method == "GET":
                return self._look(path, isinstance(dialect, Messages))
            if path not in DIALECTS or request.method != "POST":
                raise Refusal("missing", f"{request.method} {path[:200]} is not served")
        except Refusal as refusal:
            return self._refused(dialect, refusal)
        return await self._post(request, path, dialect, seat, home and home.connection)

    async def _post(
        self, request: web.Request, path: str, dialect: Dialect, seat: Seat, number: int | None
    ) -> web.StreamResponse:
        data = b""
        try:
            data = await _read(request)
            body = Body.parse(data)
            if path.endswith("/count_tokens"):
                tokens = seat.turns.count(MESSAGES.read_count(body))
                return _json({"input_tokens": tokens}, 200)
            ask = dialect.read(body)
            self._note(ask)
            response, answer = await self._answer(request, dialect, seat, ask, number)
        except Refusal as refusal:
            self._on_exchange(Exchange(path=path, body=data, status=refusal.status, answer=None, said=str(refusal)))
            return self._refused(dialect, refusal)
        except ConnectionError:  # the client is gone
            self._counts["disconnects"] += 1
            raise
        except TimeoutError:
            self._counts["answers_not_taken"] += 1
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("an answer was not taken") from None
        except asyncio.CancelledError:
            self._counts["disconnects"] += 1
            raise
        except Exception as bug:  # ours, in this API's own shape
            told = seat.broke(bug)
            self._on_exchange(Exchange(path=path, body=data, status=told.status, answer=None, said=str(told)))
            return self._refused(dialect, told)
        self._counts["sampled_tokens"] += answer.usage.sampled if answer is not None else 0
        self._on_exchange(Exchange(path=path, body=data, status=200, answer=answer))
        return response

    async def _answer(
        self, request: web.Request, dialect: Dialect, seat: Seat, ask: Ask, number: int | None
    ) -> tuple[web.StreamResponse, Answer | None]:
        if ask.stream:
            return await self._stream(request, dialect, seat, ask, number)
        answer = await seat.answer(ask, number)
        response = _json(dialect.write(ask, answer), 200)
        async with asyncio.timeout(WRITE_S):
            await response.prepare(request)
            await response.write_eof()
        seat.delivered(ask)
        return response, answer

    async def _stream(
        self, request: web.Request, dialect: Dialect, seat: Seat, ask: Ask, number: int | None
    ) -> tuple[web.StreamResponse, Answer | None]:
        """Events come once the turn is whole: it is taken apart whole. Until then the client is kept company.

        Every keep-alive is written down before: whoever goes on with the stream says the same, to the byte.
        """
        answering = asyncio.ensure_future(seat.answer(ask, number))
        times = seat.kept_alive(number)
        try:
            if not times:
                await asyncio.wait([answering], timeout=KEEP_ALIVE_S)
                if answering.done():
                    answering.result()  # a refusal is an answer of its own while nothing has been sent
                else:
                    seat.keep_alive(number, times := 1)
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
            await response.prepare(request)
            for _ in range(times):
                async with asyncio.timeout(WRITE_S):
                    await response.write(dialect.keep_alive)
            while not (await asyncio.wait([answering], timeout=KEEP_ALIVE_S))[0]:
                seat.keep_alive(number, times := times + 1)
                async with asyncio.timeout(WRITE_S):
                    await response.write(dialect.keep_alive)
            answer: Answer | None = None
            async with asyncio.timeout(WRITE_S):
                try:
                    answer = answering.result()
                    told = b"".join(dialect.stream(ask, answer))
                except Refusal as refusal:
                    self._counts[f"refused_{refusal.kind}"] += 1
                    told = dialect.stream_error(refusal)
                except Exception as bug:
                    told = dialect.stream_error(seat.broke(bug))
                await response.write(told)
                await response.write_eof()
        finally:
            answering.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refusal):
                await answering
        seat.delivered(ask)
        return response, answer

    async def _one_exchange(self, request: web.Request, response: web.StreamResponse) -> None:
        """A connection from a sandbox ends with its answer: its number names the request, whoever takes it."""
        if request.protocol in self._homes:
            response.headers["Connection"] = "close"
            response.force_close()

    def _look(self, path: str, anthropic: bool) -> web.Response:
        """What is served: the one model."""
        model: dict[str, Any] = {"id": self._model, "object": "model", "created": 0, "owned_by": "longhaul"}
        if anthropic:
            named = {"display_name": self._model, "created_at": "1970-01-01T00:00:00Z"}
            model = {"type": "model", "id": self._model, **named}
        if path == "/v1/models":
            return _json({"object": "list", "data": [model], "has_more": False}, 200)
        if path == f"/v1/models/{self._model}":
            return _json(model, 200)
        raise Refusal("missing", f"GET {path[:200]} is not served")

    def _refused(self, dialect: Dialect, refusal: Refusal) -> web.Response:
        self._counts[f"refused_{refusal.kind}"] += 1
        response = _json(dialect.error(refusal), refusal.status)
        if refusal.retry_after_s is not None:
            response.headers["Retry-After"] = str(math.ceil(refusal.retry_after_s))
        if refusal.kind == "failed":
            response.headers["X-Should-Retry"] = "true"
        return response

    def _note(self, ask: Ask) -> None:
        """Count what was overridden or not known, and say each once."""
        for name in ask.overridden:
            self._counts[f"overridden_{name}"] += 1
            self._say_once(f"{name} is set by the run, not by the agent")
        self._counts["unknown_fields"] += len(ask.unknown)
        for name in ask.unknown:
            self._say_once(f"a field {name[:80]!r} that is not known here changes nothing")

    def _say_once(self, what: str) -> None:
        if what not in self._named and len(self._named) < MOST_NAMES:
            self._named.add(what)
            log.warning("gateway: %s", what)


async def _read(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(READ_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise Refusal("too_large", f"a request has at most {MOST_BODY} bytes") from None
    except TimeoutError:
        raise Refusal("timeout", f"the request's body did not arrive within {READ_S:g} s") from None
    except (web.RequestPayloadError, ValueError) as error:
        raise Refusal("invalid", f"the body cannot be read: {error}") from None


def _is_of_sandbox(request: web.Request) -> bool:
    """Whether it came over one end of a pair of sockets, not over loopback."""
    connection = request.get_extra_info("socket")
    return connection is None or connection.family == socket.AF_UNIX


def _key(request: web.Request) -> str | None:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return request.headers.get("X-Api-Key") or request.headers.get("Api-Key")


def _json(content: object, status: int) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), status=status, content_type="application/json")
