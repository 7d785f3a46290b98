"""The real Prometheus over an endpoint that says what Ray's says, and the dashboard whose queries it answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cluster.reporting import grafana, prometheus
from cluster.reporting.ray_metrics import ENDPOINTS, gauge_name
from console.plots.figures import FIGURES
from protocol.config import Settings
from tests.ports import free_port

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="no prometheus here (Debian's package)")


class Endpoint(BaseHTTPRequestHandler):
    """Every series of the dashboard, as Ray names it, at 0.25."""

    def do_GET(self) -> None:
        names = {f"ray_{gauge_name(s.kind, s.metric)}" for figure in FIGURES for s in figure.series}
        page = "".join(f'# TYPE {name} gauge\n{name}{{run="here"}} 0.25\n' for name in sorted(names)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def live_run(tmp_path: Path) -> Iterator[Path]:
    run = tmp_path / "run [1]*"
    run.mkdir()
    (run / "settings.json").write_text(Settings().model_dump_json())
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (run / ENDPOINTS).write_text(json.dumps([{"targets": [f"127.0.0.1:{server.server_port}"], "labels": {}}]))
        yield run
        server.shutdown()


def ask(address: str, query: str) -> list[dict[str, Any]]:
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    answer = json.loads(urllib.request.urlopen(url, timeout=60).read())
    assert answer["status"] == "success"
    return list(answer["data"]["result"])


@needs_prometheus
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_every_panel_has_its_series_and_nothing_is_left(live_run: Path, tmp_path: Path, end: signal.Signals) -> None:
    port = free_port()
    command = [sys.executable, "-m", "cluster.front_door", "metrics", "up", str(live_run), "--port", str(port)]
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as up:
        assert up.stdout is not None and up.stderr is not None
        try:
            said = up.stdout.readline()
            assert said == f"Prometheus http://127.0.0.1:{port}/graph\n", up.stderr.read()
            address = f"http://127.0.0.1:{port}"
            panels = grafana.dashboard()["panels"]
            queries = [target["expr"].replace("$run", "here") for panel in panels for target in panel["targets"]]
            deadline = time.monotonic() + 120
            while missing := [query for query in queries if not ask(address, query)]:
                assert time.monotonic() < deadline, missing
                time.sleep(0.5)
            assert {float(series["value"][1]) for query in queries for series in ask(address, query)} == {0.25}
        finally:
            up.send_signal(end)
            status = up.wait(timeout=60)
    assert status == 0
    with socket.socket() as probe:  # nobody listens there any more
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert list(scratch.iterdir()) == []


@needs_prometheus
def test_a_port_that_is_taken_is_refused(live_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert prometheus.main([str(live_run), "--port", str(port)]) == 2
    assert f"--port {port}: cannot listen there" in capsys.readouterr().err


@needs_prometheus
@pytest.mark.parametrize("left", [None, "torn", '[{"targets": ["127.0.0.1:PORT"], "labels": {}}]'])
def test_a_run_that_is_over_or_was_killed_is_refused(
    left: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text("{}")
    if left is not None:
        (tmp_path / ENDPOINTS).write_text(left.replace("PORT", str(free_port())))
    assert prometheus.main([str(tmp_path)]) == 2
    assert "this run is not running" in capsys.readouterr().err


def test_where_there_is_no_prometheus_one_line_says_so(
    live_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", tempfile.gettempdir())
    assert prometheus.main([str(live_run)]) == 2
    assert "no `prometheus` here: install it" in capsys.readouterr().err
    assert prometheus.main([str(live_run / "none")]) == 2
    assert "expected a run directory" in capsys.readouterr().err


def test_the_dashboard_draws_every_figure_of_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert grafana.main([]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [panel["title"] for panel in made["panels"]] == [figure.title for figure in FIGURES]
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in made["panels"]]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in made["panels"]}) == len(FIGURES)
    known = {variable["name"] for variable in made["templating"]["list"]}
    assert known == {"source", "run"}
    assert grafana.main(["--out", str(tmp_path / "longhaul.json")]) == 0
    assert json.loads((tmp_path / "longhaul.json").read_text()) == made
    assert grafana.main(["--out", str(tmp_path / "none" / "x.json")]) == 2
