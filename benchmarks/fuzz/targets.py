"""The decoders of Longhaul: what each is fed, and the errors that are its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct

from actors.agent.chat import ChatTokenizer
from actors.episodes.episode_journal import Begun, EpisodeJournal, Judged, Ready, Taken
from actors.gateway.asks import Refusal
from actors.gateway.bodies import Body
from actors.gateway.server import DIALECTS
from benchmarks.data.records import RECORDS
from benchmarks.fuzz.mutations import Tree, as_json, as_msgpack
from cluster.command_line.cli import parse
from learner.replay import events
from learner.replay.journal.reader import JournalReader
from learner.replay.machine import Replay
from protocol.arrays import pack_arrays, unpack_arrays
from protocol.config import Settings, TaskSettings
from protocol.errors import ConfigError, JournalError, ReplayError, SandboxError, TaskError, WeightsError, WireError
from protocol.frames import Joiner, split
from protocol.journals.records import pack_header, record_bytes
from protocol.messages import (
    BatchRequest,
    Generate,
    Heartbeat,
    Lease,
    LeaseReply,
    LeaseRequest,
    Manifest,
    Message,
    Sampling,
    Submit,
    TaskRef,
    TensorEntry,
    Trajectory,
    Turn,
    WeightsOffer,
)
from protocol.weights.manifest import (
    TensorSpec,
    apply_delta,
    bucket_range,
    encode_delta,
    num_buckets,
    verify_manifest,
    weights_checksum,
)
from protocol.weights.segments import file_identity, segment_path
from protocol.wire import Codec
from sandbox.base import ExecResult, SandboxSpec
from sandbox.datasets.harbor import records_of_directories
from sandbox.datasets.loading import load_tasks, tasks_of_records
from sandbox.guest.client import HEADER, PROTOCOL_VERSION, RESULT, WORD, GuestClient
from sandbox.guest.tunnel import DATA, END, GONE, HEAD, MORE, OPEN, OPENED, Tunnel
from sandbox.judgement.reports import read_report
from sandbox.judgement.verdicts import Verdict
from sandbox.keeper.requests import Adopt, Create, Given, HeldContainer, Hold, decode_answered, decode_asked, encode
from sandbox.parsers.own import parse_r2e, parse_reward, parse_tests_json
from sandbox.patches import Patch
from sandbox.tasks.sources import materialise, packages_of

TINY = Path(__file__).parents[2] / "assets" / "tiny"
_SALT = b"saltsalt"
_SPECS = {"embed": TensorSpec("embed", "float32", (4, 8)), "norm": TensorSpec("norm", "float32", (8,))}


class Target(Struct, frozen=True, kw_only=True):
    """One decoder. `write` makes its bytes of a tree; `read` is fed bytes; `own`: errors with which it may answer."""

    name: str
    seeds: Sequence[Tree]
    read: Callable[[bytes], object]
    own: tuple[type[Exception], ...] = ()
    write: Callable[[Tree], bytes] = as_json
    raw: Sequence[bytes] = ()  # more examples, as they are


# --- messages -----------------------------------------------------------------------------------------------------

_SETTINGS = Settings(replay={"group_size": 2, "batch": 4}, num_actors=8)  # type: ignore[arg-type]


def _lease() -> Lease:
    return _buffer()[1]


def _buffer() -> tuple[Replay, Lease]:
    """A buffer with one lease."""
    replay = Replay(_SETTINGS, [TaskRef(task_id="t0", source="micro", repository="r")])
    replay.start(0.0)
    reply = replay.handle(LeaseRequest(actor="a", capacity=1), 1.0).reply
    assert isinstance(reply, LeaseReply)
    return replay, reply.leases[0]


def _trajectory(lease: Lease) -> Trajectory:
    return Trajectory(
        episode_id=lease.episode_id,
        lease_id=lease.lease_id,
        task_id=lease.task_id,
        group_id=lease.group_id,
        member=lease.member,
        attempt=lease.attempt,
        resolved=True,
        reward=1.0,
        end_reason="submitted",
        turns=[Turn(start=2, end=4)],
        token_ids=np.arange(6, dtype=np.int32),
        loss_mask=np.array([0, 0, 1, 1, 0, 0], np.uint8),
        logprobs=np.array([0, 0, -0.5, -0.25, 0, 0], np.float32),
        versions=np.array([-1, -1, 0, 0, -1, -1], np.int32),
        started_at=0.0,
        finished_at=60.0,
    )


def _manifest() -> Manifest:
    tensors = [
        TensorEntry(name="embed", dtype="float32", shape=[4, 8], offset=0, num_bytes=128, checksum="a"),
        TensorEntry(name="norm", dtype="float32", shape=[8], offset=128, num_bytes=32, checksum="b"),
    ]
    return Manifest(version=3, tensors=tensors, num_bytes=160, checksum=weights_checksum(tensors), run="r")


def _messages() -> list[Message]:
    return [
        Submit(actor="a", trajectory=_trajectory(_lease())),
        LeaseReply(leases=[_lease()]),
        Heartbeat(actor="a", lease_ids=["x"]),
        BatchRequest(learner="learner", version=0),
        WeightsOffer(manifest=_manifest()),
        Generate(
            request_id="r",
            token_ids=np.arange(5, dtype=np.int32),
            sampling=Sampling(temperature=1.0, max_tokens=8),
            stop_token_ids=[1],
            cache_salt="0",
            timeout_s=5.0,
        ),
    ]


def _message_tree(message: Message) -> Tree:
    body, *arrays = Codec().encode(message)
    return {"body": msgspec.msgpack.decode(body[4:]), "head": bytes(body[:4]), "arrays": [bytes(a) for a in arrays]}


def _write_message(tree: Tree) -> bytes:
    tree = tree if isinstance(tree, dict) else {}
    head, arrays = tree.get("head"), tree.get("arrays")
    frames = [frame for frame in arrays if isinstance(frame, bytes)] if isinstance(arrays, list) else []
    body = (head if isinstance(head, bytes) else b"LH\1\0") + as_msgpack(tree.get("body"))
    return b"".join(bytes(part) for part in Joiner().join([body, *frames]))


def _read_message(data: bytes) -> Message:
    return Codec(max_frames=1024).decode(split([memoryview(data)], 1024))


def _submit(data: bytes) -> object:
    """What a buffer does with a message, whoever sent it."""
    message = _read_message(data)
    replay, _ = _buffer()
    return replay.handle(message, 2.0)


def _read_manifest(data: bytes) -> object:
    try:
        manifest = msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError):
        return None  # the wire's own business
    segment_path(manifest.run, "weights-0")
    if manifest.segment:
        file_identity(Path(manifest.segment))
    verify_manifest(manifest, _SPECS, {})
    return [bucket_range(manifest, bucket) for bucket in range(min(num_buckets(manifest), 4))]


def _delta() -> bytes:
    old = np.arange(1024, dtype=np.uint32).view(np.uint8)
    new = old.copy()
    new[[8, 100, 2000]] ^= 1
    delta = encode_delta(old, new, 4)
    assert delta is not None
    return delta.tobytes()


def _read_delta(data: bytes) -> None:
    apply_delta(np.zeros(4096, np.uint8), np.frombuffer(data, np.uint8))


# --- journals -----------------------------------------------------------------------------------------------------


def _write_journal(tree: Tree) -> bytes:
    """Whole records, whatever is in their frames."""
    data, at = b"", 0
    for frame in tree if isinstance(tree, list) else [tree]:
        frames = [as_msgpack(frame)]
        data += pack_header(_SALT, 0, at, frames) + frames[0]
        at += record_bytes(frames)
    return data


def _read_journal(data: bytes) -> int:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "salt").write_bytes(_SALT)
        (Path(folder) / f"{0:020d}.log").write_bytes(data)
        records = list(JournalReader(Path(folder)).recover())
        return sum(len(events.decode(record.frames[0])) for record in records if record.frames)


def _write_episode(tree: Tree) -> bytes:
    data, at = _SALT, len(_SALT)
    for entry in tree if isinstance(tree, list) else [tree]:
        frames = [as_msgpack(entry)]
        data += pack_header(_SALT, 0, at, frames) + frames[0]
        at += record_bytes(frames)
    return data


def _read_episode(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.journal"
        path.write_bytes(data)
        journal = EpisodeJournal.read(path, "recipe")
        if journal is not None:
            journal.discard()
        return journal


def _episode() -> Tree:
    verdict = Verdict(resolved=True, reason="", passed=(), failed=())
    entries = [Begun(lease=_lease(), started_at=0.0, recipe="recipe"), Ready()]
    return [msgspec.to_builtins(entry) for entry in (*entries, Taken(patch=Patch(changes=[])), Judged(verdict=verdict))]


# --- sandboxes ----------------------------------------------------------------------------------------------------


def _from_guest(data: bytes) -> None:
    """A whole conversation of what a guest says: to a command, to a listing, through a tunnel."""

    async def converse() -> None:
        client = GuestClient(lambda frame: None, "fuzz")
        asked = [
            asyncio.create_task(client.hello(5)),
            asyncio.create_task(client.exec(["true"], 5, "/", None, 1000)),
            asyncio.create_task(client.list_tree("/")),
            asyncio.create_task(client.fetch("/", "a", 1000)),
            asyncio.create_task(client.listen(_refuse)),
            asyncio.create_task(client.ping(5)),
            asyncio.create_task(client.kill_all()),
        ]
        await asyncio.sleep(0)
        for at in range(0, len(data), 100):
            client.feed(data[at : at + 100])
        await asyncio.sleep(0)
        client.lost("the end")
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, BaseException) and not isinstance(answer, SandboxError):
                raise answer

    asyncio.run(converse())


async def _refuse(connection: socket.socket, number: int) -> None:
    connection.close()


def _through_tunnel(data: bytes) -> None:
    async def feed() -> None:
        tunnel = Tunnel(lambda payload: None, _refuse)
        for at in range(0, len(data), 17):
            if not tunnel.feed(data[at : at + 17]):
                break
        tunnel.close()

    asyncio.run(feed())


def _frame(request: int, payload: bytes, status: int = 0) -> bytes:
    return HEADER.pack(5 + len(payload), request, status) + payload


def _guest_words() -> list[bytes]:
    hello = _frame(0, WORD.pack(PROTOCOL_VERSION) + WORD.pack(1))
    result = _frame(1, RESULT.pack(0, 0, 3, 0, 3, 5, 0, 0) + b"abc")
    listing = _frame(2, b"\0\0\0\0" + b"0" * 65 + b" name\0")
    opened = _frame(4, HEAD.pack(7, OPEN) + OPENED.pack(0, 0))
    links = opened + b"".join(_frame(4, HEAD.pack(7, kind) + b"data") for kind in (DATA, END, MORE, GONE))
    port = _frame(4, b"\1\2\0\0")
    return [hello, hello + result, hello + result + listing + _frame(3, b"fcontent"), hello + port + links]


def _read_asked(data: bytes) -> object:
    return decode_asked(data)


def _read_answered(data: bytes) -> object:
    return decode_answered(data)


def _read_report(data: bytes) -> object:
    result = ExecResult(exit_code=0, head=data, tail=b"", total_bytes=len(data), timed_out=False, duration_s=0.0)
    text = data.decode(errors="replace")
    return (
        read_report(result, ""),
        read_report(result, "ab"),
        parse_r2e(text),
        parse_reward(text),
        parse_tests_json(text),
    )


# --- what people write ---------------------------------------------------------------------------------------------


def _read_tasks(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tasks.jsonl"
        path.write_bytes(data)
        tasks = load_tasks(TaskSettings(source=str(path)))
        for task in tasks:
            packages_of(task)
            if task.files is not None:
                with contextlib.suppress(TaskError):
                    materialise(task, Path(folder))
        return tasks


def _read_directory(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "task"
        (path / "tests").mkdir(parents=True)
        (path / "task.toml").write_bytes(data)
        (path / "instruction.md").write_bytes(data)
        (path / "tests" / "test.sh").write_bytes(data)
        return tasks_of_records(records_of_directories([path]), "auto", 10, "fuzz")


def _read_settings(data: bytes) -> object:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.toml"
        path.write_bytes(data)
        return parse([f"--config={path}"])


@functools.cache
def _template() -> Tree:
    return {
        "template": (TINY / "chat_template.jinja").read_text(),
        "config": msgspec.json.decode((TINY / "tokenizer_config.json").read_bytes()),
        "generation": msgspec.json.decode((TINY / "generation_config.json").read_bytes()),
    }


def _read_template(data: bytes) -> object:
    """`data` is the JSON of a model directory's own files, or else its template."""
    try:
        tree = msgspec.json.decode(data)
    except msgspec.DecodeError:
        tree = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        shutil.copy(TINY / "tokenizer.json", path)
        files = tree if isinstance(tree, dict) and "config" in tree else _template() | {"template": data}
        template = files.get("template")
        if template is not None:
            text = template if isinstance(template, bytes) else str(template).encode(errors="replace")
            (path / "chat_template.jinja").write_bytes(text)
        (path / "tokenizer_config.json").write_bytes(as_json(files["config"]))
        (path / "generation_config.json").write_bytes(as_json(files.get("generation")))
        chat = ChatTokenizer.load(path)
        chat.encode_prompt([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
        return chat.encode_answer("user", "c", 0)


def _body(path: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        try:
            return DIALECTS[path].read(Body.parse(data))
        except Refusal as refusal:
            return msgspec.json.encode(DIALECTS[path].error(refusal))

    return read


_FUNCTION = {"name": "run", "description": "runs", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "c1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
_CHAT = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "done"},
    ],
    "tools": [{"type": "function", "function": _FUNCTION}],
    "tool_choice": {"type": "function", "function": {"name": "run"}},
    "stop": ["x"],
    "max_tokens": 10,
    "temperature": 0.5,
    "stream": True,
    "stream_options": {"include_usage": True},
}
_ANTHROPIC = {
    "model": "m",
    "max_tokens": 10,
    "system": [{"type": "text", "text": "be brief"}],
    "messages": [
        {"role": "user", "content": "hello"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "c1", "name": "run", "input": {"a": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "done"}]},
    ],
    "tools": [{"name": "run", "description": "runs", "input_schema": {"type": "object"}}],
    "tool_choice": {"type": "tool", "name": "run"},
    "stop_sequences": ["x"],
}
_RESPONSES = {
    "model": "m",
    "instructions": "be brief",
    "input": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]},
        {"type": "reasoning", "id": "r1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c1", "name": "run", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "done"},
    ],
    "tools": [{"type": "function", **_FUNCTION}],
    "tool_choice": {"type": "function", "name": "run"},
    "max_output_tokens": 10,
    "text": {"format": {"type": "text"}},
}
_DEEP = [b"[" * 60_000, b'{"a":' * 20_000, b"[" * 30 + b"1e999" + b"]" * 30, b'"\\ud800"', b"9" * 5000]
_TOML = b'[episode]\nmax_turns = 3\n[replay]\nbatch = 16\ngroup_size = 4\n[tasks]\nsource = "micro"\n'
_SPEC = SandboxSpec(run="r", lease="l", image=None, source=Path("/tmp"), workdir="/testbed")


