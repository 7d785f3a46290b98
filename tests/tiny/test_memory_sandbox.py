"""What episodes see in memory is what they would see in a directory with real commands."""

import itertools
from random import Random

import pytest

from actors.agent.commands import Command
from actors.agent.scaffolds.react import React
from actors.agent.tools import Toolbox
from protocol.config import EpisodeSettings
from sandbox.base import SandboxSpec
from sandbox.fake import FakeBackend
from sandbox.tasks.micro import level_of, make_repository
from tiny.expert import Noise, fenced, script
from tiny.memory_sandbox import MemorySandbox

STRANGE = ["open nothing.py", "search_dir zzz", "search_dir x nowhere", "edit nothing.py 1:1\nx", "open .", "pwd2 -x"]


async def observe(sandbox, commands: list[Command]) -> list[str]:
    tools = Toolbox(sandbox, EpisodeSettings())
    return [(await tools.run(command, timeout_s=20)).text for command in commands]


@pytest.mark.parametrize("difficulty", [0, 1, 3])
async def test_observations_are_those_of_a_real_directory(difficulty):
    read = React("brief").parse
    backend = FakeBackend("test-memory")
    try:
        for seed in range(3):
            repository = make_repository(Random(seed), level_of(difficulty), "train")
            turns = [t for t in script(Random(seed), repository, Noise(no_fence=0.0, give_up=0.0)) if "submit" not in t]
            commands = [read(text) for text in itertools.chain(turns, map(fenced, STRANGE))]
            spec = SandboxSpec(run="test", lease=f"{difficulty}-{seed}")
            async with await backend.create(spec) as real:
                for path, text in repository.broken.items():
                    await real.write(path, text.encode())
                expected = await observe(real, commands)
                memory = MemorySandbox(repository.broken, spec)
                assert await observe(memory, commands) == expected
                for path, content in memory.files.items():
                    assert await real.read(path) == content
    finally:
        await backend.close()
