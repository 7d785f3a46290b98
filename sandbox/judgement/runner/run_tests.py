"""Runs hidden tests inside a grading sandbox and writes one report.

Two processes. The parent holds the nonce that makes a report genuine and never imports anything of the repository; the
child imports it, runs the tests, and sends one line for each through a pipe. The nonce is read, and its file removed,
after the fork and before the child may go on, so it is in no memory that code under test can reach.

    python3 -I -S -B run_tests.py PLAN

The parent waits for the child's lines until the child has ended or the plan's deadline is over, then kills what is
left.
"""

# Importing pathlib or contextlib would take a third of the time that small tests need.
# ruff: noqa: PTH108, PTH109, PTH118, PTH123, SIM105

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Say = Callable[..., None]

_PR_SET_DUMPABLE = 4
_MAX_LINE = 1 << 20
_RESERVED_BYTES = 1 << 20


def main(plan_path: str) -> None:
    with open(plan_path, encoding="utf-8") as file:
        plan = json.load(file)
    os.unlink(plan_path)
    lines, line_end = os.pipe()
    gate, gate_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(lines)
        os.close(gate_end)
        os.setsid()
        os.read(gate, 1)
        os.close(gate)
        _run(plan, line_end)
        os._exit(0)
    os.close(line_end)
    with open(plan["nonce"], encoding="utf-8") as file:
        nonce = file.read()
    os.unlink(plan["nonce"])
    _hide_memory()
    place = _reserve(plan["report"])
    os.write(gate_end, b"g")
    report = _collect(lines, child, time.monotonic() + plan["deadline_s"])
    report["nonce"] = nonce
    os.ftruncate(place, os.pwrite(place, json.dumps(report).encode(), 0))


def _reserve(path: str) -> int:
    """Room for the report, taken before the tests run: tests that fill the disk cannot lose it."""
    place = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    os.pwrite(place, b" " * _RESERVED_BYTES, 0)
    return place


def _hide_memory() -> None:
    """Close /proc/<parent> (memory, environment, files) to other processes of the same user."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _collect(lines: int, child: int, deadline: float) -> dict[str, Any]:
    """Everything the child said until it ended: first outcome of every test, and what does not add up."""
    report: dict[str, Any] = {
        "outcomes": {},
        "repeated": [],
        "garbled": 0,
        "finished": False,
        "broken": "",
        "exit": None,
        "out_of_time": False,
    }
    data = b""
    ended = False
    while True:
        ready, _, _ = select.select([lines], [], [], 0 if ended else 0.02)
        if ready:
            piece = os.read(lines, 1 << 16)
            data += piece
            *whole, data = data.split(b"\n")
            for line in whole:
                _note(report, line)
            if len(data) > _MAX_LINE:
                report["garbled"] += 1
                data = b""
            if not piece:
                ended = ended or _wait(report, child, deadline)
                break
        elif ended:
            break
        if not ended and time.monotonic() > deadline:
            report["out_of_time"] = True
            break
        if not ended and not ready:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                report["exit"] = os.waitstatus_to_exitcode(status)
                ended = True
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    return report


def _wait(report: dict[str, Any], child: int, deadline: float) -> bool:
    """The child closed its pipe: give it until the deadline to end."""
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            report["exit"] = os.waitstatus_to_exitcode(status)
            return True
        time.sleep(0.001)
    report["out_of_time"] = True
    return True


def _note(report: dict[str, Any], line: bytes) -> None:
    try:
        message = json.loads(line)
        kind, test, outcome = message
    except ValueError:
        report["garbled"] += 1
        return
    if report["finished"]:
        report["repeated"].append("(after the end)")
    elif kind == "broken":
        report["broken"] = str(outcome)
    elif kind == "end":
        report["finished"] = True
    elif not isinstance(test, str) or not isinstance(outcome, str):
        report["garbled"] += 1
    elif test in report["outcomes"]:
        report["repeated"].append(test)
    else:
        report["outcomes"][test] = outcome


# --- the child ----------------------------------------------------------------------------------------------------


def _run(plan: dict[str, Any], line_end: int) -> None:
    root = os.getcwd()
    paths = [os.path.normpath(os.path.join(root, path)) for path in plan["import_paths"]]

    def say(kind: str, test: str = "", outcome: str = "") -> None:
        os.write(line_end, json.dumps([kind, test, outcome]).encode() + b"\n")

    os.dup2(2, 1)  # what tests print is the log
    {"functions": _call_functions, "pytest": _call_pytest}[plan["runner"]](plan, paths, say)
    say("end")
    sys.stdout.flush()


def _call_functions(plan: dict[str, Any], paths: list[str], say: Say) -> None:
    sys.path.extend(paths)
    for path, source in plan["files"].items():
        name = path[:-3].replace("/", ".")
        module = type(sys)(name)
        module.__file__ = path
        sys.modules[name] = module
        try:
            exec(compile(source, path, "exec"), module.__dict__)
        except BaseException as error:
            _explain(path, error)
            continue
        for test, function in list(vars(module).items()):
            if test.startswith("test") and callable(function):
                try:
                    function()
                except BaseException as error:
                    _explain(path + "::" + test, error)
                    say("test", path + "::" + test, "failed")
                else:
                    say("test", path + "::" + test, "passed")


def _explain(what: str, error: BaseException) -> None:
    os.write(2, f"{what}: {type(error).__name__}: {str(error)[:500]}\n".encode(errors="replace"))


def _call_pytest(plan: dict[str, Any], paths: list[str], say: Say) -> None:
    sys.path.append(plan["site"])
    try:
        import pytest
    except ImportError as error:
        say("broken", "", f"pytest cannot be imported: {error}")
        return

    class Report:
        def __init__(self) -> None:
            self.worst: dict[str, str] = {}

        def pytest_runtest_logreport(self, report: Any) -> None:
            outcome = report.outcome
            if hasattr(report, "wasxfail"):
                outcome = "xfailed" if outcome == "skipped" else "xpassed"
            counts = report.when == "call" or outcome != "passed"
            # a later pass (of the test around a skipped subtest, of another try) takes nothing back
            if (
                counts
                and self.worst.get(report.nodeid) != "failed"
                and (outcome != "passed" or report.nodeid not in self.worst)
            ):
                self.worst[report.nodeid] = outcome

        def pytest_runtest_logfinish(self, nodeid: str) -> None:
            if nodeid in self.worst:
                say("test", nodeid, self.worst.pop(nodeid))

    sys.path.extend(paths)
    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-o", "addopts="]
    options += ["--rootdir", os.getcwd(), "--import-mode", "importlib" if plan["importlib"] else "prepend"]
    pytest.main(options + list(plan["files"]), plugins=[Report()])


if __name__ == "__main__":
    main(sys.argv[1])
