"""A run's settings as a flat table, and the versions of what it stands on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from typing import Any

from protocol.config import Settings

_PACKAGES = ("longhaul", "torch", "vllm", "deepspeed", "transformers", "tokenizers", "ray", "numpy", "pyzmq", "msgspec")


def flat(settings: Mapping[str, Any]) -> tuple[dict[str, tuple[Any, Any]], dict[str, Any]]:
    """Those that differ from the defaults, as (value, default), and all others; by dotted name."""
    defaults = dict(leaves(Settings().model_dump(mode="json")))
    given = dict(leaves(settings))
    changed = {name: (v, defaults.get(name)) for name, v in given.items() if defaults.get(name) != v}
    return changed, {name: value for name, value in given.items() if name not in changed}


def versions() -> dict[str, str]:
    """Of the packages in this environment."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
