# ruff: noqa: E501 (logs are as long as they are)
"""Logs of test runs, made up: what frameworks print, with names of every kind, and sessions inside sessions."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

NAMES = (
    "tests/test_cart.py::test_total",
    "tests/test_cart.py::TestCart::test_total[1-2]",
    "tests/test_cart.py::test_total[a b]",
    "tests/test_cart.py::test_total[100%]",
    "tests/test_cart.py::test_total[/srv/shop/cart.json]",
    "tests/test_cart.py::test_total[x - y]",
    "tests/test_cart.py::test_total[MouseButton.LEFT]",
    "tests/test_cart.py::test_caf\u00e9[\u2028]",
    "tests/test_cart.py::test_cut[log(photon",
)
STATUSES = ("PASSED", "FAILED", "ERROR", "SKIPPED", "XFAIL", "XPASS")
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def summary(names: Sequence[str], statuses: Sequence[str], colour: bool = False) -> str:
    """What `pytest -rA` prints at its end."""
    lines = ["=========================== short test summary info ============================"]
    for name, status in zip(names, statuses, strict=True):
        said = f"{_GREEN}{status}{_PLAIN}" if colour else status
        lines.append(f"{said} {name}{' - assert 1 == 2' if status in ('FAILED', 'ERROR') else ''}")
    return "\n".join([*lines, "SKIPPED [2] tests/test_cart.py:3: no", "==== 1 passed in 0.10s ====", ""])


def inner_session(names: Sequence[str]) -> str:
    """A run of tests that run tests: captured output with summaries of its own, then the summary."""
    inner = "".join(
        f"_____ test_{number} _____\n----- Captured stdout call -----\n"
        f"==== short test summary info ====\n{status} inner_case.py::test_one\n==== 1 done in 0.01s ====\n"
        for number, status in enumerate(("PASSED", "FAILED"))
    )
    return f"==== PASSES ====\n{inner}{summary(names, ['PASSED'] * len(names))}"


def _generated(seed: int) -> str:
    order = random.Random(seed)
    names = order.sample(NAMES, len(NAMES))
    return summary(names, [order.choice(STATUSES) for _ in names], colour=seed % 5 == 4)


_JEST = json.dumps(
    {"testResults": [{"assertionResults": [{"fullName": "cart adds", "status": "passed", "ancestorTitles": []}]}]}
)

LOGS: dict[str, str] = {
    **{f"pytest {seed}": _generated(seed) for seed in range(25)},
    "inner session": inner_session(NAMES[:3]),
    "verbose pytest": "tests/test_cart.py::test_total PASSED [ 50%]\ntests/test_cart.py::test_b FAILED [100%]\n",
    "django": "test_total (cart.T) ... ok\ntest_b (cart.T)\nDoc. ... FAIL\ntest_c (cart.T) ... skipped 'no'\nFAIL: test_b (x)\n",
    "django, interrupted": "test_a (cart.T) ... System check identified no issues (0 silenced)\nok\n",
    "sympy": "test_total ok\ntest_b F\ntest_c E\n____ sympy/core/tests/test_x.py:test_d ____\n",
    "go": "=== RUN TestTotal\n--- PASS: TestTotal (0.00s)\n    --- FAIL: TestTotal/sub_case (0.01s)\n--- SKIP: TestB (0.00s)\n",
    "cargo": "test cart::adds ... ok\ntest cart::fails ... FAILED\ntest cart::later ... ignored\n",
    "maven": "[INFO] Tests run: 2, Failures: 1 - in shop.CartTest\n---NO TIMESTAMP---\n[ERROR] CartTest.adds:12 x\n",
    "gradle": "CartTest > adds PASSED\nCartTest > fails FAILED\n",
    "jest": "PASS src/cart.test.js\n  cart\n    \u2713 adds (3 ms)\n    \u2715 fails (1 ms)\n    \u25cb skipped later\n",
    "jest as JSON": _JEST,
    "mocha": "  cart\n    \u2713 adds\n    1) fails\n\n  1 passing (3ms)\n  1 failing\n",
    "karma": "Chrome 100 (Linux) cart adds FAILED\nExecuted 2 of 2 (1 FAILED) (0.1 secs)\n",
    "tap": "TAP version 13\nok 1 - adds\nnot ok 2 - fails\nok 3 - later # SKIP\n# tests 3\n",
    "vitest": " \u2713 src/cart.test.ts > adds 3ms\n \u00d7 src/cart.test.ts > fails\n",
    "phpunit": "Cart (Shop\\Cart)\n \u2714 Adds up\n \u2718 Fails\n",
    "minitest": "CartTest#test_adds = 0.01 s = .\nCartTest#test_fails = 0.01 s = F\n",
    "rspec": "cart adds | passed\ncart fails | failed\n",
    "googletest": "[       OK ] Cart.Adds (0 ms)\n[  FAILED  ] Cart.Fails (1 ms)\n",
    "doctest": "TEST CASE:  adds\n[doctest] test cases: 1 | 1 passed\n",
    "redis": "[ok]: adds (3 ms)\n[err]: fails in tests/unit/cart.tcl\n",
    "jq": "Test #1: '.a' at line number 3\n*** Expected 1, but got 2 for test at line number 3\n",
    "nothing": "",
    "noise": "\x00\x1b[31m{ [ FAILED\nPASSED\n\u2028PASSED a.py::x\n=====\n",
}
"""By name. Every parser reads every one of them."""
