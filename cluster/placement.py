"""Starts Ray and places the processes of a run on it, each with a name that reads well in the dashboard."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from msgspec import structs

from cluster import processes, run_files
from cluster.cleanup import descendants, kill
from cluster.hosts import collectives
from cluster.hosts.demand import demand_of
from cluster.hosts.fleet import Fleet
from cluster.hosts.plan import Demand, Host, Placed, Plan, joined, moved, plan
from cluster.hosts.reservations import Reservations, host_names, read_hosts
from cluster.reporting.ray_metrics import remove_endpoints, write_endpoints
from cluster.run_files import RunFiles
from cluster.security import ray_environment
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError, border
from protocol.membership.fence import Member
from protocol.sockets import Keys

# One thread a process: on small hosts idle OpenMP threads spin away the cores that other parts need. DeepSpeed's and
# vLLM's compilers are for kernels that the CPU build does not have.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",
}
_ENGINE_ON_ONE_HOST = {"VLLM_HOST_IP": "127.0.0.1"}  # where its processes meet each other
_VITAL = ("gcs_server", "raylet")  # of Ray's own processes: without one of them nothing can be placed


class PlacementError(LonghaulError, boundary="placement"):
    """Processes cannot be placed: Ray itself does not work here."""


class Cluster:
    """Ray, local or joined, and the options under which each kind of process is placed."""

    def __init__(self, settings: Settings, files: RunFiles) -> None:
        self.settings, self.files = settings, files
        self.keys = Keys.generate() if self.is_networked else None
        self.dashboard_url = ""
        self.way_in = ""  # what its dashboard asks for, in words
        self.generations: dict[str, int] = {}  # by part: processes that were made for it, but the first
        self.plan: Plan
        self.fleet: Fleet | None = None  # where sockets are TCP: what is on other hosts has to be watched there
        self._reservations: Reservations
        self._demand: Demand

    @property
    def is_networked(self) -> bool:
        """Whether sockets are TCP (several hosts) rather than files of this host."""
        return self.settings.network.bind != "127.0.0.1" or bool(self.settings.ray_address)

    def start(self) -> None:
        """Start Ray here, or join `ray_address`. Raises `ConfigError` when that cluster does not answer."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not self.is_networked:
            # Ray's own switch for "this host only": its servers bind loopback, by default they bind every interface
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        else:  # a run before this one, in the same process, may have been of this host only
            os.environ.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", None)
        common: dict[str, Any] = {
            "namespace": f"longhaul-{self.files.name}",
            "log_to_driver": False,
            "logging_level": "error",
        }
        with warnings.catch_warnings(), _temporary_files_in(self.files.temporary):
            warnings.simplefilter("ignore")
            context = self._join(common) if self.settings.ray_address else self._start_local(common)
        self.dashboard_url = f"http://{context.dashboard_url}" if context.dashboard_url else ""
        if os.environ.get("RAY_AUTH_MODE") == "token":  # set by the user, or by Ray where a token lies ready
            self.way_in = f", which asks for what `{Path(sys.executable).with_name('ray')} get-auth-token` prints"

    def reserve(self) -> None:
        """Plan which part goes where, and have Ray keep the room for it. Raises `ConfigError` where there is none."""
        hosts = read_hosts()
        self._demand = demand_of(self.settings, hosts)
        self._planned(plan(hosts, self._demand))
        if self.keys is not None:
            address = processes.own_address()
            ray_environment.check_certificate(os.environ, address)
            ray_environment.check_protection(
                os.environ, [host.address for host in hosts], trusted=self.settings.network.trusted
            )
            self.fleet = Fleet(self.settings, self.files, self.keys, address)
            self.fleet.prepare(hosts, _loading(self.plan))
            self.fleet.check(self.plan)
        self._reservations = Reservations(self.plan)

    def _join(self, common: dict[str, Any]) -> Any:
        assert self.settings.ray_address is not None
        return join(self.settings.ray_address, common)

    def _start_local(self, common: dict[str, Any]) -> Any:
        """Ray gives its own processes 30 s, which a busy host may exceed once."""
        import ray

        for is_last in (False, True):
            try:
                # Ray raises the base class when its node is late
                with border(PlacementError, f"Ray to start (its logs: {self.files.logs}/ray)"):
                    return ray.init(
                        num_cpus=max(psutil.cpu_count() or 1, 1),
                        include_dashboard=True,
                        dashboard_host="127.0.0.1",
                        dashboard_port=self.settings.network.dashboard_port or _free_port(),
                        object_store_memory=100 << 20,
                        _memory=psutil.virtual_memory().total,  # `preflight` has looked at what is free of it
                        _temp_dir=str(self.files.ray),
                        _system_config={"metrics_report_interval_ms": 2000},
                        **common,
                    )
            except PlacementError:
                self.stop()
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def place(self, kind: type[Any], name: str, title: str, *, threads: int = 1) -> Any:
        """A Ray actor of class `kind`; its constructor's own errors come out of its first call.

        Args:
            name: of the part in the plan, also of its log.
            title: unique name in Ray's dashboard.
        """
        import ray

        resources = self._reservations.options(name)
        files, settings = self.files, self.settings
        if self.fleet:
            host = self.plan.host_of(name)
            files, settings = self.fleet.files_on(host), self.fleet.settings_on(host)
        environment = _ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment["TMPDIR"] = str(files.temporary)  # goes with the run, whatever a killed process left there
        if resources["num_gpus"]:
            for name_of_cpu_only in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
                environment.pop(name_of_cpu_only)
        if kind in (processes.Generator, processes.Learner):
            role = "generator" if kind is processes.Generator else "learner"
            if collectives.stay_on_their_host(self.settings, role):
                environment |= collectives.ON_LOOPBACK | (_ENGINE_ON_ONE_HOST if role == "generator" else {})
        options: dict[str, Any] = {
            "name": title,
            **resources,
            "max_restarts": 0,
            "runtime_env": {"env_vars": environment},
        }
        if kind is processes.Learner:
            options["max_concurrency"] = 16
        self.generations[name] = self.generations.get(name, -1) + 1
        keys = structs.replace(self.keys, member=Member(name, self.generations[name])) if self.keys else None
        return ray.remote(kind).options(**options).remote(name, settings, files, keys)

    def dead_ray(self) -> str:
        """Which process of Ray's own has ended, so that nothing can be placed any more; empty: none. A cluster that was
        joined looks after itself."""
        from ray._private import worker

        node = worker._global_node
        if node is None or self.settings.ray_address:
            return ""
        return next((str(kind) for kind, _ in node.dead_processes() if kind in _VITAL), "")

    def gone(self) -> dict[str, LonghaulError]:
        """Parts of which nothing can live any more because of where they are, and why."""
        if self.fleet is None:
            return {}
        hosts = self.fleet.surely_gone()
        return {part.name: _host_gone(part.host) for part in self.plan.parts if part.host in hosts}

    def may_live(self, name: str, error: BaseException) -> bool:
        """Whether a part may be at work though Ray says that it is not: unreachable is not dead."""
        from ray.exceptions import RayActorError

        if self.fleet is None or not isinstance(error, RayActorError):
            return False  # it ended by itself
        host = self.plan.host_of(name)
        if host in self.fleet.surely_gone():
            return False
        if host not in host_names():  # Ray has given that host up, and will end what it runs there: we do not wait
            self.fleet.expel(host)
            return True
        return host in self.fleet.silent()

    def is_cut_off(self, name: str) -> bool:
        """Whether a part's host is not heard of now, so that only its lease says what becomes of it."""
        return self.fleet is not None and self.plan.host_of(name) in self.fleet.silent()

    def end(self, name: str) -> None:
        """SIGKILL the process of a part, whatever state it is in. Of several hosts each one's reaper does it, soon."""
        if self.fleet is None:
            run_files.end_part(self.files, name)
        else:
            self.fleet.end(self.plan.host_of(name), name)

    def welcome(self) -> list[Placed]:
        """Make ready the hosts that have joined since; what they get. Raises what `Fleet.prepare` and Ray raise."""
        assert self.fleet is not None
        new = [host for host in read_hosts() if not self.fleet.knows(host.name)]
        if not new:
            return []
        plan = self.plan
        for host in new:
            plan = joined(plan, host, self._demand)
        self.fleet.prepare(new, _loading(plan))
        self._planned(plan)
        placed = [part for host in new for part in self.plan.on(host.name)]
        self._reservations.add(self.plan, [part.name for part in placed])
        return placed

    def move(self, name: str) -> str:
        """Give a part whose host is gone a place elsewhere; the host. Raises `ConfigError` where there is none."""
        assert self.fleet is not None
        left = [host for host in read_hosts() if self.fleet.has(host.name)]
        plan = moved(self.plan, name, left)
        there = [host for host in left if host.name == plan.host_of(name)]
        if plan.host_of(name) in _loading(plan) and not self.fleet.has_weights(plan.host_of(name)):
            self.fleet.bring(there, _loading(plan))
        self._planned(plan)
        self._reservations.add(self.plan, [name])
        return self.plan.host_of(name)

    def give_back(self, host: str) -> None:
        """A host that was drained: nothing of the run stays there, nor does Ray keep room for it."""
        assert self.fleet is not None
        self.fleet.expel(host)
        self._reservations.release([part.name for part in self.plan.on(host)])
        left = [other for other in self.plan.hosts if other.name != host]
        self._planned(Plan(left, [part for part in self.plan.parts if part.host != host]))

    def _planned(self, plan: Plan) -> None:
        """It holds from now on, and can be read in the run directory. Raises `ConfigError` where it must not be."""
        collectives.check_collectives(self.settings, plan)
        self.plan = plan
        (self.files.directory / "placement.txt").write_text("".join(f"{line.strip()}\n" for line in plan.lines()))
        write_endpoints(self.files.directory)

    def endpoint(self, name: str) -> str:
        """Where a process binds: a socket file of this host, or a free TCP port of its own host."""
        if not self.is_networked:
            return self.files.socket(name)
        return f"tcp://{processes.OWN_HOST}:*"

    def stop(self, *, goes_on: bool = False) -> None:
        """Leave Ray; a local one ends with everything it runs, also with what its processes would leave behind.

        Args:
            goes_on: the run begins another life: a silent host is waited for until nothing of this one can live there.
        """
        import ray

        if self.fleet is not None:
            self.fleet.close(until_gone=goes_on)
        started = descendants()
        ray.shutdown()
        kill(started)
        remove_endpoints(self.files.directory)


