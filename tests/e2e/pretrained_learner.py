"""Learner ranks for tests/e2e/test_pretrained.py: `python pretrained_learner.py JOB.json` forks one run after another.

Importing torch, transformers and DeepSpeed takes longer than a step, so it happens once. A job is a list of runs,
{"name", "settings", "replay", "weights"}; what became of each is in `NAME/outcome.json` beside the job. A run whose
directory holds a file `stop` ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from learner.rank import LearnerRank
from learner.training.model import import_deepspeed
from protocol.config import Settings
from tests.ports import free_port


def run(job: dict[str, Any], folder: Path) -> None:
    """One rank, until it is done or told to stop."""
    settings = Settings.model_validate(job["settings"])
    folder.mkdir()
    torch.set_num_threads(settings.learner.threads)
    learner = LearnerRank(
        settings, 0, 1, "127.0.0.1", free_port(), job["replay"], job["weights"], folder, run=f"pretrained-{os.getpid()}"
    )
    learner.start()

    def watch() -> None:
        while not (folder / "stop").exists():
            time.sleep(0.05)
        learner.stop()

    threading.Thread(target=watch, daemon=True).start()
    learner.run()
    outcome = {"records": learner.pop_records(), "bound": learner._bound, "proved": learner._sampling_difference}
    (folder / "outcome.part").write_text(json.dumps(outcome))
    (folder / "outcome.part").rename(folder / "outcome.json")


def main() -> int:
    """Status 1 if any run failed."""
    path, failed = Path(sys.argv[1]), 0
    import_deepspeed()
    for job in json.loads(path.read_text()):
        if (pid := os.fork()) == 0:
            status = 1
            try:
                run(job, path.parent / job["name"])
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        failed |= os.waitpid(pid, 0)[1]
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
