"""Starts a vLLM engine the way a generator needs it: checked first, small, quick, and with live weights.

Importing this module imports no vLLM: its environment has to be set before torch is first loaded.
"""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from actors.generator import engine_process
from actors.generator.adapters import adapter_arguments
from actors.generator.lifeline import guard_children
from actors.generator.stderr_tail import StderrTail
from protocol.config import GeneratorSettings, Settings
from protocol.errors import ConfigError, DeadlineError, GeneratorError, border
from protocol.model_family import ModelFamily

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

BLOCK_TOKENS = 32
"""KV block: 16 is refused by the CPU kernels; larger ones lose prefix hits between turns."""
_GPUS = Path("/proc/driver/nvidia/gpus")
_CPU_KV_CACHE_MIB = 192
_CPU_LEAST_HEAD_SIZE = 32
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def has_gpu() -> bool:
    """Whether this machine has one; known without torch, whose environment is not made yet."""
    return _GPUS.is_dir()


def engine_environment(settings: GeneratorSettings) -> dict[str, str]:
    """Variables of a generator's process; they only work if they are set before torch is imported there."""
    on_cpu = {
        "TORCHDYNAMO_DISABLE": "1",  # inductor would spend the first batch compiling helpers
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other processes of the run need the cores, too
    }
    return ({} if has_gpu() else on_cpu) | {
        "OMP_NUM_THREADS": str(settings.threads),
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def resolve_dtype(settings: Settings) -> str:
    """`model.dtype`, with `auto` resolved for this machine."""
    if settings.model.dtype != "auto":
        return settings.model.dtype
    return "bfloat16" if has_gpu() else "float32"


def kv_bytes_per_token(family: ModelFamily, dtype: str) -> int:
    """Bytes of keys and values that one token holds on to."""
    return 2 * family.layers * family.kv_heads * family.head_size * _ITEM_BYTES[dtype]


def check(settings: Settings, model_dir: Path, *, on_gpu: bool) -> ModelFamily:
    """Everything that can be known to fail before seconds are spent on a start. Raises `ConfigError` (one line)."""
    family = ModelFamily.read(model_dir)
    family.check_served(settings.model.max_context)
    adapter_arguments(settings)
    if settings.records_routes and not family.num_experts:
        raise ConfigError(f"learner.routing_replay is for mixtures of experts, {model_dir} is none", kind="model")
    weights = list(model_dir.glob("*.safetensors"))
    if not weights:
        raise ConfigError(f"{model_dir} holds no *.safetensors weights", kind="model")
    fp8 = settings.generator.fp8
    if fp8 == "weights" and settings.phase != "eval":
        raise ConfigError(
            "generator.fp8 weights is for evaluations, since pushed weights are not quantised: training takes kv_cache",
            kind="fp8",
        )
    if on_gpu:
        return family
    if fp8 != "off":
        raise ConfigError(f"generator.fp8 {fp8} needs a GPU: set it to off here", kind="fp8")
    if family.head_size < _CPU_LEAST_HEAD_SIZE:
        raise ConfigError(
            f"{model_dir} has attention heads of size {family.head_size}; the CPU kernels take {_CPU_LEAST_HEAD_SIZE} "
            "or more",
            kind="head_size",
        )
    wanted, given = _bytes_of_one_sequence(settings, family), kv_cache_bytes(settings, family)
    if given < wanted:
        raise ConfigError(
            f"generator.kv_cache_mib gives {given >> 20} MiB, but one sequence of {settings.model.max_context} tokens "
            f"takes {-(-wanted >> 20)} MiB: set it to that or more, or to 0, or lower model.max_context",
            kind="memory",
        )
    needed = given + 2 * sum(f.stat().st_size for f in weights)
    if (available := psutil.virtual_memory().available) < needed:
        raise ConfigError(
            f"weights and KV cache of {model_dir} need {needed >> 20} MiB, this machine has {available >> 20} MiB left",
            kind="memory",
        )
    return family


def kv_cache_bytes(settings: Settings, family: ModelFamily) -> int:
    """Size of the KV cache on CPU: as set, or so that one sequence of the longest context fits."""
    if settings.generator.kv_cache_mib:
        return settings.generator.kv_cache_mib << 20
    return max(_CPU_KV_CACHE_MIB << 20, _bytes_of_one_sequence(settings, family))


def _bytes_of_one_sequence(settings: Settings, family: ModelFamily) -> int:
    return (settings.model.max_context + BLOCK_TOKENS) * kv_bytes_per_token(family, resolve_dtype(settings))


def engine_arguments(settings: Settings, model_dir: Path, *, on_gpu: bool) -> dict[str, Any]:
    """How vLLM is configured, as keywords of its `EngineArgs`."""
    arguments: dict[str, Any] = {
        "model": str(model_dir),
        "skip_tokenizer_init": True,  # token ids in, token ids out
        "dtype": resolve_dtype(settings),
        "max_model_len": settings.model.max_context,
        "max_num_seqs": settings.generator.max_running,
        "tensor_parallel_size": settings.generator.tensor_parallel,
        "seed": settings.seed,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled, temperature included
        "stream_interval": settings.generator.stream_tokens,
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        "worker_cls": "actors.generator.vllm_worker.GeneratorWorker",
    }
    if not on_gpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": kv_cache_bytes(settings, ModelFamily.read(model_dir)),
            "block_size": BLOCK_TOKENS,
        }
        if settings.generator.tensor_parallel == 1:
            # by its full name: the short one is replaced by the multi-process executor on CPU
            arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    elif settings.generator.kv_cache_mib:
        arguments["kv_cache_memory_bytes"] = settings.generator.kv_cache_mib << 20
    arguments |= adapter_arguments(settings)
    if settings.records_routes:
        arguments["enforce_eager"] = True  # a captured graph would replay its kernels without the hook that records
    if settings.generator.fp8 != "off":
        arguments["kv_cache_dtype"] = "fp8"
    if settings.generator.fp8 == "weights":
        arguments["quantization"] = "fp8"
    return arguments


