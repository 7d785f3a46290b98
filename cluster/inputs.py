"""What a run reads, at hand before it starts: URLs fetched, paths whole, a wrapped model by its text part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.evaluation.best import behind_link
from cluster.files.mirror import with_fetched_checkpoint
from cluster.files.relocation import named_files, relocated
from cluster.files.sources import with_fetched_sources
from cluster.reporting.trackers.table import is_directory
from learner.checkpoints.wrapper import text_part
from protocol.config import Settings
from protocol.model_family import wrapper_type
from sandbox.datasets.loading import MICRO


def with_inputs_at_hand(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """The settings with which the run can be started from anywhere. `tell` shows a line of progress.

    Raises `ConfigError` for what cannot be had.
    """
    settings = with_fetched_checkpoint(with_fetched_sources(settings, tell=tell))
    return with_text_part(with_whole_paths(settings), tell)


def with_whole_paths(settings: Settings) -> Settings:
    """Paths are the launching user's: processes of the run may stand elsewhere, on other hosts for one; and the
    checkpoint that is the best now may not be the best when they look. `~` stays: every host has its own."""
    names = [name for name in named_files(settings) if name != MICRO and Path(name).exists()]
    places = {name: str(Path(name).absolute()) for name in names}
    if (model := behind_link(Path(settings.model.path))).exists():
        places[settings.model.path] = str(model.absolute())
    settings = relocated(settings, places)
    changed: dict[str, Any] = {}
    if settings.resume not in (None, "auto"):
        changed["resume"] = str(behind_link(Path(settings.resume)).absolute())
    if is_directory(settings.metrics.mlflow):
        store = str(Path(settings.metrics.mlflow).absolute())
        changed["metrics"] = settings.metrics.model_copy(update={"mlflow": store})
    cache, tls, rates = settings.tasks.cache_dir, settings.sandbox.docker_tls_dir, settings.replay.pass_rates
    changed["tasks"] = settings.tasks.model_copy(update={"cache_dir": _whole(cache)})
    changed["sandbox"] = settings.sandbox.model_copy(update={"docker_tls_dir": _whole(tls)})
    changed["replay"] = settings.replay.model_copy(update={"pass_rates": _whole(rates)})
    return settings.model_copy(update=changed)


def _whole(path: Path | None) -> Path | None:
    return path if path is None or str(path).startswith("~") else path.absolute()


def with_text_part(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """A model that wraps a language model beside other inputs is run by its text part. Raises `ConfigError`."""
    path = Path(settings.model.path)
    if not wrapper_type(path) or (settings.phase == "eval" and settings.eval.endpoint):
        return settings
    part = text_part(path, settings.tasks.cache_dir.expanduser() / "text-parts")
    tell(f"{path} wraps a language model: this run has its text part, {part}")
    return settings.model_copy(update={"model": settings.model.model_copy(update={"path": str(part)})})
