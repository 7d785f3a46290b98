"""`longhaul metrics up RUN_DIR`: Prometheus over a running run's endpoints, on loopback, until it is interrupted."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.reporting.ray_metrics import ENDPOINTS, read_endpoints
from console.run_data.run import Run
from protocol.errors import ConfigError

_ANSWER_S = 2.0
_READY_S = 60.0
_STOP_S = 20.0
_SCRAPE = "5s"


def main(arguments: Sequence[str], program: str = "longhaul metrics up") -> int:
    """Serve until interrupted; 0: stopped, 1: Prometheus ended by itself, 2: the user's mistake."""
    parser = argparse.ArgumentParser(prog=program, description="Prometheus over a running run, on loopback.")
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--port", type=int, default=9090, help="9090 (default) is where Ray's dashboard looks for it")
    chosen = parser.parse_args(arguments)
    try:
        Run.check(chosen.run)
        binary = _binary()
        _check_live(chosen.run)
        _check_free(chosen.port)
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    with _interruptible():
        try:
            return _serve(binary, chosen.run.absolute(), chosen.port, program)
        except KeyboardInterrupt:
            return 0


def _binary() -> str:
    found = shutil.which("prometheus")
    if found is None:
        raise ConfigError("no `prometheus` here: install it (Debian's package is `prometheus`)", kind="prometheus")
    return found


def _check_live(run_dir: Path) -> None:
    """Raises `ConfigError` where nothing can be collected: Prometheus would show empty series."""
    for endpoint in read_endpoints(run_dir):
        with contextlib.suppress(OSError), socket.create_connection(endpoint, _ANSWER_S):
            return
    raise ConfigError(
        f"{run_dir}: this run is not running, and Prometheus collects from running ones only; "
        f"its curves are in `longhaul console {run_dir}`",
        kind="run_dir",
    )


def _check_free(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {port}: cannot listen there ({error})", kind="prometheus") from error


def _serve(binary: str, run_dir: Path, port: int, program: str) -> int:
    """Waits for Prometheus to end. What it has collected goes with it."""
    with tempfile.TemporaryDirectory(prefix="longhaul-metrics-") as made:
        scratch = Path(made)
        (scratch / "run").symlink_to(run_dir)  # Prometheus reads the path as a pattern, and ours may hold a `[`
        (scratch / "prometheus.yml").write_text(json.dumps(_configuration(scratch)))  # JSON is YAML
        log = scratch / "log"
        command = [
            binary,
            f"--config.file={scratch / 'prometheus.yml'}",
            f"--storage.tsdb.path={scratch / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        with log.open("wb") as said:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=scratch)
        try:
            if _is_ready(process, port):
                print(f"Prometheus http://127.0.0.1:{port}/graph", flush=True)
                print("`longhaul grafana` prints a dashboard for Grafana's import; Ctrl-C ends this", flush=True)
                process.wait()
        finally:
            _end(process)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(f"{program}: Prometheus ended with status {process.returncode}: {' '.join(lines[-1:])}", file=sys.stderr)
        return 1


def _configuration(scratch: Path) -> dict[str, object]:
    """The targets are the run's file of them, read again when it changes: hosts come and go, a run begins again."""
    targets = {"files": [str(scratch / "run" / ENDPOINTS)], "refresh_interval": _SCRAPE}
    return {
        "global": {"scrape_interval": _SCRAPE, "scrape_timeout": _SCRAPE},
        "scrape_configs": [{"job_name": "longhaul", "file_sd_configs": [targets]}],
    }


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until it answers (then true), ends, or the deadline passes."""
    deadline = time.monotonic() + _READY_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=_ANSWER_S).close()
            return True
        time.sleep(0.1)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM, a terminal that is closed, and SIGINT where a script's background ignores it, are as Ctrl-C: what was
    started is ended."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
