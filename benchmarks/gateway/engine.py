"""The gateway against the built-in loop on one and the same engine."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median

from actors.agent.chat import ChatTokenizer
from actors.generator.own_process import GeneratorProcess
from actors.policies.generator_client import GeneratorClient
from benchmarks.gateway.world import lease_of, open_runner, settings_of
from protocol.config import Settings

AT_ONCE = 64
ROUNDS = 9  # a pair differs from the next by a tenth
TURNS = 6
SOLVE = """
async def solve(issue, client, sandbox):
    messages = [{"role": "user", "content": issue}]
    while True:
        answer = await client.chat.completions.create(model="m", messages=messages)
        text = answer.choices[0].message.content
        done = await sandbox.exec(["true"], timeout=20)
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": done.text or "ok"}]
"""


async def measure(model_dir: Path) -> dict[str, float | None]:
    """`tok_s_share`: sampled tokens a second through the gateway over those of the built-in loop, medians of rounds
    that were played in turn."""
    with tempfile.TemporaryDirectory(prefix="bench-gateway-") as directory:
        function = Path(directory) / "agent.py"
        function.write_text(SOLVE)
        common = {
            "model": {"path": str(model_dir), "max_context": 2048, "dtype": "float32"},
            "generator": {"max_running": AT_ONCE, "kv_cache_mib": 256},
            "episode": {"max_turns": TURNS, "max_turn_tokens": 64, "max_format_errors": TURNS + 1, "wall_time_s": 300},
            "sandbox": {"backend": "namespace"},
        }
        built_in = Settings.model_validate(common)
        foreign = settings_of({"harness": "python", "function": f"{function}:solve", "grace_s": 0.1}, **common)
        with GeneratorProcess(built_in, "bench", f"ipc://{directory}/generator") as process:
            client = GeneratorClient([await asyncio.to_thread(lambda: process.endpoint)], built_in.generator)
            try:
                speeds = [
                    [await _speed(settings, client, model_dir, 1000 * i + j) for settings in (built_in, foreign)]
                    for i in range(ROUNDS)
                    for j in (0,)
                ]
            finally:
                await client.close()
    return {
        "tok_s_share": median(through / bare for bare, through in speeds),
        "tok_s_built_in": median(bare for bare, _ in speeds),
        "tok_s_gateway": median(through for _, through in speeds),
    }


async def _speed(settings: Settings, client: GeneratorClient, model_dir: Path, first: int) -> float:
    """Sampled tokens a second of `AT_ONCE` episodes, sandboxes and judgement left out of neither."""
    tokenizer = ChatTokenizer.load(model_dir)
    async with open_runner(settings, client, tokenizer, lambda exchange: None) as runner:
        began = time.monotonic()
        leases = [lease_of(first + i, settings) for i in range(AT_ONCE)]
        attempts = await asyncio.gather(*(runner.run(lease) for lease in leases))
        took = time.monotonic() - began
    return sum(int(attempt.trajectory.loss_mask.sum()) for attempt in attempts) / took
