"""Deadlines that pass when a test says so, whatever the time is."""

from __future__ import annotations

import asyncio
from types import ModuleType, SimpleNamespace

import pytest


class Deadlines:
    """The time limits that a module sets from now on: none of them passes by itself."""

    def __init__(self) -> None:
        self._set: list[asyncio.Timeout] = []

    @classmethod
    def of(cls, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Deadlines:
        """Those of `module`, which says `asyncio.timeout`."""
        deadlines = cls()
        monkeypatch.setattr(module, "asyncio", SimpleNamespace(**vars(asyncio) | {"timeout": deadlines._timeout}))
        return deadlines

    def pass_by(self) -> None:
        """All that were set are over."""
        for each in self._set:
            each.reschedule(asyncio.get_running_loop().time())
        self._set.clear()

    def _timeout(self, delay: float | None) -> asyncio.Timeout:
        self._set.append(asyncio.timeout(None))
        return self._set[-1]
