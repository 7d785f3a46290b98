"""What was trained in which step, read from `steps/*.jsonl` into the index, and questions to it."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import msgspec
from msgspec import Struct

from console.run_data.records import Int, whole

STEP_TABLES = """
CREATE TABLE trained (step INTEGER, episode TEXT, attempt INTEGER, task TEXT, grp TEXT, member INTEGER, reward REAL,
    resolved INTEGER, tokens INTEGER, advantage REAL, file TEXT, start INTEGER, size INTEGER);
CREATE INDEX trained_in ON trained (step);
CREATE INDEX trained_episode ON trained (episode);
CREATE TABLE worst (step INTEGER, place INTEGER, episode TEXT, token INTEGER, learner REAL, sampler REAL,
    advantage REAL, staleness INTEGER);
CREATE INDEX worst_in ON worst (step);
"""


class _Episode(Struct):
    episode_id: str
    attempt: Int = 1
    task_id: str = ""
    group_id: str = ""
    member: Int = 0
    reward: float = 0.0
    resolved: bool = False
    trained_tokens: Int = 0
    advantage: float = 0.0
    token_records: list[Int] = []


class _Worst(Struct):
    episode_id: str
    place: Int
    token: Int = -1
    learner: float = 0.0
    sampler: float = 0.0
    advantage: float = 0.0
    staleness: Int = 0


class _Step(Struct):
    step: Int
    episodes: list[_Episode] = []
    worst: list[_Worst] = []


_decoder = msgspec.json.Decoder(_Step, strict=False)


class TrainedIn(NamedTuple):
    """What the records say of a step."""

    groups: list[list[sqlite3.Row]]  # their members
    worst: list[sqlite3.Row]  # the tokens on which learner and sampler differ most


def take_step(db: sqlite3.Connection, file: str, start: int, line: bytes) -> bool:
    """One line of a step's record into the tables: the last one of a step counts."""
    try:
        record = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    for table in ("trained", "worst"):
        db.execute(f"DELETE FROM {table} WHERE step = ?", (record.step,))
    db.executemany(
        f"INSERT INTO trained VALUES ({', '.join('?' * 13)})",
        [
            (
                record.step,
                whole(e.episode_id),
                e.attempt,
                whole(e.task_id),
                whole(e.group_id),
                e.member,
                e.reward,
                e.resolved,
                e.trained_tokens,
                e.advantage,
                file,
                *(e.token_records if len(e.token_records) == 2 else (0, 0)),
            )
            for e in record.episodes
        ],
    )
    db.executemany(
        f"INSERT INTO worst VALUES ({', '.join('?' * 8)})",
        [
            (record.step, w.place, whole(w.episode_id), w.token, w.learner, w.sampler, w.advantage, w.staleness)
            for w in record.worst
        ],
    )
    return True


def forget_steps(db: sqlite3.Connection, file: str) -> None:
    """What a file said of steps."""
    db.execute("DELETE FROM worst WHERE step IN (SELECT step FROM trained WHERE file = ?)", (file,))
    db.execute("DELETE FROM trained WHERE file = ?", (file,))


def trained_in(db: sqlite3.Connection, step: int) -> TrainedIn:
    """The groups of a step and its worst tokens; `row` is the episode's, where it is recorded."""
    row = "(SELECT max(row) FROM episodes e WHERE e.episode = {0}.episode AND e.evaluation = '') row"
    rows = db.execute(
        f"SELECT *, {row.format('trained')} FROM trained WHERE step = ? ORDER BY grp, member", (step,)
    ).fetchall()
    groups: dict[str, list[sqlite3.Row]] = {}
    for found in rows:
        groups.setdefault(found["grp"], []).append(found)
    worst = db.execute(
        f"SELECT *, {row.format('worst')} FROM worst WHERE step = ? ORDER BY abs(learner - sampler) DESC", (step,)
    ).fetchall()
    return TrainedIn(list(groups.values()), worst)


def steps_of(db: sqlite3.Connection, episode: str, attempt: int) -> list[sqlite3.Row]:
    """Where an episode was trained, in the order of steps."""
    return db.execute(
        "SELECT * FROM trained WHERE episode = ? AND attempt = ? AND tokens > 0 ORDER BY step", (episode, attempt)
    ).fetchall()


def steps_with(db: sqlite3.Connection, group: str) -> list[int]:
    """Those that trained on a group."""
    rows = db.execute("SELECT DISTINCT step FROM trained WHERE grp = ? AND tokens > 0 ORDER BY step", (group,))
    return [row["step"] for row in rows.fetchall()]


def has_steps(db: sqlite3.Connection) -> bool:
    """Whether anything is recorded of what steps trained on."""
    return db.execute("SELECT 1 FROM trained LIMIT 1").fetchone() is not None


def advantages_of(db: sqlite3.Connection, group: str) -> dict[str, float]:
    """Of a group's episodes that were trained on, as the learner took them."""
    rows = db.execute("SELECT episode, advantage FROM trained WHERE grp = ? ORDER BY step", (group,)).fetchall()
    return {row["episode"]: row["advantage"] for row in rows}
