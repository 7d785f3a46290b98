"""One record as each public dataset publishes it, made up: fields and their forms are the datasets', contents ours."""

from __future__ import annotations

import json
from typing import Any

Record = dict[str, Any]

GOLD = (
    "diff --git a/shop/cart.py b/shop/cart.py\n--- a/shop/cart.py\n+++ b/shop/cart.py\n"
    "@@ -1,2 +1,2 @@\n def total(prices):\n-    return 0\n+    return sum(prices)\n"
)
BUG = (
    "diff --git a/shop/cart.py b/shop/cart.py\n--- a/shop/cart.py\n+++ b/shop/cart.py\n"
    "@@ -1,2 +1,2 @@\n def total(prices):\n-    return sum(prices)\n+    return 0\n"
)
COMMIT = "5f0c1d2e3a4b5c6d7e8f90a1b2c3d4e5f6a7b8c9"


def changed(path: str, old: str = "a = 1", new: str = "a = 2") -> str:
    """A diff that changes one line of one file."""
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-{old}\n+{new}\n"


TEST_PATCH = changed("tests/test_cart.py")
TESTS = ["tests/test_cart.py::test_total"]
SCRIPT = (
    "#!/bin/bash\nset -uxo pipefail\ncd /testbed\n: '>>>>> Start Test Output'\n"
    "pytest -rA tests/test_cart.py\n: '>>>>> End Test Output'\n"
)
_COMMON: Record = {
    "instance_id": "corner__shop-12",
    "repo": "corner/shop",
    "base_commit": COMMIT,
    "patch": GOLD,
    "test_patch": TEST_PATCH,
    "problem_statement": "The total is always 0.",
    "hints_text": "",
    "created_at": "2025-03-04T10:00:00Z",
    "version": "3.1",
}
_TRANSITION = {"run": "PASS", "test": "FAIL", "fix": "PASS"}

