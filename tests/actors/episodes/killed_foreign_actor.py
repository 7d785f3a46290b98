"""A sandbox actor whose agent comes from outside, to be killed; arguments as of `killed_actor.py`.

KIND is a backend, with `-stream` behind it for an agent that wants its answers as streams. Where there is a file
`die-ENTRY-N`, the process kills itself once the N-th entry of that name is in the journal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from actors.agent.chat import ChatTokenizer
from actors.agent.journal import Entry
from actors.episodes import episode_journal
from actors.episodes.sandbox_actor import SandboxActor
from actors.gateway import server
from protocol.config import Settings
from sandbox.base import Backend
from sandbox.keeper.containers import KeptDockerBackend
from sandbox.keeper.kept import KeptBackend
from sandbox.tasks.task import Task
from tests.actors.episodes.killed_actor import TASKS, Waiting, fix_of

AGENT = """
import json, os, subprocess, sys, urllib.request
def note(name, text):
    open("/tmp/" + name, "a").write(text + chr(10))
messages = [{"role": "user", "content": open(os.environ["LONGHAUL_ISSUE"]).read()}]
is_stream = sys.argv[1] == "stream"
def ask():
    body = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "stream": is_stream}
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:  # once: it knows of no second try
        if not is_stream:
            return json.load(response)["choices"][0]["message"]["content"]
        lines = response.read().decode().splitlines()
    events = [line[6:] for line in lines if line.startswith("data: ")]
    assert events.pop() == "[DONE]"
    assert all(not line or line.startswith(("data: ", ":")) for line in lines), lines
    choices = [each for event in events for each in json.loads(event)["choices"]]
    return "".join(each["delta"].get("content") or "" for each in choices)
try:
    while True:
        note("pids", str(os.getpid()))
        text = ask()
        command = text.split("```command\\n")[1].split("\\n```")[0]
        if command == "submit":
            break
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": done.stdout + done.stderr}]
except BaseException as error:
    note("errors", repr(error))
    raise
"""


def turns_of(task: Task) -> list[str]:
    """Commands that each leave a trace when they are run, then the solution, then what was seen on the way."""
    path, old, new = fix_of(task)
    commands = [
        "echo one >> /tmp/trace",
        "echo two >> /tmp/trace; while [ -e /tmp/hold ]; do sleep 0.1; done",
        f"python3 -c \"p = '{path}'; s = open(p).read(); open(p, 'w').write(s.replace('''{old}''', '''{new}'''))\"",
        "echo trace $(cat /tmp/trace) pids $(cat /tmp/pids) errors $(cat /tmp/errors 2> /dev/null) end",
        "submit",
    ]
    return [f"```command\n{command}\n```" for command in commands]


class DyingJournal(episode_journal.EpisodeJournal):
    """Kills its process right behind an entry."""

    run_dir = Path()
    num_of: Counter[str] = Counter()  # noqa: RUF012  (of the process)

    def add(self, entry: Entry) -> None:
        """See `EpisodeJournal.add`."""
        super().add(entry)
        name = type(entry).__name__
        self.num_of[name] += 1
        order = self.run_dir / f"die-{name}-{self.num_of[name]}"
        if order.exists():
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    """Until there are no more leases."""
    endpoint, run_dir, run, cache, tokenizer_dir, kind = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    tokenizer = ChatTokenizer.load(Path(tokenizer_dir))
    folder = run_dir / "agent"
    folder.mkdir(exist_ok=True)
    (folder / "agent.py").write_text(AGENT)
    backend_name, _, form = kind.partition("-")
    settings = Settings.model_validate(
        {
            "tasks": {"cache_dir": cache},
            "actors": {"heartbeat_s": 0.2, "trajectory_log_share": 1.0},
            "episode": {"max_turn_tokens": 400, "max_turns": 12},
            "agent": {
                "harness": "command",
                "command": f"exec python3 /opt/agent/agent.py {form or 'whole'}",
                "binds": [f"{folder}:/opt/agent"],
            },
        }
    )
    server.KEEP_ALIVE_S = 0.05
    DyingJournal.run_dir = run_dir
    episode_journal.EpisodeJournal = DyingJournal  # type: ignore[misc]
    from actors.episodes import sandbox_actor

    sandbox_actor.EpisodeJournal = DyingJournal  # type: ignore[misc, attr-defined]
    task = next(iter(TASKS.values()))
    kept = KeptBackend(run, "actor-0", run_dir / "keeper.log")
    backend: Backend = KeptDockerBackend(run, kept) if backend_name == "docker" else kept
    await backend.probe()
    policy = Waiting(tokenizer, run_dir, turns_of(task))
    actor = SandboxActor(settings, "actor-0", 4, endpoint, policy, backend, TASKS, tokenizer, None, run_dir, run=run)
    await actor.start()
    (run_dir / "began").write_text(str(time.time()))
    try:
        await actor.run()
        (run_dir / "continued").write_text(str(actor.status()["episodes_continued"]))
    finally:
        await backend.close()


if __name__ == "__main__":
    asyncio.run(main())
