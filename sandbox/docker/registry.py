"""How a registry is asked for an image: under which names (mirrors), as whom (`docker login`), and what it refuses."""

from __future__ import annotations

import base64
import json
import logging
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

HUB = "docker.io"
_HUB_SERVER = "https://index.docker.io/v1/"  # under which `docker login` keeps it
_HUB_NAMES = (HUB, "index.docker.io", "registry-1.docker.io")
_HELPER_S = 20.0
_NOT_KEPT = "credentials not found"  # a helper's way of saying that nobody is logged in there
# Daemons hand on what a registry said as text, with a status of their own.
_LIMITED = re.compile(r"too ?many ?requests|pull rate limit|rate exceeded|http(?: status:)? 429", re.IGNORECASE)
_LOGIN = re.compile(r"unauthorized|authentication required|token has expired|no basic auth credentials", re.IGNORECASE)
_NOWHERE = re.compile(  # what is not there is denied to whoever may not know that
    r"(manifest|name) unknown|not known to registry|repository does not exist|no matching manifest|: not found"
    r"|^(\[\d+\] )?denied\b",
    re.IGNORECASE,
)
_RETRY_AFTER = re.compile(r"retry-after: ?(\d+(?:\.\d+)?)(ms|s|m|h)?", re.IGNORECASE)
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def full_name(image: str) -> str:
    """As daemons understand it, with its registry: `python:3` is `docker.io/library/python:3`."""
    registry, slash, rest = image.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, rest = HUB, image
    if registry == "index.docker.io":  # the one other name that daemons take for the hub's
        registry = HUB
    return f"{registry}/{rest}" if registry != HUB or "/" in rest else f"{HUB}/library/{rest}"


def names_to_try(image: str, mirrors: Mapping[str, str]) -> Iterator[str]:
    """The names under which an image may be pulled: at the registry's mirror first, then at the registry."""
    registry, _, rest = full_name(image).partition("/")
    if mirror := mirrors.get(registry):
        yield f"{mirror.rstrip('/')}/{rest}"
    yield image


def read_mirrors(settings: Sequence[str]) -> dict[str, str]:
    """`registry=mirror`, by registry."""
    return {_host(registry): mirror for registry, _, mirror in (each.partition("=") for each in settings)}


def is_limited(status: int, said: str) -> bool:
    """Whether a refusal is the registry's rate limit."""
    return status == 429 or _LIMITED.search(said) is not None


def named_wait_s(said: str) -> float | None:
    """How long a registry asks to be left alone, where it says so."""
    found = _RETRY_AFTER.search(said)
    return float(found[1]) * _UNITS_S[(found[2] or "s").lower()] if found else None


def final_refusal(status: int, said: str) -> str:
    """The kind of a refusal that another attempt does not change: `login` (the registry wants to know who asks, or does
    not take who we are, which says nothing of the image), `no_image`, or "": it may."""
    if _LOGIN.search(said):
        return "login"
    return "no_image" if status in (400, 404) or _NOWHERE.search(said) else ""


def credentials(image: str, config: Path | None = None) -> dict[str, str] | None:
    """What `docker login` left for the registry of an image; None where it left nothing that can be read."""
    registry = _host(full_name(image))
    content = _login_file(config)
    helper = next(_entries(content, "credHelpers", registry), None) or content.get("credsStore")
    asked = _ask_helper(helper, _server(registry)) if isinstance(helper, str) and helper else None
    return asked or next(filter(None, map(_of_entry, _entries(content, "auths", registry))), None)


def _login_file(config: Path | None) -> dict[str, Any]:
    try:
        path = config or Path(os.environ.get("DOCKER_CONFIG") or Path("~/.docker").expanduser()) / "config.json"
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RuntimeError):  # the last one: nobody has a home here
        return {}
    return content if isinstance(content, dict) else {}


def _server(registry: str) -> str:
    """What credential helpers and `docker login` call it."""
    return _HUB_SERVER if registry == HUB else registry


def _host(server: str) -> str:
    """The registry of a server's address, which may have a scheme and a path, or of an image's full name."""
    host = server.rpartition("://")[2].partition("/")[0]
    return HUB if host in _HUB_NAMES else host


def _entries(content: dict[str, Any], name: str, registry: str) -> Iterator[Any]:
    """What one of the file's tables says of a registry: first under the name that `docker login` gives it, then under
    any other way of writing it, as docker reads them."""
    table = content.get(name)
    if isinstance(table, dict):
        server = _server(registry)
        yield from (table[key] for key in sorted(table, key=lambda key: key != server) if _host(key) == registry)


def _of_entry(entry: Any) -> dict[str, str] | None:
    if not isinstance(entry, dict):
        return None
    if isinstance(entry.get("identitytoken"), str) and entry["identitytoken"]:
        return {"identitytoken": entry["identitytoken"]}
    if not entry.get("auth"):  # clusters' pull secrets may have the two in the clear
        return _login(entry.get("username"), entry.get("password"))
    try:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    except (ValueError, TypeError):
        return None
    return _login(user, password.strip("\0"))


def _login(user: Any, password: Any) -> dict[str, str] | None:
    if not (isinstance(user, str) and isinstance(password, str) and user and password):
        return None
    return {"identitytoken": password} if user == "<token>" else {"username": user, "password": password}


def _ask_helper(helper: str, server: str) -> dict[str, str] | None:
    """docker-credential-helpers' protocol: the server's name in, JSON out. One that fails is named, for its silence
    would look like an image that is not there."""
    command = [f"docker-credential-{helper}", "get"]
    try:
        ended = subprocess.run(command, input=server.encode(), capture_output=True, timeout=_HELPER_S, check=False)
        said = (ended.stdout if ended.returncode == 0 else ended.stdout + ended.stderr).decode(errors="replace")
        if ended.returncode:
            raise ValueError(f"exit status {ended.returncode}: {said.strip()}")
        found = json.loads(said)
        return _login(found["Username"], found["Secret"])
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
        if _NOT_KEPT not in str(error):
            log.warning("%s keeps no login that can be had for %s: %r", command[0], server, error)
        return None