RECORDS: dict[str, Record] = {
    "swe-bench": {
        **_COMMON,
        "instance_id": "psf__requests-9001",
        "repo": "psf/requests",
        "environment_setup_commit": COMMIT,
        "FAIL_TO_PASS": json.dumps(TESTS),
        "PASS_TO_PASS": "[]",
        "difficulty": "<15 min fix",
    },
    "swe-bench 5": {
        **_COMMON,
        "image": "corner/shop:12",
        "eval_script": SCRIPT,
        "log_parser": "parse_log_pytest_v2",
        "eval_type": "pass_and_fail",
        "FAIL_TO_PASS": json.dumps(TESTS),
        "PASS_TO_PASS": "[]",
    },
    "swe-bench-multilingual": {
        **_COMMON,
        "instance_id": "corner__till-3",
        "repo": "corner/till",
        "patch": changed("till.go", "x := 1", "x := 2"),
        "test_patch": changed("till_test.go", "y := 1", "y := 2"),
        "image": "corner/till:3",
        "eval_script": SCRIPT.replace("pytest -rA tests/test_cart.py", "go test -v ./..."),
        "log_parser": "parse_log_gotest",
        "eval_type": "pass_and_fail",
        "FAIL_TO_PASS": ["TestTotal"],
        "PASS_TO_PASS": [],
    },
    "swe-bench-pro": {
        **{k: v for k, v in _COMMON.items() if k not in ("version", "hints_text", "created_at")},
        "instance_id": f"instance_Corner__Shop-{COMMIT}",
        "repo_language": "python",
        "requirements": "- total adds up what it is given",
        "interface": "No new interfaces are introduced.",
        "fail_to_pass": str(TESTS),
        "pass_to_pass": "[]",
        "before_repo_set_cmd": f"git reset --hard {COMMIT}\ngit checkout {COMMIT} -- tests/test_cart.py",
        "selected_test_files_to_run": "['tests/test_cart.py']",
        "dockerhub_tag": f"corner.shop-Corner__Shop-{COMMIT}",
        "run_script": "#!/bin/bash\npytest -v ${1//,/ }\n",
        "parser_script": "import sys, json\n",
    },
    "swe-bench-live": {
        **_COMMON,
        "instance_id": "corner__shop-13",
        "pull_number": "12",
        "issue_numbers": ["11"],
        "test_cmds": ["pytest -rA"],
        "log_parser": "pytest",
        "FAIL_TO_PASS": TESTS,
        "PASS_TO_PASS": [],
    },
    "swe-rebench": {
        **_COMMON,
        "instance_id": "corner__shop-14",
        "docker_image": "swerebench/sweb.eval.x86_64.corner_1776_shop-14",
        "install_config": {
            "python": "3.9",
            "install": "pip install -e .",
            "test_cmd": "pytest --no-header -rA",
            "log_parser": "parse_log_pytest",
        },
        "meta": {"is_lite": True, "llm_score": {"issue_text_score": 1}},
        "FAIL_TO_PASS": TESTS,
        "PASS_TO_PASS": [],
        "FAIL_TO_FAIL": [],
        "PASS_TO_FAIL": [],
    },
    "swe-rebench-v2": {
        **_COMMON,
        "instance_id": "corner__shop-15",
        "language": "go",
        "pr_description": "Totals.",
        "patch": changed("till.go", "x := 1", "x := 2"),
        "test_patch": changed("till_test.go", "y := 1", "y := 2"),
        "image_name": "docker.io/swerebenchv2/corner-shop:12-5f0c1d2",
        "install_config": {"install": ["go mod download"], "test_cmd": ["go test -v ./..."]}
        | {"log_parser": "parse_log_gotest", "docker_specs": {"go_version": "1.22"}},
        "FAIL_TO_PASS": ["TestTotal"],
        "PASS_TO_PASS": [],
    },
    "swe-gym": {
        **_COMMON,
        "instance_id": "getmoto__moto-9001",
        "repo": "getmoto/moto",
        "FAIL_TO_PASS": TESTS,
        "PASS_TO_PASS": [],
    },
    "swe-smith": {
        "instance_id": "corner__shop.5f0c1d2e.func_pm_remove__ab12cd34",
        "repo": "swesmith/corner__shop.5f0c1d2e",
        "patch": BUG,
        "image_name": "swebench/swesmith.x86_64.corner_1776_shop.5f0c1d2e",
        "problem_statement": "The total is always 0.",
        "FAIL_TO_PASS": TESTS,
        "PASS_TO_PASS": ["tests/test_till.py::test_opens"],
    },
    "r2e-gym": {
        "repo_name": "shop",
        "docker_image": f"corner/shop_final:{COMMIT}",
        "commit_hash": COMMIT,
        "prompt": "...",
        "problem_statement": "[ISSUE]\nThe total is always 0.\n[/ISSUE]",
        "parsed_commit_content": "{}",
        "execution_result_content": "{}",
        "expected_output_json": json.dumps({"TestCart.test_total": "PASSED"}),
        "modified_files": ["shop/cart.py"],
        "relevant_files": [],
    },
    "multi-swe-rl": {
        "org": "Corner",
        "repo": "till",
        "number": 3,
        "state": "closed",
        "title": "Totals",
        "body": "",
        "base": {"label": "Corner:main", "ref": "main", "sha": COMMIT},
        "resolved_issues": [{"number": 2, "title": "Total is 0", "body": "Always."}],
        "fix_patch": changed("till.go", "x := 1", "x := 2"),
        "test_patch": changed("till_test.go", "y := 1", "y := 2"),
        "fixed_tests": {"TestTotal": _TRANSITION},
        "p2p_tests": {"TestOpens": _TRANSITION, "TestOfAnotherRepository": None},
        "f2p_tests": {"TestTotal": _TRANSITION},
        "s2p_tests": {},
        "n2p_tests": {},
        "run_result": {"passed_count": 1},
    },
    "harbor": {
        "harbor_task": "sum-the-cart",
        "config": {"version": "1.0", "environment": {"docker_image": "corner/cart:1"}, "verifier": {"timeout_sec": 60}},
        "instruction": "Make the total right.\n",
        "workdir": "/app",
        "compose": False,
        "tests": {"test.sh": "pytest /tests/test_state.py && echo 1 > /logs/verifier/reward.txt\n"},
        "solution": "sed -i 's/0/sum(prices)/' shop/cart.py\n",
    },
    "longhaul": {
        "task_id": "mine/1",
        "source": "injected",
        "repository": "shop",
        "issue": "The total is always 0.",
        "fail_to_pass": ["test_cart.py::test_total"],
        "files": {"cart.py": "def total(prices):\n    return 0\n"},
        "test_files": {"test_cart.py": "def test_total():\n    from cart import total\n    assert total([1]) == 1\n"},
    },
}
"""By schema; `swe-bench 5` and `swe-bench-multilingual` are editions of `swe-bench`."""

SCHEMAS = {name: "swe-bench" if name in ("swe-bench 5", "swe-bench-multilingual") else name for name in RECORDS}
