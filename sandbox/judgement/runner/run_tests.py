"""Runs hidden tests inside a grading sandbox and prints one report, then what the tests printed.

Two processes. The parent holds everything that decides: which tests are asked for and in which order, the nonce that
makes a report genuine, and the only way out (its standard output). It imports nothing of the repository. It forks
before it has read any of that, so the child holds none of it: the child is told what to load, answers one question at a
time under a token that the question brings, and whatever it says unasked is noted. What the child's loop uses was
bound before the first import of the repository. That a child taken over by the code under test answers at all proves
nothing: the proof is that among the tests are some that must fail, which nothing but their meaning tells apart.

`main(PLACE)` is given a directory with `plan` and `secrets`, removed with this file before the child may go on. The
parent kills what is left when the child has answered everything, has ended, or the deadline is over.

Everything that is said is a line of words, each in hexadecimal, blanks between them: whatever a line holds, taking it
apart cannot go wrong in another way than by `ValueError`.
"""

# Small tests take a few milliseconds, and so does importing json, signal, ctypes, pathlib, random or contextlib.
# ruff: noqa: PTH106, PTH108, PTH109, PTH113, PTH118, PTH123, PTH208, SIM105

from __future__ import annotations

import gc
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Run = Callable[[int, int], str]  # (test, the one after it or -1) -> outcome
    Loaded = tuple[list[str], Run]

_PR_SET_DUMPABLE = 4
_SIGKILL, _SIGSTOP = 9, 19
_MAX_LINE = 4 << 20
_LOG_HALF = 1 << 15
_END_GRACE_S = 2.0
_OUTCOMES = ("passed", "failed", "skipped", "xfailed", "xpassed", "rerun")


def main(place: str) -> None:
    questions, ask_end = os.pipe()
    answer_end, answers = os.pipe()
    log_end, log = os.pipe()
    child = os.fork()
    if child == 0:
        for end in (ask_end, answer_end, log_end):
            os.close(end)
        os.setsid()
        for end in (1, 2):
            os.dup2(log, end)
        os.close(log)
        _serve(questions, answers)
        os._exit(0)
    for end in (questions, answers, log):
        os.close(end)
    nonce, deadline_s, order = decode_line(_take(os.path.join(place, "secrets")))
    plan = _take(os.path.join(place, "plan"))
    _remove(place)
    _hide_memory()
    parent = Parent(child, ask_end, answer_end, log_end, float(deadline_s), order == "drawn")
    if parent.is_ready(plan):
        _print(encode_line([nonce]))  # from here on code of the repository runs: what fails is not the place
        parent.run()
    parent.end()
    _print(encode_line([nonce, *parent.report()]) + parent.log())


def encode_line(words: list[str]) -> bytes:
    """Words, of whatever characters, as one line."""
    return " ".join([word.encode("utf-8", "surrogatepass").hex() for word in words]).encode() + b"\n"


def decode_line(line: bytes) -> list[str]:
    """The words of a line, whoever wrote it. Raises `ValueError`."""
    return [bytes.fromhex(word).decode("utf-8", "surrogatepass") for word in line.decode("ascii").split(" ")]


