# ruff: noqa: E501 (a table is read by its rows)
"""Records on which a reader goes wrong, and what is right: a task of which something is true, or a refusal by field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from benchmarks.data.records import GOLD, RECORDS, TEST_PATCH, TESTS, Record, changed
from protocol.errors import TaskError
from sandbox.datasets.formats import read_record
from sandbox.tasks.task import Task


class Case(Struct, frozen=True):
    """One record with the right outcome: `holds` of its task, or (where `refused` names a field) a refusal."""

    name: str
    record: Record
    holds: Callable[[Task], bool] = lambda task: False
    refused: str = ""

    def wrong(self) -> str:
        """What is wrong with today's reading; empty when it is right."""
        try:
            task = read_record("auto", self.record)
        except TaskError as error:
            named = f": {self.refused}: " in str(error) and str(error).startswith("task '")
            return "" if self.refused and named else f"refused: {error}"
        if self.refused:
            return f"taken, and not refused by {self.refused}"
        return "" if self.holds(task) else f"read as {task.image} {task.tests}"


def _of(schema: str, **changes: Any) -> Record:
    return {**RECORDS[schema], **changes}


def _runs(*words: str, never: tuple[str, ...] = ()) -> Callable[[Task], bool]:
    """Whether the words of the command's last line hold all of `words` and none of `never`."""

    def holds(task: Task) -> bool:
        said = task.tests.command.split()
        return all(word in said for word in words) and not any(word in said for word in never)

    return holds


_RENAMED = (
    "diff --git a/tests/test_before.py b/tests/test_after.py\nsimilarity index 90%\nrename from tests/test_before.py\n"
    "rename to tests/test_after.py\n"
)
_DELETED = (
    "diff --git a/tests/test_gone.py b/tests/test_gone.py\ndeleted file mode 100644\n--- a/tests/test_gone.py\n"
    "+++ /dev/null\n@@ -1 +0,0 @@\n-a = 1\n"
)
_QUOTED = (
    'diff --git "a/tests/test_caf\\303\\251.py" "b/tests/test_caf\\303\\251.py"\n--- "a/tests/test_caf\\303\\251.py"\n'
    '+++ "b/tests/test_caf\\303\\251.py"\n@@ -1 +1 @@\n-a = 1\n+a = 2\n'
)
_LOOKS_LIKE_A_HEADER = (
    "diff --git a/tests/test_cart.py b/tests/test_cart.py\n--- a/tests/test_cart.py\n+++ b/tests/test_cart.py\n"
    "@@ -1,2 +1,2 @@\n--- a/tests/test_ghost.py\n+++ b/tests/test_ghost.py\n a = 1\n"
)
_GYM = "swe-gym"
_HARBOR = RECORDS["harbor"]["config"]
_DJANGO = _of("swe-bench", instance_id="django__django-9001", repo="django/django")
_DJANGO_NAMES = '["test_total (carts.tests.CartTests)", "A sentence (of the docs).", "test_b (tills.test_b.T.test_b)"]'

