"""Which settings name files that other hosts need, and the same settings with those files elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.config import Settings

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def needed_files(settings: Settings) -> list[str]:
    """Absolute paths of files and directories that parts of a run read, on whatever host they are; the model first."""
    found = [] if _foreign(settings) else [settings.model.path]
    found += [settings.tasks.source, *(source.source for source in settings.tasks.sources)]
    found += [settings.eval.tasks] if settings.eval.tasks else []
    return [path for path in dict.fromkeys(found) if path.startswith("/") and Path(path).exists()]


def relocated(settings: Settings, places: Mapping[str, str]) -> Settings:
    """`settings` as a host reads them that has these files at other places."""

    def place(path: str) -> str:
        return places.get(path, path)

    sources = [source.model_copy(update={"source": place(source.source)}) for source in settings.tasks.sources]
    changed: dict[str, Any] = {
        "model": settings.model.model_copy(update={"path": place(settings.model.path)}),
        "tasks": settings.tasks.model_copy(update={"source": place(settings.tasks.source), "sources": sources}),
    }
    if settings.eval.tasks:
        changed["eval"] = settings.eval.model_copy(update={"tasks": place(settings.eval.tasks)})
    return settings.model_copy(update=changed)


def describes(path: str) -> bool:
    """Whether a file of a model directory is needed where no weights are loaded."""
    return not path.endswith(WEIGHTS)


def _foreign(settings: Settings) -> bool:
    return settings.phase == "eval" and bool(settings.eval.endpoint)
