"""The launcher's side: answers with pieces of files, by the hash of their content, and of no other files."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np

from cluster.files.content import Tree
from protocol.errors import LonghaulError
from protocol.messages import FileFetch, FilePiece, Message
from protocol.server_thread import ServerThread
from protocol.sockets import Keys

PIECE_BYTES = 4 << 20


class FilesError(LonghaulError, boundary="files"):
    """A file could not be brought to where it is needed."""


class FileServer:
    """Listens from its construction on, at `endpoint`, until `close`."""

    def __init__(self, address: str, keys: Keys | None) -> None:
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()
        self._server = ServerThread(
            f"tcp://{address}:*",
            keys,
            name="file server",
            answer=self._answer,
            look_around=lambda: None,
            look_every_s=60.0,
            on_failure=lambda: None,
        )
        self.endpoint = self._server.endpoint

    def offer(self, tree: Tree) -> None:
        """Give the files of a tree to whoever asks for them."""
        source = Path(tree.source)
        with self._lock:
            self._files |= {entry.sha256: source / entry.path if entry.path else source for entry in tree.entries}

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    async def _answer(self, message: Message) -> Message:
        if not isinstance(message, FileFetch):
            raise FilesError(f"a file server does not take {type(message).__name__}", kind="unexpected")
        with self._lock:
            path = self._files.get(message.sha256)
        if path is None:
            raise FilesError(f"no file of content {message.sha256[:12]} is offered", kind="unknown")
        return await asyncio.to_thread(_piece, path, message)


def _piece(path: Path, asked: FileFetch) -> FilePiece:
    try:
        with path.open("rb") as file:
            file.seek(asked.offset)
            return FilePiece(
                sha256=asked.sha256, offset=asked.offset, data=np.frombuffer(file.read(PIECE_BYTES), "uint8")
            )
    except OSError as error:
        raise FilesError(f"{path} can no longer be read: {error}", kind="read") from error
