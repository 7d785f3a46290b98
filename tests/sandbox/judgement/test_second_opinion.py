"""A second opinion judges in another way, and agrees on what is honest."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmarks.attacks.surfaces import HIDDEN, TEST_PATH, calc_task
from sandbox.base import Backend, Limits
from sandbox.curation.gold import gold_patch
from sandbox.judgement.grading import grade

BUILT_ON_ONE_ANOTHER = """
import unittest

class TestSteps(unittest.TestCase):
    def test_1_begins(self):
        type(self).found = add(1, 2)

    def test_2_goes_on(self):
        self.assertEqual(self.found, 3)

COUNT = []

def test_alone():
    COUNT.append(1)
    assert len(COUNT) == 1

def test_alone_too():
    COUNT.append(1)
    assert len(COUNT) == 1
"""


@pytest.mark.parametrize("changed", [True, False])
async def test_classes_stay_together_and_functions_apart(namespace: Backend, cache_dir: Path, changed: bool) -> None:
    task = calc_task("pytest")
    ids = ("TestSteps::test_1_begins", "TestSteps::test_2_goes_on", "test_alone", "test_alone_too")
    named = tuple(f"{TEST_PATH}::{name}" for name in ids)
    tests = replace(task.tests, untwinned=named)
    task = replace(task, test_files={TEST_PATH: HIDDEN + BUILT_ON_ONE_ANOTHER}, pass_to_pass=named, tests=tests)
    gold = await gold_patch(namespace, task, "t", Limits(), cache_dir)
    patch = gold if changed else replace(gold, changes=())
    verdict = await grade(
        namespace,
        task,
        patch,
        run="t",
        lease="l",
        limits=Limits(),
        cache_dir=cache_dir,
        timeout_s=60,
        another_way=True,
    )
    assert (verdict.resolved, verdict.tampered) == (changed, False), verdict