def _loading(plan: Plan) -> set[str]:
    """Hosts on which a model is loaded."""
    return {part.host for part in plan.parts if part.role in ("generator", "learner")}


def _host_gone(host: str) -> LonghaulError:
    return PlacementError(f"{host} has not been heard of for so long that it counts as gone", kind="host_gone")


def join(address: str, options: dict[str, Any]) -> Any:
    """Join the Ray cluster at `address`. Raises `ConfigError` with one sentence where that cannot be."""
    ray_environment.adopt(os.environ)
    ray_environment.check_certificate(os.environ, "")
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if token.is_file():  # where it lies, `ray start` has turned token authentication on
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray  # not above: it reads its environment when it is imported
    from ray.exceptions import AuthenticationError

    try:
        return ray.init(address=address, **options)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError) as error:
        said = str(error).strip()
        if not isinstance(error, AuthenticationError) and "InvalidAuthToken" not in said:  # it may be told as another
            first = said.splitlines()[0] if said else type(error).__name__
            tls = "" if os.environ.get("RAY_USE_TLS") == "1" else "; or it wants TLS, which is off here"
            raise ConfigError(
                f"--ray-address {address}: no Ray cluster answers there ({first}){tls}", kind="ray"
            ) from error
        mine = f"that of {token} is not its own" if token.is_file() else f"there is none at {token}"
        raise ConfigError(
            f"--ray-address {address}: that cluster wants Ray's token, and {mine}: copy the file from its head node",
            kind="ray",
        ) from error


def hosts_at(address: str) -> list[Host]:
    """What the Ray cluster at `address` has free now. Raises `ConfigError`."""
    import ray

    join(address, {"log_to_driver": False, "logging_level": "error"})
    try:
        return read_hosts()
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _temporary_files_in(directory: Path) -> Iterator[None]:
    """For processes that are started meanwhile, and for theirs."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(directory)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
