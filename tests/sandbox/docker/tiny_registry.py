"""A registry over HTTP on loopback, which daemons take without TLS: images of one small layer each; what was asked."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Has every image that is asked of it by a tag: one file, `/name`, that holds the tag."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.refused: dict[str, tuple[int, bytes]] = {}  # repositories: status and body
        self.asked: list[str] = []  # repository:tag, whenever a manifest was
        self.host = ""

    def manifest(self, repository: str, tag: str) -> bytes:
        """Make the image, and have its blobs."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo("name")
            info.size = len(tag)
            tar.addfile(info, io.BytesIO(tag.encode()))
        plain = archive.getvalue()
        layer = gzip.compress(plain, mtime=0)
        config = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {"Labels": {"repository": repository}},
                "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
            }
        ).encode()
        parts = [
            {"mediaType": kind, "size": len(data), "digest": self._keep(data)}
            for kind, data in ((_CONFIG, config), (_LAYER, layer))
        ]
        made = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": parts[0], "layers": parts[1:]}
        return json.dumps(made).encode()

    def _keep(self, data: bytes) -> str:
        self.blobs[_digest(data)] = data
        return _digest(data)


@contextmanager
def tiny_registry() -> Iterator[Registry]:
    """One that listens until the block ends; `host` is what its images' names begin with."""
    registry = Registry()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            parts = self.path.strip("/").split("/")
            body, kind, status = b"{}", "application/json", 200
            if len(parts) >= 4 and parts[-2] == "manifests":
                repository, name = "/".join(parts[1:-2]), parts[-1]
                if name.startswith("sha256:"):
                    body = registry.blobs.get(name, b"")
                else:
                    body = registry.manifest(repository, name)
                    registry.blobs[_digest(body)] = body
                    registry.asked.append(f"{repository}:{name}")
                kind = _MANIFEST
            elif len(parts) >= 4 and parts[-2] == "blobs":
                body, kind = registry.blobs.get(parts[-1], b""), "application/octet-stream"
            if refusal := registry.refused.get("/".join(parts[1:-2])):
                status, body = refusal
            elif not body:
                body, status = b'{"errors": [{"code": "NAME_UNKNOWN"}]}', 404
            self.send_response(status)
            self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
            self.send_header("Docker-Content-Digest", _digest(body))
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    registry.host = f"127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
