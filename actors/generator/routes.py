"""Which experts served each token of each request: recorded in the engine's process while it computes.

vLLM's own recording wants its second model runner, which CPUs do not have; this one stands on the same hook of its
routers. What a prefix cache had is not computed again, and not recorded again.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any

import numpy as np
import torch

from protocol.errors import WeightsError

_KEPT = 4096
"""Requests whose routes wait to be asked for; older ones are forgotten."""


class RouteRecorder:
    """Belongs to the engine's thread.

    Args:
        model: whose routers are listened to.
        max_tokens: of one step.
    """

    def __init__(self, model: torch.nn.Module, max_tokens: int) -> None:
        from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

        runners: list[Any] = [module for module in model.modules() if isinstance(module, MoERunner)]
        if not runners or not all(isinstance(runner.router, BaseRouter) for runner in runners):
            raise WeightsError("learner.routing_replay: vLLM has no routers of this model to listen to", kind="name")
        for layer, runner in enumerate(runners):
            runner.router.set_capture_fn(functools.partial(self._capture, layer))
        first = runners[0].router
        self._kind = np.uint8 if first.global_num_experts < np.iinfo(np.uint8).max else np.uint16
        self._step = np.zeros((max_tokens, len(runners), first.top_k), self._kind)
        self._rows: OrderedDict[str, list[tuple[int, np.ndarray]]] = OrderedDict()  # by request: place, routes from it

    def record(self, scheduled: dict[str, int], batch: Any) -> None:
        """Keep what a step computed: `scheduled` tokens of each request of vLLM's input `batch`, in its order."""
        start = 0
        for index, request_id in enumerate(batch.req_ids):
            count = scheduled.get(request_id, 0)
            if count:
                rows = self._rows.setdefault(request_id, [])
                rows.append((int(batch.num_computed_tokens_cpu[index]), self._step[start : start + count].copy()))
                start += count
        while len(self._rows) > _KEPT:
            self._rows.popitem(last=False)

    def take(self, name: str) -> tuple[int, list[int], bytes] | None:
        """The place of the first token that request `name` computed, and shape and bytes of the routes from there on.
        Then it is forgotten."""
        own = next((key for key in reversed(self._rows) if key == name or key.startswith(f"{name}-")), None)
        if own is None:
            return None
        parts = self._rows.pop(own)
        end = max(place + len(rows) for place, rows in parts)
        routes = np.full((end, *self._step.shape[1:]), np.iinfo(self._kind).max, self._kind)
        for place, rows in parts:
            routes[place : place + len(rows)] = rows
        first = min(place for place, _ in parts)
        return first, list(routes[first:].shape), routes[first:].tobytes()

    def _capture(self, layer: int, chosen: torch.Tensor) -> None:
        self._step[: len(chosen), layer] = chosen.numpy() if chosen.device.type == "cpu" else chosen.cpu().numpy()
