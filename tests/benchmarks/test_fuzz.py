"""Whatever bytes come, every decoder answers with a value or with its boundary's own error, in little memory."""

import random
import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.agent.chat import ChatTokenizer
from benchmarks.fuzz.inputs import feed, next_input
from benchmarks.fuzz.mutations import mutated_tree
from benchmarks.fuzz.targets import TINY, Target, targets
from protocol.errors import ConfigError, WeightsError, WireError
from protocol.messages import Generate, Manifest, Sampling
from protocol.weights.manifest import verify_manifest
from protocol.weights.segments import file_identity
from protocol.wire import Codec

TARGETS = {target.name: target for target in targets()}
MOST_MEMORY = 256 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_no_bytes_make_a_decoder_do_anything_but_answer_or_refuse(name):
    target = TARGETS[name]

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def check(rng):
        feed(target, next_input(target, rng))

    tracemalloc.start()
    try:
        check()
        assert tracemalloc.get_traced_memory()[1] < MOST_MEMORY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", TARGETS)
def test_what_the_inputs_are_made_of_is_good(name):
    """Else all of them would be refused at the first byte."""
    target = TARGETS[name]
    first = target.write(target.seeds[0]) if target.seeds else target.raw[0]
    assert feed(target, first)


def test_a_decoder_that_breaks_would_be_seen():
    def breaks(data):
        return {}[data]

    target = Target(name="broken", seeds=[{"a": 1}], read=breaks, own=(ConfigError,))
    with pytest.raises(KeyError):
        feed(target, next_input(target, random.Random(0)))


def test_the_same_seed_makes_the_same_tree_and_leaves_the_first_alone():
    tree = {"a": [1, 2, {"b": "c"}], "d": None}
    made = [str(mutated_tree(random.Random(7), tree)) for _ in range(2)]
    assert made[0] == made[1]
    assert tree == {"a": [1, 2, {"b": "c"}], "d": None}
    assert len({str(mutated_tree(random.Random(seed), tree)) for seed in range(50)}) > 25


# --- what was found ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"bucket_bytes": 0}, {"num_bytes": 1 << 60}, {"num_bytes": -1}])
def test_a_manifest_with_impossible_sizes_is_refused_before_memory_is_taken(changes):
    manifest = msgspec.convert(TARGETS["weight manifest"].seeds[0], Manifest)
    with pytest.raises(WeightsError, match="in buckets of"):
        verify_manifest(msgspec.structs.replace(manifest, **changes), {}, {})


def test_a_path_that_no_file_can_have_leads_nowhere():
    assert file_identity(Path("a\0b")) == ""


@pytest.mark.parametrize("shape", [[0, 1 << 63], [1 << 62, 1 << 62], [0] * 9, [-1], [1 << 64]])
def test_an_array_of_an_impossible_shape_is_a_malformed_message(shape):
    asked = Generate(
        request_id="r",
        token_ids=np.arange(0, dtype=np.int32),
        sampling=Sampling(temperature=1.0, max_tokens=8),
        stop_token_ids=[],
        cache_salt="0",
        timeout_s=5.0,
    )
    head, array = Codec().encode(asked)
    body = msgspec.msgpack.decode(head[4:])
    body["token_ids"]["s"] = [min(n, (1 << 64) - 1) for n in shape]
    with pytest.raises(WireError) as caught:
        Codec().decode([head[:4] + msgspec.msgpack.encode(body), array])
    assert caught.value.kind == "malformed"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("generation_config.json", b'{"eos_token_id": ["a", 1]}'),
        ("generation_config.json", b'{"eos_token_id": {"a": 1}}'),
    ],
)
def test_a_model_directory_with_a_strange_file_is_refused_by_its_name(tmp_path, file, content):
    for path in TINY.iterdir():
        if path.suffix in (".json", ".jinja"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=file):
        ChatTokenizer.load(tmp_path)