TESTS_THAT_RUN = [
    Case("a pure rename", _of(_GYM, test_patch=_RENAMED, FAIL_TO_PASS=["tests/test_after.py::test_a"]), _runs("tests/test_after.py", never=("tests/test_before.py",))),
    Case("a deleted file beside", _of(_GYM, test_patch=TEST_PATCH + _DELETED), _runs("tests/test_cart.py", never=("tests/test_gone.py",))),
    Case("only deletions, tests named elsewhere", _of(_GYM, test_patch=_DELETED), _runs("tests/test_cart.py", never=("tests/test_gone.py",))),
    Case("a test named in a deleted file", _of(_GYM, test_patch=_DELETED, FAIL_TO_PASS=["tests/test_gone.py::test_a"]), refused="FAIL_TO_PASS"),
    Case("a quoted name", _of(_GYM, test_patch=_QUOTED, FAIL_TO_PASS=["tests/test_café.py::test_a"]), _runs("'tests/test_café.py'")),
    Case("a line that looks like a header", _of(_GYM, test_patch=_LOOKS_LIKE_A_HEADER), _runs("tests/test_cart.py", never=("tests/test_ghost.py",))),
    Case("a name with a blank", _of(_GYM, test_patch=changed("tests/test my cart.py"), FAIL_TO_PASS=["tests/test my cart.py::test_a"]), lambda t: t.tests.command.endswith(" 'tests/test my cart.py'")),
    Case("a name that looks like an option", _of(_GYM, test_patch=changed("-k_test.py"), FAIL_TO_PASS=["-k_test.py::test_a"]), _runs("./-k_test.py", never=("-k_test.py",))),
    Case("a name that pytest would read arguments from", _of("swe-smith", PASS_TO_PASS=["@cart_test.py::test_a"]), _runs("./@cart_test.py", never=("@cart_test.py",))),
    Case("a helper is no test module", _of(_GYM, test_patch=TEST_PATCH + changed("tests/helpers.py")), _runs("tests/test_cart.py", never=("tests/helpers.py",))),
    Case("a module of another name", _of("swe-rebench", test_patch=changed("checks/cart_spec.py"), FAIL_TO_PASS=["checks/cart_spec.py::test_a"]), _runs("checks/cart_spec.py")),
    Case("cases of a data file", _of(_GYM, test_patch=changed("test-data/unit/check-sum.test"), FAIL_TO_PASS=["mypy/test/testcheck.py::Suite::check-sum.test::testSum"], PASS_TO_PASS=["mypy/test/testcheck.py::Suite::check-sum.test::testOld"]), lambda t: t.tests.command.endswith("mypy/test/testcheck.py -k 'testOld or testSum'")),
    Case("data alone, and names without files", _of("swe-rebench", test_patch=changed("tests/data/cart.yml"), FAIL_TO_PASS=["test_a (cart.T)"]), refused="test_patch"),
    Case("tests that are not Python", _of("swe-bench", repo="corner/till", test_patch=changed("till_test.go"), FAIL_TO_PASS='["till_test.go::TestTotal"]'), refused="eval_script"),
    Case("Django's data alone, and names that tell modules", {**_DJANGO, "test_patch": changed("tests/carts/valid.txt"), "FAIL_TO_PASS": _DJANGO_NAMES}, _runs("carts.tests", "tills.test_b", never=("carts.valid.txt",))),
    Case("Django's data alone, and names that tell none", {**_DJANGO, "test_patch": changed("tests/carts/valid.txt"), "FAIL_TO_PASS": '["A sentence."]'}, refused="test_patch"),
    Case("a pytest that tests itself is of any age", _of("swe-bench", repo="pytest-dev/pytest", version="4.6"), lambda t: t.tests.command.endswith("&& pytest -rA tests/test_cart.py")),
    Case("an old pytest has a header", _of("swe-bench"), lambda t: "-rA" in t.tests.command and "--no-header" not in t.tests.command),
    Case("no file for pro", _of("swe-bench-pro", selected_test_files_to_run="[]"), refused="selected_test_files_to_run"),
    Case("no command for live", _of("swe-bench-live", test_cmds=[]), refused="test_cmds"),
    Case("a blank command", _of("swe-rebench-v2", install_config={"test_cmd": ["  "], "log_parser": "parse_log_gotest"}), refused="test_cmd"),
    Case("compiled sources are built", _of("swe-rebench", patch=changed("shop/fast.pyx")), lambda t: t.tests.setup.endswith("pip install -e .")),
    Case("compiled sources of a known repository", _of("swe-bench", repo="scikit-learn/scikit-learn", patch=changed("sklearn/tree.pyx")), lambda t: "pip install" in t.tests.setup),
    Case("compiled sources that only an agent may change", _of("swe-bench", repo="scikit-learn/scikit-learn"), lambda t: "pip install" in t.tests.rebuild and not t.tests.setup),
    Case("an install step for what an agent may change", _of("swe-rebench"), lambda t: t.tests.rebuild.endswith("pip install -e .") and not t.tests.setup),
    Case("templates of compiled sources", _of("swe-bench", repo="scikit-learn/scikit-learn", patch=changed("sklearn/utils/seq.pyx.tp")), lambda t: "pip install" in t.tests.setup),
    Case("templates that nobody builds", _of(_GYM, patch=changed("pandas/_libs/algos.pxi.in")), refused="patch"),
    Case("compiled sources that nobody builds", _of(_GYM, patch=changed("shop/fast.c")), refused="patch"),
    Case("an install step that is missing", _of("swe-rebench", patch=changed("shop/fast.c"), install_config={"test_cmd": "pytest", "log_parser": "pytest"}), refused="install_config.install"),
    Case("the test command builds", _of("swe-rebench-v2", patch=changed("till.rs"), install_config={"test_cmd": ["cargo test"], "log_parser": "parse_log_cargo"}), lambda t: not t.tests.setup),
]  # fmt: skip

