"""Agents from outside play episodes under a lease: a program in the sandbox, a function in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from actors.agent.chat import ChatTokenizer
from actors.episodes.board import Board
from actors.episodes.episode_runner import Attempt, EpisodeRunner
from actors.gateway.reading import HermesReader, Reading
from actors.harnesses import python_function
from actors.harnesses.foreign import ForeignAgent
from actors.harnesses.harness import ISSUE
from actors.harnesses.npm_agent import ISSUE_ARGUMENT
from actors.harnesses.playing import MOST_ARGUMENT, asked, told
from actors.policies.scripted import ScriptedPolicy, replay
from actors.policy import Policy, Request, Sampled
from learner.replay.submission import check_trajectory
from protocol.config import Settings
from protocol.errors import AgentError, ConfigError, GeneratorError, SandboxError
from sandbox.base import Backend
from sandbox.docker.backend import DockerBackend
from sandbox.fake import FakeBackend
from sandbox.namespace.backend import NamespaceBackend
from sandbox.tasks.micro import make_tasks
from sandbox.tasks.task import Task
from tests.actors.episodes.scripted_replay import make_lease
from tests.actors.gateway.history import TEMPLATE
from tests.waiting import LONG_S, until

TASKS = {task.task_id: task for task in make_tasks(2, seed=1, difficulty=0, split="train")}
TASK = next(iter(TASKS.values()))
AGENT = """
import json, os, subprocess, urllib.request
messages = [{"role": "user", "content": open(os.environ["LONGHAUL_ISSUE"]).read()}]
while True:
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    text = json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"]
    command = text.split("```command\\n")[1].split("\\n```")[0]
    if command == "submit":
        break
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": done.stdout + done.stderr}]
"""


def solution(task: Task) -> list[str]:
    """Turns of an agent that knows the answer."""
    path = next(line[6:] for line in task.gold_patch.splitlines() if line.startswith("+++ b/"))
    old, new = (
        next(line[1:] for line in task.gold_patch.splitlines() if line[0] == sign and line[:3] != 3 * sign)
        for sign in "-+"
    )
    edit = f"python3 -c \"p = '{path}'; s = open(p).read(); open(p, 'w').write(s.replace('''{old}''', '''{new}'''))\""
    return [f"```command\n{command}\n```" for command in ("ls; pwd", edit, "submit")]


@contextlib.asynccontextmanager
async def open_runner(
    tmp_path: Path,
    tokenizer: ChatTokenizer,
    backend: Backend,
    policy: Policy,
    agent: dict[str, Any],
    tasks: dict[str, Task] = TASKS,
    **episode: Any,
) -> AsyncIterator[EpisodeRunner]:
    settings = Settings.model_validate(
        {
            "tasks": {"cache_dir": tmp_path / "cache"},
            "agent": {"grace_s": 0.5, **agent},
            "episode": {"max_turn_tokens": 400, "wall_time_s": 200, **episode},
        }
    )
    if not (await backend.probe()).available:
        await backend.close()
        pytest.skip(f"no {backend.name} sandboxes here")
    runner = EpisodeRunner(settings, policy, backend, tasks, tokenizer, Board(), "harness-test")
    await runner.start()
    try:
        yield runner
    finally:
        await runner.stop()
        await backend.close()


def agent_files(tmp_path: Path, script: str = AGENT) -> dict[str, Any]:
    folder = tmp_path / "agent"
    folder.mkdir(exist_ok=True)
    (folder / "agent.py").write_text(script)
    folder.chmod(0o755)
    tmp_path.chmod(0o755)
    return {"harness": "command", "command": "python3 /opt/agent/agent.py", "binds": [f"{folder}:/opt/agent"]}


def check_tokens(attempt: Attempt, tokenizer: ChatTokenizer, texts: list[str]) -> None:
    """Trained is sampled, once; and the history reads as the conversation was."""
    trajectory = attempt.trajectory
    sampled = trajectory.token_ids[trajectory.loss_mask == 1]
    stop = tokenizer.stop_token_ids[0]
    expected = [np.append(tokenizer.encode(text), stop) for text in texts]
    assert sampled.tolist() == np.concatenate(expected).tolist()
    assert [step.text for step in attempt.steps] == texts
    assert len(trajectory.turns) == len(texts)
    for turn, ids in zip(trajectory.turns, expected, strict=True):
        assert trajectory.token_ids[turn.start : turn.end].tolist() == ids.tolist()


BACKENDS = [
    pytest.param(NamespaceBackend, id="namespace"),
    pytest.param(DockerBackend, id="docker", marks=pytest.mark.docker),
]


@pytest.mark.parametrize("kind", BACKENDS)
async def test_a_program_in_the_sandbox_solves_a_task_and_every_token_counts_once(
    kind: Any, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    texts = solution(TASK)
    policy = ScriptedPolicy(tokenizer, replay(texts), version=7)
    async with open_runner(tmp_path, tokenizer, kind("harness-test"), policy, agent_files(tmp_path)) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id, version=7))
        status = runner.status()
    trajectory = attempt.trajectory
    assert trajectory.resolved and trajectory.end_reason == "submitted" and not trajectory.overlong
    check_tokens(attempt, tokenizer, texts)
    assert set(trajectory.versions[trajectory.loss_mask == 1].tolist()) == {7}
    text = tokenizer.decode(trajectory.token_ids)
    assert text.count(TASK.issue.strip()) == 1 and "/testbed" in text  # a straight history, with what `pwd` said
    assert status["gateway_requests"] == 3 and status["gateway_seats"] == 0


async def test_limits_end_the_agent_and_its_work_is_judged_as_it_stands(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    texts = [*solution(TASK)[:2], *["```command\nls\n```"] * 20]
    stubborn = AGENT.replace("while True:", "while True:\n  try:").replace("\n    ", "\n      ")
    stubborn += "  except Exception: import time; time.sleep(1)\n"
    policy = ScriptedPolicy(tokenizer, replay(texts))
    files = agent_files(tmp_path, stubborn)
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, files) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id, max_turns=3))
        assert attempt.trajectory.end_reason == "max_turns" and attempt.trajectory.overlong
        assert attempt.trajectory.resolved and len(attempt.steps) == 3


async def test_children_that_an_agent_leaves_behind_are_ended(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    command = "(while true; do date > late.txt; sleep 0.05; done) > /dev/null 2>&1 & disown"
    texts = [f"```command\nsetsid bash -c '{command}'\n```", "```command\nsubmit\n```"]
    policy = ScriptedPolicy(tokenizer, replay(texts))
    async with open_runner(
        tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, agent_files(tmp_path)
    ) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id))
        assert attempt.trajectory.end_reason == "submitted" and not attempt.trajectory.resolved


class Failing:
    """A policy whose engine is gone after so many turns."""

    def __init__(self, inner: ScriptedPolicy, num_turns: int) -> None:
        self.inner, self.num_turns = inner, num_turns

    async def generate(self, request: Request) -> Sampled:
        if not self.num_turns:
            raise GeneratorError("no engine answers", kind="lost")
        self.num_turns -= 1
        return await self.inner.generate(request)

    async def close(self) -> None:
        """Nothing to drop."""


async def test_failures_that_are_not_the_policy_s_are_typed_and_no_reward(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    def backend() -> FakeBackend:
        return FakeBackend("harness-test")

    policy = ScriptedPolicy(tokenizer, replay(solution(TASK)))
    files = agent_files(tmp_path)
    lease = make_lease(0, TASK.task_id)
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), Failing(policy, 1), files) as runner:
        with pytest.raises(GeneratorError, match="no engine"):
            await runner.run(lease)
    broken = {"harness": "command", "command": "echo cannot start; exit 3"}
    async with open_runner(tmp_path, tokenizer, backend(), policy, broken) as runner:
        with pytest.raises(AgentError, match=r"status 3 .* cannot start") as caught:
            await runner.run(lease)
        assert caught.value.label == "agent.no_turn"
    dying = {"harness": "command", "command": "kill -9 $PPID; sleep 20"}
    async with open_runner(tmp_path, tokenizer, backend(), policy, dying) as runner:
        with pytest.raises(SandboxError):
            await runner.run(lease)


async def test_a_function_in_this_process_plays_with_the_company_s_client(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    module = tmp_path / "mine.py"
    module.write_text(
        """
