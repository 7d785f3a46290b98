"""Model and tasks that settings name by URL, brought to this host before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cluster.files.relocation import describes, relocated
from cluster.files.urls import Source, fetch, is_url
from protocol.config import Settings
from protocol.section import expanded


def with_fetched_sources(settings: Settings, tell: Callable[[str], None]) -> Settings:
    """`settings` with paths of this host in the place of URLs; `tell` takes lines of progress. Raises `ConfigError`."""
    named = {"--tasks.source": [settings.tasks.source, *(source.source for source in settings.tasks.sources)]}
    if settings.tasks.sources:  # then the other is not read
        named["--tasks.source"] = named["--tasks.source"][1:]
    named["--eval.tasks"] = [settings.eval.tasks or ""]
    if settings.phase != "eval" or not settings.eval.endpoint:
        named["--model.path"] = [settings.model.path]
    sources = [Source(url, flag) for flag, urls in named.items() for url in urls if is_url(url)]
    cache = expanded(settings.tasks.cache_dir).absolute()
    places = {source.url: str(fetch(source, cache, settings.hosts.fetch_s, tell)) for source in sources}
    return relocated(settings, places)


def description(model: str, cache: Path, timeout_s: float) -> Path:
    """A directory with what describes a model: without its weights where it is at a URL. Raises `ConfigError`."""
    if not is_url(model):
        return Path(model)
    source = Source(model, "--model.path", wanted=describes)
    return fetch(source, expanded(cache).absolute(), timeout_s, tell=lambda _: None)