async def start_engine(settings: Settings, model_dir: Path) -> tuple[AsyncLLM, ModelFamily]:
    """A running engine that has decoded its first tokens.

    Blocks the event loop while the engine process starts: vLLM ties that process to the calling thread.

    Raises:
        ConfigError: the model or the settings cannot work.
        GeneratorError: vLLM failed to start; the message holds its own error.
    """
    os.environ.update(engine_environment(settings.generator))
    guard_children()
    errors = StderrTail()  # the engine's process says there what went wrong; its exception only says that
    try:
        return await _start(settings, model_dir, errors)
    finally:
        errors.close()


async def _start(settings: Settings, model_dir: Path, errors: StderrTail) -> tuple[AsyncLLM, ModelFamily]:
    if not has_gpu():
        engine_process.begin_imports()
    import torch
    from vllm import ModelRegistry
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    on_gpu = torch.cuda.is_available()
    family = check(settings, model_dir, on_gpu=on_gpu)
    if family.architecture not in ModelRegistry.get_supported_archs():
        raise ConfigError(
            f"{model_dir}: vLLM does not know the architecture {family.architecture}", kind="architecture"
        )
    if not on_gpu:
        engine_process.fork_engines()
    with border(
        GeneratorError,
        f"vLLM to start with {model_dir}",
        kind="start",
        tell=lambda came: errors.last_error() or str(came),
    ):
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(settings, model_dir, on_gpu=on_gpu)))
    await _warm_up(engine, family, settings.start_timeout_s)
    gc.collect()
    gc.freeze()  # else the first full collection stalls decoding for more than half a second
    return engine, family


async def _warm_up(engine: AsyncLLM, family: ModelFamily, timeout_s: float) -> None:
    """Decode a few tokens, at most `timeout_s`."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    prompt = TokensPrompt(prompt_token_ids=[min(1, family.vocab_size - 1)] * 4, cache_salt="warm-up")
    parameters = SamplingParams(max_tokens=4, ignore_eos=True, detokenize=False, logprobs=0)
    try:
        async with asyncio.timeout(timeout_s):
            with border(GeneratorError, "vLLM, which has started, to decode", kind="start"):
                async for _ in engine.generate(prompt, parameters, "warm-up"):
                    pass
    except TimeoutError:
        raise DeadlineError(f"the engine decoded no token within {timeout_s:g} s", kind="start") from None
