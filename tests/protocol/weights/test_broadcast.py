"""Pairs of processes that pass bytes through their devices' collective library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from protocol.errors import WeightsError
from protocol.weights.broadcast import attend, call_meeting

ROOT = Path(__file__).parents[3]
LONG_S = 120  # a process imports torch first
SIZES = [5_000_000, 1, 1_000_000]
RECEIVER = """
import os, sys, torch
from protocol.weights.broadcast import attend
pair = attend(bytes.fromhex(sys.argv[1]), 60)
for size in {sizes}:
    target = torch.zeros(size, dtype=torch.uint8)
    pair.receive(target)
    print(size, int(target.long().sum()), flush=True)
    if "{dies}" == "yes":
        os._exit(1)
"""


def receiver(name: bytes, *, dies: bool = False, device: str = "") -> subprocess.Popen:
    program = RECEIVER.format(sizes=SIZES, dies="yes" if dies else "no")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": device}
    words = [sys.executable, "-c", program, name.hex()]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def pass_bytes(device: str = "") -> None:
    meeting = call_meeting("127.0.0.1")
    process = receiver(meeting.name, device=device)
    pair = meeting.meet(LONG_S)
    sums = []
    for size in SIZES:
        data = torch.randint(0, 256, (size,), dtype=torch.uint8)
        pair.send(data)
        sums.append(f"{size} {int(data.long().sum())}")
    output, _ = process.communicate(timeout=LONG_S)
    assert output.split("\n")[:-1] == sums
    pair.close()


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_bytes_arrive_as_they_were_sent(without_gpu):
    pass_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL connects two GPUs")
def test_bytes_arrive_between_gpus():
    pass_bytes(device="1")


def test_a_receiver_that_dies_is_noticed(without_gpu):
    meeting = call_meeting("127.0.0.1")
    with receiver(meeting.name, dies=True):
        pair = meeting.meet(LONG_S)
        pair.send(torch.zeros(SIZES[0], dtype=torch.uint8))
    with pytest.raises(WeightsError, match="the other side is gone"):
        for _ in range(100):  # what the sockets still buffer is taken as sent
            pair.send(torch.zeros(SIZES[0], dtype=torch.uint8))


def test_a_meeting_that_nobody_comes_to_has_a_deadline(without_gpu):
    with pytest.raises(WeightsError, match="did not come"):
        call_meeting("127.0.0.1").meet(1)


@pytest.mark.parametrize("name", [b"127.0.0.1:1", b"\xff\x00" * 64])
def test_a_name_of_no_meeting_is_refused(without_gpu, name):
    with pytest.raises(WeightsError, match="no meeting"):
        attend(name, 1)
