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

from cluster import processes
from cluster.cleanup import descendants, kill
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.errors import ConfigError, LonghaulError, border
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


class PlacementError(LonghaulError, boundary="placement"):
    """Processes cannot be placed: Ray itself does not work here."""


class Cluster:
    """Ray, local or joined, and the options under which each kind of process is placed."""

    def __init__(self, settings: Settings, files: RunFiles) -> None:
        self.settings, self.files = settings, files
        self.keys = Keys.generate() if self.is_networked else None
        self.dashboard_url = ""
        self.way_in = ""  # what its dashboard asks for, in words

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

    def _join(self, common: dict[str, Any]) -> Any:
        import ray

        try:
            return ray.init(address=self.settings.ray_address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--ray-address {self.settings.ray_address}: no Ray cluster answers there ({error})", kind="ray"
            ) from error

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
                        _temp_dir=str(self.files.ray),
                        _system_config={"metrics_report_interval_ms": 2000},
                        **common,
                    )
            except PlacementError:
                self.stop()
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def place(self, kind: type[Any], name: str, title: str, *, num_gpus: float = 0, threads: int = 1) -> Any:
        """A Ray actor of class `kind`; its constructor's own errors come out of its first call.

        Args:
            name: of the part, also of its log.
            title: unique name in Ray's dashboard.
        """
        import ray

        environment = _ENVIRONMENT | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment["TMPDIR"] = str(self.files.temporary)  # goes with the run, whatever a killed process left there
        if num_gpus:
            for name_of_cpu_only in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
                environment.pop(name_of_cpu_only)
        options: dict[str, Any] = {
            "name": title,
            "num_cpus": 0,
            "num_gpus": num_gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": environment},
        }
        if kind is processes.Learner:
            options["max_concurrency"] = 4
        return ray.remote(kind).options(**options).remote(name, self.settings, self.files, self.keys)

    def endpoint(self, name: str) -> str:
        """Where a process binds: a socket file of this host, or a free TCP port of its own host."""
        if not self.is_networked:
            return self.files.socket(name)
        return f"tcp://{processes.OWN_HOST}:*"

    def stop(self) -> None:
        """Leave Ray; a local one ends with everything it runs, also with what its processes would leave behind."""
        import ray

        started = descendants()
        ray.shutdown()
        kill(started)


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
