"""The episodes of a run in an SQLite file beside it: made from its trajectory files, and brought up to date from them.

What is read of each file, and the rows that came of it, are committed together: whoever brings it up to date next, this
process or another, goes on exactly there. It can be deleted at any time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from console.run_data.records import Record, read_record, whole
from console.run_data.trained import STEP_TABLES, forget_steps, take_step

FILE_NAME = "console.sqlite"
SEARCHED_CHARS = 1_000_000
"""So much of an episode's text can be searched."""
_LAYOUT = 6  # raised with every change of the tables: an older file is made anew
_BATCH_BYTES = 4 << 20
_LONGEST_LINE = 512 << 20
_BUSY_S = 30.0
_COLUMNS = (
    *(
        "file",
        "start",
        "size",
        "evaluation",
        "episode",
        "attempt",
        "task",
        "source",
        "repository",
        "grp",
        "member",
        "outcome",
    ),
    "reward",
    *("end_reason", "turns", "tokens", "format_errors", "branches", "oldest", "version", "logprob"),
    *("started", "finished", "seconds"),
)
_INDEXED = (
    *("grp", "outcome", "source", "repository", "reward", "turns", "tokens", "version", "finished", "seconds"),
    *("episode", "end_reason", "evaluation"),
)
_TABLES = f"""
CREATE TABLE files (file TEXT PRIMARY KEY, inode INTEGER, done INTEGER, unreadable INTEGER) WITHOUT ROWID;
CREATE TABLE episodes (row INTEGER PRIMARY KEY, {", ".join(_COLUMNS)});
CREATE INDEX of_tasks ON episodes (task, repository, outcome, turns, tokens, version, reward, evaluation);
CREATE VIRTUAL TABLE texts USING fts5 (text, content='', detail=full);
{" ".join(f"CREATE INDEX by_{name} ON episodes ({name});" for name in _INDEXED)}
{STEP_TABLES}
PRAGMA user_version = {_LAYOUT};
"""


Take = Callable[[sqlite3.Connection, str, int, bytes], bool]
"""Puts a line of a file, which begins at a byte, into the tables; False: it is no record."""


class Progress(NamedTuple):
    """How far an index is."""

    done_bytes: int
    all_bytes: int
    unreadable: int  # lines that are no episodes

    @property
    def is_current(self) -> bool:
        """Nothing is left to read but what may be a line that is not ended yet."""
        return self.all_bytes - self.done_bytes < 1 << 20