async def solve(issue, client, sandbox):
    messages = [{"role": "user", "content": issue}]
    while True:
        answer = await client.chat.completions.create(model="longhaul", messages=messages)
        text = answer.choices[0].message.content
        command = text.split("```command\\n")[1].split("\\n```")[0]
        if command == "submit":
            return
        done = await sandbox.exec(command, timeout=20)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": done.text}]

async def raises(issue, client, sandbox):
    await client.chat.completions.create(model="longhaul", messages=[{"role": "user", "content": issue}])
    raise RuntimeError("a bug of the agent's")

async def idle(issue, client, sandbox):
    pass

def plain(issue, client, sandbox):
    pass
"""
    )
    texts = solution(TASK)
    lease = make_lease(0, TASK.task_id)

    def opened(name: str) -> Any:
        policy = ScriptedPolicy(tokenizer, replay(texts))
        agent = {"harness": "python", "function": f"{module}:{name}"}
        return open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, agent)

    async with opened("solve") as runner:
        attempt = await runner.run(lease)
        assert attempt.trajectory.resolved
        check_tokens(attempt, tokenizer, texts)
    async with opened("raises") as runner:
        attempt = await runner.run(lease)
        assert not attempt.trajectory.resolved and len(attempt.steps) == 1
    async with opened("idle") as runner:
        with pytest.raises(AgentError, match="without a single turn"):
            await runner.run(lease)
    for name in ("plain", "missing"):
        with pytest.raises(ConfigError, match="async def"):
            async with opened(name):
                pass


async def test_an_agent_that_needs_tools_is_refused_where_the_template_has_none(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    policy = ScriptedPolicy(tokenizer, replay([]))
    with pytest.raises(ConfigError, match="mini-swe-agent works by tool calls, but the chat template"):
        async with open_runner(tmp_path, tokenizer, FakeBackend("harness-test"), policy, {"harness": "mini-swe-agent"}):
            pass


async def test_many_episodes_at_once_keep_to_their_own_keys(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    texts = solution(TASK)
    policy = ScriptedPolicy(tokenizer, replay(texts), latency_s=0.05)
    files = agent_files(tmp_path)
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, files) as runner:
        attempts = await asyncio.gather(*(runner.run(make_lease(i, TASK.task_id)) for i in range(4)))
    for attempt in attempts:
        assert attempt.trajectory.resolved
        check_tokens(attempt, tokenizer, texts)


async def test_thirty_lines_around_the_openai_package_play_in_the_sandbox(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    import openai

    root = Path(__file__).parents[3]
    site = str(Path(openai.__file__).parents[1])
    path = next(line[6:] for line in TASK.gold_patch.splitlines() if line.startswith("+++ b/"))
    new = next(line[1:] for line in TASK.gold_patch.splitlines() if line[0] == "+" and line[:3] != "+++")
    commands = ["search_dir def", f"open {path}", "open missing.py", f"edit {path} 2:2\n{new}", "submit"]
    texts = [f"```command\n{command}\n```" for command in commands]
    agent = {
        "harness": "command",
        "command": "PYTHONPATH=/opt/site exec python3 /opt/agent/thirty_lines.py",
        "binds": [f"{root}/configs/agents:/opt/agent", f"{site}:/opt/site"],
    }
    policy = ScriptedPolicy(tokenizer, replay(texts))
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, agent) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id))
    check_tokens(attempt, tokenizer, texts)
    said = tokenizer.decode(attempt.trajectory.token_ids)
    assert f"[{path}: lines 1-" in said and f"[{path}: changed, lines 2-2 of" in said and "FileNotFoundError" in said
    assert attempt.trajectory.resolved


ASIDE = """
import json, os, urllib.request
tools = [{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}]
def ask(said, **more):
    body = json.dumps({"messages": [{"role": "user", "content": said}], **more}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    urllib.request.urlopen(urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers))
