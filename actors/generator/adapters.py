"""Versions as adapters: vLLM loads the base once, and every version is a LoRA adapter of its own beside it.

A request keeps the adapter that it began with, so that all of its tokens are of one version, and keys and values of
different versions never meet (vLLM keeps them apart by the adapter's name). Requests get the newest version, but for
those of an evaluation, which name theirs: it is held until a later one is named. Of versions that no request uses a few
are held, too, since an evaluation begins with one that every generator serves, of which some are ahead; older ones are
dropped. Never are more held than vLLM has room for: then the next version waits for a request of an older one to end.
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
from protocol.messages import NEWEST, TensorEntry
from protocol.weights.manifest import TensorSpec, tensor_checksum
from protocol.weights.segments import Segment

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM makes room for."""
_AT_ONCE = 4
"""Versions in one batch; requests of one more wait until an older one is done."""
MOST_HELD = 2 * _AT_ONCE
_MOST_IDLE = 3  # besides those that are in use, in force or named
_SCALE = 2  # alpha over rank, as the learner trains them


class Adapter(Struct, frozen=True):
    """One version, as requests use it."""

    version: int
    request: LoRARequest | None = None  # None: the base alone
    number: int = 0  # among this engine's, from 1: a version may come again, after a learner's restart


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
    return {"enable_lora": True, "max_loras": _AT_ONCE, "max_cpu_loras": MOST_HELD, "max_lora_rank": room}


class EngineAdapters:
    """`WeightHolder` of a live vLLM engine that serves adapters.

    Args:
        rank, dtype: of the factors.
        patience_s: how long a version may wait for room: no request lasts longer.
    """

    def __init__(self, engine: AsyncLLM, model_dir: Path, rank: int, dtype: str, patience_s: float) -> None:
        self._engine = engine
        self._model_dir, self._rank, self._dtype = model_dir, rank, dtype
        self._patience_s = patience_s
        self._folder = tempfile.TemporaryDirectory(prefix="adapters-", ignore_cleanup_errors=True)
        self._modules: set[str] = set()
        self._held: dict[int, Adapter] = {}  # by number, as they came
        self._users: Counter[int] = Counter()  # by number
        self._current = Adapter(0)
        self._named = NEWEST  # the latest version that was asked for by its number
        self._num_gone = 0
        self._given_back = asyncio.Event()

    def take(self, version: int = NEWEST) -> Adapter:
        """The newest version, or the one that is named if it is held; for one request: `give_back` it at its end."""
        self.hold(version)
        adapter = self._current if version == NEWEST else self._of_version(version)
        if adapter is None:
            self._num_gone += 1
            adapter = self._current
        self._users[adapter.number] += 1
        return adapter

    def hold(self, version: int) -> None:
        """Requests for this version may come: it stays until a later one is named."""
        self._named = max(self._named, version)

    def give_back(self, adapter: Adapter) -> None:
        """A request is over."""
        self._users[adapter.number] -= 1
        self._given_back.set()

    def status(self) -> dict[str, float]:
        """Gauges and counters by metric name."""
        return {"adapters_held": float(len(self._held)), "adapters_gone": float(self._num_gone)}

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
        folder = self._path_of(self._next_number)
        return await asyncio.to_thread(self._write, folder, path, version, num_bytes, entries)

    async def swap(self, version: int) -> None:
        """Load what was staged; requests that begin from now on use it.

        Waits, while vLLM has no room, for a request of an older version to end; raises `WeightsError` if none does in
        time.
        """
        from vllm.lora.request import LoRARequest

        try:
            async with asyncio.timeout(self._patience_s):
                await self._make_room()
        except TimeoutError:
            raise WeightsError(
                f"version {version} found no room for {self._patience_s:g} s: {MOST_HELD} older ones are in use",
                kind="swap",
            ) from None
        number = self._next_number
        request = LoRARequest(f"{version}-{number}", number, str(self._path_of(number)))
        with border(WeightsError, f"vLLM to load the adapter of version {version}", kind="swap"):
            if not await self._engine.add_lora(request):
                raise ValueError("it did not")
        self._held[number] = self._current = Adapter(version, request, number)
        while len(idle := self._idle()) > _MOST_IDLE:
            await self._drop(idle[0])

    async def label(self, version: int) -> None:
        """Not asked for: an engine begins with the base alone, which no checksum of factors names."""
        raise AssertionError(f"version {version} has no adapter")

    async def checksums(self, names: Sequence[str]) -> list[str]:
        """None that would be equal to any: what is in force came through `stage`, or is the base."""
        return [""] * len(names)

    @property
    def _next_number(self) -> int:
        return self._current.number + 1

    def _path_of(self, number: int) -> Path:
        return Path(self._folder.name) / str(number)

    def _of_version(self, version: int) -> Adapter | None:
        return next((each for each in reversed(self._held.values()) if each.version == version), None)

    def _idle(self) -> list[Adapter]:
        """Neither in force nor in use nor named: the oldest first."""
        named = self._of_version(self._named)
        needed = {self._current.number, named.number if named else 0}
        return [each for number, each in self._held.items() if number not in needed and not self._users[number]]

    async def _make_room(self) -> None:
        """For one more."""
        while len(self._held) >= MOST_HELD:
            if idle := self._idle():
                await self._drop(idle[0])
                continue
            self._given_back.clear()
            await self._given_back.wait()

    def _write(
        self, folder: Path, path: Path, version: int, num_bytes: int, entries: Sequence[TensorEntry]
    ) -> list[str]:
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

    async def _drop(self, adapter: Adapter) -> None:
        assert adapter.request is not None
        del self._held[adapter.number], self._users[adapter.number]
        with border(WeightsError, f"vLLM to drop the adapter of version {adapter.version}", kind="swap"):
            await self._engine.remove_lora(adapter.request.lora_int_id)
        shutil.rmtree(self._path_of(adapter.number), ignore_errors=True)


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
