import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
SLEEPER = f"{sys.executable} -S -c 'import time; time.sleep(60)'"
OWNER = f"""
import subprocess, sys, time
from actors.generator.lifeline import guard_children

guard_children()
children = [subprocess.Popen({SLEEPER!r}, shell=True, start_new_session=True).pid for _ in range(2)]
print(*children, flush=True)
time.sleep(60)
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
        owner.wait(10)
        deadline = time.monotonic() + 30
        while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family):
            assert time.monotonic() < deadline, "a child outlived its owner"
            time.sleep(0.05)
        assert bystander.poll() is None
    finally:
        for child in psutil.Process(bystander.pid).children():
            child.kill()
        bystander.kill()
        bystander.wait(10)
        owner.stdout.close()


WATCHED = "from actors.generator.lifeline import die_with_guarded; die_with_guarded(); print('there', flush=True)"
OWNER_OF_WATCHED = f"""
import subprocess, sys, time
from actors.generator.lifeline import guard_children

guard_children()
command = [sys.executable, "-c", {WATCHED!r} + "; import time; time.sleep(60)"]
child = subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
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
        owner.wait(10)
        deadline = time.monotonic() + 30
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "it outlived its owner"
            time.sleep(0.05)
    finally:
        if child.is_running():
            child.kill()
        owner.stdout.close()
