"""What a real daemon makes of a registry's refusals, which have its own words and statuses by then."""

from __future__ import annotations

import json

import pytest
from aiodocker import DockerError

from sandbox.docker.backend import DockerBackend
from sandbox.docker.registry import final_refusal, is_limited
from tests.sandbox.docker.tiny_registry import tiny_registry

pytestmark = pytest.mark.docker


def error(code: str, message: str) -> bytes:
    """As registries word it."""
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode()


REFUSALS = {
    "limited": [
        (429, error("TOOMANYREQUESTS", "You have reached your pull rate limit")),
        (429, b"<html>slow down</html>"),
        (429, b"slow down"),
    ],
    "login": [
        (401, error("UNAUTHORIZED", "authentication required")),
        (403, error("DENIED", "Your authorization token has expired. Reauthenticate and try again.")),
    ],
    "no_image": [
        (404, error("MANIFEST_UNKNOWN", "manifest unknown")),
        (404, error("NAME_UNKNOWN", "repository name not known to registry")),
        (403, error("DENIED", "requested access to the resource is denied")),
    ],
    "": [(503, b"busy"), (403, b"<html>a proxy</html>"), (404, b"<html>a proxy</html>")],
}


async def test_refusals_are_understood_as_a_daemon_tells_them(docker_backend: DockerBackend) -> None:
    client = docker_backend.hosts[0].client
    with tiny_registry() as registry:
        for expected, refusals in REFUSALS.items():
            for number, refusal in enumerate(refusals):
                registry.refused["corner/shop"] = refusal
                with pytest.raises(DockerError) as caught:
                    await client.images.pull(f"{registry.host}/corner/shop:{number}")
                status, said = caught.value.status, str(caught.value)
                assert (is_limited(status, said), final_refusal(status, said)) == (
                    expected == "limited",
                    expected if expected != "limited" else "",
                ), said
