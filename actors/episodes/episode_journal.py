"""What has happened in one episode, in a file of its own: written as it happens, gone once the episode is delivered.

A record is in the page cache when `add` returns, so it outlives its process, however that ends; nothing is forced to
disk, so after a power loss the end may be missing, and the episode goes on from the turn before it.

    file      salt | records (`protocol/journals/records.py`)
    record    one frame: an entry in msgpack

Where sandboxes are to survive (`sandbox.survive_restart`), snapshots of this episode's lie in a directory beside the
file, and an entry says when each was taken: what follows the last of them is forgotten if the sandbox is gone.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote

import msgspec

from actors.agent.journal import Answered, Entry, Opened, Over, Turned
from actors.gateway.journal import Faulted, Given, KeptAlive, Played, Refused, Seated
from protocol.config import Settings
from protocol.journals.records import HEADER_BYTES, SALT_BYTES, pack_header, parse_header, split
from protocol.messages import Lease
from sandbox.base import Snapshot
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch

log = logging.getLogger(__name__)

_SUFFIX = ".journal"
_FILES = ".files"


class Begun(Entry, frozen=True, kw_only=True):
    """Which episode it is. `recipe`: of all settings that make an episode what it is."""

    lease: Lease
    started_at: float
    recipe: str


class Ready(Entry, frozen=True, kw_only=True):
    """The sandbox is there, with the task's tree as the agent may see it."""


class Saved(Entry, frozen=True, kw_only=True):
    """The sandbox's files as all entries before this one left them."""

    snapshot: Snapshot


class Taken(Entry, frozen=True, kw_only=True):
    """What the agent changed. The sandbox is needed no more."""

    patch: Patch


class Judged(Entry, frozen=True, kw_only=True):
    """What it is worth."""

    verdict: Verdict


_OfAgent = Opened | Turned | Answered | Over | Seated | Played | Refused | Given | KeptAlive | Faulted
_AnyEntry = Begun | Ready | Saved | Taken | Judged | _OfAgent
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_AnyEntry)


class _Place(NamedTuple):
    """Where an episode can be gone on from without its sandbox."""

    end: int  # of the journal
    num_entries: int  # of its past
    snapshot: Snapshot | None  # None: from a fresh sandbox


