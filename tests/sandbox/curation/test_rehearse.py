"""A shell script plays the agent: its change, the verdict and the log are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox.base import Backend, Limits
from sandbox.curation.rehearse import main, rehearse
from sandbox.tasks.micro import make_tasks


async def test_a_script_plays_the_agent(namespace: Backend, tmp_path: Path) -> None:
    [task] = make_tasks(1, 0, 0, "train")
    how = {"run": "test", "cache_dir": tmp_path, "limits": Limits(), "timeout_s": 60.0}
    idle = await rehearse(namespace, task, b"echo hello; exit 3\n", **how)  # type: ignore[arg-type]
    assert (idle.script_exit, idle.script_output, idle.change) == (3, "hello\n", "")
    assert idle.verdict is not None and not idle.verdict.resolved
    gold = await rehearse(namespace, task, None, **how)  # type: ignore[arg-type]
    assert gold.verdict is not None and gold.verdict.resolved
    script = f"cat > /tmp/p <<'END'\n{gold.change}END\ngit apply /tmp/p || patch -p1 < /tmp/p\n".encode()
    played = await rehearse(namespace, task, script, **how)  # type: ignore[arg-type]
    assert played.change == gold.change, played.script_output
    assert played.verdict is not None and played.verdict.resolved


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["micro", "--task", "nobody"], "try") == 2
    assert main(["micro", "--script", str(tmp_path / "missing.sh")], "try") == 2
    said = capsys.readouterr().err.strip().split("\n")
    assert len(said) == 2
    assert "has no task 'nobody'" in said[0]
    assert "No such file" in said[1]
