"""The vLLM worker of a generator: runs inside the engine's own process and puts new weights into the model.

vLLM is told its name (`worker_cls`). Beyond vLLM's own worker it keeps CPU layers on their live torch weights (the
packed copies that vLLM makes by default go stale, silently, when weights change) and answers the `adopt_*` calls of
`actors/weights/adopter.py`.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from safetensors import safe_open
from vllm.platforms import current_platform

from actors.generator.routes import RouteRecorder
from actors.weights.live_layers import keep_live_weights
from actors.weights.staging import WeightStaging
from protocol.messages import TensorEntry

if TYPE_CHECKING or not current_platform.is_cpu():
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker  # the CPU's is made from it
else:
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker

_SWITCH_S = 0.0005
"""Decoding waits no longer for the thread that stages weights to let go of the interpreter; Python's own is 5 ms."""


class GeneratorWorker(PlatformWorker):
    """vLLM's worker, plus weight adoption. Every `adopt_*` method is called through `collective_rpc`, between steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # mapped segments are only read
        if current_platform.is_cpu():
            keep_live_weights()
        sys.setswitchinterval(_SWITCH_S)
        super().__init__(*args, **kwargs)
        self._adopt_staging: WeightStaging | None = None
        self._routes: RouteRecorder | None = None

    def record_routes(self) -> None:
        """From now on keep which experts serve each token. Before the first request."""
        most = self.scheduler_config.max_num_batched_tokens
        self._routes = RouteRecorder(self.model_runner.get_model(), most)

    def take_routes(self, name: str) -> tuple[int, list[int], bytes] | None:
        """Routes of a request that is over (`RouteRecorder.take`)."""
        assert self._routes is not None, "record_routes comes first"
        return self._routes.take(name)

    def execute_model(self, scheduler_output: Any) -> Any:
        """One step."""
        output = super().execute_model(scheduler_output)
        if self._routes is not None:
            self._routes.record(scheduler_output.num_scheduled_tokens, self.model_runner.input_batch)
        return output

    def adopt_layout(self) -> list[tuple[str, str, list[int]]]:
        """Hugging Face name, dtype and shape of every tensor that the model holds."""
        parts = self._adopt().in_force
        return [(n, str(p.view.dtype).removeprefix("torch."), list(p.shape)) for n, p in parts.items()]

    def adopt_hash(self, names: list[str]) -> None:
        """Begin to hash the weights in force; `adopt_result` has their checksums."""
        self._adopt().hash_in_force(names)

    def adopt_stage(self, path: str, version: int, num_bytes: int, entries: list[dict[str, Any]]) -> None:
        """Begin to copy `version` out of a segment into the staged weights, following whoever writes it there;
        `adopt_result` has the checksums of what arrived.
        """
        self._adopt().stage(path, version, num_bytes, msgspec.convert(entries, list[TensorEntry]))

    def adopt_result(self) -> list[str] | None:
        """Checksums in the order that was asked for, or None while they are being computed."""
        return self._adopt().result()

    def adopt_swap(self) -> None:
        """Put the staged weights in force. The engine is paused; the call that resumes it is on its way already, so if
        this fails the process ends: nobody could say what it would serve.
        """
        try:
            self._adopt().swap()
        except BaseException:
            traceback.print_exc()
            os._exit(1)

    def _adopt(self) -> WeightStaging:
        if self._adopt_staging is None:
            self._adopt_staging = WeightStaging(
                self.model_runner.get_model(), names_in_files(Path(self.model_config.model))
            )
        return self._adopt_staging


def names_in_files(directory: Path) -> frozenset[str]:
    """Names of the tensors in a model directory's weights."""
    names: set[str] = set()
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names.update(file.keys())
    return frozenset(names)
