"""The process group of the learner's ranks: who they are, how they talk, and who is missing when one dies.

Ranks `[k * sp, (k + 1) * sp)` share sequences (one Ulysses group); rank r works for data-parallel group `r // sp`.
Every collective has the step's deadline. A thread of each rank writes a heartbeat with what the rank is doing into a
store; when a collective fails, the ranks whose heartbeat stopped are named in the error.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from ipaddress import ip_address

import psutil
import torch
import torch.distributed as dist

from learner.ranks.store import RunStore, StoreServer
from protocol.errors import DeadlineError, LearnerError
from protocol.sockets import Keys

_BEAT_S = 0.5
_SILENT_S = 2.5


class RankGroup:
    """Membership of one process in the learner.

    Args:
        rank, world_size: this process and how many there are.
        master_addr, master_port: where rank 0 listens.
        sequence_parallel: ranks that share a sequence; divides `world_size`.
        start_timeout_s: how long to wait for the other ranks.
        timeout_s: deadline of every collective.
        keys: of the run, where ranks are on several hosts.

    Raises:
        DeadlineError: the other ranks did not come within `start_timeout_s`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        master_addr: str,
        master_port: int,
        *,
        sequence_parallel: int,
        start_timeout_s: float,
        timeout_s: float,
        keys: Keys | None = None,
    ) -> None:
        assert world_size % sequence_parallel == 0
        self.rank = rank
        self.world_size = world_size
        self.sequence_parallel = sequence_parallel
        self.data_parallel = world_size // sequence_parallel
        self.data_index, self.sequence_index = divmod(rank, sequence_parallel)
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        self._activity = "starting"
        self._stopped = threading.Event()
        self._set_environment(master_addr, master_port)
        timeout = timedelta(seconds=timeout_s)
        try:
            self._store, self._beats = self._meet(master_addr, master_port, timedelta(seconds=start_timeout_s), keys)
            dist.init_process_group(
                "nccl" if self.device.type == "cuda" else "gloo",
                store=dist.PrefixStore("group", self._store),
                rank=rank,
                world_size=world_size,
                timeout=timeout,
                device_id=self.device if self.device.type == "cuda" else None,
            )
        except (dist.DistStoreError, dist.DistNetworkError, OSError) as error:
            raise DeadlineError(
                f"rank {rank} waited {start_timeout_s:g} s at {master_addr}:{master_port} for all {world_size} learner "
                f"ranks: {error}",
                kind="learner_start",
            ) from error
        self._control = dist.new_group(backend="gloo", timeout=timeout)
        self._beating = threading.Thread(target=self._beat, name="learner heartbeat", daemon=True)
        self._beating.start()

    def _meet(self, address: str, port: int, timeout: timedelta, keys: Keys | None) -> tuple[dist.Store, dist.Store]:
        """The store in which the ranks find each other, and another connection to it for the heartbeats."""
        self._closing = contextlib.ExitStack()
        if keys is None or ip_address(address).is_loopback:
            store = _store(address, port, self.world_size, self.rank == 0, timeout)
            return store, dist.TCPStore(address, store.port, is_master=False, timeout=timedelta(seconds=5))
        endpoint = f"tcp://{address}:{port}"
        if self.rank == 0:
            self._closing.callback(StoreServer(endpoint, keys).close)
        stores = [RunStore(endpoint, keys, wait) for wait in (timeout, timedelta(seconds=5))]
        for one in stores:
            self._closing.callback(one.close)
        deadline = time.monotonic() + timeout.total_seconds()
        while True:  # rank 0 may still be on its way
            try:
                stores[0].add("ranks", 1)
                return stores[0], stores[1]
            except dist.DistNetworkError:
                if time.monotonic() > deadline:
                    raise

    def _set_environment(self, master_addr: str, master_port: int) -> None:
        """DeepSpeed looks for these, and for MPI if one is missing."""
        os.environ.update(
            RANK=str(self.rank),
            LOCAL_RANK="0",  # each rank sees its own device only
            WORLD_SIZE=str(self.world_size),
            MASTER_ADDR=master_addr,
            MASTER_PORT=str(master_port),
        )
        # gloo listens, unprotected, where the host's name points to: not beyond loopback if all ranks are here
        if interface := interface_towards(master_addr):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Name what this rank does; a collective that fails inside raises a `LearnerError` naming who is gone."""
        before, self._activity = self._activity, activity
        try:
            yield
        except (dist.DistError, RuntimeError) as error:
            if not _is_of_a_collective(error):
                raise
            raise LearnerError(
                f"rank {self.rank}, {activity}: {self._who_is_missing()} ({str(error).splitlines()[0]})",
                kind="rank_lost",
            ) from error
        finally:
            self._activity = before

    @property
    def activity(self) -> str:
        """What this rank is doing."""
        return self._activity

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, in place."""
        dist.all_reduce(values)
        return values

    def broadcast_frames(self, frames: Sequence[bytes | memoryview] | None) -> list[bytes]:
        """Bytes of rank 0, on every rank. Rank 0 passes them, the others None; unblocks when rank 0 calls it."""
        sizes = torch.tensor([len(f) for f in frames] if frames else [], dtype=torch.int64)
        count = torch.tensor([len(sizes)])
        dist.broadcast(count, 0, group=self._control)
        if self.rank:
            sizes = torch.zeros(int(count), dtype=torch.int64)
        dist.broadcast(sizes, 0, group=self._control)
        data = torch.zeros(int(sizes.sum()), dtype=torch.uint8)
        if self.rank == 0:
            joined = bytearray(b"".join(frames or []))
            data = torch.frombuffer(joined, dtype=torch.uint8) if joined else data
        dist.broadcast(data, 0, group=self._control)
        whole = data.numpy().data
        ends = sizes.cumsum(0).tolist()
        return [bytes(whole[end - size : end]) for end, size in zip(ends, sizes.tolist(), strict=True)]

    def barrier(self) -> None:
        """All ranks meet."""
        dist.barrier(group=self._control)

    def close(self) -> None:
        """Leave; the connections to the other ranks close, so that ranks still waiting for this one fail at once."""
        self._stopped.set()
        self._beating.join(timeout=5)
        if dist.is_initialized():
            dist.destroy_process_group()
        self._closing.close()

    def _beat(self) -> None:
        """Write the heartbeat until `close`."""
        count = 0
        while not self._stopped.wait(_BEAT_S):
            count += 1
            try:
                self._beats.set(f"beat/{self.rank}", f"{count} {self._activity}")
            except (dist.DistError, RuntimeError):  # rank 0 is gone; the next collective says so
                return

    def _who_is_missing(self) -> str:
        try:
            before = self._read_beats()
            time.sleep(_SILENT_S)
            after = self._read_beats()
        except (dist.DistError, RuntimeError):
            return "rank 0 is gone"
        silent = [r for r in range(self.world_size) if r != self.rank and before[r] == after[r]]
        if silent:
            return "; ".join(f"rank {r} is gone (last seen {before[r].partition(' ')[2] or 'never'})" for r in silent)
        return "all ranks are alive: " + ", ".join(f"{r} {beat.partition(' ')[2]}" for r, beat in enumerate(after))

    def _read_beats(self) -> list[str]:
        keys = [f"beat/{r}" for r in range(self.world_size)]
        return [self._beats.get(key).decode() if self._beats.check([key]) else "" for key in keys]


def interface_towards(host: str) -> str:
    """Name of the network interface through which this machine reaches `host`; empty where that cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
        except OSError:
            return ""
        mine = probe.getsockname()[0]
    interfaces = psutil.net_if_addrs()
    return next((name for name, known in interfaces.items() if mine in (address.address for address in known)), "")


def _store(host: str, port: int, world_size: int, is_master: bool, timeout: timedelta) -> dist.TCPStore:
    """Where the ranks meet. It listens on `host` alone; its own socket would on every interface."""
    listening = socket.create_server((host, port)).detach() if is_master else None
    return dist.TCPStore(host, port, world_size, is_master, timeout, master_listen_fd=listening)


def _is_of_a_collective(error: Exception) -> bool:
    """Gloo reports a lost peer or a deadline as a bare RuntimeError."""
    words = ("gloo", "Connection closed", "Connection reset", "Timed out", "Broken pipe", "NCCL", "ProcessGroup")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
