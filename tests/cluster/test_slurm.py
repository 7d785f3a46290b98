"""The batch script, with stand-ins for Slurm, Ray and Longhaul that note how they were called."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.security import certificates
from tests.waiting import wait_until

SCRIPT = Path(__file__).parent.parent.parent / "configs" / "slurm" / "longhaul.sbatch"
NOTE = '#!/usr/bin/env bash\necho "$(basename "$0") $*" >>"$NOTES"\n'
SRUN = """
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo "10.0.0.7 fe80::7"; else exec "$@"; fi
"""
LONGHAUL = f"""#!/usr/bin/env bash
[[ $2 != credentials ]] || PYTHONPATH={SCRIPT.parents[2]} exec {sys.executable} -m cluster.front_door "$@"
"""
LONGHAUL += """
trap 'echo "longhaul told" >>"$NOTES"; exit 143' TERM
echo "longhaul $*" >>"$NOTES"
if [[ $HOLD ]]; then sleep 60 & wait; fi
"""
STAND_INS = {
    "scontrol": NOTE + '[[ $1 != show ]] || printf "node7\\nnode8\\nnode9\\n"',
    "srun": NOTE + SRUN,
    "ray": '#!/usr/bin/env bash\necho "ray $* TLS=$RAY_USE_TLS token=$(cat "$RAY_AUTH_TOKEN_PATH")" >>"$NOTES"\n',
    "python3": "#!/usr/bin/env bash\necho ${NODES_UP:-3}",
    "longhaul": LONGHAUL,
}


@pytest.fixture
def start(tmp_path):
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o755)
    notes = tmp_path / "notes"

    def start(*flags, **more):
        notes.unlink(missing_ok=True)
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "NOTES": str(notes),
            "HOLD": "",
            "SLURM_JOB_NODELIST": "node[7-9]",
            "SLURM_JOB_NUM_NODES": "3",
            "SLURM_JOB_ID": "42",
        }
        return subprocess.Popen(
            ["bash", str(SCRIPT), str(tmp_path / "run"), *flags],
            env=environment | more,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    start.lines = lambda: notes.read_text().splitlines() if notes.exists() else []
    start.run_dir = tmp_path / "run"
    if shutil.which("sha256sum") is None:
        pytest.skip("no coreutils")
    return start


def longhaul(lines):
    (line,) = [line for line in lines if line.startswith("longhaul run")]
    return line


def test_ray_is_started_on_every_node_and_the_run_joins_it(start):
    job = start("--steps", "7")
    assert job.wait(timeout=60) == 0, job.stderr.read()
    job.stderr.close()
    wait_until(lambda: sum(line.startswith("ray ") for line in start.lines()) == 2)  # nobody waits for a host's Ray
    lines = start.lines()
    where = "--ray-address 10.0.0.7:6379 --network.bind 0.0.0.0"
    assert longhaul(lines) == f"longhaul run --run-dir {start.run_dir} {where} --steps 7"
    assert any("--nodelist=node7" in line and "ray start --head" in line for line in lines)
    assert any("--nodes=2" in line and "--exclude=node7" in line and "10.0.0.7:6379" in line for line in lines)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (start.run_dir / ".ray").iterdir())
    assert certificates.names_of((start.run_dir / ".ray" / "host.pem").read_bytes())[0] == "10.0.0.7"
    token = (start.run_dir / ".ray" / "token").read_text().strip()
    assert {line.partition(" TLS=")[2] for line in lines if line.startswith("ray ")} == {f"1 token={token}"}
    assert not any("requeue" in line for line in lines)


def test_a_requeued_job_goes_on_from_its_checkpoint(start):
    start.run_dir.mkdir()
    (start.run_dir / "settings.json").touch()
    job = start()
    assert job.wait(timeout=60) == 0
    job.stderr.close()
    assert f"--run-dir {start.run_dir} --resume auto" in longhaul(start.lines())


def test_a_job_whose_time_is_over_lets_the_run_save_and_goes_back_into_the_queue(start):
    job = start(HOLD="yes")
    wait_until(lambda: any(line.startswith("longhaul run") for line in start.lines()))
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) == 143
    with contextlib.suppress(ProcessLookupError):  # told before its `sleep`, it leaves none
        os.killpg(job.pid, signal.SIGKILL)  # what `sleep` holds on to
    job.stderr.close()
    own = [line for line in start.lines() if not line.startswith("ray ")]  # Ray comes up on the others meanwhile
    assert own[-2:] == ["longhaul told", "scontrol requeue 42"]


def test_nodes_that_do_not_come_end_the_job_with_a_sentence(start):
    job = start(NODES_UP="2", RAY_START_S="1")
    assert job.wait(timeout=60) == 1
    assert "Ray was not up on all 3 nodes within 1 s" in job.stderr.read()
    job.stderr.close()
    assert not any(line.startswith("longhaul run") for line in start.lines())
