"""How a registry is asked for an image: under which names (mirrors), as whom (`docker login`), and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HUB = "docker.io"
_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", HUB, "registry-1.docker.io")
_HELPER_S = 20.0
_LIMITED = ("toomanyrequests", "pull rate limit")


def full_name(image: str) -> str:
    """With its registry: `python:3` is `docker.io/library/python:3`."""
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"{HUB}/{image}" if slash else f"{HUB}/library/{image}"


def names_to_try(image: str, mirrors: Mapping[str, str]) -> Iterator[str]:
    """The names under which an image may be pulled: at the registry's mirror first, then at the registry."""
    full = full_name(image)
    registry, _, rest = full.partition("/")
    if mirror := mirrors.get(registry):
        yield f"{mirror.rstrip('/')}/{rest}"
    yield image


def read_mirrors(settings: Sequence[str]) -> dict[str, str]:
    """`registry=mirror`, by registry."""
    return {registry: mirror for registry, _, mirror in (each.partition("=") for each in settings)}


def is_limited(status: int, said: str) -> bool:
    """Whether a refusal is the registry's rate limit."""
    return status == 429 or any(words in said.lower() for words in _LIMITED)


def credentials(image: str, config: Path | None = None) -> dict[str, str] | None:
    """What `docker login` left for the registry of an image; None where it left nothing that can be read."""
    registry = full_name(image).partition("/")[0]
    path = config or Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError):
        return None
    if not isinstance(content, dict):
        return None
    keys = _HUB_KEYS if registry == HUB else (registry, f"https://{registry}", f"https://{registry}/")
    helpers, stored = _table(content, "credHelpers"), _table(content, "auths")
    for key in keys:
        helper = helpers.get(key) or content.get("credsStore")
        found = _ask_helper(helper, key) if isinstance(helper, str) and helper else None
        found = found or _of_entry(stored.get(key))
        if found:
            return found
    return None


def _table(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def _of_entry(entry: Any) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        return {"identitytoken": entry["identitytoken"]}
    try:
        user, colon, password = base64.b64decode(entry.get("auth", ""), validate=True).decode().partition(":")
    except (ValueError, TypeError):
        return None
    return {"username": user, "password": password} if colon else None


def _ask_helper(helper: str, server: str) -> dict[str, str] | None:
    """docker-credential-helpers' protocol: the server's name in, JSON out."""
    command = [f"docker-credential-{helper}", "get"]
    try:
        said = subprocess.run(command, input=server, capture_output=True, text=True, timeout=_HELPER_S, check=True)
        found = json.loads(said.stdout)
        user, secret = found["Username"], found["Secret"]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None
    return {"identitytoken": secret} if user == "<token>" else {"username": user, "password": secret}
