"""How fast do trajectories travel between two processes: ours over ZMQ, and the ways that others use?

Every way carries the same 32k-token trajectory again and again from this process to a consumer process that decodes it
and looks at its arrays. Throughput counts the arrays' bytes with up to 8 under way; p99 is the time from before
encoding until after decoding, one at a time. All ways take turns for three rounds; a figure is the median of them.

`zmq`: `protocol.sockets` as the project uses it: each trajectory is encoded, decoded, and answered within a deadline.
`bare_zmq` is its limit: the same kinds of socket (DEALER to ROUTER, the same high-water mark) and nothing but blocking
calls; the arrays' bytes lie ready in one frame, which is sent without a copy, never decoded, and answered by an empty
message. `ray`: the object store and an actor call; `redis`: streams with pickle over a Unix socket; `jsonl`: lines
appended to a file that the consumer follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import pickle
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from benchmarks.replay import LONG, arrays, trajectory
from benchmarks.report import parser, report
from protocol.messages import Lease, Sampling, Submit, SubmitReply, Trajectory
from protocol.sockets import Client, Server

WINDOW = 8
ROUNDS = 3
_TIMEOUT_S = 60.0
_ARRAYS = ("token_ids", "loss_mask", "logprobs", "versions")

Way = Callable[[Path, list[Trajectory], int], list[tuple[float, float]]]
"""Sends the trajectories with at most so many under way; when each was sent, and when it had been decoded."""


def look_at(token_ids: np.ndarray, *others: np.ndarray) -> float:
    """What a consumer does with a trajectory here: touch every array, note the time."""
    assert int(token_ids[-1]) + sum(int(other[-1] * 0) for other in others) == token_ids.size - 1
    return time.perf_counter()


# --- ours ---------------------------------------------------------------------------------------------------------


def consume_zmq(endpoint: str, pipe: Connection, count: int) -> None:
    """Consumer process of `over_zmq`."""

    async def serve() -> None:
        server = Server(endpoint)
        pipe.send("ready")
        arrived = []
        async for peer, message in server:
            assert isinstance(message, Submit)
            arrived.append(look_at(*arrays(message.trajectory)))
            await server.send(peer, SubmitReply(status="accepted"))
            if len(arrived) == count:
                pipe.send(arrived)
                await asyncio.sleep(0.2)
                server.close()
                return

    asyncio.run(serve())


def over_zmq(directory: Path, trajectories: list[Trajectory], window: int) -> list[tuple[float, float]]:
    """The project's own sockets and wire format."""
    endpoint = f"ipc://{directory}/ours.sock"
    sent: list[float] = []

    async def produce() -> None:
        waiting = deque(trajectories)
        async with Client(endpoint) as client:

            async def submit() -> None:
                while waiting:
                    submitted = waiting.popleft()
                    sent.append(time.perf_counter())
                    await client.request(Submit(actor="a", trajectory=submitted), _TIMEOUT_S)

            await asyncio.gather(*(submit() for _ in range(window)))

    with consumer(consume_zmq, endpoint, len(trajectories)) as pipe:
        asyncio.run(produce())
        return list(zip(sent, _receive(pipe), strict=True))


# --- the limit ----------------------------------------------------------------------------------------------------


