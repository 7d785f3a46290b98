"""A small run that is over, with episodes that attack the page that shows them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.console.made_run import made_episode, make_run

SCRIPT = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"
HOSTILE = {
    "script": f"{SCRIPT}</pre></section>{SCRIPT}",
    "ansi": "\x1b[31mred\x1b[0m \x1b]0;title\x07\x1b[2J\x1b[1;38;5;196mbright\x1b[m \x9b32mgreen",
    "bidi": "user\u202e\u2066// nothing\u2069\u2066 end\u200b",
    "long": "x" * 1_000_000,
    "surrogate": "lone \ud800 one",
    "nul": "a\x00b\x08c",
}


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 episodes of a run of 20 steps, then one for each of `HOSTILE`, then lines that are none."""
    directory = make_run(tmp_path_factory.mktemp("made") / "run<b>", 240, num_steps=20)
    rng = random.Random(1)
    with (directory / "trajectories" / "sandbox-actor-1.jsonl").open("wb") as file:
        for name, text in HOSTILE.items():
            episode = made_episode(0, 3, 0.0, rng)
            episode |= {
                "episode_id": f"hostile-{name}",
                "group_id": f"h-{name}",
                "tampered": True,
                "task_id": text[:200],
            }
            for message in episode["messages"]:
                message["content"] = text
            episode["patch"] = f"diff --git a/{text[:500]} b/x\n@@ -1 +1 @@\n-{text[:5000]}\n+{text[:5000]}\n"
            episode["verdict"] |= {"reason": text[:300], "failed": [text[:300]], "log": text[:4000]}
            file.write(json.dumps(episode).encode() + b"\n")
        invalid = made_episode(1, 3, 0.0, rng) | {"episode_id": "hostile-utf8"}
        file.write(json.dumps(invalid | {"patch": "PLACE"}).encode().replace(b"PLACE", b"\xff\xfe\xc3(") + b"\n")
        file.write(b'{"episode_id": 7, "messages": "none"}\nnot json\n{"episode_id": "torn", "mess')
    return directory
