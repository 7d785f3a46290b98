"""Each mistake ends at once, before anything is started, with one clear line and exit status 2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tiny.model import save_random_model

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"))


def launch(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "launch.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        env=os.environ | environment,
    )


def assert_refused(done, *texts):
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    for text in texts:
        assert text in lines[0]


def test_an_unknown_setting():
    assert_refused(launch("--num-actor", 4), "--num-actors")


def test_a_negative_count():
    assert_refused(launch("--num-actors", -4), "greater than 0")


def test_a_model_that_does_not_exist(tmp_path):
    done = launch("--model.path", tmp_path / "none", "--run-dir", tmp_path / "run")
    assert_refused(done, "--model.path", "no such directory")


def test_a_directory_that_is_no_model(tmp_path):
    assert_refused(launch("--model.path", tmp_path, "--run-dir", tmp_path / "run"), "config.json")


def test_a_context_beyond_the_model(tmp_path, model):
    done = launch("--model.path", model, "--model.max-context", 99999, "--run-dir", tmp_path / "run")
    assert_refused(done, "max_context is 99999", "4096")


@pytest.mark.parametrize("flag", ["--model.path", "--tasks.source"])
@pytest.mark.parametrize(("url", "words"), [("memory://none/x", "nothing is there"), ("no://x", "Protocol not known")])
def test_a_url_with_nothing_behind_it(tmp_path, flag, url, words):
    done = launch(flag, url, "--tasks.cache-dir", tmp_path / "cache", "--run-dir", tmp_path / "run")
    assert_refused(done, f"{flag} {url}", words)
    assert not (tmp_path / "run").exists()


def test_docker_without_a_daemon(tmp_path, model):
    done = launch(
        *("--sandbox.backend", "docker", "--sandbox.docker-hosts", f"unix://{tmp_path}/none.sock"),
        *("--model.path", model, "--run-dir", tmp_path / "run", "--network.dashboard-port", 0),
    )
    assert_refused(done, "docker")


def test_a_port_that_is_taken(tmp_path, model):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = launch("--network.dashboard-port", port, "--model.path", model, "--run-dir", tmp_path / "run")
    assert_refused(done, f"--network.dashboard-port {port} is taken")


def test_a_task_file_with_a_missing_field(tmp_path, model):
    file = tmp_path / "tasks.jsonl"
    file.write_text(
        json.dumps({"instance_id": "a__b-1", "repo": "a/b", "FAIL_TO_PASS": "[]", "PASS_TO_PASS": "[]"}) + "\n"
    )
    done = launch(
        *("--tasks.source", file, "--tasks.format", "swe-bench", "--model.path", model),
        *("--run-dir", tmp_path / "run", "--network.dashboard-port", 0),
    )
    assert_refused(done, "tasks.jsonl", "a__b-1", "problem_statement: expected text")


def test_an_unwritable_run_directory(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    assert_refused(launch("--run-dir", blocked / "run"), "cannot be written")


def test_too_little_memory(tmp_path, model):
    done = launch(
        *("--generator.count", 10_000, "--model.path", model, "--run-dir", tmp_path / "run"),
        *("--network.dashboard-port", 0),
    )
    assert_refused(done, "too little memory", "--generator.count")


def test_a_dry_run_prints_the_resolved_settings_and_starts_nothing(tmp_path):
    done = launch("--dry-run", "--learner.lr", "1e-6", "--run-dir", tmp_path / "run")
    assert done.returncode == 0
    assert json.loads(done.stdout)["learner"]["lr"] == 1e-6
    assert not (tmp_path / "run").exists()
