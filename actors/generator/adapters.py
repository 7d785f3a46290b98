"""Versions as adapters: vLLM loads the base once, and every version is a LoRA adapter of its own beside it.

A request keeps the adapter that it began with, so that all of its tokens are of one version, and keys and values of
different versions never meet (vLLM keeps them apart by the adapter's name). An adapter is dropped when a newer one is
in force and no request uses it.
"""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from protocol.config import Settings
from protocol.errors import ConfigError, WeightsError, border
from protocol.messages import TensorEntry
from protocol.weights.manifest import TensorSpec, tensor_checksum
from protocol.weights.segments import Segment

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM makes room for."""
_AT_ONCE = 4
"""Versions in one batch; requests of one more wait until an older one is done."""
_SCALE = 2  # alpha over rank, as the learner trains them


class Adapter(Struct, frozen=True):
    """One version, as requests use it."""

    version: int
    request: LoRARequest | None  # None: the base alone


def adapter_arguments(settings: Settings) -> dict[str, Any]:
    """What vLLM's `EngineArgs` are told for them; nothing where weights are pushed whole. Raises `ConfigError`."""
    if not settings.pushes_adapters:
        return {}
    rank = settings.learner.lora_rank
    room = next((each for each in _RANKS if each >= rank), None)
    if room is None:
        raise ConfigError(
            f"learner.lora_rank is {rank}, and vLLM serves adapters of rank {_RANKS[-1]} at most: lower it, or set "
            "weights.adapters merged",
            kind="lora",
        )
    return {"enable_lora": True, "max_loras": _AT_ONCE, "max_cpu_loras": 2 * _AT_ONCE, "max_lora_rank": room}


class EngineAdapters:
    """`WeightHolder` of a live vLLM engine that serves adapters."""

    def __init__(self, engine: AsyncLLM, model_dir: Path, rank: int, dtype: str) -> None:
        self._engine = engine
        self._model_dir, self._rank, self._dtype = model_dir, rank, dtype
        self._folder = tempfile.TemporaryDirectory(prefix="adapters-", ignore_cleanup_errors=True)
        self._modules: set[str] = set()
        self._loaded: dict[int, LoRARequest] = {}
        self._users: Counter[int] = Counter()
        self._current = Adapter(0, None)

    def take(self) -> Adapter:
        """The newest version, for one request; `give_back` it at its end."""
        self._users[self._current.version] += 1
        return self._current

    def give_back(self, adapter: Adapter) -> None:
        """A request is over."""
        self._users[adapter.version] -= 1

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    async def layout(self) -> list[TensorSpec]:
        """Factors of every linear layer but the output projection, in transformers' names."""
        with border(WeightsError, f"the linear layers of {self._model_dir}", kind="name"):
            layers = await asyncio.to_thread(_linear_layers, self._model_dir)
        self._modules = {name.rpartition(".")[2] for name in layers}
        return [
            TensorSpec(f"{name}.lora_{factor}.weight", self._dtype, shape)
            for name, (rows, columns) in layers.items()
            for factor, shape in (("A", (self._rank, columns)), ("B", (rows, self._rank)))
        ]

    async def stage(self, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        """Write the factors where vLLM reads them."""
        return await asyncio.to_thread(self._write, path, version, num_bytes, entries)

    async def swap(self, version: int) -> None:
        """Load what was staged; requests that begin from now on use it."""
        from vllm.lora.request import LoRARequest

        request = LoRARequest(str(version), version + 1, str(self._path_of(version)))
        with border(WeightsError, f"vLLM to load the adapter of version {version}", kind="swap"):
            if not await self._engine.add_lora(request):
                raise ValueError("it did not")
        self._loaded[version] = request
        self._current = Adapter(version, request)
        await self._drop_unused()

    async def label(self, version: int) -> None:
        """Not asked for: an engine begins with the base alone, which no checksum of factors names."""
        raise AssertionError(f"version {version} has no adapter")

    async def checksums(self, names: Sequence[str]) -> list[str]:
        """None that would be equal to any: what is in force came through `stage`, or is the base."""
        return [""] * len(names)

    def _path_of(self, version: int) -> Path:
        return Path(self._folder.name) / str(version)

    def _write(self, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]) -> list[str]:
        import torch
        from safetensors.torch import save_file

        segment = Segment.open(path, num_bytes)
        segment.wait_written(version, num_bytes)
        memory, tensors, checksums = memoryview(segment.buffer), {}, []
        for entry in entries:
            data = bytearray(memory[entry.offset : entry.offset + entry.num_bytes])
            checksums.append(tensor_checksum(memoryview(data)))
            flat = torch.frombuffer(data, dtype=getattr(torch, entry.dtype), count=math.prod(entry.shape))
            tensors[f"base_model.model.{entry.name}"] = flat.view(entry.shape)
        folder = self._path_of(version)
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier try
        folder.mkdir()
        config = {
            "peft_type": "LORA",
            "r": self._rank,
            "lora_alpha": _SCALE * self._rank,
            "target_modules": sorted(self._modules),
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "adapter_model.safetensors")
        return checksums

    async def _drop_unused(self) -> None:
        for version in [v for v in self._loaded if v != self._current.version and not self._users[v]]:
            request = self._loaded.pop(version)
            with border(WeightsError, f"vLLM to drop the adapter of version {version}", kind="swap"):
                await self._engine.remove_lora(request.lora_int_id)
            shutil.rmtree(self._path_of(version), ignore_errors=True)
            del self._users[version]


def _linear_layers(model_dir: Path) -> dict[str, tuple[int, int]]:
    """Rows and columns by name, of the model as transformers builds it, without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        causal_lm: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir))
    head = causal_lm.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in causal_lm.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