DATASETS = [
    Case("live has images of its own", _of("swe-bench-live"), lambda t: t.image == "starryzhang/sweb.eval.x86_64.corner_1776_shop-13" and t.tests.parser == "pytest"),
    Case("live with a program for a parser", _of("swe-bench-live", log_parser="def parse(log):\n    return {}\n"), refused="log_parser"),
    Case("live for windows", _of("swe-bench-live", platform="windows"), refused="platform"),
    Case("live without a parser", _of("swe-bench-live", log_parser=None), refused="log_parser"),
    Case("live rebuilds and prints", _of("swe-bench-live", rebuild_cmds=["make"], print_cmds=["cat log"]), lambda t: t.tests.setup.endswith("make") and t.tests.command.endswith("pytest -rA\ncat log")),
    Case("variables of the first rebench", _of("swe-rebench", install_config={"test_cmd": "pytest", "env_vars": {"MODE": "a b", "OTHER": None}}), lambda t: t.tests.command.startswith("export MODE='a b'\nsource ") and "OTHER" not in t.tests.command),
    Case("variables in a list", _of("swe-rebench", install_config={"test_cmd": "pytest", "env_vars": ["MODE=a=b"]}), lambda t: t.tests.command.startswith("export MODE=a=b\nsource ")),
    Case("variables that are none", _of("swe-rebench", install_config={"test_cmd": "pytest", "env_vars": ["MODE"]}), refused="install_config.env_vars"),
    Case("the second rebench has its own directory", _of("swe-rebench-v2"), lambda t: (t.workdir, t.image) == ("/shop", "docker.io/swerebenchv2/corner-shop:12-5f0c1d2")),
    Case("the second rebench without an image", _of("swe-rebench-v2", image_name=None), refused="image_name"),
    Case("the first rebench by rule", _of("swe-rebench", docker_image=None), lambda t: t.image == "swerebench/sweb.eval.x86_64.corner_1776_shop-14"),
    Case("lists of an unknown repository", {**RECORDS[_GYM], "repo": "corner/shop"}, refused="image"),
    Case("lists of SWE-bench's repository", _of("swe-bench", FAIL_TO_PASS=TESTS, PASS_TO_PASS=[]), lambda t: t.source == "swe-bench"),
    Case("pro without its scripts", _of("swe-bench-pro", run_script=None), refused="run_script"),
    Case("pro without a tag", _of("swe-bench-pro", dockerhub_tag=""), refused="dockerhub_tag"),
    Case("pro runs what it selects", _of("swe-bench-pro"), lambda t: "run_script.sh tests/test_cart.py >" in t.tests.command and t.workdir == "/app"),
    Case("smith brings its bug", _of("swe-smith"), lambda t: t.setup_patch.count("return 0") == 1 and not t.checkout and t.removed == ("tests/test_cart.py",)),
    Case("smith in another language", _of("swe-smith", FAIL_TO_PASS=["TestTotal"]), refused="FAIL_TO_PASS"),
    Case("smith with one test of another form", _of("swe-smith", PASS_TO_PASS=["README.md::README.md"]), refused="PASS_TO_PASS"),
    Case("smith with a bug in C", _of("swe-smith", patch=changed("shop/fast.c")), refused="patch"),
    Case("an image of multi-swe", _of("multi-swe-rl"), lambda t: t.image == "mswebench/corner_m_till:pr-3" and t.pass_to_pass == ("TestOpens",)),
    Case("multi-swe hides its answers", _of("multi-swe-rl"), lambda t: {"/home/fix.patch", "/home/test.patch"} <= set(t.removed)),
    Case("multi-swe in a language that nobody reads", _of("multi-swe-rl", fix_patch=changed("Till.java")), refused="log_parser"),
    Case("a task directory without an image", _of("harbor", config={"environment": {}}), refused="environment.docker_image"),
    Case("a task directory of several services", _of("harbor", compose=True), refused="environment"),
    Case("a task directory without a working directory", _of("harbor", workdir=""), refused="environment.workdir"),
    Case("variables of a task's tests", _of("harbor", config={**_HARBOR, "verifier": {"env": {"MODE": "a 'b'"}}}), lambda t: "export MODE='a '\"'\"'b'\"'\"''\nbash /tests" in t.tests.command),
    Case("variables of this host", _of("harbor", config={**_HARBOR, "verifier": {"env": {"KEY": "${API_KEY}"}}}), refused="verifier.env"),
    Case("variables that are no text", _of("harbor", config={**_HARBOR, "verifier": {"env": {"N": 1}}}), refused="verifier.env"),
    Case("variables of the agent", _of("harbor", config={**_HARBOR, "environment": {"docker_image": "a/b", "env": {"A": "b"}}}), refused="environment.env"),
    Case("a module that cannot be collected has no name", _of("r2e-gym", expected_output_json='{"": "ERROR", "T.a": "PASSED"}'), lambda t: t.tests.expected == {"T.a": "PASSED"}),
    Case("nothing but modules that cannot be collected", _of("r2e-gym", expected_output_json='{"": "ERROR"}'), refused="expected_output_json"),
    Case("a status that no log gives", _of("r2e-gym", expected_output_json='{"T.a": "SKIPPED"}'), refused="expected_output_json"),
    Case("no dataset has these fields", {"instance_id": "a__b-1", "repo": "a/b", "patch": GOLD}, refused="schema"),
]  # fmt: skip

