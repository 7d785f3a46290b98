import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from cluster import run_files
from protocol.config import Settings
from protocol.errors import ConfigError


@pytest.fixture
def temporary_root(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_run_leaves_only_its_directory(temporary_root):
    directory = run_files.choose_directory(Settings(run_dir=temporary_root / "run"))
    files = run_files.claim(directory)
    assert files.private.stat().st_mode & 0o077 == 0
    (files.private / "socket").touch()
    segment = Path("/dev/shm") / f"longhaul-{files.name}-weights"
    segment.write_bytes(b"x")
    (files.ray / "session_2026" / "logs").mkdir(parents=True)
    (files.ray / "session_2026" / "logs" / "raylet.out").write_text("said")
    run_files.release(files)
    assert not files.private.exists()
    assert not segment.exists()
    assert (directory / "logs" / "ray" / "raylet.out").read_text() == "said"


SEMAPHORES = """
import multiprocessing, sys, time
from pathlib import Path
from cluster import run_files

def make(context):
    global kept
    kept = context.Semaphore()

if __name__ == "__main__":
    run_files.name_semaphores(run_files.RunFiles(sys.argv[1], Path("/nowhere"), Path("/nowhere")))
    context = multiprocessing.get_context("spawn")
    make(context)
    child = context.Process(target=make, args=(context,))
    child.start()
    child.join()
    print("made", flush=True)
    time.sleep(600)
"""


def test_semaphores_of_processes_that_were_killed_go_with_the_run(tmp_path):
    """Also with Python's own process that removes them."""
    (tmp_path / "semaphores.py").write_text(SEMAPHORES)
    files = run_files.RunFiles(f"test{os.getpid():08x}", tmp_path, tmp_path / "private")
    making = subprocess.Popen(
        [sys.executable, tmp_path / "semaphores.py", files.name],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert making.stdout.readline() == b"made\n"
    trackers = psutil.Process(making.pid).children(recursive=True)
    for process in [*trackers, making]:
        process.kill()
    making.communicate()
    psutil.wait_procs(trackers, timeout=60)
    left = [path.name for path in Path("/dev/shm").iterdir() if files.name in path.name]
    assert left and all(name.startswith("sem.longhaul-") for name in left)
    run_files.reap(files)
    assert not [path for path in Path("/dev/shm").iterdir() if files.name in path.name]


def test_only_dead_runs_are_reaped(temporary_root):
    script = (
        "import os, tempfile; from pathlib import Path; from cluster import run_files\n"
        f"tempfile.tempdir = {str(temporary_root)!r}\n"
        "print(run_files.claim(Path('/nowhere')).name, flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    living = run_files.claim(temporary_root)
    (temporary_root / "longhaul-of-another-program").mkdir()
    dead = run_files.dead_runs()
    assert [files.name for files in dead] == [killed.stdout.strip()]
    run_files.reap(dead[0])
    assert not dead[0].private.exists()
    assert living.private.exists()


def test_a_directory_with_a_run_wants_resume(tmp_path):
    (tmp_path / "settings.json").touch()
    with pytest.raises(ConfigError, match="--resume auto"):
        run_files.choose_directory(Settings(run_dir=tmp_path))
    assert run_files.choose_directory(Settings(run_dir=tmp_path, resume="auto")) == tmp_path


def test_an_unwritable_directory_is_refused(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(ConfigError, match=f"--run-dir {blocked}/run cannot be written"):
        run_files.choose_directory(Settings(run_dir=blocked / "run"))


@pytest.mark.skipif(os.getuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="Permission denied"):
        run_files.choose_directory(Settings(run_dir=tmp_path / "run"))


def test_a_directory_in_which_a_run_works_is_nobody_elses(tmp_path):
    directory = run_files.choose_directory(Settings(run_dir=tmp_path / "run"))
    (directory / "settings.json").touch()
    again = Settings(run_dir=directory, resume="auto")
    with run_files.sole_use(directory):
        in_use = rf"--run-dir {directory} is in use by process {os.getpid()} on \S+: wait for that run to end"
        with pytest.raises(ConfigError, match=in_use), run_files.sole_use(run_files.choose_directory(again)):
            pass
        with pytest.raises(ConfigError, match=in_use):
            run_files.choose_directory(Settings(run_dir=directory))
    with run_files.sole_use(run_files.choose_directory(again)):
        pass
    with pytest.raises(ConfigError, match="already holds a run"):
        run_files.choose_directory(Settings(run_dir=directory))


def test_a_killed_launcher_holds_nothing(tmp_path):
    script = (
        f"import os; from pathlib import Path; from cluster import run_files\n"
        f"with run_files.sole_use(Path({str(tmp_path)!r})):\n"
        "    print('held', flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert killed.stdout.strip() == "held", killed.stderr
    with run_files.sole_use(tmp_path):
        pass


def test_runs_that_start_in_the_same_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directories = {run_files.choose_directory(Settings()) for _ in range(4)}
    assert len(directories) == 4 and all((directory / "logs").is_dir() for directory in directories)