def consume_bare_zmq(endpoint: str, pipe: Connection, count: int) -> None:
    """Consumer process of `over_bare_zmq`."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.set_hwm(0)
        socket.bind(endpoint)
        pipe.send("ready")
        arrived = []
        for _ in range(count):
            sender, frame = socket.recv_multipart(copy=False)
            assert frame.buffer[-1] is not None
            arrived.append(time.perf_counter())
            socket.send_multipart([sender.bytes, b""])
        pipe.send(arrived)
        socket.recv_multipart()


def over_bare_zmq(directory: Path, trajectories: list[Trajectory], window: int) -> list[tuple[float, float]]:
    """The same bytes in one frame: what ZMQ itself can do."""
    endpoint = f"ipc://{directory}/bare.sock"
    blob = b"".join(a.tobytes() for a in arrays(trajectories[0]))
    sent: list[float] = []
    with consumer(consume_bare_zmq, endpoint, len(trajectories)) as pipe, zmq.Context() as context:
        with context.socket(zmq.DEALER) as socket:
            socket.set_hwm(0)
            socket.connect(endpoint)
            for i in range(len(trajectories)):
                if i >= window:
                    socket.recv()
                sent.append(time.perf_counter())
                socket.send(blob, copy=False)
            arrived = _receive(pipe)
            socket.send(b"")
        return list(zip(sent, arrived, strict=True))


# --- peers --------------------------------------------------------------------------------------------------------


def over_ray(directory: Path, trajectories: list[Trajectory], window: int) -> list[tuple[float, float]]:
    """Ray's object store: arrays are put, an actor is called with the reference. Ray must be running."""
    import ray

    @ray.remote(num_cpus=0)
    class Consumer:
        def take(self, fields: dict[str, Any]) -> float:
            return look_at(*(fields[name] for name in _ARRAYS))

    consumer_actor = Consumer.remote()
    fields = [_as_dict(t) for t in trajectories]
    ray.get(consumer_actor.take.remote(fields[0]))
    sent: list[float] = []
    calls: list[Any] = []
    for i, each in enumerate(fields):
        if i >= window:
            ray.wait([calls[i - window]], timeout=_TIMEOUT_S)
        sent.append(time.perf_counter())
        calls.append(consumer_actor.take.remote(ray.put(each)))
    arrived = ray.get(calls, timeout=_TIMEOUT_S)
    ray.kill(consumer_actor)
    return list(zip(sent, arrived, strict=True))


def consume_redis(endpoint: str, pipe: Connection, count: int) -> None:
    """Consumer process of `over_redis`."""
    import redis

    client = redis.Redis(unix_socket_path=endpoint)
    pipe.send("ready")
    last = b"0"
    arrived: list[float] = []
    while len(arrived) < count:
        for _, entries in client.xread({"trajectories": last}, count=1, block=1000):
            for last, entry in entries:
                fields = pickle.loads(entry[b"t"])  # what peers do; these bytes are this benchmark's own
                arrived.append(look_at(*(fields[name] for name in _ARRAYS)))
                client.xdel("trajectories", last)
                pipe.send(0)
    pipe.send(arrived)