ask("a title, please")
ask("work", tools=tools)
"""


@pytest.mark.parametrize(("rule", "num_turns"), [("all", 2), ("with_tools", 1)])
async def test_a_side_request_is_a_branch_and_trained_by_the_rule(
    rule: str, num_turns: int, tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    tools = tokenizer.with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
    policy = ScriptedPolicy(tools, lambda episode_id, history, turn: "at work" if "shell" in history else "title")
    agent = agent_files(tmp_path, ASIDE) | {"train": rule}
    async with open_runner(tmp_path, tools, NamespaceBackend("harness-test"), policy, agent) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id))
        sampled = runner.status()["gateway_sampled_tokens"]
    trajectory = attempt.trajectory
    trained = sum(turn.end - turn.start for turn in trajectory.turns)
    assert len(trajectory.branches.leaves()) == 2 and len(trajectory.turns) == num_turns
    assert trained == int(trajectory.loss_mask.sum()) and (trained == sampled) == (rule == "all")
    assert [step.text for step in attempt.steps] == ["title", "at work"][-num_turns:]
    check_trajectory(trajectory, newest_version=0, max_context=3000)


HOSTILE = """
import json, os, socket, urllib.request
where = os.environ["OPENAI_BASE_URL"].split("//")[1].split("/")[0].split(":")
def connect():
    return socket.create_connection((where[0], int(where[1])), timeout=60)
