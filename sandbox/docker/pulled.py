"""The account of what a run pulled into a daemon, which its budget of disk is held by."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Pulled(Protocol):
    """Bytes by image, the longest unused one first."""

    def sizes(self) -> Mapping[str, int]:
        """All of them."""
        ...

    def add(self, image: str, size: int) -> None:
        """One was pulled."""
        ...

    def touch(self, image: str) -> None:
        """One is used, if it is among them."""
        ...

    def drop(self, image: str) -> None:
        """One is gone."""
        ...


class OwnPulled:
    """What this process pulled."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def sizes(self) -> Mapping[str, int]:
        """See `Pulled.sizes`."""
        return dict(self._sizes)

    def add(self, image: str, size: int) -> None:
        """See `Pulled.add`."""
        self._sizes[image] = size
        self._sizes.move_to_end(image)

    def touch(self, image: str) -> None:
        """See `Pulled.touch`."""
        if image in self._sizes:
            self._sizes.move_to_end(image)

    def drop(self, image: str) -> None:
        """See `Pulled.drop`."""
        self._sizes.pop(image, None)


class SharedPulled:
    """What all processes pulled that share a directory, those that died included: a file for each image, whose time is
    that of its last use. A file that is being removed, or that cannot be written, costs its image's place here.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sizes(self) -> Mapping[str, int]:
        """See `Pulled.sizes`."""
        found: list[tuple[int, str, int]] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._directory.glob("*.json"):
                with contextlib.suppress(OSError, ValueError):
                    image, size = json.loads(path.read_bytes())
                    found.append((path.stat().st_mtime_ns, image, size))
        return {image: size for _, image, size in sorted(found)}

    def add(self, image: str, size: int) -> None:
        """See `Pulled.add`."""
        path = self._path(image)
        new = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            new.write_text(json.dumps([image, size]))
            new.replace(path)
        self.touch(image)

    def touch(self, image: str) -> None:
        """See `Pulled.touch`."""
        now = time.time_ns()  # what a file system calls now may be the same for milliseconds
        with contextlib.suppress(OSError):
            os.utime(self._path(image), ns=(now, now))

    def drop(self, image: str) -> None:
        """See `Pulled.drop`."""
        with contextlib.suppress(OSError):
            self._path(image).unlink()

    def _path(self, image: str) -> Path:
        """Names of images are longer than those of files may be."""
        return self._directory / f"{hashlib.sha256(image.encode()).hexdigest()}.json"


def account_of(url: str, directory: Path | None) -> Pulled:
    """A daemon's, in a directory that holds those of several; None: nobody shares it."""
    return SharedPulled(directory / hashlib.sha256(url.encode()).hexdigest()[:16]) if directory else OwnPulled()
