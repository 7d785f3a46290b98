"""`longhaul agents try`: every request of one episode is shown, and what became of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.front_door.main import main

ASK = (
    "import json, os, urllib.request as r; "
    "q = r.Request(os.environ['OPENAI_BASE_URL'] + '/chat/completions', json.dumps({'messages': [{'role': 'user', "
    "'content': 'hi'}], 'n': int(os.environ['N'])}).encode(), {'Authorization': 'Bearer ' + "
    "os.environ['OPENAI_API_KEY']}); r.urlopen(q)"
)


def test_an_episode_is_shown_request_by_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(["hello there"]))
    flags = ["agents", "try", "command", "--answers", str(answers), "--sandbox.backend", "unisolated-for-debugging"]
    flags += ["--tasks.cache-dir", str(tmp_path / "cache")]
    assert main([*flags, "--agent.command", f'N=2 python3 -c "{ASK}"; N=1 python3 -c "{ASK}"']) == 0
    said = capsys.readouterr().out
    assert "#1 /v1/chat/completions 400" in said and "one answer is sampled" in said
    assert "#2 /v1/chat/completions 200" in said and "says: hello there" in said
    assert "ended: submitted after 1 turns; resolved: False" in said and "drift: none" in said


def test_what_cannot_be_tried_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "answers.json"
    answers.write_text("{}")
    flags = ["--answers", str(answers), "--sandbox.backend", "unisolated-for-debugging"]
    assert main(["agents", "try", "command", "--agent.command", "true", *flags]) == 2
    answers.write_text("[]")
    assert main(["agents", "try", "command", *flags]) == 2
    flags += ["--tasks.cache-dir", str(tmp_path / "cache")]
    assert main(["agents", "try", "command", "--agent.command", "echo broken; exit 4", *flags]) == 1
    said = capsys.readouterr().err
    assert "expected a JSON list of texts" in said and "say in agent.command what to run" in said
    assert "agent.no_turn" in said and "status 4" in said and "broken" in said