def post(key, length):
    head = f"POST /v1/chat/completions HTTP/1.1\\r\\nHost: x\\r\\nx-api-key: {key}\\r\\n"
    return f"{head}Content-Length: {length}\\r\\n\\r\\n".encode()
half_open = [connect() for _ in range(40)]
for each in half_open:
    each.sendall(b"POST /v1/chat/comp")
flood = connect()
flood.sendall(post(os.environ["OPENAI_API_KEY"], 100 << 20))
sent = 0
try:
    for _ in range(1600):
        flood.sendall(b"x" * 65536)
        sent += 65536
except OSError:
    pass
deaf = connect()
body = json.dumps({"messages": [{"role": "user", "content": "never read"}], "stream": True}).encode()
deaf.sendall(post(os.environ["OPENAI_API_KEY"], len(body)) + body)
deaf.recv(1, socket.MSG_PEEK)  # its answer is there
foreign = connect()
foreign.sendall(post("lh-" + "0" * 48, len(body)) + body)
assert b"401" in foreign.recv(100)
for each in half_open:
    each.close()
"""


async def test_a_hostile_agent_harms_nobody_and_its_episode_goes_on(tmp_path: Path, tokenizer: ChatTokenizer) -> None:
    texts = ["nobody reads this", *solution(TASK)]
    policy = ScriptedPolicy(tokenizer, lambda episode_id, history, turn: _answer(history, texts))
    agent = agent_files(tmp_path, HOSTILE + AGENT)
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, agent) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id))
        status = runner.status()
    assert attempt.trajectory.resolved and len(attempt.steps) == 4
    assert status["gateway_keys_foreign"] == 1
    assert status["gateway_refused_too_large"] == 1


def _answer(history: str, texts: list[str]) -> str:
    return texts[0] if "never read" in history else texts[1 + history.count("```command")]


@pytest.mark.parametrize("issue", ["--help", "- one\n- two", "/init"])
def test_an_issue_is_no_option_of_an_agent_that_takes_it_as_an_argument(issue: str) -> None:
    assert told(issue) == f"\n{issue}"
    assert told(f"x {issue}") == f"x {issue}"


def test_an_issue_too_long_for_an_argument_is_named_by_its_file() -> None:
    assert asked("-x") == "\n-x" and asked("x" * MOST_ARGUMENT) == "x" * MOST_ARGUMENT
    for long in ("x" * (MOST_ARGUMENT + 1), "ü" * (MOST_ARGUMENT // 2 + 1)):
        assert ISSUE in asked(long) and len(asked(long)) < 200


async def test_an_agent_that_takes_its_task_as_an_argument_is_started_whatever_its_length(
    tmp_path: Path, tokenizer: ChatTokenizer
) -> None:
    agent = "import sys" + AGENT.replace('open(os.environ["LONGHAUL_ISSUE"]).read()', "sys.argv[1]")
    files = agent_files(tmp_path, agent) | {"command": f"python3 /opt/agent/agent.py {ISSUE_ARGUMENT}"}
    texts = solution(TASK)
    policy = ScriptedPolicy(tokenizer, replay(texts))
    long = msgspec.structs.replace(TASK, issue="word " * 100_000)
    async with open_runner(
        tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, files, tasks={TASK.task_id: long}
    ) as runner:
        attempt = await runner.run(make_lease(0, TASK.task_id))
    assert attempt.trajectory.resolved
    check_tokens(attempt, tokenizer, texts)


SWALLOWS = """
import asyncio
async def solve(issue, client, sandbox):
    await client.chat.completions.create(model="longhaul", messages=[{"role": "user", "content": issue}])
    while True:
        try:
            open(__file__ + ".works", "w").close()
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling() > 1:
                raise
