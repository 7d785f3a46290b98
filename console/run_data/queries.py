"""Questions to the index: a page of episodes that fit a filter, one episode's row, groups, tasks."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

PAGE = 50
"""Episodes on a page."""
SORTS = {
    "finished": "finished",
    "reward": "reward",
    "turns": "turns",
    "tokens": "tokens",
    "version": "version",
    "seconds": "seconds",
    "task": "task",
}
"""What episodes can be sorted by, and the column that is."""
_SOLVED = "avg(outcome = 'solved')"
TASK_SORTS = {
    "task": "task",
    "episodes": "episodes",
    "solved": "solved",
    "tokens": "tokens",
    "turns": "turns",
    "last": "last",
}
"""The same for tasks."""


TRAINING = "training"
"""Of `Filter.evaluation`: episodes of no evaluation in the run's `evaluations`."""
_TEXTS = ("q", "task", "source", "repository", "outcome", "end", "group", "evaluation")


class Filter(NamedTuple):
    """Which episodes, and in which order; what is empty does not filter."""

    q: str = ""  # words that the text holds; the last may be a beginning, "a phrase" is one
    task: str = ""  # part of the id
    source: str = ""
    repository: str = ""
    outcome: str = ""
    end: str = ""
    min_reward: float | None = None
    max_reward: float | None = None
    min_version: int | None = None
    max_version: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    group: str = ""
    evaluation: str = ""  # its name, or `TRAINING`
    sort: str = "finished"
    down: bool = True
    page: int = 1

    @staticmethod
    def of(query: Mapping[str, str]) -> Filter:
        """From a URL's query. Raises `ValueError` that names what cannot be read."""
        texts = {name: query.get(name, "").strip() for name in _TEXTS}
        return Filter(
            q=texts["q"],
            task=texts["task"],
            source=texts["source"],
            repository=texts["repository"],
            outcome=texts["outcome"],
            end=texts["end"],
            group=texts["group"],
            evaluation=texts["evaluation"],
            min_reward=_number(query, "min_reward"),
            max_reward=_number(query, "max_reward"),
            min_version=_whole_number(query, "min_version"),
            max_version=_whole_number(query, "max_version"),
            min_tokens=_whole_number(query, "min_tokens"),
            max_tokens=_whole_number(query, "max_tokens"),
            sort=_one_of(query, "sort", SORTS),
            down=query.get("dir", "down") != "up",
            page=max(_whole_number(query, "page") or 1, 1),
        )

    @property
    def filters(self) -> bool:
        """Whether it leaves anything out."""
        return self._replace(sort="finished", down=True, page=1) != Filter()