def over_redis(directory: Path, trajectories: list[Trajectory], window: int) -> list[tuple[float, float]]:
    """Redis streams with pickle, as some asynchronous trainers use them."""
    import redis

    endpoint = str(directory / "redis.sock")
    command = ["redis-server", "--port", "0", "--unixsocket", endpoint, "--save", "", "--appendonly", "no"]
    server = subprocess.Popen([*command, "--dir", str(directory)], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(unix_socket_path=endpoint)
        _until_answers(client.ping, redis.ConnectionError)
        with consumer(consume_redis, endpoint, len(trajectories)) as pipe:
            return _windowed(
                pipe, trajectories, window, lambda t: client.xadd("trajectories", {"t": pickle.dumps(_as_dict(t), 5)})
            )
    finally:
        server.terminate()
        server.wait(timeout=10)


def consume_jsonl(endpoint: str, pipe: Connection, count: int) -> None:
    """Consumer process of `over_jsonl`."""
    arrived: list[float] = []
    with Path(endpoint).open("rb") as file:
        pipe.send("ready")
        line = b""
        while len(arrived) < count:
            line += file.readline()
            if not line.endswith(b"\n"):
                time.sleep(0.0005)
                continue
            fields = json.loads(line)
            line = b""
            arrived.append(look_at(*(np.array(fields[name]) for name in _ARRAYS)))
            pipe.send(0)
    pipe.send(arrived)


def over_jsonl(directory: Path, trajectories: list[Trajectory], window: int) -> list[tuple[float, float]]:
    """One JSON object a line in a file that the consumer follows."""
    path = directory / f"{window}.jsonl"
    with path.open("wb", buffering=0) as file, consumer(consume_jsonl, str(path), len(trajectories)) as pipe:

        def write(t: Trajectory) -> None:
            fields = {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in _as_dict(t).items()}
            file.write(json.dumps(fields).encode() + b"\n")

        return _windowed(pipe, trajectories, window, write)


# --- measuring ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def consumer(target: Callable[..., None], endpoint: str, count: int) -> Iterator[Connection]:
    """A consumer process that said it is ready."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(endpoint, theirs, count), daemon=True)
    process.start()
    try:
        assert _receive(ours) == "ready"
        yield ours
    finally:
        process.join(timeout=5)
        process.kill()
        process.join()


def _receive(pipe: Connection) -> Any:
    assert pipe.poll(_TIMEOUT_S), "the consumer is silent"
    return pipe.recv()


def _windowed(
    pipe: Connection, trajectories: list[Trajectory], window: int, send: Callable[[Trajectory], object]
) -> list[tuple[float, float]]:
    """Send with at most `window` under way; the consumer says 0 for each, and all times at the end."""
    sent = []
    for i, each in enumerate(trajectories):
        if i >= window:
            _receive(pipe)
        sent.append(time.perf_counter())
        send(each)
    while (answer := _receive(pipe)) == 0:
        pass
    return list(zip(sent, answer, strict=True))


def _until_answers(ask: Callable[[], object], error: type[Exception]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            ask()
            return
        except error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _as_dict(t: Trajectory) -> dict[str, Any]:
    fields = {name: getattr(t, name) for name in Trajectory.__struct_fields__}
    return fields | {"turns": msgspec.to_builtins(t.turns)}


def make_trajectory() -> Trajectory:
    """One 32k-token trajectory."""
    lease = Lease(
        lease_id="g0/0#1",
        episode_id="g0/0",
        task_id="t0",
        group_id="g0",
        member=0,
        attempt=1,
        version=0,
        deadline_at=0.0,
        sampling=Sampling(),
        max_turns=40,
        max_context=LONG,
    )
    return trajectory(lease, LONG)


def measure(way: Way, directory: Path, count: int, num_single: int) -> tuple[float, float]:
    """Throughput in MB/s and p99 in ms of one way."""
    one = make_trajectory()
    num_bytes = sum(a.nbytes for a in arrays(one))
    way(directory, [one] * 4, WINDOW)  # imports, caches, connections
    times = way(directory, [one] * count, WINDOW)
    throughput = (count - 1) * num_bytes / (times[-1][1] - times[0][1]) / 1e6
    single = way(directory, [one] * num_single, 1)
    return throughput, float(np.percentile([arrived - sent for sent, arrived in single], 99)) * 1000


WAYS: dict[str, Way] = {
    "zmq": over_zmq,
    "bare_zmq": over_bare_zmq,
    "ray": over_ray,
    "redis": over_redis,
    "jsonl": over_jsonl,
}


def measure_all(count: int, num_single: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, str]]:
    """(MB/s, p99 in ms) of every way in every round, and why a way could not be measured."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    missing: dict[str, str] = {}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            slow = 10 if name == "jsonl" else 1
            with tempfile.TemporaryDirectory(prefix="transport-") as directory:
                try:
                    throughput, p99 = measure(way, Path(directory), count // slow, num_single // slow)
                except (ImportError, FileNotFoundError) as error:
                    missing[name] = str(error)
                    continue
            measured[name].append((throughput, p99))
            print(f"{name:10} {throughput:9.1f} MB/s   p99 {p99:8.2f} ms", flush=True)
    return measured, missing


def main() -> None:
    """Measure all ways in one run and report."""
    flags = parser(__doc__)
    flags.add_argument("--save", action="store_true", help="write benchmarks/results/transport.json")
    arguments = flags.parse_args()
    count, num_single = (200, 100) if arguments.quick else (1_500, 500)
    import ray

    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=1 << 29)
    measured, missing = measure_all(count, num_single)
    ray.shutdown()
    figures: dict[str, float | None] = {}
    for name, rounds in measured.items():
        throughput, p99 = (float(np.median(values)) for values in zip(*rounds, strict=True)) if rounds else (None, None)
        figures |= {f"{name}_mb_s": throughput, f"{name}_p99_ms": p99}
    ours, bare = figures["zmq_mb_s"], figures["bare_zmq_mb_s"]
    figures["zmq_of_bare_share"] = ours / bare if ours and bare else None
    reasons = {f"{name}_{unit}": why for name, why in missing.items() for unit in ("mb_s", "p99_ms")}
    settings = {"tokens": LONG, "bytes": sum(a.nbytes for a in arrays(make_trajectory())), "window": WINDOW}
    settings |= {"count": count, "single": num_single, "rounds": ROUNDS}
    report("transport", figures, settings, reasons, save=arguments.save)


if __name__ == "__main__":
    main()
