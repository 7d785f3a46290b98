import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys
from actors.generator.stderr_tail import StderrTail

tail = StderrTail()
print("before", file=sys.stderr, flush=True)
child = "raise ValueError('the child says so')"
subprocess.run([sys.executable, "-c", child])
print("(EngineCore pid=1) ERROR 11-22 [core.py:1] RuntimeError: the last one", file=sys.stderr, flush=True)
print("and nothing more", file=sys.stderr, flush=True)
tail.close()
print("after", file=sys.stderr, flush=True)
print(tail.last_error())
"""
LATE = "import threading\nthreading.Thread.start = lambda thread: None\n"


@pytest.mark.parametrize("thread", ["", LATE], ids=["there", "never comes to it"])
def test_what_children_say_is_kept_and_passed_on(thread):
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-c", thread + PROGRAM], capture_output=True, text=True, timeout=120, cwd=root
    )
    assert ran.stdout.strip() == "RuntimeError: the last one"
    for line in ("before", "ValueError: the child says so", "and nothing more", "after"):
        assert line in ran.stderr
