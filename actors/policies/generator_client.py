"""Client of the generators: one `Policy` over many engines.

The turns of an episode go to one engine, for its prefix cache; a new episode goes to the least loaded one. When an
engine is lost, the continuation goes on elsewhere from the tokens that were received; when it is full, another try
follows after its own hint.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import numpy as np

from actors.policy import Request, Sampled
from protocol.config import GeneratorSettings
from protocol.errors import DeadlineError, GeneratorError, WireError
from protocol.messages import (
    NEWEST,
    Cancel,
    FinishReason,
    Generate,
    GeneratorStatus,
    GeneratorStatusRequest,
    Refused,
    Sampling,
    TakeApart,
    TakenApart,
    Tokens,
)
from protocol.sockets import Client, Keys

_log = logging.getLogger(__name__)
_PING_EVERY_S = 1.0
_LOST_AFTER_S = 8.0
_NOBODY_WAIT_S = 0.2
_MAX_EPISODES = 1 << 16
_LEAST_WAIT_S = 0.05
_MOST_ASKED = 3  # engines, one after another, to take a turn apart


class GeneratorClient:
    """`Policy` over the engines at `endpoints`. Belongs to one asyncio loop."""

    def __init__(self, endpoints: list[str], settings: GeneratorSettings, keys: Keys | None = None) -> None:
        self._settings = settings
        self._keys = keys
        self._links: dict[str, _Link] = {}
        self._closing: set[asyncio.Task[None]] = set()  # links to engines that are gone from the list
        self._homes: OrderedDict[str, str] = OrderedDict()  # episode -> endpoint, least recently used first
        self._name = f"{os.getpid()}-{random.getrandbits(32):08x}"
        self._ids = itertools.count()
        self._counts = {"num_failovers": 0, "num_full": 0, "num_moved": 0, "resumed_tokens": 0}
        self._wanted = list(dict.fromkeys(endpoints))
        self._asked = NEWEST  # the latest version that was asked for by its number

    async def generate(self, request: Request) -> Sampled:
        """See `Policy.generate`."""
        self._asked = max(self._asked, request.sampling.version)
        self._connect()
        part = _Continuation(request)
        try:
            async with asyncio.timeout(request.timeout_s):
                while part.finish_reason is None:
                    await self._continue(part)
        except TimeoutError:
            raise DeadlineError(
                f"a continuation of {request.episode_id} was not done within {request.timeout_s:g} s "
                f"({part.num_tokens} tokens received, {self._num_up()} of {len(self._links)} generators answer)",
                kind="generate",
            ) from None
        return part.sampled()

    async def take_apart(self, message: TakeApart, timeout_s: float) -> TakenApart:
        """What a sampled turn says, by any engine that answers.

        Raises `GeneratorError`: refused (the parser failed, or there is no such one), lost (no engine answers).
        """
        self._connect()
        links = sorted(self._links.values(), key=lambda link: (not link.is_up, link.load))
        reasons = []
        for link in links[:_MOST_ASKED]:
            try:
                return await link.take_apart(message, timeout_s)
            except (DeadlineError, WireError) as error:
                if isinstance(error, WireError) and error.kind == "generator.refused":
                    raise GeneratorError(str(error), kind="refused") from error
                reasons.append(str(error))
        raise GeneratorError(f"no engine takes turns apart: {'; '.join(reasons) or 'there is none'}", kind="lost")

    def update_endpoints(self, endpoints: list[str]) -> None:
        """The engines are at `endpoints` from now on. Continuations on one that is gone go on elsewhere."""
        self._wanted = list(dict.fromkeys(endpoints))
        with contextlib.suppress(RuntimeError):  # outside of the loop: at the next `generate`
            asyncio.get_running_loop()
            self._connect()

    def status(self) -> dict[str, float]:
        """Counters and gauges by metric name."""
        figures = {k: float(v) for k, v in self._counts.items()}
        figures |= {"num_generators": float(len(self._links)), "num_generators_up": float(self._num_up())}
        versions = [link.status.version for link in self._links.values() if link.status is not None]
        return figures | {"oldest_version": float(min(versions, default=-1))}

    async def close(self) -> None:
        """Drop connections; open generations are cancelled."""
        self._wanted = []
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(link.close() for link in links), *self._closing)

    def _num_up(self) -> int:
        return sum(link.is_up for link in self._links.values())

    def _connect(self) -> None:
        for endpoint in self._wanted:
            if endpoint not in self._links:
                self._links[endpoint] = _Link(endpoint, self._keys, lambda: self._asked)
        for endpoint in self._links.keys() - self._wanted:
            link = self._links.pop(endpoint)
            link.lose("it was taken off the list")
            closing = asyncio.create_task(link.close(), name=f"close {endpoint}")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _continue(self, part: _Continuation) -> None:
        """One attempt: stream from one engine until it finishes, is lost, or refuses."""
        asked, episode_id = part.asked, part.asked.episode_id
        link = self._choose(episode_id)
        if link is None:
            await asyncio.sleep(_NOBODY_WAIT_S)
            return
        request = Generate(
            request_id=f"{self._name}-{next(self._ids)}",
            token_ids=part.prompt(),
            sampling=part.remaining_sampling(),
            stop_token_ids=asked.stop_token_ids,
            cache_salt=asked.cache_salt,
            timeout_s=asked.timeout_s,
            stream=True,
        )
        num_before = part.num_tokens
        try:
            await link.stream(request, part)
        except GeneratorError as error:
            if error.kind == "full":
                self._counts["num_full"] += 1
                self._homes.pop(episode_id, None)
                wait_s = max(error.retry_after_s or 0.0, _LEAST_WAIT_S)
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.5))
            elif error.kind == "lost":
                self._counts["num_failovers"] += 1
                self._counts["resumed_tokens"] += part.num_tokens - num_before
                self._homes.pop(episode_id, None)
                _log.info("%s: %s; %d tokens kept", episode_id, error, part.num_tokens)
                part.finish_if_full()
            else:
                raise

    def _choose(self, episode_id: str) -> _Link | None:
        """The engine that has served the episode before, else the least loaded one; None while none answers."""
        home = self._links.get(self._homes.get(episode_id, ""))
        if home is None or not home.is_up:
            up = [link for link in self._links.values() if link.is_up]
            if not up:
                return None
            if episode_id in self._homes:
                self._counts["num_moved"] += 1
            least = min(link.load for link in up)
            home = random.choice([link for link in up if link.load == least])
        self._homes[episode_id] = home.endpoint
        self._homes.move_to_end(episode_id)
        if len(self._homes) > _MAX_EPISODES:
            self._homes.popitem(last=False)
        return home


class _Continuation:
    """What has been received of one continuation, over all the engines that worked on it."""

    def __init__(self, asked: Request) -> None:
        self.asked = asked
        self._chunks: list[Tokens] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None

    def add(self, tokens: Tokens) -> None:
        n = len(tokens.token_ids)
        if len(tokens.logprobs) != n or len(tokens.versions) != n:
            raise GeneratorError(f"{tokens.request_id}: arrays of different lengths", kind="refused")
        self._chunks.append(tokens)
        self.num_tokens += n
        self.finish_reason = tokens.finish_reason

    def prompt(self) -> np.ndarray:
        return np.concatenate([np.asarray(self.asked.token_ids, np.int32), *(c.token_ids for c in self._chunks)])

    def remaining_sampling(self) -> Sampling:
        """The rest of the budget. A seed is moved on, or an engine would repeat the noise of the first tokens."""
        sampling, seed = self.asked.sampling, self.asked.sampling.seed
        return msgspec.structs.replace(
            sampling,
            max_tokens=sampling.max_tokens - self.num_tokens,
            seed=seed if seed is None or not self.num_tokens else seed + self.num_tokens,
        )

    def finish_if_full(self) -> None:
        """A lost engine may have sent everything but the end."""
        last = self._chunks[-1].token_ids if self._chunks else np.zeros(0, np.int32)
        if last.size and int(last[-1]) in self.asked.stop_token_ids:
            self.finish_reason = "stop"
        elif self.num_tokens >= self.asked.sampling.max_tokens:
            self.finish_reason = "length"

    def sampled(self) -> Sampled:
        assert self.finish_reason is not None
        return Sampled(
            token_ids=np.concatenate([c.token_ids for c in self._chunks]),
            logprobs=np.concatenate([c.logprobs for c in self._chunks]),
            versions=np.concatenate([c.versions for c in self._chunks]),
            finish_reason=self.finish_reason,
            num_cached_tokens=self._chunks[0].num_cached_tokens,
            experts=self._chunks[-1].experts,
        )


class _Link:
    """Connection to one engine, with a watch over whether it still answers."""

    def __init__(self, endpoint: str, keys: Keys | None, holds: Callable[[], int]) -> None:
        self.endpoint = endpoint
        self.status: GeneratorStatus | None = None
        self.is_up = True  # until shown otherwise: the first request finds out
        self._client = Client(endpoint, keys)
        self._holds = holds
        self._num_open = 0
        self._streams: set[asyncio.Task[None]] = set()
        self._cancels: set[asyncio.Task[None]] = set()
        self._reported_by_others = 0
        self._watch = asyncio.create_task(self._keep_watch(), name=f"watch over {endpoint}")

    @property
    def load(self) -> int:
        """Generations of ours in flight, and those of other clients when it last said so."""
        return self._num_open + self._reported_by_others

    async def stream(self, request: Generate, part: _Continuation) -> None:
        """Add the engine's tokens to `part` until it is done.

        Raises `GeneratorError`: lost (it died or does not answer), full (with its hint), refused.
        """
        reading = asyncio.create_task(self._read(request, part))
        self._streams.add(reading)
        self._num_open += 1
        try:
            await asyncio.wait([reading])
        except asyncio.CancelledError:
            reading.cancel()
            self._cancel_soon(request.request_id)
            raise
        finally:
            self._streams.discard(reading)
            self._num_open -= 1
        if reading.cancelled():
            self._cancel_soon(request.request_id)  # in case it is only slow
            raise GeneratorError(f"{self.endpoint} was lost", kind="lost")
        reading.result()

    async def take_apart(self, message: TakeApart, timeout_s: float) -> TakenApart:
        """Ask this engine. Raises `DeadlineError` or `WireError`."""
        reply = await self._client.request(message, timeout_s)
        if not isinstance(reply, TakenApart):
            raise WireError(f"{self.endpoint} answered TakeApart with {type(reply).__name__}", kind="unexpected")
        return reply

    def lose(self, reason: str) -> None:
        """Give the engine up for now; whoever waits for it goes elsewhere."""
        if self.is_up:
            _log.warning("generator %s is lost: %s", self.endpoint, reason)
        self.is_up = False
        for reading in self._streams:
            reading.cancel()

    async def close(self) -> None:
        """Give the engine up, tell it so (for at most a second), and drop the connection."""
        self.is_up = False  # no news to the log
        self.lose("closed")
        self._watch.cancel()
        await asyncio.gather(self._watch, *self._streams, return_exceptions=True)
        while self._num_open:  # noqa: ASYNC110 (each now wakes up and leaves a cancel behind, within this turn)
            await asyncio.sleep(0)
        await asyncio.gather(*self._cancels)
        await self._client.close()

    async def _read(self, request: Generate, part: _Continuation) -> None:
        async with contextlib.aclosing(self._client.stream(request, request.timeout_s)) as replies:
            async for reply in replies:
                match reply:
                    case Tokens():
                        part.add(reply)
                        if reply.finish_reason == "cancelled":  # it is shutting down
                            part.finish_reason = None
                            raise GeneratorError(f"{self.endpoint} cancelled {request.request_id}", kind="lost")
                        if reply.finish_reason is not None:
                            return
                    case Refused():
                        boundary, _, kind = reply.kind.rpartition(".")
                        if kind == "deadline":
                            raise TimeoutError
                        raise GeneratorError(
                            f"{self.endpoint}: {reply.reason}",
                            kind=kind if boundary == "generator" and kind in ("full", "lost") else "refused",
                            retry_after_s=reply.retry_after_s,
                        )
                    case _:
                        raise GeneratorError(f"{self.endpoint} sent {type(reply).__name__}", kind="refused")

    def _cancel_soon(self, request_id: str) -> None:
        """Tell the engine to stop, without waiting for it."""

        async def cancel() -> None:
            with contextlib.suppress(DeadlineError, WireError):
                await self._client.request(Cancel(request_id=request_id), timeout_s=_PING_EVERY_S)

        task = asyncio.create_task(cancel())
        self._cancels.add(task)
        task.add_done_callback(self._cancels.discard)

    async def _keep_watch(self) -> None:
        """Ask for the engine's status every second, and say which version it is to hold. Waits for its answers;
        cancellation unblocks it."""
        while True:
            try:
                question = GeneratorStatusRequest(holds=self._holds())
                status = await self._client.request(question, timeout_s=_LOST_AFTER_S)
            except (DeadlineError, WireError) as error:
                self.lose(str(error))
            else:
                if isinstance(status, GeneratorStatus):
                    self.status = status
                    self.is_up = True
                    self._reported_by_others = max(0, status.running + status.waiting - self._num_open)
            await asyncio.sleep(_PING_EVERY_S)
