"""`longhaul review RUN_DIRECTORY`: rewarded patches that people should look at, with why and with their diffs.

Sandbox actors write a line for every judged episode into `review/<actor>.jsonl`; what a whole group did is only known
when all lines are read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from actors.episodes.episode_runner import Attempt
from sandbox.judgement.review import lone_solvers

log = logging.getLogger(__name__)

_MAX_DIFF_CHARS = 20_000
_ALONE = "solves what no other member of its group solves"


class ReviewLog:
    """Appends to `review/<name>.jsonl` of a run directory.

    Attributes:
        num_marked: rewarded patches written so far that hold a mark.
    """

    def __init__(self, run_dir: Path, name: str) -> None:
        directory = run_dir / "review"
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / f"{name}.jsonl").open("a", encoding="utf-8", errors="replace", buffering=1)
        self.num_marked = 0

    def write(self, attempt: Attempt) -> None:
        """Note one episode; the diff of a rewarded one. A disk that takes no more costs the line, never the episode."""
        trajectory = attempt.trajectory
        self.num_marked += bool(attempt.marks)
        line: dict[str, Any] = {
            "episode_id": trajectory.episode_id,
            "task_id": trajectory.task_id,
            "group_id": trajectory.group_id,
            "member": trajectory.member,
            "resolved": trajectory.resolved,
        }
        if trajectory.resolved:
            line |= {"marks": attempt.marks, "diff": attempt.patch.diff[:_MAX_DIFF_CHARS]}
        try:
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            log.warning("episode %s is not noted for review: %s", trajectory.episode_id, error)

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # a full disk, as in `write`
            self._file.close()


def main(arguments: Sequence[str], program: str = "python -m actors.episodes.review") -> int:
    """Print the list; the exit status."""
    parser = argparse.ArgumentParser(prog=program, description="Rewarded patches that people should look at.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--no-diffs", action="store_true", help="one line a patch")
    chosen = parser.parse_args(arguments)
    files = sorted((chosen.run / "review").glob("*.jsonl"))
    if not files:
        print(f"{chosen.run}: expected a run directory with review/*.jsonl, found none", file=sys.stderr)
        return 2
    episodes = read_episodes(files)
    listed = to_review(episodes)
    rewarded = sum(episode["resolved"] for episode in episodes)
    for episode in listed:
        print(f"{episode['episode_id']}  {episode['task_id']}: {'; '.join(episode['marks'])}")
        if not chosen.no_diffs:
            print("".join(f"    {line}\n" for line in episode["diff"].split("\n")))
    print(f"{len(listed)} of {rewarded} rewarded patches to look at, of {len(episodes)} judged episodes")
    return 0


def read_episodes(files: Iterable[Path]) -> list[dict[str, Any]]:
    """All noted episodes, the last note of each; a line that is not whole (its writer was killed) is left out."""
    episodes: dict[str, dict[str, Any]] = {}
    for path in files:
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                episode = json.loads(line)
                episodes[episode["episode_id"]] = episode
    return list(episodes.values())


def to_review(episodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rewarded episodes that hold a mark, those with most marks first."""
    episodes = list(episodes)
    lone = lone_solvers((e["group_id"], e["episode_id"], e["resolved"]) for e in episodes)
    listed = []
    for episode in filter(lambda e: e["resolved"], episodes):
        marks = [*episode["marks"], *([_ALONE] if episode["episode_id"] in lone else [])]
        if marks:
            listed.append({**episode, "marks": marks})
    return sorted(listed, key=lambda episode: (-len(episode["marks"]), episode["episode_id"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
