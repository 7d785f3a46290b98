"""How soon does the console answer over 100,000 recorded episodes, and how long does their index take?

A made run is indexed in this process (`index_s`), then served by `longhaul console` in a process of its own and asked
over HTTP, one request at a time: `first_page_ms` (the overview), `episodes_page_ms` (pages in several orders, deep ones
too, and filters), `search_ms` (words that few and that all episodes hold), `episode_page_ms` (an episode of 131,072
tokens in 80 turns). Each is the 95th percentile. Then real runs in turn, with recording, index, pages and somebody who
looks at them, and without (`overhead.py`): `overhead_share` of the generated tokens a second is lost (medians over the
rounds), `overhead_cpu_share` more processor time goes into a token. Runs of one kind differ by more than either where
other load is on the host; `own_cpu_share` is the part of a run's processor time that its console takes, and that
writing the records takes (`accounts.py`). Last `replay_equal`: whether the last step of such a run comes out again as
it was logged.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.console.made_run import GROUP, made_episode, make_run
from benchmarks.console.overhead import measure
from benchmarks.report import parser, report
from console.run_data.index import Index
from console.run_data.metrics import Metrics
from learner.rerun.command import rerun

_LONG, _TURNS = 131_072, 80
_ORDERS = ("", "&sort=reward", "&sort=tokens&dir=up", "&sort=version", "&outcome=solved&end=context", "&min_version=20")
_SEARCHES = (
    *("FAILED", "replaced", "test_17", '"the learner"', "floors settings hostile"),
    "FAILED&outcome=solved&sort=tokens",
)


def make_long_episode(directory: Path) -> str:
    """Append an episode as long as the recipe's second stage allows. Its id."""
    rng = random.Random(7)
    episode = made_episode(0, 5, 0.0, rng) | {"episode_id": "long/0", "group_id": "long", "num_tokens": _LONG}
    opening, *turns = episode["messages"]
    text = 4 * (_LONG // _TURNS)  # characters of a turn and its answer
    episode["messages"] = [opening]
    for number in range(_TURNS):
        said, answer = dict(turns[0]), dict(turns[1])
        answer["content"] = f"\x1b[32m{number}\x1b[0m " + "a line of output <&> \n" * (text // 22)
        episode["messages"] += [said, answer]
    with (directory / "trajectories" / "long.jsonl").open("w") as file:
        file.write(json.dumps(episode) + "\n")
    return "long/0"


@contextmanager
def served(directory: Path) -> Iterator[str]:
    """The address of a console."""
    command = [sys.executable, "-m", "cluster.front_door", "console", str(directory), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        yield process.stdout.readline().strip().rstrip("/")
        process.stdin.close()
        process.wait(timeout=60)


def ask_ms(address: str, paths: list[str], rounds: int) -> float:
    """95th percentile of the time to a whole answer."""
    times = []
    for path in paths * rounds:
        began = time.perf_counter()
        with urllib.request.urlopen(address + path, timeout=60) as answer:
            answer.read()
        times.append(1000 * (time.perf_counter() - began))
    return float(np.percentile(times, 95))


def replay_equal(run_dir: Path) -> float:
    """1 when every figure of the run's last step comes out again as it was logged."""
    metrics = Metrics(run_dir / "metrics.jsonl")
    metrics.update()
    return float(rerun(run_dir, max(metrics.steps)).is_equal)


def main() -> None:
    """Make, index, serve, ask."""
    flags = parser(__doc__, "20,000 episodes")
    flags.add_argument("--save", action="store_true", help="also write benchmarks/results/console.json")
    flags.add_argument("--rounds", type=int, default=3, help="pairs of runs (default: %(default)s)")
    flags.add_argument("--steps", type=int, default=60, help="optimizer steps of each (default: %(default)s)")
    flags.add_argument("--only-pages", action="store_true", help="without the runs")
    chosen = flags.parse_args()
    num = 20_000 if chosen.quick else 100_000
    with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as made:
        directory = make_run(Path(made) / "run", num, num_steps=100)
        long = make_long_episode(directory)
        began = time.perf_counter()
        progress = Index(directory).update()
        index_s = time.perf_counter() - began
        with served(directory) as address:
            ask_ms(address, ["/", "/episodes"], 2)
            deep = [f"/episodes?page={page}{order}" for page in (1, num // 200) for order in _ORDERS]
            searches = [f"/episodes?q={words.replace(' ', '+').replace(chr(34), '%22')}" for words in _SEARCHES]
            figures: dict[str, float | None] = {
                "first_page_ms": ask_ms(address, ["/"], 20),
                "episodes_page_ms": ask_ms(address, deep, 4),
                "search_ms": ask_ms(address, searches, 4),
                "episode_page_ms": ask_ms(address, [f"/episode?id={long}"], 20),
                "group_page_ms": ask_ms(address, [f"/group?id=g{num // GROUP // 2}"], 20),
                "tasks_page_ms": ask_ms(address, ["/tasks", "/tasks?sort=solved"], 10),
            }
    figures |= {"index_s": index_s, "index_mb_s": progress.done_bytes / index_s / 1e6, "episodes": float(num)}
    print(json.dumps(figures), file=sys.stderr, flush=True)
    rounds, steps = (1, 10) if chosen.quick else (chosen.rounds, chosen.steps)
    missing: dict[str, str] = {}
    details: dict[str, object] = {}
    if chosen.only_pages:
        unmeasured = ("overhead_share", "overhead_cpu_share", "own_cpu_share", "replay_equal")
        figures |= dict.fromkeys(unmeasured)
        missing = dict.fromkeys(unmeasured, "only pages were asked for")
    else:
        with tempfile.TemporaryDirectory(prefix="longhaul-bench-") as made:
            overhead = measure(Path(made), rounds, steps)
            figures |= {"overhead_share": overhead.share, "overhead_cpu_share": overhead.cpu_share}
            figures["own_cpu_share"] = overhead.own_share
            figures["replay_equal"] = replay_equal(Path(made) / "with")
            details["rounds"] = [{"with": a._asdict(), "without": b._asdict()} for a, b in overhead.rounds]
    settings = {"episode_tokens": _LONG, "steps": 100, "rounds": rounds, "steps_of_a_run": steps}
    report("console", figures, settings, missing, details=details, save=chosen.save)


if __name__ == "__main__":
    main()
