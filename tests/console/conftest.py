"""A small run that is over, with episodes that attack the page that shows them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.console.made_run import made_episode, make_run
from protocol.arrays import pack_arrays

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
    """240 episodes of a run of 20 steps, then one for each of `HOSTILE`, then lines that are none; then one with its
    tokens, which step 5 trained on.
    """
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
    write_tokens(directory)
    return directory


def write_tokens(directory: Path) -> None:
    """Episode `tokens/0`: 3000 tokens, of which those from 100 on were sampled and those from 200 on trained."""
    ids = np.arange(3000, dtype=np.int32) % 500
    mask = (np.arange(3000) >= 100).astype(np.uint8)
    packed = pack_arrays(
        {
            "ids": ids,
            "logprobs": np.where(mask, -0.5, 0).astype(np.float16),
            "versions": np.where(mask, 4, -1).astype(np.int32),
            "mask": mask,
        }
    )
    (directory / "trajectories" / "sandbox-actor-2.tokens").write_bytes(packed)
    named = {"episode_id": "tokens/0", "group_id": "tokens", "member": 0, "attempt": 1}
    episode = made_episode(1, 4, 1.0, random.Random(3)) | named | {"source": "made", "num_tokens": 3000}
    episode["token_records"] = [0, len(packed)]
    (directory / "trajectories" / "sandbox-actor-2.jsonl").write_text(json.dumps(episode) + "\n")
    places = np.arange(200, 3000, dtype=np.int32)
    learned = pack_arrays(
        {
            "places": places,
            "log_ratios": np.full(len(places), 0.25, np.float16),
            "advantages": np.full(len(places), 1.5, np.float16),
        }
    )
    (directory / "steps").mkdir()
    (directory / "steps" / "learner.tokens").write_bytes(learned)
    trained = named | {"task_id": "t", "reward": 1.0, "trained_tokens": 2800, "advantage": 1.5}
    trained["token_records"] = [0, len(learned)]
    unrecorded = {"episode_id": "tokens/1", "group_id": "tokens", "member": 1, "advantage": -1.5, "trained_tokens": 9}
    worst = {"episode_id": "tokens/0", "place": 2500, "token": 0, "learner": -0.25, "sampler": -0.5, "advantage": 1.5}
    record = {"step": 5, "episodes": [trained, unrecorded], "worst": [worst]}
    earlier = {"step": 5, "episodes": [named | {"advantage": 9.0, "trained_tokens": 1}], "worst": []}
    lines = [json.dumps(earlier), "torn {", json.dumps(record)]  # a later life trained the step again
    (directory / "steps" / "learner.jsonl").write_text("".join(f"{line}\n" for line in lines))