class Page(NamedTuple):
    """Some episodes of those that fit."""

    rows: list[sqlite3.Row]
    num_all: int
    number: int  # from 1

    @property
    def num_pages(self) -> int:
        """At least one."""
        return max(-(-self.num_all // PAGE), 1)


def episodes(db: sqlite3.Connection, chosen: Filter) -> Page:
    """One page of the episodes that fit."""
    where, values = _where(chosen)
    num_all: int = db.execute(f"SELECT count(*) FROM episodes {where}", values).fetchone()[0]
    number = min(chosen.page, max(-(-num_all // PAGE), 1))
    direction = "DESC" if chosen.down else "ASC"
    order = f"ORDER BY {SORTS[chosen.sort]} {direction}, row {direction} LIMIT {PAGE} OFFSET {(number - 1) * PAGE}"
    return Page(db.execute(f"SELECT * FROM episodes {where} {order}", values).fetchall(), num_all, number)


def _where(chosen: Filter) -> tuple[str, list[Any]]:
    conditions: list[str] = []
    values: list[Any] = []
    for condition, value in (
        ("instr(task, ?) > 0", chosen.task),
        ("source = ?", chosen.source),
        ("repository = ?", chosen.repository),
        ("outcome = ?", chosen.outcome),
        ("end_reason = ?", chosen.end),
        ("grp = ?", chosen.group),
        ("reward >= ?", chosen.min_reward),
        ("reward <= ?", chosen.max_reward),
        ("version >= ?", chosen.min_version),
        ("version <= ?", chosen.max_version),
        ("tokens >= ?", chosen.min_tokens),
        ("tokens <= ?", chosen.max_tokens),
        ("row IN (SELECT rowid FROM texts WHERE texts MATCH ?)", match_of(chosen.q)),
    ):
        if value not in ("", None):
            conditions.append(condition)
            values.append(value)
    if chosen.evaluation:
        conditions.append("evaluation = ?")
        values.append("" if chosen.evaluation == TRAINING else chosen.evaluation)
    return (f"WHERE {' AND '.join(conditions)}" if conditions else ""), values


def match_of(words: str) -> str:
    """What was typed as an FTS5 query in which nothing is an operator. Empty if it holds no letter and no digit."""
    found = [(quoted, plain) for quoted, plain in re.findall(r'"([^"]*)"|([^\s"]+)', words.replace("\0", " "))]
    terms = [(f'"{quoted or plain}"', bool(plain)) for quoted, plain in found if re.search(r"\w", quoted or plain)]
    texts = [term for term, _ in terms]
    if terms and terms[-1][1] and not words[-1:].isspace():
        texts[-1] += "*"
    return " ".join(texts)


def episode_row(db: sqlite3.Connection, episode: str, row: int | None = None) -> sqlite3.Row | None:
    """An episode's newest record, or the one in `row`."""
    condition, values = ("AND row = ?", (episode, row)) if row is not None else ("", (episode,))
    found: sqlite3.Row | None = db.execute(
        f"""SELECT * FROM episodes WHERE episode = ? {condition}
            ORDER BY evaluation = '' DESC, attempt DESC, row DESC LIMIT 1""",
        values,
    ).fetchone()
    return found


def members(db: sqlite3.Connection, group: str, evaluation: str) -> list[sqlite3.Row]:
    """The recorded episodes of a group by member, the newest record of each. A group is one of the run, or (it may have
    the same name) of an evaluation."""
    return db.execute(
        """SELECT *, max(row) FROM episodes WHERE grp = ? AND evaluation = ?
           GROUP BY member, episode ORDER BY member""",
        (group, evaluation),
    ).fetchall()


def tasks(db: sqlite3.Connection, sort: str, chosen: Filter) -> Page:
    """A page of tasks: how often each was tried, the share solved, mean turns and tokens, its versions."""
    where, values = _where(chosen)
    num_all = db.execute(f"SELECT count(DISTINCT task) FROM episodes {where}", values).fetchone()[0]
    number = min(chosen.page, max(-(-num_all // PAGE), 1))
    direction = "DESC" if chosen.down else "ASC"
    rows = db.execute(
        f"""SELECT task, repository, count(*) episodes, {_SOLVED} solved, avg(turns) turns, avg(tokens) tokens,
            min(version) first, max(version) last, sum(outcome = 'tampered') tampered, avg(reward) reward,
            sum(evaluation != '') held_out
            FROM episodes {where} GROUP BY task
            ORDER BY {TASK_SORTS[sort]} {direction}, task LIMIT {PAGE} OFFSET {(number - 1) * PAGE}""",
        values,
    ).fetchall()
    return Page(rows, num_all, number)


def task_by_version(db: sqlite3.Connection, task: str) -> list[sqlite3.Row]:
    """How often a task was tried and solved under each version."""
    return db.execute(
        f"SELECT version, count(*) episodes, {_SOLVED} solved FROM episodes WHERE task = ? GROUP BY version", (task,)
    ).fetchall()


def of_task(db: sqlite3.Connection, task: str, most: int = 500) -> list[sqlite3.Row]:
    """A task's episodes in the order of versions."""
    return db.execute(
        "SELECT * FROM episodes WHERE task = ? ORDER BY version, finished LIMIT ?", (task, most)
    ).fetchall()


def choices(db: sqlite3.Connection, column: str, most: int = 200) -> list[str]:
    """The values of a column, for a list to choose from."""
    assert column in ("end_reason", "source", "repository", "outcome", "evaluation")
    found = db.execute(
        f"SELECT DISTINCT {column} FROM episodes WHERE {column} > '' ORDER BY 1 LIMIT ?", (most,)
    ).fetchall()
    return [row[0] for row in found]


def neighbours(db: sqlite3.Connection, row: sqlite3.Row) -> tuple[sqlite3.Row | None, sqlite3.Row | None]:
    """The episodes that ended just after and just before this one: name and row."""
    at = (row["finished"], row["row"])
    later = db.execute(
        "SELECT episode, row FROM episodes WHERE (finished, row) > (?, ?) ORDER BY finished, row LIMIT 1", at
    ).fetchone()
    earlier = db.execute(
        "SELECT episode, row FROM episodes WHERE (finished, row) < (?, ?) ORDER BY finished DESC, row DESC LIMIT 1", at
    ).fetchone()
    return later, earlier


def _number(query: Mapping[str, str], name: str) -> float | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}: expected a number, got {text[:80]!r}") from None


def _whole_number(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"-?\d{1,15}", text):
        raise ValueError(f"{name}: expected a whole number, got {text[:80]!r}")
    return int(text)


def _one_of(query: Mapping[str, str], name: str, known: Mapping[str, str]) -> str:
    text = query.get(name, "") or next(iter(known))
    if text not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {text[:80]!r}")
    return text
