"""A recorded episode, read from one line of `trajectories/*.jsonl`. A line is data from a sandbox: any bytes at all."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

Int = Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""What SQLite holds."""
_SURROGATES = re.compile("[\ud800-\udfff]")


class Message(Struct):
    """One message of the conversation; which fields are set is the role's matter."""

    role: str = ""
    content: Any = ""  # text, or the parts of an agent from outside
    tokens: list[Int] | None = None  # of a sampled turn: half-open range in the history
    versions: list[Int] | None = None
    format_error: bool = False
    generate_s: float | None = None
    execute_s: float | None = None
    at: float | None = None  # of a sampled turn: when it was, seconds since the epoch
    after: Int | None = None  # the turn that this one goes on from, where it is not the one before
    tool_calls: list[Any] | None = None
    name: str | None = None
    ids: list[Int] | None = None  # of a sampled turn: its tokens
    logprobs: list[float] | None = None  # and theirs

    @property
    def text(self) -> str:
        """What it says, as text; tool calls follow."""
        said = self.content if isinstance(self.content, str) else _parts(self.content)
        for call in self.tool_calls or ():
            said += f"\n[call] {json.dumps(call, ensure_ascii=False)}"
        return whole(said)


class Verdict(Struct):
    """What the judge found."""

    reason: str = ""
    passed: list[str] = []
    failed: list[str] = []
    ignored: list[str] = []
    log: str = ""


class Record(Struct):
    """One episode; docs/55-reading-trajectories.md explains the fields."""

    episode_id: str
    messages: list[Message]
    task_id: str = ""
    group_id: str = ""
    repository: str = ""
    source: str = ""
    attempt: Int = 1
    member: Int = 0
    resolved: bool = False
    reward: float = 0.0
    end_reason: str = ""
    tampered: bool = False
    num_turns: Int = 0
    num_tokens: Int = 0
    num_branches: Int = 1
    drift: dict[str, Int] = {}
    mean_logprob: float = 0.0
    token_records: list[Int] = []  # first byte and size of its tokens in the `.tokens` file beside
    started_at: float = 0.0
    judged_from: float = 0.0  # 0: not recorded
    finished_at: float = 0.0
    patch: str = ""
    verdict: Verdict = msgspec.field(default_factory=Verdict)

    @property
    def outcome(self) -> str:
        """In one word."""
        return "tampered" if self.tampered else "solved" if self.resolved else "failed"

    @property
    def seconds(self) -> float:
        """From its lease to its verdict."""
        return max(self.finished_at - self.started_at, 0.0)

    @property
    def versions(self) -> tuple[int, int]:
        """The oldest and the newest policy version that sampled one of its tokens; 0, 0 where none is named."""
        named = [version for message in self.messages for version in message.versions or ()]
        return (min(named), max(named)) if named else (0, 0)

    @property
    def where(self) -> str:
        """Its repository: as recorded, or as ids of SWE-bench's kind spell it (`owner__name-123`)."""
        if self.repository:
            return whole(self.repository)
        spelled = re.fullmatch(r"([\w.-]+?)__([\w.-]+?)-\d+", self.task_id)
        return f"{spelled[1]}/{spelled[2]}" if spelled else ""


_decoder = msgspec.json.Decoder(Record, strict=False)


def read_record(line: bytes) -> Record | None:
    """The episode on a line; None if it is none (its writer was killed, or it was never a record)."""
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:  # what is not UTF-8 and what JSON does not know (NaN) is read leniently, and slowly
        loose = json.loads(line.decode("utf-8", "replace"))
        return msgspec.convert(loose, Record, strict=False)
    except (ValueError, RecursionError):
        return None


def whole(text: str) -> str:
    """`text` without lone surrogates, which JSON can spell and UTF-8 cannot."""
    return _SURROGATES.sub("\ufffd", text)


def _parts(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, list):
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) == len(content):
            return "\n".join(texts)
    return json.dumps(content, ensure_ascii=False)
