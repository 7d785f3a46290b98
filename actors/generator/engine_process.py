"""Has vLLM's engine process import what it needs while this process does the same, not after it.

On CPU vLLM spawns that process when everything here is imported and configured, and it then takes as long again. A fork
server, started first, imports meanwhile; the engine process is forked from it and begins at once.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from actors.generator.lifeline import die_with_guarded

_NEEDED = ["vllm.v1.engine.core", "actors.generator.vllm_worker"]


def begin_imports() -> None:
    """Start the fork server. The environment has to be the engine's already."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_NEEDED)
    forkserver.ensure_running()


def fork_engines() -> None:
    """Have vLLM fork engine processes from the server."""
    from vllm.v1.engine import utils

    utils.get_mp_context = _Context


class _Process(ForkServerProcess):
    """A process with this one's environment of now: vLLM has set variables since the server started."""

    def __init__(self, target: Callable[..., None], name: str, kwargs: Mapping[str, Any]) -> None:
        super().__init__(target=_run, name=name, args=(dict(os.environ), target), kwargs=dict(kwargs))


class _Context(ForkServerContext):
    Process = _Process


def _run(environment: Mapping[str, str], target: Callable[..., None], **kwargs: Any) -> None:
    os.environ.update(environment)
    die_with_guarded()
    target(**kwargs)
