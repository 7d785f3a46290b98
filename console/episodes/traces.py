"""`longhaul traces RUN_DIR`: recorded episodes in OpenTelemetry's file form, one line of OTLP JSON an episode.

Times are those of the records; an older record, without the moments at which turns were sampled, has its turns laid end
to end. Names follow OpenTelemetry's conventions for generative AI where there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from console.episodes.story import Turn, tell
from console.run_data.records import Message, Record, read_record, whole
from console.run_data.run import Run
from protocol.errors import ConfigError

_SCOPE = {"name": "longhaul"}
_INTERNAL = 1  # a span's kind
_LATEST_US = 10**16  # the year 2286: what claims to be later is no time


def main(arguments: Sequence[str], program: str = "longhaul traces") -> int:
    """0: printed, 2: the user's mistake."""
    parser = argparse.ArgumentParser(
        prog=program, description="Print recorded episodes as OpenTelemetry traces, one line of OTLP JSON each."
    )
    parser.add_argument("run", type=Path, help="run directory")
    chosen = parser.parse_args(arguments)
    try:
        Run.check(chosen.run)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    num_unreadable = 0
    for path in record_files(chosen.run):
        with path.open("rb") as lines:
            for line in lines:
                if record := read_record(line):
                    print(json.dumps(trace(record, chosen.run.resolve().name), ensure_ascii=True))
                else:
                    num_unreadable += bool(line.strip())
    if num_unreadable:
        print(f"{program}: {num_unreadable} recorded lines cannot be read", file=sys.stderr)
    return 0


def record_files(run_dir: Path) -> list[Path]:
    """Of the run's episodes, then of the evaluations beside its training."""
    folders = ("trajectories", "evaluations/*/trajectories")
    return [path for folder in folders for path in sorted(run_dir.glob(f"{folder}/*.jsonl")) if path.is_file()]


class Span(NamedTuple):
    """One stretch of time, seconds since the epoch."""

    name: str
    begin: float
    end: float
    attributes: dict[str, Any]
    children: list[Span]


def trace(record: Record, run: str) -> dict[str, Any]:
    """An episode as a message of OTLP's `TracesData`, in its JSON form (ids in hexadecimal)."""
    trace_id = _id(16, run, record.episode_id, str(record.attempt))
    resource = {"service.name": "longhaul", "service.instance.id": run}
    spans = list(_written(episode(record), trace_id, ""))
    scope = {"scope": _SCOPE, "spans": spans}
    return {"resourceSpans": [{"resource": {"attributes": _attributes(resource)}, "scopeSpans": [scope]}]}


def episode(record: Record) -> Span:
    """The episode and what happened in it: the sandbox's start, turns of generation and command, the judgement."""
    children: list[Span] = []
    at = record.started_at
    for turn in tell(record).turns:
        span = _turn(turn, at)
        if not children and turn.sampled.message.at and span.begin > at:
            children.append(Span("sandbox", at, span.begin, {}, []))
        children.append(span)
        at = span.end
    judged = {"longhaul.reason": record.verdict.reason, "longhaul.outcome": record.outcome}
    children.append(Span("grading", max(record.judged_from or at, at), max(record.finished_at, at), judged, []))
    attributes = {
        "longhaul.episode": record.episode_id,
        "longhaul.attempt": record.attempt,
        "longhaul.task": record.task_id,
        "longhaul.group": record.group_id,
        "longhaul.member": record.member,
        "longhaul.repository": record.where,
        "longhaul.outcome": record.outcome,
        "longhaul.reward": record.reward,
        "longhaul.end_reason": record.end_reason,
        "longhaul.tokens": record.num_tokens,
        "longhaul.oldest_version": record.versions[0],
        "longhaul.newest_version": record.versions[1],
    }
    return Span("episode", record.started_at, max(record.finished_at, at), attributes, children)


def _turn(turn: Turn, earliest: float) -> Span:
    message = turn.sampled.message
    generated = max(message.generate_s or 0.0, 0.0)
    begin = message.at - generated if message.at else earliest
    sampled = begin + generated
    num_tokens = message.tokens[1] - message.tokens[0] if message.tokens and len(message.tokens) == 2 else 0
    said = {
        "gen_ai.operation.name": "chat",
        "gen_ai.usage.output_tokens": num_tokens,
        "longhaul.versions": ", ".join(str(version) for version in message.versions or ()),
        "longhaul.format_error": message.format_error,
    }
    done = sampled + sum(max(answer.message.execute_s or 0.0, 0.0) for answer in turn.answers)
    children = [Span("generate", begin, sampled, said, [])]
    if _was_run(turn.answers[0].message if turn.answers else None):
        command = {"longhaul.command": turn.command.strip().partition("\n")[0][:200]}
        children.append(Span("command", sampled, done, command, []))
    where = {"longhaul.turn": turn.number, "longhaul.goes_on_from": turn.parent}
    return Span(f"turn {turn.number}", begin, done, where, children)


def _was_run(answer: Message | None) -> bool:
    return answer is not None and answer.execute_s is not None


def _written(
    span: Span, trace_id: str, parent: str, place: str = "0", low: int = 0, high: int = _LATEST_US
) -> Iterator[dict[str, Any]]:
    """The span, between two times in microseconds, and those inside it, between its own."""
    own = _id(8, trace_id, place)
    begin = _microseconds(span.begin, low, high)
    end = _microseconds(span.end, begin, high)
    yield {
        "traceId": trace_id,
        "spanId": own,
        **({"parentSpanId": parent} if parent else {}),
        "name": span.name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(1000 * begin),  # JSON's numbers do not hold 64 bits
        "endTimeUnixNano": str(1000 * end),
        "attributes": _attributes(span.attributes),
    }
    for number, child in enumerate(span.children):
        yield from _written(child, trace_id, own, f"{place}.{number}", begin, end)


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _value(value)} for name, value in values.items() if value != ""]


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value} if value == value and abs(value) != float("inf") else {"stringValue": str(value)}
    return {"stringValue": whole(str(value))}


def _microseconds(at: float, low: int, high: int) -> int:
    return round(min(max(1e6 * at, low), high))


def _id(num_bytes: int, *parts: str) -> str:
    """The same whenever it is asked for; never zero, which OTLP refuses."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[: 2 * num_bytes]
