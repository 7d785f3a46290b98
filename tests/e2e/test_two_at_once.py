"""Two runs on one machine at the same moment: each works and leaves nothing. In one directory the second is refused.

They are evaluations of an endpoint that is made here, so that nothing is computed: what they share is Ray, sandboxes,
sockets, caches and the tasks' trees.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import run_files

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


class _Endpoint(http.server.BaseHTTPRequestHandler):
    """Every answer is that nothing is to be done, once it may answer."""

    may_answer: threading.Event

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.may_answer.wait(200)
        message = {"role": "assistant", "content": "Done.\n```command\nsubmit\n```\n"}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = json.dumps(
            {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[tuple[str, threading.Event]]:
    handler = type("Handler", (_Endpoint,), {"may_answer": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", handler.may_answer  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def start(run_dir: Path, url: str, *more: object) -> subprocess.Popen[str]:
    flags = {
        "--phase": "eval",
        "--run-dir": run_dir,
        "--eval.endpoint": url,
        "--eval.model": "m",
        "--eval.runs": 2,
        "--tasks.count": 3,
        "--num-actors": 4,
        "--network.dashboard-port": 0,
        "--sandbox.backend": "namespace",
    }
    words = [str(word) for pair in flags.items() for word in pair]
    return subprocess.Popen(
        [sys.executable, "launch.py", "--no-console.serve", *words, *map(str, more)],
        cwd=ROOT,
        env=os.environ | {"OPENAI_API_KEY": "none"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def private_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("longhaul-" + "[0-9a-f]" * 8))


def test_each_works_and_a_second_in_the_same_directory_is_refused(
    tmp_path: Path, endpoint: tuple[str, threading.Event]
) -> None:
    url, may_answer = endpoint
    before = private_directories()
    runs = [start(tmp_path / name, url) for name in ("a", "b")]
    try:
        lock, deadline = tmp_path / "a" / "lock", time.monotonic() + 250
        while not (lock.exists() and str(runs[0].pid) in lock.read_text()):  # the first of the three is to be the first
            assert runs[0].poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        again = [start(tmp_path / "a", url, *resume) for resume in ((), ("--resume", "auto"))]
        for third in again:
            said = third.communicate(timeout=250)[1]
            assert third.returncode == 2, said
            assert len(said.strip().splitlines()) == 1
            assert f"{tmp_path}/a is in use by process {runs[0].pid} on" in said
        may_answer.set()
        for name, process in zip(("a", "b"), runs, strict=True):
            shown, said = process.communicate(timeout=250)
            assert process.returncode == 0, shown + said
            written = json.loads((tmp_path / name / "evaluation.json").read_text())
            assert (written["num_tasks"], written["num_attempts"], written["not_scored"]) == (3, 6, {})
    finally:
        may_answer.set()
        for process in runs:
            if process.poll() is None:
                process.terminate()
            if process.stdout and not process.stdout.closed:
                process.communicate(timeout=60)
    mine = private_directories() - before
    assert not [path for path in mine if not run_files.owner_lives(path)], "somebody else's run may have begun"