def _take(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _remove(place: str) -> None:
    for directory, _, names in os.walk(place, topdown=False):
        for name in names:
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _print(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


def _hide_memory() -> None:
    """Close /proc/<parent> (memory, environment, files) to other processes of the same user."""
    try:  # what ctypes is made of, in a tenth of its time
        from _ctypes import call_function, dlopen, dlsym

        hidden = call_function(dlsym(dlopen(None, 0), "prctl"), (_PR_SET_DUMPABLE, 0, 0, 0, 0)) == 0  # type: ignore[arg-type]
    except (ImportError, AttributeError, TypeError, OSError):
        hidden = False
    if not hidden:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


class Parent:
    """Asks the child for one test after the other."""

    def __init__(self, child: int, questions: int, answers: int, log: int, deadline_s: float, drawn: bool) -> None:
        self._child = child
        self._questions, self._answers, self._log = questions, answers, log
        self._deadline = time.monotonic() + deadline_s
        self._drawn = drawn
        self._unread = b""
        self._head, self._tail, self._logged = b"", b"", 0
        self._ended = False
        self._outcomes: dict[str, str] = {}
        self._repeated: list[str] = []
        self._garbled = 0
        self._finished = self._out_of_time = False
        self._broken = ""
        self._exit: int | None = None
        for end in (questions, answers, log):
            os.set_blocking(end, False)

    def is_ready(self, plan: bytes) -> bool:
        """Hand the child its plan. It has imported what runs the tests and nothing of the repository, or says why it
        cannot; later nobody would know who says so."""
        answer = self._ask(plan.rstrip(b"\n"))
        is_ready = answer == ["ready"]
        if not is_ready and not self._out_of_time:
            self._broken = " ".join((answer or ())[1:]) or "the process that runs the tests ended before it was ready"
        return is_ready

    def run(self) -> None:
        answer = self._ask(encode_line(["load"])[:-1])
        if answer is not None and answer[:1] == ["tests"]:
            self._ask_all(answer[1:])
        elif answer is not None:
            self._garbled += 1

    def end(self) -> None:
        """Let nothing of the child go on."""
        end = _SIGSTOP if self._out_of_time else _SIGKILL  # what it took is still to be measured
        try:
            os.killpg(self._child, end)
        except (ProcessLookupError, PermissionError):
            pass

    def report(self) -> list[str]:
        """Garbled lines, finished, exit status or nothing, out of time, what was broken, how many were repeated, those,
        then tests and their outcomes in turn."""
        flags = [str(int(flag)) for flag in (self._garbled, self._finished)]
        exit_status = "" if self._exit is None else str(self._exit)
        repeated = [str(len(self._repeated)), *self._repeated]
        outcomes = [word for pair in self._outcomes.items() for word in pair]
        return [*flags, exit_status, str(int(self._out_of_time)), self._broken, *repeated, *outcomes]

    def _ask_all(self, tests: list[str]) -> None:
        self._repeated = sorted({test for test in tests if tests.count(test) > 1}) if _has_twice(tests) else []
        order = _drawn(tests) if self._drawn else list(range(len(tests)))
        for place, test in enumerate(order):
            following = order[place + 1] if place + 1 < len(order) else -1
            answer = self._ask(encode_line([str(test), str(following)])[:-1])
            if answer is None or len(answer) != 1 or answer[0] not in _OUTCOMES:
                self._garbled += answer is not None
                return
            self._outcomes[tests[test]] = answer[0]
        self._finished = True
        self._send(b"\n")
        self._wait_for_end(min(self._deadline, time.monotonic() + _END_GRACE_S))

    def _ask(self, what: bytes) -> list[str] | None:
        """The child's answer to the words of a line; None when none comes."""
        token = os.urandom(8).hex()
        if self._unread or self._poll(0):
            self._garbled += 1
        if not self._send(encode_line([token])[:-1] + b" " + what + b"\n"):
            return None
        while b"\n" not in self._unread:
            if self._ended or len(self._unread) > _MAX_LINE:
                return None
            if time.monotonic() > self._deadline:
                self._out_of_time = True
                return None
            self._poll(0.05)
        line, _, self._unread = self._unread.partition(b"\n")
        try:
            back, *answer = decode_line(line)
        except ValueError:
            back, answer = "", []
        if back == token:
            return answer
        self._garbled += 1
        return None

    def _send(self, data: bytes) -> bool:
        while data and time.monotonic() < self._deadline:
            select.select([], [self._questions], [], 0.02)
            self._poll(0)
            try:
                data = data[os.write(self._questions, data) :]
            except BlockingIOError:
                if self._ended:
                    break
            except BrokenPipeError:
                break
        return not data

    def _poll(self, wait_s: float) -> bool:
        """Take what came within `wait_s`; whether the child said anything. Notices its end."""
        ready, _, _ = select.select([end for end in (self._answers, self._log) if end >= 0], [], [], wait_s)
        if self._log in ready:
            self._note(os.read(self._log, 1 << 16))
        said = os.read(self._answers, 1 << 16) if self._answers in ready else b""
        self._unread += said
        if not said:
            self._look_for_end(hung_up=self._answers in ready)
        return bool(said)

    def _look_for_end(self, hung_up: bool) -> None:
        """Whether the child has ended: then nothing that it left behind can answer for it."""
        if self._exit is None:
            done, status = os.waitpid(self._child, os.WNOHANG)
            if done:
                self._exit = os.waitstatus_to_exitcode(status)
        if hung_up and self._exit is None:
            time.sleep(0.001)  # it closed its end and is about to go, or to be killed at the deadline
        self._ended = self._exit is not None

    def _wait_for_end(self, deadline: float) -> None:
        while not self._ended and time.monotonic() < deadline:
            self._poll(0.02)
        if self._unread:
            self._repeated.append("(after the end)")

    def _note(self, piece: bytes) -> None:
        if not piece:
            self._log = -1
            return
        self._logged += len(piece)
        room = _LOG_HALF - len(self._head)
        self._head += piece[:room]
        self._tail = (self._tail + piece[max(room, 0) :])[-_LOG_HALF:]

    def log(self) -> bytes:
        """Head and tail of what the tests printed."""
        left_out = self._logged - len(self._head) - len(self._tail)
        middle = b"\n[... %d bytes left out ...]\n" % left_out if left_out > 0 else b""
        return self._head + middle + self._tail


def _has_twice(tests: list[str]) -> bool:
    return len(set(tests)) < len(tests)


def _drawn(tests: list[str]) -> list[int]:
    """The tests' places in a drawn order: modules, then classes and functions; parameters and methods keep theirs."""
    modules: dict[str, dict[str, list[int]]] = {}
    for place, test in enumerate(tests):
        modules.setdefault(test.partition("::")[0], {}).setdefault(_group_of(test), []).append(place)
    return [
        i for groups in _shuffled(list(modules.values())) for group in _shuffled(list(groups.values())) for i in group
    ]


def _group_of(test: str) -> str:
    """The function or the class that a test belongs to."""
    path, _, rest = test.partition("::")
    return path + "::" + rest.partition("::")[0].partition("[")[0]


def _shuffled(items: list[Any]) -> list[Any]:
    keys = {id(item): os.urandom(8) for item in items}
    return sorted(items, key=lambda item: keys[id(item)])


# --- the child ----------------------------------------------------------------------------------------------------


def _serve(questions: int, answers: int) -> None:
    """Answer until there is nothing more to do. Bound here: the code under test may replace what modules hold."""
    read, write, words_of, line_of = os.read, os.write, decode_line, encode_line
    data = b""

    def ask() -> list[str]:
        nonlocal data
        while b"\n" not in data:
            piece = read(questions, 1 << 16)
            if not piece:
                os._exit(3)
            data += piece
        line, _, data = data.partition(b"\n")
        return words_of(line)

    def answer(token: str, *words: str) -> None:
        line = line_of([token, *words])
        while line:
            line = line[write(answers, line) :]

    token, *plan = ask()
    order = _order_of(plan)

    def ready() -> None:
        nonlocal token
        answer(token, "ready")
        token, _ = ask()

    def each(tests: list[str], run: Run) -> None:
        answer(token, "tests", *tests)
        run = _apart(tests, run) if order["apart"] else run
        while (question := ask()) != [""]:
            asked, test, following = question
            answer(asked, run(int(test), int(following)))

    for name in [name for name in os.environ if name.startswith(("PYTEST_", "PYTHON"))]:
        del os.environ[name]
    root = os.getcwd()
    paths = [os.path.normpath(os.path.join(root, path)) for path in order["import_paths"]]
    if order["runner"] == "functions":
        ready()
        each(*_load_functions(order["files"], paths))
    elif problem := _run_pytest(order, paths, ready, each):
        answer(token, "broken", problem)
    sys.stdout.flush()


def _order_of(plan: list[str]) -> dict[str, Any]:
    """What the words of a plan say: runner, the directory of its plugins, flags, how many import paths, those, then the
    paths and texts of test modules in turn."""
    runner, site, importlib, apart, number, *rest = plan
    paths, files = rest[: int(number)], rest[int(number) :]
    texts = dict(zip(files[::2], files[1::2]))  # noqa: B905 `strict` is younger than some images' Python
    flags = {"importlib": importlib == "1", "apart": apart == "1"}
    return {"runner": runner, "site": site, **flags, "import_paths": paths, "files": texts}


def _apart(tests: list[str], run: Run) -> Run:
    """`run` in a process of its own for every function and every class of tests: none sees what another did, and the
    methods of a class, which may build on one another, come after each other as ever."""
    fork, leave, read, write, pipe, close, wait = os.fork, os._exit, os.read, os.write, os.pipe, os.close, os.waitpid
    groups = [_group_of(test) for test in tests]
    current: tuple[str, int, int, int] | None = None  # group, process, where it is asked, where it answers

    def run_apart(test: int, following: int) -> str:
        nonlocal current
        if current is not None and current[0] != groups[test]:
            _, pid, asks, answers = current
            current = None
            close(asks)
            close(answers)
            wait(pid, 0)
        if current is None:
            questions, asks = pipe()
            answers, says = pipe()
            sys.stdout.flush()
            pid = fork()
            if pid == 0:
                close(asks)
                close(answers)
                try:
                    while question := read(questions, 32):
                        write(says, run(*map(int, question.split())).encode())
                        sys.stdout.flush()
                finally:
                    leave(0)
            close(questions)
            close(says)
            current = (groups[test], pid, asks, answers)
        after = following if following >= 0 and groups[following] == groups[test] else -1
        try:
            write(current[2], b"%d %d" % (test, after))
        except OSError:
            return "failed"
        return read(current[3], 64).decode() or "failed"

    return run_apart


def _load_functions(files: dict[str, str], paths: list[str]) -> Loaded:
    sys.path.extend(paths)
    tests: list[str] = []
    functions: list[Callable[[], object]] = []
    for path, source in files.items():
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
                tests.append(path + "::" + test)
                functions.append(function)

    def run(place: int, following: int) -> str:
        try:
            functions[place]()
        except BaseException as error:
            _explain(tests[place], error)
            return "failed"
        return "passed"

    return tests, run


def _explain(what: str, error: BaseException) -> None:
    try:
        text = str(error)
    except BaseException:
        text = "(no text)"
    os.write(2, f"{what}: {type(error).__name__}: {text[:500]}\n".encode(errors="replace"))


def _run_pytest(
    order: dict[str, Any], paths: list[str], ready: Callable[[], None], each: Callable[[list[str], Run], None]
) -> str:
    """Serve tests out of a pytest session; why there can be none, or nothing."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    sys.path.append(order["site"])
    gc.disable()  # what is imported here stays: looking through it time and again was a fifth of a small run
    try:
        import pytest

        plugins = _plugins_of(order["site"])
    except ImportError as error:
        return f"pytest cannot be imported: {error}"
    gc.freeze()
    gc.enable()
    ready()

    class Session:
        def __init__(self) -> None:
            self.opened = False
            self.worst: dict[str, str] = {}

        def pytest_runtest_logreport(self, report: Any) -> None:
            outcome = report.outcome
            if hasattr(report, "wasxfail"):
                outcome = "xfailed" if outcome == "skipped" else "xpassed"
            before = self.worst.get(report.nodeid)
            if report.when != "call" and outcome == "passed":
                return
            # a later pass (of the test around a skipped subtest, of another try) takes nothing back
            if before in (None, "passed") or outcome == "failed":
                self.worst[report.nodeid] = outcome

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: Any) -> bool:
            self.opened = True
            items = list(session.items)
            protocol = session.config.hook.pytest_runtest_protocol
            worst = self.worst

            def run(test: int, following: int) -> str:
                protocol(item=items[test], nextitem=items[following] if following >= 0 else None)
                return worst.pop(items[test].nodeid, "failed")

            each([item.nodeid for item in items], run)
            return True

    sys.path.extend(paths)
    options = ["-q", "--tb=line", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-o", "addopts="]
    options += ["--rootdir", os.getcwd(), "--import-mode", "importlib" if order["importlib"] else "prepend"]
    session = Session()
    pytest.main(options + list(order["files"]), plugins=[*plugins, session])
    if not session.opened:  # nothing could be collected: the output says why
        each([], lambda test, following: "failed")
    return ""


def _plugins_of(site: str) -> list[Any]:
    """The plugins that the task's own requirements bring. No other is loaded: metadata in a tree names none."""
    import importlib

    names = []
    for entry in sorted(os.listdir(site)):
        listed = os.path.join(site, entry, "entry_points.txt")
        if not entry.endswith(".dist-info") or not os.path.isfile(listed):
            continue
        section = ""
        for line in _take(listed).decode(errors="replace").splitlines():
            if line.startswith("["):
                section = line.strip()
            elif section == "[pytest11]" and "=" in line:
                names.append(line.partition("=")[2].partition("[")[0].strip())
    return [importlib.import_module(name) for name in names]
