"""Bytes from one process to another through the collective library of their devices: NCCL on GPUs, gloo on CPUs.

A pair of its own for every receiver: one that dies takes nobody with it. The sender mints the name of a meeting and
tells it over a socket of the run; both then meet, and every `send` of one is a `receive` of the other.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from protocol.errors import WeightsError

SENDER, RECEIVER = 0, 1
_LOOK_S = 0.0005


class Pair(Protocol):
    """Two processes that have met. Every call returns when it is done, or raises `WeightsError` by its deadline; then
    the pair is of no use any more.
    """

    def send(self, data: torch.Tensor) -> None:
        """Send bytes (uint8 [n], host memory)."""
        ...

    def receive(self, target: torch.Tensor) -> None:
        """Receive as many bytes as `target` (uint8 [n], host memory) holds."""
        ...

    def close(self) -> None:
        """Part."""
        ...


@runtime_checkable
class Meeting(Protocol):
    """Where a receiver is awaited.

    Attributes:
        name: what it has to know.
    """

    name: bytes

    def meet(self, timeout_s: float) -> Pair:
        """Wait for the receiver; `timeout_s` is also the deadline of every later call."""
        ...


def call_meeting(host: str) -> Meeting:
    """A new meeting of a sender that is reached at `host`."""
    return _NcclMeeting() if torch.cuda.is_available() else _GlooMeeting(host)


def attend(name: bytes, timeout_s: float) -> Pair:
    """Meet the sender that called the meeting `name`."""
    if torch.cuda.is_available():
        return _within(timeout_s, lambda: _NcclPair(name, RECEIVER, timeout_s))
    host, _, port = name.decode("ascii", "replace").rpartition(":")
    if not port.isdigit():
        raise WeightsError(
            f"{name!r} names no meeting on CPUs: the publisher has a GPU, this process none", kind="pair"
        )
    return _GlooPair(_store(host, int(port), timeout_s), RECEIVER, timeout_s)


class _GlooMeeting:
    def __init__(self, host: str) -> None:
        with socket.create_server((host, 0)) as listening:  # the store's own socket would take calls from everywhere
            port = listening.getsockname()[1]
            self._store = _store(host, port, 1.0, listening.detach())
        self.name = f"{host}:{port}".encode()

    def meet(self, timeout_s: float) -> Pair:
        return _GlooPair(self._store, SENDER, timeout_s)


def _store(host: str, port: int, timeout_s: float, listening: int | None = None) -> Any:
    """Of the sender, which listens, or of the receiver."""
    is_sender, timeout = listening is not None, timedelta(seconds=timeout_s)
    try:
        return dist.TCPStore(host, port, 2, is_sender, timeout, wait_for_workers=False, master_listen_fd=listening)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise WeightsError(f"no meeting at {host}:{port}: {error}", kind="pair") from error


class _GlooPair:
    def __init__(self, store: Any, rank: int, timeout_s: float) -> None:
        try:
            self._group: Any = dist.ProcessGroupGloo(store, rank, 2, timedelta(seconds=timeout_s))
        except RuntimeError as error:
            raise WeightsError(f"the other side did not come: {error}", kind="pair") from error

    def send(self, data: torch.Tensor) -> None:
        self._broadcast(data)

    def receive(self, target: torch.Tensor) -> None:
        self._broadcast(target)

    def _broadcast(self, tensor: torch.Tensor) -> None:
        try:
            self._group.broadcast(tensor, SENDER).wait()
        except RuntimeError as error:
            raise WeightsError(f"the other side is gone: {error}", kind="pair") from error

    def close(self) -> None:
        self._group = None


class _NcclMeeting:
    def __init__(self) -> None:
        from vllm.distributed.device_communicators.pynccl_wrapper import NCCLLibrary

        self.name = bytes(NCCLLibrary().ncclGetUniqueId().internal)

    def meet(self, timeout_s: float) -> Pair:
        return _within(timeout_s, lambda: _NcclPair(self.name, SENDER, timeout_s))


class _NcclPair:
    """Through device memory of one bucket; vLLM's weight transfer makes the communicator."""

    def __init__(self, name: bytes, rank: int, timeout_s: float) -> None:
        from vllm.distributed.weight_transfer.nccl_common import uid_init_process_group

        self._device = torch.device("cuda", torch.cuda.current_device())
        self._timeout_s = timeout_s
        self._communicator: Any = uid_init_process_group(name, rank, 2, self._device)
        self._stream: Any = torch.cuda.Stream(self._device)
        self._bucket = torch.empty(0, dtype=torch.uint8, device=self._device)

    def send(self, data: torch.Tensor) -> None:
        with self._at_work():
            self._room(len(data)).copy_(data)
            self._broadcast(len(data))

    def receive(self, target: torch.Tensor) -> None:
        with self._at_work():
            self._broadcast(len(target))
            target.copy_(self._bucket[: len(target)])

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        try:
            with torch.cuda.stream(self._stream):
                yield
        except RuntimeError as error:  # of NCCL, or of a device without room for the bucket
            raise WeightsError(f"the pair broke: {error}", kind="pair") from error

    def close(self) -> None:
        self._communicator.destroy()

    def _room(self, num_bytes: int) -> torch.Tensor:
        if len(self._bucket) < num_bytes:
            self._bucket = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return self._bucket[:num_bytes]

    def _broadcast(self, num_bytes: int) -> None:
        self._communicator.broadcast(self._room(num_bytes), src=SENDER, stream=self._stream)
        done = self._stream.record_event()
        deadline = time.monotonic() + self._timeout_s
        while not done.query():
            if time.monotonic() > deadline:
                raise WeightsError(f"no bytes came or went for {self._timeout_s:g} s", kind="pair")
            time.sleep(_LOOK_S)


def _within(timeout_s: float, meet: Callable[[], Pair]) -> Pair:
    """NCCL's own meeting has no deadline: the thread of one that nobody came to is left behind."""
    results: list[Pair | Exception] = []
    device = torch.cuda.current_device()

    def work() -> None:
        try:
            with torch.cuda.device(device):
                results.append(meet())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=work, daemon=True, name="weight channel meeting")
    thread.start()
    thread.join(timeout_s)
    if not results:
        raise WeightsError(f"the other side did not come within {timeout_s:g} s", kind="pair")
    if isinstance(results[0], Exception):
        raise WeightsError(f"the other side could not be met: {results[0]}", kind="pair") from results[0]
    return results[0]
