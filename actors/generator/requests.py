"""The generations that are running in one engine: begin, stream, cancel, refuse."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np

from actors.generator.adapters import EngineAdapters
from protocol.config import Settings
from protocol.errors import GeneratorError
from protocol.messages import Cancel, FinishReason, Generate, Refused, Sampling, Tokens
from protocol.model_family import ModelFamily
from protocol.sockets import Peer, Server

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.logprobs import FlatLogprobs
    from vllm.v1.engine.async_llm import AsyncLLM

_log = logging.getLogger(__name__)
_RETRY_AFTER_S = 0.5


class RequestStats(msgspec.Struct):
    """Counters since the start."""

    generated_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    num_finished: int = 0
    num_cancelled: int = 0
    num_refused: int = 0
    num_full: int = 0
    num_late: int = 0

    @property
    def prefix_hit_share(self) -> float:
        """Share of prompt tokens whose KV was still there."""
        return self.cached_tokens / max(self.prompt_tokens, 1)


class RequestRunner:
    """Runs every `Generate` as a task of its own and answers its peer. `len(runner)` is how many are in flight."""

    def __init__(
        self,
        engine: AsyncLLM,
        server: Server,
        family: ModelFamily,
        settings: Settings,
        stats: RequestStats,
        adapters: EngineAdapters | None = None,
    ) -> None:
        self._engine = engine
        self._server = server
        self._family = family
        self._max_context = settings.model.max_context
        self._capacity = settings.generator.max_running + settings.generator.max_waiting
        self._stats = stats
        self._adapters = adapters
        self._records_routes = settings.records_routes
        self._tasks: dict[tuple[bytes, str], asyncio.Task[None]] = {}
        self._ids = itertools.count()
        self._warnings = FilterWarnings()
        self._tokens_in_flight = 0

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def kv_used_share(self) -> float:
        """Share of the KV cache that the sequences in flight fill (prefixes that they share count for each of them)."""
        cache = self._engine.vllm_config.cache_config
        capacity = (cache.num_gpu_blocks or 1) * cache.block_size
        return min(1.0, self._tokens_in_flight / capacity)

    async def begin(self, peer: Peer, message: Generate) -> None:
        """Start a generation, or refuse it."""
        key = (peer.identity, message.request_id)
        try:
            self._check(key, message)
        except GeneratorError as error:
            self._stats.num_refused += 1
            refusal = Refused(kind=error.label, reason=str(error), retry_after_s=error.retry_after_s)
            await self._server.send(peer, refusal)
            return
        task = asyncio.create_task(self._run(peer, message), name=f"generation {message.request_id}")
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._tasks.pop(key, None))

    async def cancel(self, peer: Peer, message: Cancel) -> None:
        """Cancel a generation; both it and the cancel itself are answered with finish reason `cancelled`."""
        if task := self._tasks.get((peer.identity, message.request_id)):
            task.cancel()
        await self._server.send(peer, _cancelled(message.request_id))

    async def cancel_all(self, timeout_s: float) -> None:
        """Cancel everything and wait, at most `timeout_s`, until their peers have been told."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)

    def _check(self, key: tuple[bytes, str], message: Generate) -> None:
        """Raise `GeneratorError` unless the engine can run this now."""
        if len(self._tasks) >= self._capacity:
            self._stats.num_full += 1
            raise GeneratorError(
                f"{len(self._tasks)} generations are in flight, the most that is taken",
                kind="full",
                retry_after_s=_RETRY_AFTER_S,
            )
        if key in self._tasks:
            raise GeneratorError(f"request id {message.request_id} is in use", kind="refused")
        ids = message.token_ids
        if ids.ndim != 1 or ids.dtype != np.int32 or not ids.size:
            raise GeneratorError(f"expected int32 [prompt], got {ids.dtype} {list(ids.shape)}", kind="refused")
        if ids.min() < 0 or ids.max() >= self._family.vocab_size:
            raise GeneratorError(
                f"token ids must be in [0, {self._family.vocab_size}), got {ids.min()} to {ids.max()}", kind="refused"
            )
        if ids.size + message.sampling.max_tokens > self._max_context or message.sampling.max_tokens < 1:
            raise GeneratorError(
                f"a prompt of {ids.size} and {message.sampling.max_tokens} new tokens do not fit the context of "
                f"{self._max_context}",
                kind="refused",
            )

    async def _run(self, peer: Peer, message: Generate) -> None:
        """Waits for the engine's tokens, at most the request's own deadline; a cancel unblocks it."""
        try:
            async with asyncio.timeout(message.timeout_s):
                await self._generate(peer, message)
        except TimeoutError:
            self._stats.num_late += 1
            reason = f"{message.request_id} was not done after {message.timeout_s:g} s"
            await self._server.send(peer, Refused(kind="generator.deadline", reason=reason))
        except asyncio.CancelledError:
            self._stats.num_cancelled += 1
            await self._server.send(peer, _cancelled(message.request_id))
        except Exception as error:  # vLLM raises whatever its parts raise; the peer must hear of it
            self._stats.num_refused += 1
            _log.warning("generation %s failed: %s", message.request_id, error)
            kind = "generator.lost" if self._engine.errored else "generator.refused"
            await self._server.send(peer, Refused(kind=kind, reason=f"vLLM: {error}"))

    async def _generate(self, peer: Peer, message: Generate) -> None:
        from vllm.inputs import TokensPrompt

        engine_id = f"{next(self._ids)}"
        prompt = TokensPrompt(prompt_token_ids=message.token_ids.tolist(), cache_salt=message.cache_salt or "none")
        adapter = self._adapters.take(message.sampling.version) if self._adapters else None
        versions = _Versions(self._engine, engine_id, adapter.version if adapter else None)
        lora = adapter.request if adapter else None
        num_held = message.token_ids.size
        self._stats.prompt_tokens += num_held
        self._tokens_in_flight += num_held
        try:
            async for output in self._engine.generate(prompt, self._parameters(message), engine_id, lora_request=lora):
                num_new = len(output.outputs[0].token_ids)
                if num_new or output.finished:
                    tokens = _tokens(message.request_id, output, versions)
                    if output.finished and self._records_routes:
                        tokens = msgspec.structs.replace(
                            tokens, experts=await self._routes_of(engine_id, num_held + num_new)
                        )
                    await self._server.send(peer, tokens)
                num_held += num_new
                self._tokens_in_flight += num_new
                self._stats.generated_tokens += num_new
                if output.finished:
                    self._stats.num_finished += 1
                    self._stats.cached_tokens += output.num_cached_tokens or 0
        finally:
            self._tokens_in_flight -= num_held
            if self._adapters and adapter:
                self._adapters.give_back(adapter)

    async def _routes_of(self, engine_id: str, num_tokens: int) -> np.ndarray | None:
        """Of all tokens that this request computed, of `num_tokens` in all: from the first that no cache had to the one
        before the last."""
        found, *_ = await self._engine.collective_rpc("take_routes", args=(engine_id,))
        if found is None:
            return None
        first, shape, data = found
        return routes_before_last(first, shape, data, num_tokens)

    def _parameters(self, message: Generate) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        sampling = message.sampling
        self._warnings.look_at(sampling)
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            max_tokens=sampling.max_tokens,
            seed=sampling.seed,
            stop_token_ids=message.stop_token_ids,
            ignore_eos=True,  # the caller says where a turn ends
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if message.stream else RequestOutputKind.FINAL_ONLY,
        )