class EpisodeJournal:
    """Of one episode; see `actors.agent.journal.Journal`.

    Attributes:
        lease, started_at: the episode's.
        is_taken_over: whether another process began the episode.
        has_lost_sandbox: whether what was done since the last snapshot is lost, whoever did it.
        past: the turns that an earlier process wrote.
        is_ready, verdict: how far that process came.
        patch: the episode's, once it is taken.
        files: directory of its snapshots, if there are any.
    """

    def __init__(self, path: Path, file: int, salt: bytes, begun: Begun) -> None:
        self.lease, self.started_at = begun.lease, begun.started_at
        self.is_taken_over = self.has_lost_sandbox = False
        self.past: list[Entry] = []
        self.is_ready = False
        self.patch: Patch | None = None
        self.verdict: Verdict | None = None
        self.files = path.with_suffix(_FILES)
        self._path, self._file, self._salt = path, file, salt
        self._end = SALT_BYTES
        self._saved: _Place | None = None

    @classmethod
    def unwritten(cls, lease: Lease) -> Self:
        """For an episode that ends with this process."""
        return cls(Path(os.devnull), -1, b"", Begun(lease=lease, started_at=time.time(), recipe=""))

    @classmethod
    def begin(cls, directory: Path, lease: Lease, started_at: float, recipe: str) -> Self:
        """The journal of a lease that was just given. Where none can be written, the episode lives without."""
        path = directory / (quote(lease.lease_id, safe="") + _SUFFIX)
        begun = Begun(lease=lease, started_at=started_at, recipe=recipe)
        salt = secrets.token_bytes(SALT_BYTES)
        self = cls(path, -1, salt, begun)
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            os.write(self._file, salt)
        except OSError as error:
            self._give_up(error)
        self.add(begun)
        return self

    @classmethod
    def read(cls, path: Path, recipe: str) -> Self | None:
        """The journal that another process left, up to its last whole record, ready to go on; None if it is of no use,
        or of episodes that were made otherwise."""
        content = path.read_bytes()
        salt = content[:SALT_BYTES]
        entries, end = _entries(content, salt)
        if not entries or not isinstance(begun := entries[0][0], Begun) or begun.recipe != recipe:
            return None
        self = cls(path, os.open(path, os.O_WRONLY | os.O_CLOEXEC), salt, begun)
        self.is_taken_over = True
        self._cut(end)
        for entry, entry_end in entries[1:]:
            self._recall(entry, entry_end)
        return self

    @property
    def num_turns(self) -> int:
        """Model turns of the earlier process."""
        return sum(isinstance(entry, Turned | Played) for entry in self.past)

    def add(self, entry: Entry) -> None:
        """Write down an entry: from now on it outlives this process."""
        if isinstance(entry, Taken):
            self.patch = entry.patch
        if not self.is_written:
            return
        try:
            frame = _encoder.encode(entry)
            record = pack_header(self._salt, 0, self._end, [frame]) + frame
            wrote = os.write(self._file, record)
            if wrote < len(record):
                raise OSError(f"only {wrote} of {len(record)} bytes were written")
            self._end += len(record)
        except (OSError, UnicodeEncodeError) as error:  # half surrogates are in no journal
            self._give_up(error)

    @property
    def is_saved(self) -> bool:
        """Whether there is a snapshot to go back to."""
        return self._saved is not None and self.is_written

    @property
    def is_written(self) -> bool:
        """Whether anything of it outlives this process."""
        return self._file >= 0

    def saved(self, snapshot: Snapshot) -> Snapshot | None:
        """The sandbox's files are safe as they are now; the snapshot that this one replaces."""
        former = self._saved.snapshot if self._saved is not None else None
        self.add(Saved(snapshot=snapshot))
        self._saved = _Place(self._end, 0, snapshot)
        return former

    def go_back(self) -> Snapshot | None:
        """Its sandbox is gone: forget what was done since its last snapshot, or since the beginning, if there is none.

        Blocking: what this process itself wrote becomes the past, too.
        """
        return self._go_back(from_snapshot=True)

    def begin_again(self) -> None:
        """As `go_back`, to the beginning."""
        self._go_back(from_snapshot=False)

    def _go_back(self, *, from_snapshot: bool) -> Snapshot | None:
        entries, _ = _entries(self._path.read_bytes(), self._salt)
        self.is_taken_over, self.has_lost_sandbox, self.past = True, False, []
        self.is_ready, self.patch, self.verdict, self._saved = False, None, None, None
        for entry, end in entries[1:]:
            self._recall(entry, end)
        if not from_snapshot:
            self._saved = None
        back = self._saved or _Place(entries[0][1], 0, None)
        self.past = self.past[: back.num_entries]
        self.is_ready = back.snapshot is not None
        self._cut(back.end)
        return back.snapshot

    def leave(self) -> None:
        """Let whoever has this process's name next go on with it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """The episode is delivered, or nobody wants it any more. `files` are the caller's to remove."""
        if self._file >= 0:
            self.leave()
            self._path.unlink(missing_ok=True)

    def _give_up(self, error: Exception) -> None:
        """A journal that lacks an entry would have its command run again: better none."""
        log.warning("episode %s goes on without its journal: %s", self.lease.episode_id, error)
        try:
            self.discard()
        except OSError as refusal:
            log.warning("%s: %s", self._path, refusal)

    def _cut(self, end: int) -> None:
        os.truncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        self._end = end

    def _recall(self, entry: _AnyEntry, end: int) -> None:
        match entry:
            case Ready():
                self.is_ready = True
            case Taken(patch=patch):
                self.patch = patch
            case Judged(verdict=verdict):
                self.verdict = verdict
            case Saved(snapshot=snapshot):
                self._saved = _Place(end, len(self.past), snapshot)
            case Begun():
                pass
            case _:
                self.past.append(entry)


def read_journals(directory: Path, recipe: str) -> Iterator[EpisodeJournal]:
    """What an earlier process of this name left; files that are of no use are removed. Blocking."""
    for path in sorted(directory.glob(f"*{_SUFFIX}")):
        journal = EpisodeJournal.read(path, recipe)
        if journal is None:
            path.unlink()
        else:
            yield journal
    for files in directory.glob(f"*{_FILES}"):
        if not files.with_suffix(_SUFFIX).exists():
            shutil.rmtree(files, ignore_errors=True)


def recipe_of(settings: Settings) -> str:
    """Changes with every setting under which a half-done episode would go on as another one."""
    sections = (settings.episode, settings.agent, settings.tasks, settings.model)
    text = "\0".join(section.model_dump_json() for section in sections)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _entries(content: bytes, salt: bytes) -> tuple[list[tuple[_AnyEntry, int]], int]:
    """All whole records, each with where it ends, and where they end."""
    found: list[tuple[_AnyEntry, int]] = []
    view, at = memoryview(content), SALT_BYTES
    while (header := parse_header(view[at : at + HEADER_BYTES], salt, at)) is not None:
        begin = at + HEADER_BYTES
        frames = split(header, view[begin : begin + header.num_bytes])
        if not frames:
            break
        end = begin + header.num_bytes
        try:
            found.append((_decoder.decode(frames[0]), end))
        except msgspec.DecodeError:
            break
        at = end
    return found, at