class Index:
    """Of one run directory. Every call opens its own connection, so that it may come from any thread."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self.path = run_dir / FILE_NAME
        try:
            self._prepare()
        except (OSError, sqlite3.OperationalError):  # the directory cannot be written: nothing of it needs to be
            self._own = tempfile.TemporaryDirectory(prefix="longhaul-console-")
            self.path = Path(self._own.name) / FILE_NAME
            self._prepare()

    def close(self) -> None:
        """Remove what was made elsewhere than in the run directory."""
        if self._own is not None:
            self._own.cleanup()

    @contextlib.contextmanager
    def connect(self) -> Iterator[sqlite3.Connection]:
        """For reading. An index that was deleted meanwhile begins anew."""
        if not self.path.exists():
            self._prepare()
        with self._open() as connection:
            yield connection

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            yield connection
        finally:
            connection.close()

    def _prepare(self) -> None:
        for last_try in (False, True):
            try:
                with self._open() as db:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.execute("BEGIN IMMEDIATE")
                    layout = db.execute("PRAGMA user_version").fetchone()[0]
                    if layout == 0:
                        for statement in _TABLES.split(";"):
                            db.execute(statement)
                    db.execute("COMMIT")
                if layout in (0, _LAYOUT):
                    return
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # it is no index
                if last_try:
                    raise
            for end in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + end).unlink(missing_ok=True)

    # --- bringing it up to date -----------------------------------------------------------------------------------

    def update(self) -> Progress:
        """Read all that was appended since the last time."""
        while self.read_on():
            pass
        return self.progress()

    def read_on(self) -> bool:
        """Read a few MiB of every file. Whether a whole line was there."""
        with self.connect() as db:
            db.execute("PRAGMA synchronous = OFF")
            db.execute("BEGIN IMMEDIATE")
            files = {self._key(path): (path, take) for path, take in self._files()}
            for row in db.execute("SELECT file FROM files").fetchall():
                if row["file"] not in files:  # it is gone, or the index came from another run
                    _forget(db, row["file"])
            read = [_read_on(db, path, key, take) for key, (path, take) in files.items()]
            db.execute("COMMIT")
        return any(read)

    def progress(self) -> Progress:
        """How much of the files is read."""
        sizes = {self._key(path): size for path, _ in self._files() if (size := _size(path)) is not None}
        with self.connect() as db:
            rows = db.execute("SELECT * FROM files").fetchall()
        done = sum(row["done"] for row in rows if row["file"] in sizes)
        return Progress(done, sum(sizes.values()), sum(row["unreadable"] for row in rows))

    def _files(self) -> list[tuple[Path, Take]]:
        """Every file of records, and what takes its lines."""
        found = [
            (path, take)
            for folder, take in (
                ("trajectories", _take_episode),
                ("evaluations/*/trajectories", _take_episode),
                ("steps", take_step),
            )
            for path in sorted(self.run_dir.glob(f"{folder}/*.jsonl"))
        ]
        return [(path, take) for path, take in found if path.is_file()]

    def _key(self, path: Path) -> str:
        """Of a file, by which the index knows it: where it is in the run directory."""
        return whole(str(path.relative_to(self.run_dir)))

    # --- single episodes ------------------------------------------------------------------------------------------

    def record(self, row: sqlite3.Row) -> Record | None:
        """The episode that a row stands for, read from its file; None if the file changed."""
        line = self.line(row)
        return None if line is None else read_record(line)

    def line(self, row: sqlite3.Row) -> bytes | None:
        """Its line as it stands."""
        try:
            with (self.run_dir / row["file"]).open("rb") as file:
                file.seek(row["start"])
                line: bytes = file.read(row["size"])
                return line
        except OSError:
            return None


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # it is being removed
        return None


def _read_on(db: sqlite3.Connection, path: Path, key: str, take: Take) -> bool:
    """One batch of a file. Whether there was a whole line. One that cannot be read, or is gone, says nothing."""
    try:
        state, file = path.stat(), path.open("rb")
    except OSError:
        return False
    with file:
        return _read_more(db, file, state, key, take)


def _read_more(db: sqlite3.Connection, file: BinaryIO, state: os.stat_result, key: str, take: Take) -> bool:
    known = db.execute("SELECT * FROM files WHERE file = ?", (key,)).fetchone()
    done, unreadable = (known["done"], known["unreadable"]) if known else (0, 0)
    if known and (known["inode"] != state.st_ino or done > state.st_size):  # another file under this name
        _forget(db, key)
        done = unreadable = 0
    if done >= state.st_size:
        return False
    file.seek(done)
    block = file.read(_BATCH_BYTES)
    while b"\n" not in block and len(block) < _LONGEST_LINE and (more := file.read(_BATCH_BYTES)):
        block += more
    end = block.rfind(b"\n") + 1
    start = done
    for line in block[:end].split(b"\n")[:-1]:
        if not take(db, key, start, line):
            unreadable += bool(line.strip())
        start += len(line) + 1
    db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (key, state.st_ino, done + end, unreadable))
    return end > 0


def _take_episode(db: sqlite3.Connection, file: str, start: int, line: bytes) -> bool:
    record = read_record(line)
    if record is not None:
        _insert(db, file, start, len(line), record)
    return record is not None


def _insert(db: sqlite3.Connection, file: str, start: int, size: int, record: Record) -> None:
    oldest, version = record.versions
    values = (
        file,
        start,
        size,
        evaluation_of(file),
        whole(record.episode_id),
        record.attempt,
        whole(record.task_id),
        whole(record.source),
        record.where,
        whole(record.group_id),
        record.member,
        record.outcome,
        record.reward,
        whole(record.end_reason),
        record.num_turns,
        record.num_tokens,
        sum(message.format_error for message in record.messages),
        record.num_branches,
        oldest,
        version,
        record.mean_logprob,
        record.started_at,
        record.finished_at,
        record.seconds,
    )
    places = ", ".join("?" * len(_COLUMNS))
    row = db.execute(f"INSERT INTO episodes ({', '.join(_COLUMNS)}) VALUES ({places})", values).lastrowid
    db.execute("INSERT INTO texts (rowid, text) VALUES (?, ?)", (row, searched_text(record)))


def evaluation_of(file: str) -> str:
    """The evaluation whose episodes a file holds; empty: the run's own."""
    parts = file.split("/")
    return parts[1] if parts[0] == "evaluations" else ""


def searched_text(record: Record) -> str:
    """What a search looks into: all that was said, the patch, the judgement."""
    parts = [record.episode_id, record.task_id, *(message.text for message in record.messages)]
    parts += [record.patch, record.verdict.reason, record.verdict.log]
    return whole("\n".join(parts))[:SEARCHED_CHARS]


def _forget(db: sqlite3.Connection, file: str) -> None:
    """What a file gave, when it was replaced or is gone. Its words stay in the search and find no row."""
    db.execute("DELETE FROM episodes WHERE file = ?", (file,))
    db.execute("DELETE FROM files WHERE file = ?", (file,))
    forget_steps(db, file)
