"""What all parts of the benchmark stand on: a tokenizer with tools, tasks, scripted answers, one runner of episodes."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_runner import EpisodeRunner
from actors.gateway.server import Exchange
from actors.policies.scripted import Script
from actors.policy import Policy
from protocol.config import Settings
from protocol.messages import Lease, Sampling
from sandbox.backends import open_backend
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task

MAX_CONTEXT = 400_000
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}
{%- for c in m.tool_calls or [] %}<tool_call>
{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
TASKS: dict[str, Task] = {task.task_id: task for task in make_tasks(64, seed=5, difficulty=0, split="train")}
THIN = """
import json, os, subprocess, urllib.request
messages = [{"role": "user", "content": open(os.environ["LONGHAUL_ISSUE"]).read()}]
while True:
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    text = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
    if "submit" in text:
        break
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "ok"}]
"""
SHELL: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mini-swe-agent": ("bash", "command", {}),
    "qwen-code": ("run_shell_command", "command", {"is_background": False}),
    "opencode": ("bash", "command", {"description": "edit"}),
    "claude-code": ("Bash", "command", {"description": "edit"}),
    "codex": ("exec_command", "cmd", {}),
}
"""Each released agent's tool for commands, its argument, and what else it wants."""


def tools_tokenizer(model_dir: Path) -> ChatTokenizer:
    """The tokenizer of a model directory under a template that carries tool calls."""
    return ChatTokenizer.load(model_dir).with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])


def solving(name: str) -> Script:
    """Answers with which a released agent solves the task that it was given: one command, then the end."""
    tool, argument, more = SHELL[name]

    def call(command: str) -> str:
        return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': {argument: command} | more})}\n</tool_call>"

    def script(episode_id: str, history: str, turn: int) -> str:
        if f'"name": "{tool}"' not in history:
            return "A small mistake"  # a title, asked without tools
        if f'<tool_call>\n{{"name": "{tool}"' not in history:
            task = next(task for task in TASKS.values() if task.issue.strip() in history)
            return call(_fix(task))
        return call("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT") if name == "mini-swe-agent" else "Done."

    return script


def _fix(task: Task) -> str:
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    return f"python3 -c \"p = '{path}'; s = open(p).read(); open(p, 'w').write(s.replace('''{old}''', '''{new}'''))\""


def settings_of(agent: dict[str, Any], **sections: Any) -> Settings:
    """Settings of one part."""
    return Settings.model_validate({"agent": agent, "model": {"max_context": MAX_CONTEXT}, **sections})


@contextlib.asynccontextmanager
async def open_runner(
    settings: Settings, policy: Policy, tokenizer: ChatTokenizer, on_exchange: Callable[[Exchange], None]
) -> AsyncIterator[EpisodeRunner]:
    """A runner of episodes in namespace sandboxes."""
    backend = await open_backend(settings.sandbox, "bench-gateway")
    try:
        runner = EpisodeRunner(settings, policy, backend, TASKS, tokenizer, Board(), "bench-gateway", on_exchange)
        await runner.start()
        try:
            yield runner
        finally:
            await runner.stop()
    finally:
        await backend.close()


def lease_of(number: int, settings: Settings, task_id: str | None = None) -> Lease:
    """A lease of its own episode."""
    return Lease(
        lease_id=f"bench-{number}",
        episode_id=f"bench/{number}",
        task_id=task_id or list(TASKS)[number % len(TASKS)],
        group_id="bench",
        member=number,
        attempt=0,
        version=0,
        deadline_at=0.0,
        sampling=Sampling(max_tokens=settings.episode.max_turn_tokens),
        max_turns=settings.episode.max_turns,
        max_context=settings.model.max_context,
    )


def thin_agent() -> tuple[tempfile.TemporaryDirectory[str], dict[str, Any]]:
    """A directory with an agent of a dozen lines, and the settings that run it."""
    directory = tempfile.TemporaryDirectory(prefix="bench-agent-")
    path = Path(directory.name)
    path.chmod(0o755)
    (path / "agent.py").write_text(THIN)
    agent = {"harness": "command", "command": "exec python3 -S /opt/agent/agent.py", "binds": [f"{path}:/opt/agent"]}
    return directory, agent


def size_of(exchange: Exchange) -> int:
    """Bytes of a request, for a table."""
    return len(msgspec.json.encode(exchange.path)) + len(exchange.body)
