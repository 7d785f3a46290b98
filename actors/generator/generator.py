"""A vLLM engine behind a ZMQ endpoint: token ids in; token ids, log-probs and policy versions out.

vLLM's `AsyncLLM` lives in this process and its engine core in a child that dies with it. Weights change under running
generations (`actors/weights/adopter.py`); the version of every token is read from vLLM's own record of what sampled it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from actors.generator.adapters import EngineAdapters
from actors.generator.engine import resolve_dtype, start_engine
from actors.generator.parsing import Parsing
from actors.generator.requests import RequestRunner, RequestStats
from actors.weights.adopter import NO_VERSION, WeightAdopter, WeightHolder
from protocol.config import Settings
from protocol.errors import DeadlineError, GeneratorError, WeightsError, border
from protocol.messages import (
    Cancel,
    Generate,
    GeneratorStatus,
    GeneratorStatusRequest,
    Refused,
    TakeApart,
    TakenApart,
    TensorEntry,
)
from protocol.sockets import Keys, Peer, Server
from protocol.weights.manifest import TensorSpec

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

_log = logging.getLogger(__name__)
_STOP_TIMEOUT_S = 5.0


class Generator:
    """Serves one model. `await start()`, then `await run()` until `await stop()`.

    Args:
        settings: of the run; `model.path` holds the starting weights.
        name: unique among the generators of a run.
        endpoint: ZMQ address to bind.
        weights_endpoint: the learner's weight publisher; None: the weights never change.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        endpoint: str,
        weights_endpoint: str | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._settings = settings
        self._name = name
        self._model_dir = Path(settings.model.path)
        self._bind = endpoint
        self._weights_endpoint = weights_endpoint
        self._keys = keys
        self._engine: AsyncLLM | None = None
        self._server: Server | None = None
        self._adopter: WeightAdopter | None = None
        self._adapters: EngineAdapters | None = None
        self._requests: RequestRunner | None = None
        self._parsing = Parsing(self._model_dir)
        self._stats = RequestStats()
        self._stopped = asyncio.Event()
        self.start_s = 0.0

    async def start(self) -> str:
        """Load, warm up, adopt the current weights if a publisher has any, listen. The bound endpoint.

        Raises:
            ConfigError: the model or the settings cannot work.
            GeneratorError: vLLM failed to start.
            WeightsError: the published weights do not fit or did not arrive.
        """
        started = time.monotonic()
        self._engine, family = await start_engine(self._settings, self._model_dir)
        holder: WeightHolder = EngineWeights(self._engine, recompute_kv=self._settings.generator.recompute_kv)
        if self._settings.pushes_adapters:
            dtype = resolve_dtype(self._settings)
            rank = self._settings.learner.lora_rank
            patience_s = 2 * self._settings.generator.request_timeout_s
            holder = self._adapters = EngineAdapters(self._engine, self._model_dir, rank, dtype, patience_s)
        if self._settings.records_routes:
            with border(GeneratorError, "vLLM to say which experts serve a token", kind="start"):
                await self._engine.collective_rpc("record_routes")
        await self._engine.update_weight_version("0")
        if self._weights_endpoint is not None:
            tied = {"lm_head.weight": "model.embed_tokens.weight"} if family.tied else {}
            self._adopter = WeightAdopter(
                holder, self._name, self._weights_endpoint, self._settings.weights, tied=tied, keys=self._keys
            )
            with contextlib.suppress(DeadlineError):  # the learner may still be starting
                await self._adopter.poll()
        self._server = Server(self._bind, self._keys)
        self._requests = RequestRunner(self._engine, self._server, family, self._settings, self._stats, self._adapters)
        self.start_s = time.monotonic() - started
        _log.info("%s: ready in %.1f s at %s", self._name, self.start_s, self._server.endpoint)
        return self._server.endpoint

    async def run(self) -> None:
        """Serve. Waits for requests, new weights and the engine's death for ever; `stop()` unblocks it.

        Raises:
            GeneratorError: the engine died (its own error is in the log).
            WeightsError: the weights in force are not the published ones.
        """
        assert self._server is not None, "start() comes first"
        parts: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._serve()),
            asyncio.create_task(self._watch_engine()),
            asyncio.create_task(self._stopped.wait()),
        ]
        if self._adopter is not None:
            parts.append(asyncio.create_task(self._adopter.run()))
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            await self._shut_down()

    async def stop(self) -> None:
        """End `run()`; generations in flight end as cancelled."""
        self._stopped.set()

    async def status_message(self) -> GeneratorStatus:
        """Load and progress, as sent to clients."""
        running, waiting, kv_used = self._load()
        return GeneratorStatus(
            version=self.version,
            running=running,
            waiting=waiting,
            kv_used_share=kv_used,
            generated_tokens=self._stats.generated_tokens,
            prefix_hit_share=self._stats.prefix_hit_share,
        )

    def status(self) -> dict[str, float]:
        """Counters and gauges by metric name."""
        running, waiting, kv_used = self._load()
        figures = {
            "version": float(self.version),
            "running": float(running),
            "waiting": float(waiting),
            "kv_used_share": kv_used,
            "start_s": self.start_s,
            "prefix_hit_share": self._stats.prefix_hit_share,
            **{k: float(v) for k, v in msgspec.structs.asdict(self._stats).items()},
        }
        if self._adopter is not None:
            figures |= {
                "weights_adopted": float(self._adopter.num_adopted),
                "weights_refetched": float(self._adopter.num_refetched),
                "weights_stage_s": self._adopter.stage_s,
                "weights_swap_s": self._adopter.swap_s,
            }
        if self._adapters is not None:
            figures |= self._adapters.status()
        return figures

    @property
    def version(self) -> int:
        """Policy version in force."""
        return 0 if self._adopter is None or self._adopter.version == NO_VERSION else self._adopter.version

    def _load(self) -> tuple[int, int, float]:
        assert self._requests is not None, "start() comes first"
        in_flight = len(self._requests)
        running = min(in_flight, self._settings.generator.max_running)
        return running, in_flight - running, self._requests.kv_used_share

    async def _serve(self) -> None:
        assert self._server is not None and self._requests is not None
        async for peer, message in self._server:
            match message:
                case Generate():
                    await self._requests.begin(peer, message)
                case Cancel():
                    await self._requests.cancel(peer, message)
                case TakeApart():
                    await self._take_apart(peer, message)
                case GeneratorStatusRequest():
                    if self._adapters is not None:
                        self._adapters.hold(message.holds)
                    await self._server.send(peer, await self.status_message())
                case _:
                    await self._refuse(peer, f"a generator does not take {type(message).__name__}")

    async def _take_apart(self, peer: Peer, message: TakeApart) -> None:
        """A few milliseconds, on this loop: nothing else may use the parsers meanwhile."""
        assert self._server is not None
        try:
            reply: TakenApart | Refused = self._parsing.answer(message)
        except GeneratorError as error:
            reply = Refused(kind=error.label, reason=str(error))
        await self._server.send(peer, reply)

    async def _refuse(self, peer: Peer, reason: str) -> None:
        assert self._server is not None
        await self._server.send(peer, Refused(kind="generator.refused", reason=reason))

    async def _watch_engine(self) -> None:
        """Waits for the engine's death, looking every half second; cancellation unblocks it."""
        assert self._engine is not None
        while not self._engine.errored:  # noqa: ASYNC110 (vLLM sets a flag, no event)
            await asyncio.sleep(0.5)
        raise GeneratorError(f"{self._name}: the vLLM engine died; its own error is in the log", kind="dead")

    async def _shut_down(self) -> None:
        assert self._server is not None and self._engine is not None and self._requests is not None
        await self._requests.cancel_all(_STOP_TIMEOUT_S)
        if self._adopter is not None:
            await self._adopter.close()
        self._server.close()
        if self._adapters is not None:
            self._adapters.close()
        self._engine.shutdown(timeout=_STOP_TIMEOUT_S)
        self._engine = self._requests = self._adopter = None  # vLLM complains if it is collected at the very end