"""


async def test_a_function_that_swallows_its_cancellation_does_not_hold_its_episode(
    tmp_path: Path, tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "stubborn.py"
    module.write_text(SWALLOWS)

    async def wait(tasks: set[Any], **limits: Any) -> tuple[set[Any], set[Any]]:
        if limits.get("return_when") != asyncio.FIRST_COMPLETED:
            return await asyncio.wait(tasks, **limits)
        await until((tmp_path / "stubborn.py.works").exists)
        return set(), tasks  # the wall time is over

    monkeypatch.setattr(python_function, "asyncio", SimpleNamespace(**vars(asyncio) | {"wait": wait}))
    policy = ScriptedPolicy(tokenizer, replay(solution(TASK)))
    agent = {"harness": "python", "function": f"{module}:solve", "grace_s": 0.2}
    async with open_runner(tmp_path, tokenizer, NamespaceBackend("harness-test"), policy, agent) as runner:
        async with asyncio.timeout(2 * LONG_S):
            attempt = await runner.run(make_lease(0, TASK.task_id))
    assert attempt.trajectory.end_reason == "wall_time" and len(attempt.steps) == 1
    stubborn = [task for task in asyncio.all_tasks() if "solve" in repr(task.get_coro())]
    assert len(stubborn) == 1  # it was cancelled once, swallowed that, and was left
    stubborn[0].cancel()
    await asyncio.wait(stubborn, timeout=LONG_S)
    assert stubborn[0].cancelled()


class Starting(HermesReader):
    """A reader whose generator is not there at first."""

    def __init__(self, tokenizer: ChatTokenizer, *errors: GeneratorError) -> None:
        super().__init__(tokenizer)
        self.errors = list(errors)

    async def read(self, prompt_ids: np.ndarray, token_ids: np.ndarray, tools: list[dict[str, Any]]) -> Reading:
        if self.errors:
            raise self.errors.pop(0)
        return await super().read(prompt_ids, token_ids, tools)


async def test_a_start_waits_for_the_generator_and_refuses_a_parser_that_there_is_not(tokenizer: ChatTokenizer) -> None:
    tools = tokenizer.with_template(TEMPLATE, "<|im_end|>", ["<|im_start|>", "<|im_end|>"])
    settings = Settings.model_validate({"agent": {"harness": "command", "command": "true"}})
    policy = ScriptedPolicy(tools, replay([]))
    late = Starting(tools, GeneratorError("not there", kind="lost"))
    agent = ForeignAgent(settings, policy, tools, late)
    await agent.start()
    await agent.stop()
    assert not late.errors
    wrong = Starting(tools, GeneratorError("no parser of that name", kind="refused"))
    with pytest.raises(ConfigError, match=r"agent.tool_parser.*no parser of that name"):
        await ForeignAgent(settings, policy, tools, wrong).start()