def targets() -> list[Target]:
    """Every decoder."""
    messages = [_message_tree(message) for message in _messages()]
    arrays = pack_arrays({"places": np.arange(9, dtype=np.int32)})
    happened = Replay(_SETTINGS, [TaskRef(task_id="t0", source="micro", repository="r")])
    happened.start(0.0)
    opened = happened.handle(LeaseRequest(actor="a", capacity=2), 1.0).events
    records = [msgspec.msgpack.decode(events.encode([event])) for event in opened]
    held = HeldContainer(url="unix:///d", tls_dir="", container="c")
    asked = [
        Adopt(pass_word="w", lease="l"),
        Create(pass_word="w", name="n", spec=_SPEC),
        Hold(pass_word="w", name="n", spec=_SPEC, held=held),
    ]
    return [
        Target(name="wire", seeds=messages, write=_write_message, read=_read_message, own=(WireError,)),
        Target(
            name="replay buffer", seeds=messages[:4], write=_write_message, read=_submit, own=(WireError, ReplayError)
        ),
        Target(
            name="weight manifest",
            seeds=[msgspec.to_builtins(_manifest())],
            write=as_msgpack,
            read=_read_manifest,
            own=(WeightsError,),
        ),
        Target(name="weight delta", seeds=[], raw=[_delta()], read=_read_delta, own=(WeightsError,)),
        Target(name="arrays", seeds=[], raw=[arrays], read=lambda data: unpack_arrays(data), own=(WireError,)),
        Target(name="journal", seeds=[records], write=_write_journal, read=_read_journal, own=(JournalError,)),
        Target(name="episode journal", seeds=[_episode()], write=_write_episode, read=_read_episode),
        Target(name="what a guest says", seeds=[], raw=_guest_words(), read=_from_guest, own=(SandboxError,)),
        Target(
            name="tunnel",
            seeds=[],
            raw=[HEAD.pack(7, OPEN) + OPENED.pack(0, 0) + HEAD.pack(7, DATA) * 9],
            read=_through_tunnel,
        ),
        Target(
            name="asked of a keeper",
            seeds=[msgspec.msgpack.decode(encode(message)) for message in asked],
            write=as_msgpack,
            read=_read_asked,
            own=(SandboxError,),
        ),
        Target(
            name="said by a keeper",
            seeds=[msgspec.msgpack.decode(encode(Given(name="n", spec=_SPEC, held=held)))],
            write=as_msgpack,
            read=_read_answered,
            own=(SandboxError,),
        ),
        Target(
            name="test report",
            seeds=[{"nonce": "n", "outcomes": {"a": "passed"}, "order": ["a"]}],
            raw=[b'{"nonce":"n"}\nlog', b"PASSED a\nFAILED b", b"+++ reward 1"],
            read=_read_report,
        ),
        Target(name="task file", seeds=list(RECORDS.values()), raw=_DEEP, read=_read_tasks, own=(ConfigError,)),
        Target(
            name="task directory",
            seeds=[],
            raw=[b'version = "1.0"\n[environment]\ndocker_image = "a:1"\nworkdir = "/app"\n[verifier]\ntimeout = 1\n'],
            read=_read_directory,
            own=(ConfigError,),
        ),
        Target(name="settings", seeds=[], raw=[_TOML], read=_read_settings, own=(ConfigError,)),
        Target(
            name="chat template",
            seeds=[_template()],
            raw=[_template()["template"].encode(), b"{{ messages[9].content }}", b"{% for m in messages %}", b"\xff"],
            read=_read_template,
            own=(ConfigError,),
        ),
        Target(name="chat completions", seeds=[_CHAT], raw=_DEEP, read=_body("/v1/chat/completions")),
        Target(name="anthropic messages", seeds=[_ANTHROPIC], raw=_DEEP, read=_body("/v1/messages")),
        Target(name="responses", seeds=[_RESPONSES], raw=_DEEP, read=_body("/v1/responses")),
    ]
