"""The hosts of a run as the launcher knows them: made ready by an agent, kept by a lease, cleared at the end."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from cluster.files.content import Tree, read_tree
from cluster.files.relocation import describes, models, needed_files, relocated
from cluster.files.serving import FileServer
from cluster.hosts import agent
from cluster.hosts.agent import HostAgent, Prepared
from cluster.hosts.leases import KILLING_S, HostLeases
from cluster.hosts.plan import Host, Plan
from cluster.hosts.reaper import Watch
from cluster.hosts.reservations import NODE
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError
from protocol.messages import HostBeat, HostLease, Message
from protocol.server_thread import ServerThread
from protocol.sockets import Keys

_LOOK_S = 0.2
_CLEARED_S = 20.0
"""Longest wait, at the end, for reapers that answer."""
_SILENT_AFTER_S = 5.0


class HostError(LonghaulError, boundary="hosts"):
    """A host could not be made ready."""


class Fleet:
    """Listens from its construction on, at `address`, until `close`."""

    def __init__(self, settings: Settings, files: RunFiles, keys: Keys, address: str) -> None:
        self._settings, self._files, self._keys = settings, files, keys
        self._leases = HostLeases(settings.hosts.unreachable_s)
        self._lock = threading.Lock()
        self._known: set[str] = set()
        self._heard: set[str] = set()
        self._prepared: dict[str, Prepared] = {}
        self._places: dict[str, dict[str, str]] = {}  # by host: files of the run that are elsewhere there
        self._with_weights: set[str] = set()
        self._trees: list[Tree] | None = None  # as soon as another host needs them
        self._file_server: FileServer | None = None
        self._address = address
        self._launchers: set[str] = set()
        self._to_end: defaultdict[str, list[str]] = defaultdict(list)  # parts, by host
        self._server = ServerThread(
            f"tcp://{address}:*",
            keys,
            name="host leases",
            answer=self._answer,
            look_around=lambda: None,
            look_every_s=60.0,
            on_failure=lambda: None,
        )

    def prepare(self, hosts: Sequence[Host], with_weights: Collection[str] = ()) -> None:
        """Make hosts ready, all at once; waits until every reaper has been heard of, and the run's files are there.

        Args:
            with_weights: names of hosts on which the model is loaded; the others get what describes it.

        Raises:
            ConfigError: files that other hosts need cannot be read here.
            HostError: a host could not be made ready.
        """
        self._known |= {host.name for host in hosts}
        agent.mark(self._files)
        try:
            with self._lock:
                for host in hosts:
                    self._leases.begin(host.name, time.monotonic())
            self._launchers |= {host.name for host in hosts if host.is_launcher}
            asked = {host.name: self._ask(host) for host in hosts}
            for name, (handle, ref) in asked.items():
                self._prepared[name] = self._answered(name, handle, ref, self._settings.start_timeout_s)
            self._wait_for_beats({host.name for host in hosts})
        finally:
            agent.unmark(self._files)
        self.bring([host for host in hosts if not host.is_launcher], with_weights)

    def bring(self, hosts: Sequence[Host], with_weights: Collection[str]) -> None:
        """Have the run's files on hosts other than this one. Raises as `prepare`."""
        if not hosts:
            return
        if self._trees is None:
            self._trees = [read_tree(Path(path)) for path in needed_files(self._settings)]
            self._file_server = FileServer(self._address, self._keys)
            for tree in self._trees:
                self._file_server.offer(tree)
        asked = {}
        for host in hosts:
            whole = host.name in with_weights
            trees = [
                tree.only(describes) if tree.source in models(self._settings) and not whole else tree
                for tree in self._trees
            ]
            handle = self._agent_on(host)
            assert self._file_server is not None
            cache = self._settings.tasks.cache_dir / "files"
            asked[host.name] = handle, handle.bring.remote(trees, cache, self._file_server.endpoint, self._keys)
            self._with_weights |= {host.name} if whole else set()
        for name, (handle, ref) in asked.items():
            self._places[name] = self._answered(name, handle, ref, self._settings.hosts.fetch_s)

    def has_weights(self, host: str) -> bool:
        """Whether a model can be loaded there."""
        return host in self._launchers | self._with_weights

    def settings_on(self, host: str) -> Settings:
        """As the parts there read them."""
        return relocated(self._settings, self._places.get(host, {}))

    def check(self, plan: Plan) -> None:
        """Ranks write checkpoints into the run directory. Raises `ConfigError` where that is not the launcher's."""
        for part in plan.of("learner"):
            if not self._prepared[part.host].shares_directory:
                raise ConfigError(
                    f"{part.name} goes to {part.host}, which has another --run-dir {self._files.directory} than this "
                    "host, and would write checkpoints where nobody finds them: choose one on a file system that the "
                    "hosts of all ranks share, or launch from a host that holds all ranks",
                    kind="run_dir",
                )

    def files_on(self, host: str) -> RunFiles:
        """Paths of the run there."""
        return self._prepared[host].files

    def silent(self) -> dict[str, float]:
        """Seconds since a host was heard of, of those that should have been by now."""
        now = time.monotonic()
        with self._lock:
            silent = {name: self._leases.silent_s(name, now) for name in self._heard}
        return {name: seconds for name, seconds in silent.items() if seconds > _SILENT_AFTER_S}

    def surely_gone(self) -> set[str]:
        """Hosts on which nothing of the run lives any more. Never the launcher's own, whose parts end with it."""
        with self._lock:
            return set(self._leases.surely_gone(time.monotonic())) - self._launchers

    def knows(self, host: str) -> bool:
        """Whether it was ever made ready, or tried to."""
        return host in self._known

    def has(self, host: str) -> bool:
        """Whether it was made ready and is not gone."""
        return host in self._prepared and host not in self.surely_gone()

    def expel(self, host: str) -> None:
        """Tell a host that the run is over there."""
        with self._lock:
            self._leases.expel(host)

    def end(self, host: str, part: str) -> None:
        """Have a host's reaper kill a part there, once."""
        with self._lock:
            self._to_end[host].append(part)

    def close(self, *, until_gone: bool = False) -> None:
        """Tell every reaper to clear its host, and wait for those that answer; a silent one clears its host when its
        lease is over.

        Args:
            until_gone: wait for that, too.
        """
        with self._lock:
            self._leases.is_over = True
        deadline = time.monotonic() + (self._leases.lease_s + KILLING_S if until_gone else 0) + _CLEARED_S
        while time.monotonic() < deadline and self._uncleared() - self.surely_gone():
            time.sleep(_LOOK_S)
        self._server.close()
        if self._file_server is not None:
            self._file_server.close()

    def _uncleared(self) -> set[str]:
        with self._lock:
            return set(self._leases.not_cleared()) & self._heard

    def _ask(self, host: Host) -> tuple[Any, Any]:
        handle = self._agent_on(host)
        return handle, handle.prepare.remote(self._settings, self.watch_of(host))

    def _agent_on(self, host: Host) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        pinned = NodeAffinitySchedulingStrategy(node_id=host.labels[NODE], soft=False)
        handle: Any = ray.remote(HostAgent).options(num_cpus=0, scheduling_strategy=pinned).remote()
        return handle

    def watch_of(self, host: Host) -> Watch:
        """What its reaper is told."""
        return Watch(
            host=host.name,
            endpoint=self._server.endpoint,
            keys=self._keys,
            lease_s=self._leases.lease_s,
            files=self._files,
            settings=self._settings.model_dump_json(),
            is_launcher=host.is_launcher,
        )

    def _answered(self, host: str, handle: Any, ref: Any, timeout_s: float) -> Any:
        import ray

        try:
            answer = ray.get(ref, timeout=timeout_s)
        except ray.exceptions.GetTimeoutError as error:
            raise HostError(f"{host} was not ready within {timeout_s:g} s", kind="prepare") from error
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, LonghaulError):
                raise HostError(f"{host} could not be made ready: {cause}", kind="prepare") from error
            first = str(cause or error).strip().splitlines()[-1]
            raise HostError(
                f"{host} could not be made ready: {first} (Longhaul must be installed there, in the Python that Ray "
                "was started with)",
                kind="prepare",
            ) from error
        finally:
            ray.kill(handle)
        return answer

    def _wait_for_beats(self, hosts: set[str]) -> None:
        deadline = time.monotonic() + self._settings.start_timeout_s
        while missing := hosts - self._heard:
            if time.monotonic() > deadline:
                raise HostError(
                    f"the reapers of {', '.join(sorted(missing))} did not reach the launcher at "
                    f"{self._server.endpoint}: does a firewall stand between?",
                    kind="unreachable",
                )
            time.sleep(_LOOK_S)

    async def _answer(self, message: Message) -> Message:
        if not isinstance(message, HostBeat):
            raise HostError(f"host leases do not take {type(message).__name__}", kind="unexpected")
        with self._lock:
            if message.is_clear:
                self._leases.done(message.host)
                return HostLease(goes_on=False)
            goes_on = self._leases.renew(message.host, time.monotonic())
            to_end = self._to_end.pop(message.host, [])
            self._heard.add(message.host)
        return HostLease(goes_on=goes_on, to_end=to_end)