LOADING = [
    Case("an unknown parser", _of("swe-rebench", install_config={"test_cmd": "pytest", "log_parser": "parse_log_mine"}), refused="log_parser"),
    Case("an unknown parser of release 5", _of("swe-bench 5", log_parser="parse_log_cart"), refused="log_parser"),
    Case("a parser of the second rebench that nobody has here", _of("swe-rebench-v2", patch=changed("till.ex"), install_config={"test_cmd": ["mix test"], "log_parser": "parse_log_elixir"}), refused="log_parser"),
    Case("release 5 without a parser", _of("swe-bench 5", log_parser=""), refused="log_parser"),
    Case("fail_only", _of("swe-bench 5", eval_type="fail_only", log_parser="parse_log_marked"), lambda t: t.tests.absent == "passes"),
    Case("pass_and_fail", _of("swe-bench 5"), lambda t: t.tests.absent == "fails"),
    Case("an unknown eval_type", _of("swe-bench 5", eval_type="fail_mostly"), refused="eval_type"),
    Case("an eval_type without a script", _of("swe-bench", eval_type="fail_only"), refused="eval_script"),
    Case("a script without markers", _of("swe-bench 5", eval_script="pytest -rA\n"), refused="eval_script"),
    Case("overlapping lists", _of(_GYM, PASS_TO_PASS=TESTS), refused="pass_to_pass"),
    Case("no test that turns", _of(_GYM, FAIL_TO_PASS=[]), refused="fail_to_pass"),
    Case("lists that are no lists", _of(_GYM, FAIL_TO_PASS={"a": 1}), refused="FAIL_TO_PASS"),
    Case("files from the web", _of("swe-bench 5", image_assets={"test_patch": [{"path": "a.png", "url": "u"}]}), refused="image_assets"),
    Case("a script of 200 kB", _of("swe-bench 5", eval_script=RECORDS["swe-bench 5"]["eval_script"] + "# " + "x" * 200_000), lambda t: len(t.tests.command) > 200_000),
]  # fmt: skip

FORMS = [
    Case("an image of no possible name", _of("swe-bench 5", image="corner/Till:1 latest"), refused="image"),
    Case("an image with a command in it", _of("swe-rebench", docker_image="$(id)"), refused="image"),
    Case("an image by digest, from a port", _of("r2e-gym", docker_image="localhost:5000/corner/till@sha256:" + "0a" * 32), lambda t: t.image is not None),
    Case("a name with capitals makes a small image", _of("swe-bench", instance_id="Corner__Shop-12"), lambda t: "sweb.eval.x86_64.corner_1776_shop-12" in str(t.image)),
    Case("a commit that is a flag", _of("swe-bench", base_commit="--help"), refused="base_commit"),
    Case("a commit of two words", _of(_GYM, base_commit="a b"), refused="base_commit"),
    Case("a directory that leads elsewhere", _of("swe-rebench-v2", repo="corner/.."), refused="workdir"),
    Case("a name that leads elsewhere", _of("swe-bench", instance_id="../../etc"), refused="task_id"),
    Case("half a character in a test's name", _of("swe-bench", FAIL_TO_PASS='["\\ud800"]'), refused="fail_to_pass"),
    Case("a test without a name", _of("swe-bench", FAIL_TO_PASS='["tests/test_cart.py::test_total", " "]'), refused="fail_to_pass"),
    Case("a NUL in a command", _of("swe-rebench-v2", install_config={"test_cmd": ["go test\0"], "log_parser": "parse_log_gotest"}), refused="tests"),
    Case("a repository that is a list", _of("swe-bench", repo=[]), refused="repo"),
    Case("issues that are a number", _of("multi-swe-rl", resolved_issues=1), refused="resolved_issues"),
    Case("a verifier that is no table", _of("harbor", config={**RECORDS["harbor"]["config"], "verifier": "pytest"}), refused="verifier"),
    Case("tests that are no table", _of("harbor", tests=["test.sh"]), refused="tests"),
]  # fmt: skip

CASES = {"forms": FORMS, "tests that run": TESTS_THAT_RUN, "datasets": DATASETS, "loading": LOADING}
