"""No try of the benchmark's list gets out, in either backend."""

from __future__ import annotations

from benchmarks.sandbox.escapes import PYTHON, SHELL, escapes, planted
from sandbox.base import Backend


async def test_no_try_gets_out(real_backend: Backend, run_name: str) -> None:
    assert len(SHELL | PYTHON) > 60
    with planted() as found:
        assert await escapes(real_backend, run_name, found) == []
