"""Task directories of harbor (terminal-bench): `task.toml`, `instruction.md`, `environment/`, `tests/test.sh`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from protocol.errors import TaskError
from sandbox.datasets.fields import Record, refusal, text
from sandbox.datasets.shell import exports
from sandbox.parsers.own import MAX_REWARD_BYTES, REWARD_MARK, REWARD_TEST
from sandbox.tasks.dockerfile import workdir_of
from sandbox.tasks.task import Task, TestSpec

_MAX_TEST_BYTES = 4 << 20
_REWARD = "/logs/verifier/reward.txt"
_REWARD_AS_JSON = "/logs/verifier/reward.json"


def is_task_directory(path: Path) -> bool:
    """Whether a directory is a task, in harbor's form or in terminal-bench's older one."""
    return any((path / name).is_file() for name in ("task.toml", "task.yaml"))


def task_directories(path: Path) -> list[Path]:
    """`path` itself, or the tasks in it; empty where it is something else."""
    if is_task_directory(path):
        return [path]
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and is_task_directory(folder))


def records_of_directories(directories: list[Path]) -> Iterator[Record | TaskError]:
    """One record a directory: its files as text."""
    for directory in directories:
        try:
            yield _record(directory)
        except TaskError as error:
            yield error


def from_harbor(record: Record) -> Task:
    """What the agent changes in the working directory is judged by `tests/test.sh` in a fresh container: the reward
    that it writes must be 1. Changes elsewhere in the container are not carried over."""
    name = text(record, "harbor_task")
    config, own_tests = record.get("config"), record.get("tests")
    if not isinstance(config, dict) or not isinstance(own_tests, dict):
        field = "tests" if isinstance(config, dict) else "config"
        raise refusal(record, field, f"expected an object, got {type(record.get(field)).__name__}", name)
    environment = _table(record, config, "environment", name)
    if record.get("compose"):
        raise refusal(record, "environment", "is several services (docker-compose), and a sandbox is one", name)
    if config.get("steps"):
        raise refusal(record, "steps", "tasks of several steps are not supported", name)
    image = environment.get("docker_image")
    if not isinstance(image, str) or not image:
        what = "names no image: build environment/Dockerfile, and name the result in task.toml"
        raise refusal(record, "environment.docker_image", what, name)
    if environment.get("env"):
        raise refusal(record, "environment.env", "sets variables of the agent's: set them in the image", name)
    verifier = _table(record, config, "verifier", name)
    if verifier.get("environment"):
        what = f"tests in a container of their own ({verifier['environment']})"
        raise refusal(record, "verifier.environment", what, name)
    workdir = environment.get("workdir") or record.get("workdir")
    if not isinstance(workdir, str) or not workdir.startswith("/") or workdir == "/":
        what = "is not known: the Dockerfile sets no WORKDIR that it tells itself; name it in task.toml"
        raise refusal(record, "environment.workdir", what, name)
    tests: dict[str, str | None] = {f"/tests/{path}": content for path, content in own_tests.items()}
    if "/tests/test.sh" not in tests:
        raise refusal(record, "tests/test.sh", "is missing", name)
    described = _table(record, config, "metadata", name)
    return Task(
        task_id=name,
        source="harbor",
        repository=name,
        issue=text(record, "instruction", of=name),
        fail_to_pass=(REWARD_TEST,),
        image=image,
        workdir=workdir,
        test_files=tests,
        tests=TestSpec(
            runner="log",
            command=f"mkdir -p /logs/verifier /logs/agent && rm -f {_REWARD} {_REWARD_AS_JSON}\n"
            f"{_exports(record, verifier, name)}bash /tests/test.sh\n"
            f"[ -e {_REWARD} ] || tr -d '\\r\\n' < {_REWARD_AS_JSON} > {_REWARD}\n"
            f"printf '\\n%s%s\\n' '{REWARD_MARK}' \"$(head -c {MAX_REWARD_BYTES} {_REWARD})\"\n",
            parser="reward",
        ),
        metadata={
            "solution": str(record.get("solution") or ""),
            "difficulty": str(described.get("difficulty") or ""),
        },
    )


def _table(record: Record, config: Record, field: str, name: str) -> Record:
    """A table of task.toml; empty where there is none."""
    value = config.get(field)
    if value is not None and not isinstance(value, dict):
        raise refusal(record, field, f"expected a table, got {type(value).__name__}", name)
    return value or {}


def _exports(record: Record, verifier: Record, name: str) -> str:
    """Shell lines that set the variables which the task's tests ask for."""
    said = exports(record, "verifier.env", verifier.get("env"), name)
    if "${" in said:
        what = "takes a variable from the environment of the host, of which no sandbox gets anything"
        raise refusal(record, "verifier.env", what, name)
    return said


def _record(directory: Path) -> Record:
    name = directory.resolve().name

    def fail(field: str, message: str) -> TaskError:
        return TaskError(f"task {name!r}: {field}: {message}", kind=field)

    if not (directory / "task.toml").is_file():
        raise fail("task.yaml", "the older form of terminal-bench: convert it to harbor's (task.toml, instruction.md)")
    try:
        config = tomllib.loads((directory / "task.toml").read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise fail("task.toml", f"not TOML: {error}") from error
    instruction = directory / "instruction.md"
    if not instruction.is_file():
        raise fail("instruction.md", "is missing")
    environment, solution = directory / "environment", directory / "solution" / "solve.sh"
    dockerfile = environment / "Dockerfile"
    return {
        "harbor_task": name,
        "config": config,
        "instruction": instruction.read_text(errors="replace"),
        "workdir": workdir_of(dockerfile.read_text(errors="replace")) if dockerfile.is_file() else "",
        "compose": any(environment.glob("docker-compose.y*ml")),
        "tests": dict(_texts(directory / "tests")),
        "solution": solution.read_text(errors="replace") if solution.is_file() else "",
    }


def _texts(folder: Path) -> Iterator[tuple[str, str]]:
    left = _MAX_TEST_BYTES
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            left -= len(content)
            if left < 0:
                raise _refused(folder, path, f"is one too many: tests may hold {_MAX_TEST_BYTES} bytes")
            try:
                yield str(path.relative_to(folder)), content.decode()
            except UnicodeDecodeError as error:
                raise _refused(folder, path, "is no text: put binary files of tests into the image") from error


def _refused(folder: Path, path: Path, message: str) -> TaskError:
    return TaskError(
        f"task {folder.parent.resolve().name!r}: tests/{path.relative_to(folder)}: {message}", kind="tests"
    )
