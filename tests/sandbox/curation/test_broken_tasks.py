"""Validation finds tasks that are broken on purpose, keeps the sound ones and ends."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data import validation
from sandbox.base import Backend


async def test_broken_tasks_are_found_and_sound_ones_are_kept(namespace: Backend, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(validation, "SHARE_BROKEN", 0.5)
    counts = await validation.validation(namespace, tmp_path, 10)
    assert counts == {"checked": 10, "broken": 5, "found": 5, "refused": 0}
