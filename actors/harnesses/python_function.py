"""An agent written here: `async def solve(issue, client, sandbox)` of a module of the user's, in this process."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from actors.gateway.seat import Seat
from protocol.errors import AgentError, ConfigError
from sandbox.base import Sandbox

log = logging.getLogger(__name__)

Solve = Callable[[str, Any, Sandbox], Awaitable[object]]


def load_function(spec: str) -> Solve:
    """`package.module:solve` or `path/to/file.py:solve`. Raises `ConfigError`."""
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise ConfigError(f"agent.function {spec!r}: expected package.module:solve or file.py:solve", kind="agent")
    try:
        module = _load_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except Exception as error:  # a user's module raises what it likes
        raise ConfigError(f"agent.function {spec!r}: {type(error).__name__}: {error}", kind="agent") from error
    function = getattr(module, name, None)
    if not inspect.iscoroutinefunction(function):
        raise ConfigError(f"agent.function {spec!r}: expected `async def {name}(issue, client, sandbox)`", kind="agent")
    return function


def client_of(url: str, key: str) -> Any:
    """An `openai.AsyncOpenAI` of the gateway. Raises `ConfigError` without the package."""
    try:
        import openai
    except ImportError:
        raise ConfigError("agent.harness is python: type: pip install openai", kind="agent") from None
    # Plain HTTP within this process: no certificates, whose reading takes 30 ms of the loop, and nobody's proxy.
    plain = openai.DefaultAsyncHttpxClient(verify=False, trust_env=False)
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, http_client=plain)


async def play_function(
    solve: Solve, sandbox: Sandbox, url: str, seat: Seat, key: str, issue: str, grace_s: float
) -> None:
    """Run it until it returns or a limit has ended the episode; what it left running in the sandbox is ended.

    An error of its own ends its episode, which is judged as it stands. Raises `AgentError` where there was no turn.
    """
    async with client_of(url, key) as client:
        solving = asyncio.ensure_future(solve(issue, client, sandbox))
        over = asyncio.create_task(seat.turns.over.wait(), name="the episode's end")
        try:
            await asyncio.wait({solving, over}, timeout=seat.turns.time_left_s, return_when=asyncio.FIRST_COMPLETED)
            if not solving.done():
                if not over.done():
                    seat.turns.end("wall_time")
                await asyncio.wait({solving}, timeout=grace_s)
            error = solving.exception() if solving.done() and not solving.cancelled() else None
        finally:
            solving.cancel()
            over.cancel()
            await asyncio.wait({solving, over}, timeout=grace_s)  # a function may swallow its cancellation
            for task in (solving, over):
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await sandbox.kill_all()
    if error is not None:
        log.warning("agent.function raised in episode %s: %r", seat.turns.terms.episode_id, error)
    if not seat.turns.done and seat.fault is None and seat.turns.ended is None:
        raise AgentError(f"agent.function returned without a single turn ({error!r})", kind="no_turn")


def _load_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"longhaul_agent_{path.stem}", path.expanduser())
    if spec is None or spec.loader is None or not path.expanduser().is_file():
        raise ConfigError(f"{path} is no Python file", kind="agent")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