def routes_before_last(first: int, shape: list[int], data: bytes, num_tokens: int) -> np.ndarray | None:
    """Routes of tokens `first` to `num_tokens - 2`, None if they end sooner; an engine may compute a step more."""
    kind = np.uint8 if len(data) == math.prod(shape) else np.uint16
    rows = np.frombuffer(data, kind).reshape(shape)[: num_tokens - 1 - first]
    return rows if len(rows) == num_tokens - 1 - first else None


class FilterWarnings:
    """Says once for each filter that log-probs are those of the filtered distribution, not of the policy."""

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def look_at(self, sampling: Sampling) -> None:
        """Warn of what `sampling` filters by, unless that has been said before."""
        for name, neutral in (("top_p", 1.0), ("top_k", 0), ("min_p", 0.0)):
            value = getattr(sampling, name)
            if value != neutral and name not in self._warned:
                self._warned.add(name)
                _log.warning(
                    "%s=%s: behaviour log-probs are not those of the policy; do not train on them", name, value
                )


class _Versions:
    """Which policy version sampled which token of one request, from vLLM's spans.

    The finished output carries the spans. While a request streams they are read from vLLM's own state of it. With an
    adapter it is the adapter's (`only`).
    """

    def __init__(self, engine: AsyncLLM, engine_id: str, only: int | None = None) -> None:
        self._only = only
        self._processor = engine.output_processor
        self._engine_id = engine_id
        self._starts: list[tuple[str, int]] | None = None
        self._num_seen = 0

    def of_next(self, num_new: int, spans: list[Any] | None) -> np.ndarray:
        """Versions (int32 [num_new]) of the tokens after those already asked for."""
        if self._only is not None:
            return np.full(num_new, self._only, np.int32)
        if spans is not None:
            starts = [(span.version, span.start) for span in spans]
        else:
            starts = self._live_starts()
        positions = np.arange(self._num_seen, self._num_seen + num_new)
        self._num_seen += num_new
        if not num_new:
            return np.zeros(0, np.int32)
        if not starts:
            raise GeneratorError("vLLM did not say which weights sampled its tokens", kind="engine")
        labels = np.asarray([int(version) for version, _ in starts], np.int32)
        firsts = np.asarray([start for _, start in starts])
        return labels[np.searchsorted(firsts, positions, side="right") - 1]

    def _live_starts(self) -> list[tuple[str, int]]:
        if self._starts is None:
            internal = self._processor.external_req_ids.get(self._engine_id, [])
            state = self._processor.request_states.get(internal[0]) if internal else None
            self._starts = state.weight_version_starts if state is not None else []
        return self._starts


def _tokens(request_id: str, output: RequestOutput, versions: _Versions) -> Tokens:
    completion = output.outputs[0]
    num_new = len(completion.token_ids)
    # as `_parameters` asked for them
    logprobs = cast("FlatLogprobs", completion.logprobs).logprobs if num_new else []
    if len(logprobs) != num_new:
        raise GeneratorError(f"{len(logprobs)} log-probs for {num_new} tokens", kind="engine")
    return Tokens(
        request_id=request_id,
        token_ids=np.asarray(completion.token_ids, np.int32),
        logprobs=np.asarray(logprobs, np.float32),
        versions=versions.of_next(num_new, completion.weight_versions),
        finish_reason=_finish_reason(completion.finish_reason) if output.finished else None,
        num_cached_tokens=output.num_cached_tokens or 0,
    )


def _finish_reason(reason: str | None) -> FinishReason:
    match reason:
        case "stop" | "length":
            return reason
        case "abort":
            return "cancelled"
        case _:
            raise GeneratorError(f"vLLM ended a request with {reason!r}", kind="engine")


def _cancelled(request_id: str) -> Tokens:
    return Tokens(
        request_id=request_id,
        token_ids=np.zeros(0, np.int32),
        logprobs=np.zeros(0, np.float32),
        versions=np.zeros(0, np.int32),
        finish_reason="cancelled",
    )
