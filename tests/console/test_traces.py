"""Episodes as OpenTelemetry traces, read back by OpenTelemetry's own protobuf; records are hostile and old."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from cluster.front_door.main import main
from console.episodes.traces import trace
from console.run_data.records import read_record


def parsed(line: str) -> dict[str, Span]:
    """The spans of a line by name, as OpenTelemetry's library reads them. OTLP's JSON has ids in hexadecimal where
    protobuf's has base64: the only difference."""

    def as_protobuf(value: Any) -> Any:
        if isinstance(value, list):
            return [as_protobuf(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            name: base64.b64encode(bytes.fromhex(item)).decode() if name.endswith("Id") else as_protobuf(item)
            for name, item in value.items()
        }

    message = json_format.ParseDict(as_protobuf(json.loads(line)), TracesData())
    (resource,) = message.resource_spans
    assert {item.key: item.value.string_value for item in resource.resource.attributes}["service.name"] == "longhaul"
    spans = list(resource.scope_spans[0].spans)
    assert len({span.span_id for span in spans}) == len(spans)
    assert all(len(span.trace_id) == 16 and len(span.span_id) == 8 for span in spans)
    assert len({span.trace_id for span in spans}) == 1
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert (span.name == "episode") == (not span.parent_span_id)
        if span.parent_span_id:
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= parent.end_time_unix_nano
    return {f"{by_id[s.parent_span_id].name}/{s.name}" if s.parent_span_id else s.name: s for s in spans}


def record(**changes: object) -> dict[str, Any]:
    messages: list[dict[str, Any]] = [{"role": "user", "content": "issue"}]
    for number, at in ((1, 12.0), (2, 20.0)):
        sampled = {"tokens": [10 * number, 10 * number + 4], "versions": [3, 4], "generate_s": 1.5, "at": at}
        messages.append({"role": "assistant", "content": "```command\nls -l\n```", "format_error": False} | sampled)
        messages.append({"role": "tool", "content": "ok", "execute_s": 0.25})
    known = {"episode_id": "g1/0", "task_id": "t", "reward": 1.0, "resolved": True, "messages": messages}
    return known | {"started_at": 10.0, "judged_from": 21.0, "finished_at": 23.0} | changes


def spans_of(fields: dict[str, Any]) -> dict[str, Span]:
    read = read_record(json.dumps(fields).encode())
    assert read is not None
    return parsed(json.dumps(trace(read, "run")))


def times(span: Span) -> tuple[float, float]:
    return span.start_time_unix_nano / 1e9, span.end_time_unix_nano / 1e9


def test_an_episode_is_a_trace_with_its_times() -> None:
    spans = spans_of(record())
    assert {name: times(span) for name, span in spans.items()} == {
        "episode": (10.0, 23.0),
        "episode/sandbox": (10.0, 10.5),
        "episode/turn 1": (10.5, 12.25),
        "turn 1/generate": (10.5, 12.0),
        "turn 1/command": (12.0, 12.25),
        "episode/turn 2": (18.5, 20.25),
        "turn 2/generate": (18.5, 20.0),
        "turn 2/command": (20.0, 20.25),
        "episode/grading": (21.0, 23.0),
    }
    said = {item.key: item.value for item in spans["turn 1/generate"].attributes}
    assert said["gen_ai.usage.output_tokens"].int_value == 4
    assert said["longhaul.format_error"].bool_value is False
    root = {item.key: item.value for item in spans["episode"].attributes}
    assert (root["longhaul.reward"].double_value, root["longhaul.newest_version"].int_value) == (1.0, 4)


def test_an_older_record_has_its_turns_end_to_end() -> None:
    old = record(judged_from=0.0)
    for message in old["messages"]:
        message.pop("at", None)
    spans = spans_of(old)
    assert times(spans["episode/turn 1"]) == (10.0, 11.75)
    assert times(spans["episode/turn 2"]) == (11.75, 13.5)
    assert times(spans["episode/grading"]) == (13.5, 23.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [], "started_at": 0.0, "finished_at": 0.0},
        {"episode_id": "lone \ud800", "task_id": "<script>"},
        {"started_at": 1e300, "judged_from": -1e300, "finished_at": -5.0},
        {"reward": float("nan")},
    ],
)
def test_what_a_record_says_is_only_data(changes: dict[str, Any]) -> None:
    assert "episode" in spans_of(record(**changes))


def test_the_command_prints_every_recorded_episode(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["traces", str(made_run)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 248
    for line in lines:
        assert line.isascii() and parsed(line)
    assert printed.err == "longhaul traces: 3 recorded lines cannot be read\n"
    assert main(["traces", str(made_run / "logs")]) == 2
