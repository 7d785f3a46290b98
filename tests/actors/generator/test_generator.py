"""A real vLLM engine, its weights changing under it, against transformers."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator

import numpy as np
import psutil
import pytest
import torch
from transformers import Qwen2ForCausalLM

from actors.agent.chat import ChatTokenizer
from actors.harnesses.readers import GeneratorReader
from actors.policies.generator_client import GeneratorClient
from actors.policy import Request
from protocol.errors import DeadlineError, GeneratorError, WireError
from protocol.messages import (
    Generate,
    GeneratorStatus,
    GeneratorStatusRequest,
    LeaseRequest,
    Message,
    Refused,
    Sampling,
    TakeApart,
)
from protocol.sockets import Client
from tests.waiting import LONG_S, lives, until
from tiny.model import build_model

pytestmark = pytest.mark.vllm
PROMPT = np.asarray([7, 300, 41, 5, 99, 250, 13, 8], np.int32)


@contextlib.asynccontextmanager
async def connected(served) -> AsyncIterator[GeneratorClient]:
    client = GeneratorClient([served.endpoint], served.settings.generator)
    try:
        yield client
    finally:
        await client.close()


async def sample(client: GeneratorClient, prompt=PROMPT, episode="e", salt="s", timeout_s=60.0, **sampling):
    return await client.generate(
        Request(
            episode_id=episode,
            token_ids=prompt,
            sampling=Sampling(**sampling),
            stop_token_ids=[],
            cache_salt=salt,
            timeout_s=timeout_s,
        )
    )


def short_request() -> Generate:
    return Generate(
        request_id=str(time.monotonic_ns()),
        token_ids=PROMPT,
        sampling=Sampling(max_tokens=1),
        stop_token_ids=[],
        cache_salt="short",
        timeout_s=30,
    )


def logprobs_of(model: Qwen2ForCausalLM, prompt: np.ndarray, continuation: np.ndarray, temperature=1.0) -> np.ndarray:
    """Log-probs of `continuation` after `prompt` under `model`, in one uncached pass."""
    ids = torch.from_numpy(np.concatenate([prompt, continuation]).astype(np.int64))[None]
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float() / temperature
    return logits.log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0].numpy()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_logprobs_are_those_of_transformers_at_the_same_temperature(served_model, temperature):
    served_model.publish_random(0)
    async with connected(served_model) as client:
        sampled = await sample(client, max_tokens=60, temperature=temperature)
    reference = logprobs_of(build_model(seed=0), PROMPT, sampled.token_ids, temperature)
    assert np.abs(sampled.logprobs - reference).max() < 2e-5
    assert set(sampled.versions.tolist()) == {served_model.version}
    assert sampled.finish_reason == "length"


async def test_after_an_update_a_fresh_greedy_generation_is_that_of_the_new_weights(served_model):
    async with connected(served_model) as client:
        for seed in (11, 12, 11):
            version = served_model.publish_random(seed)
            sampled = await sample(client, max_tokens=40, temperature=0.0, salt=str(version))
            model = build_model(seed=seed)
            expected = model.generate(
                torch.from_numpy(PROMPT.astype(np.int64))[None],
                attention_mask=torch.ones(1, len(PROMPT), dtype=torch.long),
                max_new_tokens=40,
                do_sample=False,
                eos_token_id=None,
            )[0, len(PROMPT) :]
            assert sampled.token_ids.tolist() == expected.tolist()
            assert sampled.versions.tolist() == [version] * 40


async def test_outputs_change_exactly_at_the_stamped_token(served_model):
    """Each token's log-prob equals the stamped weights' given KV that older weights computed, and no other."""
    seeds = {served_model.publish_random(21): 21}
    async with connected(served_model) as client:
        running = [
            asyncio.create_task(sample(client, episode=f"c{i}", max_tokens=600, temperature=1.0, salt="change"))
            for i in range(4)
        ]
        for seed in itertools.count(22):  # for as long as they go on
            seeds[await asyncio.to_thread(served_model.publish_random, seed)] = seed
            if all(each.done() for each in running):
                break
        generations = await asyncio.gather(*running)
    for sampled in generations:
        assert set(sampled.versions.tolist()) <= seeds.keys()
        assert len(set(sampled.versions.tolist())) > 2
        assert (np.diff(sampled.versions) >= 0).all()
        reference = logprobs_under_changes(sampled, seeds)
        assert np.abs(sampled.logprobs - reference).max() < 2e-5
        later, counts = np.unique(sampled.versions[sampled.versions > sampled.versions[0]], return_counts=True)
        longest = int(later[counts.argmax()])
        only_new = logprobs_of(build_model(seed=seeds[longest]), PROMPT, sampled.token_ids)
        assert np.abs(sampled.logprobs - only_new)[sampled.versions == longest].max() > 1e-3


def logprobs_under_changes(sampled, seeds: dict[int, int]) -> np.ndarray:
    """Of every sampled token under the weights of its version, over the keys and values of those before."""
    ids = torch.from_numpy(np.concatenate([PROMPT, sampled.token_ids]).astype(np.int64))[None]
    # the pass that samples the first token of a version puts the token before it through
    versions = sorted(set(sampled.versions.tolist()))
    begins = [0] + [len(PROMPT) + sampled.versions.tolist().index(version) - 1 for version in versions[1:]]
    logits, cache = [], None
    with torch.no_grad():
        for version, begin, end in zip(versions, begins, [*begins[1:], ids.shape[1] - 1], strict=True):
            out = build_model(seed=seeds[version])(ids[:, begin:end], past_key_values=cache, use_cache=True)
            logits.append(out.logits)
            cache = out.past_key_values
    sampled_logits = torch.cat(logits, 1)[0, len(PROMPT) - 1 :].float()
    return sampled_logits.log_softmax(-1).gather(1, ids[0, len(PROMPT) :, None])[:, 0].numpy()


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_thousand_updates_abort_nothing_and_leak_nothing(served_model):
    """Memory, files and segments stay what they were while 1,000 versions pass under 16 generations at a time."""
    process = psutil.Process(served_model.process.pid)
    engine = max(process.children(recursive=True), key=lambda p: p.memory_info().rss)
    models = [list(build_model(seed=seed).named_parameters()) for seed in (0, 1)]

    def update(times: int) -> None:
        for i in range(times):
            served_model.version += 1
            served_model.publisher.publish(served_model.version, models[i % 2])
            served_model.publisher.wait_adopted(served_model.version, 60)

    def held() -> list[int]:
        return [engine.memory_info().rss >> 20, process.memory_info().rss >> 20, engine.num_fds(), process.num_fds()]

    done = asyncio.Event()
    async with connected(served_model) as client:

        async def generate(name: str) -> int:
            versions = 0
            while not done.is_set():
                sampled = await sample(client, episode=name, max_tokens=900, salt=name)
                assert (len(sampled.token_ids), sampled.finish_reason) == (900, "length")
                assert (np.diff(sampled.versions) >= 0).all()
                versions = max(versions, len(set(sampled.versions.tolist())))
            return versions

        running = [asyncio.create_task(generate(f"u{i}")) for i in range(16)]
        await asyncio.to_thread(update, 100)
        segments = set(os.listdir("/dev/shm"))  # noqa: PTH208
        before = held()
        await asyncio.to_thread(update, 900)
        after = held()
        done.set()
        assert min(await asyncio.gather(*running)) > 2
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown[0] < 32, f"the engine grew by {grown[0]} MiB"
    assert grown[1] < 32, f"the generator grew by {grown[1]} MiB"
    assert max(grown[2:]) < 8, "descriptors leak"
    mine = f"longhaul-{served_model.run}"
    assert {s for s in os.listdir("/dev/shm") if s.startswith(mine)} <= segments  # noqa: PTH208


async def test_kv_of_older_weights_is_never_given_to_another_salt(served_model):
    prompt = np.arange(100, 200, dtype=np.int32)
    async with connected(served_model) as client:
        old = served_model.publish_random(31)
        await sample(client, prompt, salt=f"v{old}", max_tokens=2)
        again = await sample(client, prompt, salt=f"v{old}", max_tokens=2)
        assert again.num_cached_tokens >= 64
        new = served_model.publish_random(32)
        fresh = await sample(client, prompt, salt=f"v{new}", max_tokens=20)
        assert fresh.num_cached_tokens == 0
        reference = logprobs_of(build_model(seed=32), prompt, fresh.token_ids)
        assert np.abs(fresh.logprobs - reference).max() < 2e-5
        kept = await sample(client, prompt, salt=f"v{old}", max_tokens=2)
        assert kept.num_cached_tokens >= 64


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "says"),
    [
        (np.asarray([512], np.int32), 4, r"token ids must be in \[0, 512\), got 512"),
        (np.asarray([-1], np.int32), 4, "token ids must be in"),
        (np.zeros(0, np.int32), 4, "expected int32"),
        (np.full(1022, 5, np.int32), 4, "do not fit the context of 1024"),
        (PROMPT, 0, "do not fit"),
    ],
)
async def test_bad_input_is_a_typed_error_and_the_engine_lives(served_model, prompt, max_tokens, says):
    async with connected(served_model) as client:
        with pytest.raises(GeneratorError, match=says) as caught:
            await sample(client, prompt, max_tokens=max_tokens)
        assert caught.value.kind == "refused"
        assert len((await sample(client, max_tokens=4)).token_ids) == 4


async def test_odd_sampling_is_refused_by_the_engine_not_fatal(served_model):
    async with connected(served_model) as client:
        with pytest.raises(GeneratorError, match="vLLM"):
            await sample(client, max_tokens=4, temperature=-1.0)
        assert len((await sample(client, max_tokens=4, top_k=5, top_p=0.9)).token_ids) == 4


async def test_more_than_it_takes_is_refused_with_a_hint_and_done_later(served_model):
    async with connected(served_model) as client:
        filling = [
            asyncio.create_task(sample(client, episode=f"f{i}", max_tokens=900, salt="full")) for i in range(128)
        ]
        waiting = [asyncio.create_task(sample(client, episode=f"w{i}", max_tokens=40, salt="full")) for i in range(72)]
        async with Client(served_model.endpoint) as control, asyncio.timeout(LONG_S):
            await until(lambda: client.status()["num_full"])
            refusal = None
            while not isinstance(refusal, Refused):
                async with contextlib.aclosing(control.stream(short_request(), 30)) as replies:
                    refusal = await anext(replies)
        assert (refusal.kind, refusal.retry_after_s) == ("generator.full", 0.5)
        assert "128 generations are in flight" in refusal.reason
        for each in filling:
            each.cancel()
        await asyncio.wait(filling)
        assert all(len(s.token_ids) == 40 for s in await asyncio.gather(*waiting))


async def test_stop_tokens_end_a_generation_and_are_part_of_it(served_model):
    async with connected(served_model) as client:
        sampled = await client.generate(
            Request(
                episode_id="e",
                token_ids=PROMPT,
                sampling=Sampling(max_tokens=500),
                stop_token_ids=list(range(0, 512, 8)),
                cache_salt="stop",
                timeout_s=60,
            )
        )
        assert sampled.finish_reason == "stop"
        assert sampled.token_ids[-1] % 8 == 0
        assert (sampled.token_ids[:-1] % 8 != 0).all()


def is_free(status: Message) -> bool:
    assert isinstance(status, GeneratorStatus)
    return (status.running, status.waiting, status.kv_used_share) == (0, 0, 0)


async def test_a_deadline_and_a_cancel_free_the_engine(served_model, received):
    async with connected(served_model) as client:
        with pytest.raises(DeadlineError, match="not done within"):
            await sample(client, max_tokens=1000, timeout_s=0.3)
        received.clear()
        running = asyncio.create_task(sample(client, max_tokens=1000))
        await until(lambda: received)
        running.cancel()
        async with Client(served_model.endpoint) as control:
            async with asyncio.timeout(LONG_S):
                while not is_free(status := await control.request(GeneratorStatusRequest(), LONG_S)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert status.version == served_model.version
            with pytest.raises(WireError, match="does not take LeaseRequest"):
                await control.request(LeaseRequest(actor="a", capacity=1), LONG_S)


@pytest.mark.slow
async def test_a_generator_killed_under_load_and_update_loses_and_repeats_nothing(served_model, tmp_path, received):
    from actors.generator.own_process import GeneratorProcess

    doomed = GeneratorProcess(
        served_model.settings,
        "g1",
        f"ipc://{tmp_path}/g1",
        served_model.publisher.endpoint,
    )
    client = GeneratorClient([served_model.endpoint], served_model.settings.generator)
    try:
        endpoint = await asyncio.to_thread(lambda: doomed.endpoint)
        await asyncio.to_thread(served_model.publish_random, 41)
        children = psutil.Process(doomed.pid).children(recursive=True)
        client.update_endpoints([served_model.endpoint, endpoint])
        running = [
            asyncio.create_task(sample(client, episode=f"k{i}", max_tokens=400, salt=f"k{i}", timeout_s=120))
            for i in range(64)
        ]
        await until(lambda: len(received) > 64)
        served_model.version += 1
        served_model.publisher.publish(served_model.version, build_model(seed=42).named_parameters())
        os.kill(doomed.pid, signal.SIGKILL)
        results = await asyncio.gather(*running)
        assert [len(r.token_ids) for r in results] == [400] * 64
        assert all((np.diff(r.versions) >= 0).all() for r in results)
        assert client.status()["num_failovers"] >= 16
        await asyncio.to_thread(served_model.publisher.wait_adopted, served_model.version, LONG_S)
        assert served_model.publisher.status()["num_lost"] >= 1
        await until(lambda: not any(map(lives, children)))
    finally:
        await client.close()
        doomed.close()


async def test_a_turn_is_taken_apart_where_vllm_is_loaded(served_model, tmp_path):
    tokenizer = ChatTokenizer.load(served_model.model_dir)
    tools = [{"type": "function", "function": {"name": "shell", "parameters": {"type": "object"}}}]
    turn = tokenizer.encode('I look.\n<tool_call>\n{"name": "shell", "arguments": {"command": "ls"}}\n</tool_call>')
    async with connected(served_model) as client:
        reading = await GeneratorReader(client, "hermes", "none").read(PROMPT, turn, tools)
        assert [(call.name, json.loads(call.arguments)) for call in reading.calls] == [("shell", {"command": "ls"})]
        assert reading.content.strip() == "I look."
        plain = await GeneratorReader(client, "auto", "auto").read(PROMPT, turn, tools)  # its template has no marks
        assert plain.content.startswith("I look.\n<tool_call>") and not plain.calls
        with pytest.raises(GeneratorError, match="parser") as caught:
            await GeneratorReader(client, "unheard_of", "none").read(PROMPT, turn, tools)
        assert caught.value.kind == "refused"
    nobody = GeneratorClient([f"ipc://{tmp_path}/nobody"], served_model.settings.generator)
    with pytest.raises(GeneratorError, match="no engine") as caught:
        await nobody.take_apart(
            TakeApart(prompt_ids=PROMPT, token_ids=turn, tools="[]", tool_parser="auto", reasoning_parser="auto"), 0.2
        )
    assert caught.value.kind == "lost"
    await nobody.close()