class EngineWeights:
    """`WeightHolder` of a live vLLM engine."""

    def __init__(self, engine: AsyncLLM, *, recompute_kv: bool) -> None:
        self._engine = engine
        self._recompute_kv = recompute_kv
        self._pause: asyncio.Task[None] | None = None  # answered when the engine is next without work
        self._kv_is_nobodys = True  # computed under weights from disk, of no version that a salt could name
        self._version = -1

    async def layout(self) -> list[TensorSpec]:
        rows, *_ = await self._engine.collective_rpc("adopt_layout")
        return [TensorSpec(name, dtype, tuple(shape)) for name, dtype, shape in rows]

    async def stage(self, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        rows = [msgspec.to_builtins(e) for e in entries]
        return await self._job("adopt_stage", str(path), version, num_bytes, rows)

    async def swap(self, version: int) -> None:
        """Pause, exchange, label, resume. Weights and label are two calls: the pause is what makes them one.

        They are sent at once, and handled in their order, because the engine stands still for as long as this event
        loop takes over them. Only where several batches may be on their way is the pause waited for: it is over when
        they are. If the exchange fails, its process ends (`GeneratorWorker.adopt_swap`), so that the calls behind it
        find nobody. (`pause_generation` would sleep 20 ms more.)
        """
        core = self._engine.engine_core
        calls: list[tuple[Any, ...]] = [("collective_rpc", "adopt_swap", None, (), None)]
        if self._recompute_kv or self._kv_is_nobodys or version == self._version:  # a salt would not tell them apart
            calls.append(("reset_prefix_cache", True, False))  # running requests, too
        calls += [("set_weight_version", str(version)), ("resume_scheduler",)]
        with border(WeightsError, f"version {version} to be put in force", kind="swap"):
            # begun in their order, and each sends before it first waits
            self._pause = asyncio.create_task(core.pause_scheduler_async(mode="keep", clear_cache=False))
            if self._engine.vllm_config.max_concurrent_batches > 1:
                await self._pause
            await asyncio.gather(*(core.call_utility_async(*call) for call in calls))
        self._kv_is_nobodys, self._version = False, version

    async def label(self, version: int) -> None:
        await self._engine.update_weight_version(str(version))
        self._kv_is_nobodys, self._version = False, version

    async def checksums(self, names: Sequence[str]) -> list[str]:
        return await self._job("adopt_hash", list(names))

    async def _job(self, method: str, *arguments: object) -> list[str]:
        """Begin a job in the worker and look for its end between decoding steps."""
        with border(WeightsError, f"an answer to {method}", kind="staging"):
            await self._engine.collective_rpc(method, args=arguments)
            wait_s = 0.0005
            while True:
                results = await self._engine.collective_rpc("adopt_result")
                if None not in results:
                    return _same_everywhere(results)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, 0.01)


def _same_everywhere(results: list[list[str]]) -> list[str]:
    """Checksums that all devices of an engine agree on; where they do not, an empty one, which equals no other."""
    return [sums[0] if len(set(sums)) == 1 else "" for sums in zip(*results, strict=True)]
