"""`python -m actors.episodes.show RUN_DIRECTORY [EPISODE]`: recorded episodes, in a line each or one whole."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str], program: str = "python -m actors.episodes.show") -> int:
    """Print what was asked for; the exit status."""
    parser = argparse.ArgumentParser(prog=program, description="Recorded episodes, in a line each or one whole.")
    parser.add_argument("run", type=Path, help="run directory, or one JSONL file of trajectories")
    parser.add_argument("episode", nargs="?", help="episode id to print whole")
    chosen = parser.parse_args(arguments)
    files = [chosen.run] if chosen.run.is_file() else sorted((chosen.run / "trajectories").glob("*.jsonl"))
    if not files:
        print(f"{chosen.run}: expected a run directory with trajectories/*.jsonl, found none", file=sys.stderr)
        return 2
    records = read_records(files)
    if chosen.episode is None:
        for record in records:
            print(summary(record))
        return 0
    found = [record for record in records if record["episode_id"] == chosen.episode]
    if not found:
        print(f"episode {chosen.episode!r} was not recorded in {chosen.run}", file=sys.stderr)
        return 2
    print(conversation(found[-1]))
    return 0


def read_records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Trajectories in the order of the files; a line that is not whole (its writer was killed) is left out."""
    for path in files:
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict) and "messages" in record:
                    yield record


def summary(record: dict[str, Any]) -> str:
    """One episode in one line."""
    outcome = "tampered" if record["tampered"] else "solved" if record["resolved"] else "failed"
    num_errors = sum(message.get("format_error", False) for message in record["messages"])
    errors = f", format errors: {num_errors}" if num_errors else ""
    end = f"{record['end_reason']} after {record['num_turns']} turns"
    tokens = f"{record['num_tokens']} tokens{errors}{_tree(record)}"
    return f"{record['episode_id']}  {record['task_id']}  {outcome}  {end}, {tokens}"


def _tree(record: dict[str, Any]) -> str:
    """What is to be said of a history that is no straight one."""
    num, drift = record.get("num_branches", 1), record.get("drift", {})
    branches = f", branches: {num}" if num > 1 else ""
    causes = ", ".join(f"{count} {cause}" for cause, count in drift.items())
    return branches + (f", tokens rendered anew: {causes}" if causes else "")


def conversation(record: dict[str, Any]) -> str:
    """One episode with everything that was said."""
    parts = [summary(record)]
    branch: int | None = None
    for message in record["messages"]:
        after = message.get("after")
        if after is not None and after != branch:
            where = "the beginning" if after < 0 else f"turn {after + 1}"
            parts.append(f"=== branch: goes on from {where}")
        branch = None if "tokens" in message else after
        mark = " (format error)" if message.get("format_error") else ""
        parts.append(f"--- {message['role']}{mark}\n{message['content']}{_calls(message)}")
    verdict = record["verdict"]
    parts.append(f"--- patch\n{record['patch']}")
    parts.append(f"--- verdict: {verdict['reason']}\npassed {verdict['passed']}\nfailed {verdict['failed']}")
    return "\n".join(parts)


def _calls(message: dict[str, Any]) -> str:
    """Tool calls of a message that an agent from outside sent."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return "".join(f"\n[{call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}]" for call in calls)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
