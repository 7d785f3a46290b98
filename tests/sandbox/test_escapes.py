"""No try of the benchmark's list gets out, in any backend; what a pod does not hold is named."""

from __future__ import annotations

from benchmarks.sandbox.escapes import PYTHON, SHELL, escapes, planted
from sandbox.base import Backend

COMMAND_SERVER_S_FILE = {f"{verb} the command server" for verb in ("replace", "write", "cover")}
"""Copied into a pod, and run from there once, before anything else is."""
NOT_HELD = {"kubernetes": COMMAND_SERVER_S_FILE | {"more disk than allowed", "more files than allowed"}}


async def test_no_try_gets_out(real_backend: Backend, run_name: str) -> None:
    assert len(SHELL | PYTHON) > 60
    assert NOT_HELD["kubernetes"] < SHELL.keys() | PYTHON.keys()
    with planted() as found:
        assert set(await escapes(real_backend, run_name, found)) <= NOT_HELD.get(real_backend.name, set())
