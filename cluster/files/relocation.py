"""Which settings name files that other hosts need, and the same settings with those files elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.config import Settings

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


def named_files(settings: Settings) -> list[str]:
    """What settings name that parts of a run read, on whatever host they are; the model first. Not all are files: the
    name of a data set, `micro`, a URL."""
    found = [*models(settings), settings.tasks.source, *(source.source for source in settings.tasks.sources)]
    return [*dict.fromkeys(found + ([settings.eval.tasks] if settings.eval.tasks else []))]


def models(settings: Settings) -> list[str]:
    """Model directories: the policy's, and that of another reference."""
    if settings.phase == "eval":
        return [] if settings.eval.endpoint else [settings.model.path]
    reference = settings.learner.loss.reference
    return [settings.model.path, *([str(reference)] if reference else [])]


def needed_files(settings: Settings) -> list[str]:
    """Of those the absolute paths of files and directories that are on this host."""
    return [path for path in named_files(settings) if path.startswith("/") and Path(path).exists()]


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
    if (loss := settings.learner.loss).reference:
        loss = loss.model_copy(update={"reference": Path(place(str(loss.reference)))})
        changed["learner"] = settings.learner.model_copy(update={"loss": loss})
    return settings.model_copy(update=changed)


def describes(path: str) -> bool:
    """Whether a file of a model directory is needed where no weights are loaded."""
    return not path.endswith(WEIGHTS)
