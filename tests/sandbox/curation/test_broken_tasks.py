"""Validation finds tasks that are broken on purpose, keeps the sound ones and ends."""

from __future__ import annotations

from pathlib import Path

from benchmarks.data import validation
from sandbox.base import Backend
from sandbox.tasks.micro import make_tasks


async def test_broken_tasks_are_found_and_sound_ones_are_kept(namespace: Backend, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(validation, "SHARE_BROKEN", 0.5)
    counts = await validation.validation(namespace, tmp_path, make_tasks(16, 0, 0, "train"))
    assert counts == {"checked": 16, "broken": 8, "found": 8, "named": 8, "refused": 0}
