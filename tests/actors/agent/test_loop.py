"""The agent's loop: turns, answers, and every way in which an episode ends."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from actors.agent import loop as agent_module
from actors.agent.chat import ChatTokenizer
from actors.agent.episode import Assignment, Episode, Limits
from actors.agent.loop import Agent
from actors.agent.scaffolds import make_scaffold
from actors.policies.scripted import Script, ScriptedPolicy, replay
from actors.policy import Request, Sampled
from protocol.config import EpisodeSettings
from protocol.errors import DeadlineError, GeneratorError, SandboxError
from protocol.messages import Sampling
from sandbox.base import Sandbox

CALC = "def add(a, b):\n    return a - b\n"
SOLUTION = ["grep -rn add .", "open calc.py", "replace calc.py 'a - b' 'a + b'", "submit"]


def turn(command: str, thought: str = "") -> str:
    return f"{thought}```command\n{command}\n```"


async def play(
    tokenizer: ChatTokenizer,
    sandbox: Sandbox,
    script: list[str] | Script,
    *,
    max_turns: int = 8,
    max_context: int = 4000,
    wall_time_s: float = 60.0,
    latency_s: float = 0.0,
    request_timeout_s: float = 60.0,
    **settings: object,
) -> Episode:
    """Run one scripted episode; a list holds the turns."""
    policy = ScriptedPolicy(
        tokenizer, replay(script) if isinstance(script, list) else script, latency_s=latency_s, version=3
    )
    chosen = EpisodeSettings(**{"max_turn_tokens": 500, **settings})
    agent = Agent(policy, tokenizer, make_scaffold(chosen, tokenizer), chosen, request_timeout_s=request_timeout_s)
    limits = Limits(max_turns=max_turns, max_context=max_context, wall_time_s=wall_time_s)
    sampling = Sampling(max_tokens=500)
    assigned = Assignment(issue="add is wrong", episode_id="e", version=3, sampling=sampling, limits=limits)
    return await agent.run(assigned, sandbox)


class Updating(ScriptedPolicy):
    """New weights with every turn; everything but the first prompt comes from the cache."""

    def __init__(self, tokenizer: ChatTokenizer, script: list[str]) -> None:
        super().__init__(tokenizer, replay(script), version=3)
        self.asked: list[str] = []

    async def generate(self, request: Request) -> Sampled:
        sampled = await super().generate(request)
        self.version += 1
        self.asked.append(self.salts["e"])
        return msgspec.structs.replace(sampled, num_cached_tokens=32 * (len(self.asked) > 1))


@pytest.mark.parametrize(
    ("reuse_versions", "expected"),
    [(None, ["3", "3", "3", "3"]), (1, ["3", "3", "3", "5/e"]), (0, ["3", "3", "4/e", "5/e"])],
)
async def test_kv_of_the_history_is_reused_for_so_many_versions(
    tokenizer, open_sandbox, reuse_versions, expected
) -> None:
    policy = Updating(tokenizer, [turn(c) for c in SOLUTION])
    chosen = EpisodeSettings(max_turn_tokens=500)
    agent = Agent(policy, tokenizer, make_scaffold(chosen, tokenizer), chosen, reuse_versions=reuse_versions)
    limits = Limits(max_turns=8, max_context=4000, wall_time_s=60)
    sandbox = await open_sandbox({"calc.py": CALC})
    assigned = Assignment(issue="wrong", episode_id="e", version=3, sampling=Sampling(), limits=limits)
    episode = await agent.run(assigned, sandbox)
    assert policy.asked == expected
    assert [step.cached_version for step in episode.steps] == [None, *(int(salt[0]) for salt in expected[1:])]


async def test_an_issue_is_solved(tokenizer, open_sandbox) -> None:
    sandbox = await open_sandbox({"calc.py": CALC})
    episode = await play(tokenizer, sandbox, [turn(c) for c in SOLUTION])
    assert episode.end_reason == "submitted"
    assert await sandbox.read("calc.py") == b"def add(a, b):\n    return a + b\n"
    assert [step.observation for step in episode.steps] == [
        "./calc.py:1:def add(a, b):",
        "[calc.py: lines 1-2 of 2]\n1:def add(a, b):\n2:    return a - b",
        "[calc.py: changed, lines 2-2 of 2]\n2:    return a + b",
        "",
    ]
    assert not any(step.format_error for step in episode.steps)


async def test_the_history_is_the_conversation_and_its_mask_the_turns(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({"calc.py": CALC}), [turn(c) for c in SOLUTION])
    history = episode.history
    whole = tokenizer.decode(history.token_ids, keep_special=True)
    assert whole.startswith("<|im_start|>user\nadd is wrong<|im_end|>\n<|im_start|>assistant\n```command\ngrep")
    assert whole.endswith("<|im_start|>assistant\n```command\nsubmit\n```<|im_end|>")
    sampled = tokenizer.decode(history.token_ids[history.loss_mask == 1], keep_special=True)
    assert sampled == "".join(f"{turn(c)}<|im_end|>" for c in SOLUTION)
    for step, command in zip(episode.steps, SOLUTION, strict=True):
        assert tokenizer.decode(history.token_ids[step.start : step.end]) == step.text == turn(command)
    assert set(history.versions[history.loss_mask == 1].tolist()) == {3}


async def test_format_errors_are_answered_and_marked(tokenizer, open_sandbox) -> None:
    turns = ["I do not know.", turn("ls"), turn("a") + "\n" + turn("b"), turn("submit")]
    episode = await play(tokenizer, await open_sandbox({}), turns)
    assert episode.end_reason == "submitted"
    assert [step.format_error for step in episode.steps] == [True, False, True, False]
    assert "no command" in episode.steps[0].observation
    assert "several commands (2)" in episode.steps[2].observation


async def test_format_errors_in_a_row_end_the_episode(tokenizer, open_sandbox) -> None:
    turns = ["no", "no", turn("ls"), "no", "no", "no"]
    episode = await play(tokenizer, await open_sandbox({}), turns, max_format_errors=3)
    assert episode.end_reason == "format_errors"
    assert len(episode.steps) == 6


async def test_turns_run_out(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({}), [turn("touch x")] * 3, max_turns=3)
    assert episode.end_reason == "max_turns"
    assert len(episode.steps) == 3
    assert episode.history.loss_mask[-1] == 1  # nobody reads the answer to the last turn


async def test_a_turn_cut_by_its_own_limit_is_a_format_error(tokenizer, open_sandbox) -> None:
    turns = [turn("echo " + "long " * 40), turn("submit")]
    episode = await play(tokenizer, await open_sandbox({}), turns, max_turn_tokens=30)
    assert episode.end_reason == "submitted"
    assert episode.steps[0].format_error
    assert "cut at the limit of 30 tokens" in episode.steps[0].observation
    cut_end = episode.steps[0].end
    assert episode.history.token_ids[cut_end] == tokenizer.stop_token_ids[0]  # closed by the template, not sampled
    assert episode.history.loss_mask[cut_end] == 0


async def test_a_turn_cut_by_the_context_ends_the_episode_and_is_not_run(tokenizer, open_sandbox) -> None:
    sandbox = await open_sandbox({})
    prompt = len(tokenizer.encode_prompt([{"role": "user", "content": "add is wrong"}]))
    episode = await play(tokenizer, sandbox, [turn("touch ran; echo " + "x " * 50)], max_context=prompt + 20)
    assert episode.end_reason == "context"
    assert len(episode.history) == prompt + 20
    assert (await sandbox.exec(["ls"], timeout=60)).text == ""


async def test_an_observation_that_does_not_fit_ends_the_episode_whole(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({}), [turn("seq 300")], max_context=300)
    assert episode.end_reason == "context"
    assert len(episode.history) == episode.steps[0].end  # no part of the observation is in the history
    assert "left out" not in episode.steps[0].observation
    assert len(episode.history) < 300


async def test_a_prompt_that_fills_the_context_ends_before_a_turn(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({}), [], max_context=10)
    assert (episode.end_reason, episode.steps) == ("context", [])


@pytest.mark.parametrize("context", range(40, 400, 7))
async def test_no_context_is_ever_exceeded(tokenizer, open_sandbox, context: int) -> None:
    episode = await play(
        tokenizer, await open_sandbox({"calc.py": CALC}), [turn(c) for c in SOLUTION], max_context=context
    )
    assert len(episode.history) <= context
    assert episode.end_reason in ("context", "submitted")


async def test_wall_time_ends_a_slow_generation(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({}), [turn("ls")], latency_s=30, wall_time_s=0.2)
    assert (episode.end_reason, episode.steps) == ("wall_time", [])


async def test_wall_time_bounds_a_slow_command(tokenizer, open_sandbox) -> None:
    episode = await play(tokenizer, await open_sandbox({}), [turn("sleep 30")], wall_time_s=2)
    assert episode.end_reason == "wall_time"
    assert "[killed after" in episode.steps[0].observation


async def test_failures_of_the_world_are_raised(tokenizer, open_sandbox) -> None:
    sandbox = await open_sandbox({})
    with pytest.raises(GeneratorError, match="ends after 1 turns"):
        await play(tokenizer, sandbox, [turn("ls")])
    await sandbox.close()
    with pytest.raises(SandboxError):
        await play(tokenizer, sandbox, [turn("ls")])


class _Failing:
    """A policy that times out, or gives a cancelled generation."""

    def __init__(self, answer: Exception | Sampled) -> None:
        self._answer = answer

    async def generate(self, request: Request) -> Sampled:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (DeadlineError("no tokens within 300 s", kind="generate"), DeadlineError),
        (
            Sampled(
                token_ids=np.zeros(1, np.int32),
                logprobs=np.zeros(1, np.float32),
                versions=np.zeros(1, np.int32),
                finish_reason="cancelled",
            ),
            GeneratorError,
        ),
    ],
)
async def test_a_generator_that_fails_is_not_the_agents_end(tokenizer, open_sandbox, answer, error) -> None:
    settings = EpisodeSettings()
    agent = Agent(_Failing(answer), tokenizer, make_scaffold(settings, tokenizer), settings)
    limits = Limits(max_turns=2, max_context=500, wall_time_s=10)
    assigned = Assignment(issue="issue", episode_id="e", version=0, sampling=Sampling(), limits=limits)
    with pytest.raises(error):
        await agent.run(assigned, await open_sandbox({}))


def test_the_agent_is_read_in_one_sitting() -> None:
    assert len(Path(agent_module.__file__).read_text().splitlines()) < 200
