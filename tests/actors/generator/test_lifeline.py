import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.waiting import LONG_S, lives, wait_until

ROOT = Path(__file__).parents[3]
SLEEPER = f"{sys.executable} -S -c 'import time; time.sleep(600)'"
OWNER = f"""
import subprocess, sys, time
from actors.generator.lifeline import guard_children

guard_children()
children = [subprocess.Popen({SLEEPER!r}, shell=True, start_new_session=True).pid for _ in range(2)]
print(*children, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_children_and_theirs_end_with_their_owner_however_it_ends(ending):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    children = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
    family = [*children, *(grandchild for child in children for grandchild in child.children())]
    bystander = subprocess.Popen(SLEEPER, shell=True, env=os.environ | {"LONGHAUL_STARTED_BY": "another"})
    try:
        assert len(children) == 2
        owner.send_signal(ending)
        owner.wait(LONG_S)
        wait_until(lambda: not any(map(lives, family)))
        assert bystander.poll() is None
    finally:
        for child in psutil.Process(bystander.pid).children():
            child.kill()
        bystander.kill()
        bystander.wait(LONG_S)
        owner.stdout.close()


WATCHED = "from actors.generator.lifeline import die_with_guarded; die_with_guarded(); print('there', flush=True)"
OWNER_OF_WATCHED = f"""
import subprocess, sys, time
from actors.generator.lifeline import guard_children

guard_children()
command = [sys.executable, "-c", {WATCHED!r} + "; import time; time.sleep(600)"]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_watches_for_itself_ends_even_where_the_lifeguard_was_killed_first():
    """As Ray does, which kills the children of a worker that ends, but not theirs."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER_OF_WATCHED], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert owner.stdout is not None
    child = psutil.Process(int(owner.stdout.readline()))
    try:
        guards = [p for p in psutil.Process(owner.pid).children() if any("lifeguard" in word for word in p.cmdline())]
        assert len(guards) == 1
        guards[0].kill()
        owner.kill()
        owner.wait(LONG_S)
        wait_until(lambda: not lives(child))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
        owner.stdout.close()
