"""SWE-bench Pro: an image a task, tests brought by a command of the record, a run script and a reader beside it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sandbox.datasets.fields import Record, refusal, text, texts
from sandbox.parsers.own import TESTS_JSON_MARK
from sandbox.parsers.reading import END_MARKER, START_MARKER
from sandbox.tasks.task import Task, TestSpec

_SCRIPTS = {"run_script": "run_script.sh", "parser_script": "parser.py"}
_BRINGS_TESTS = re.compile(r"git checkout [0-9a-fA-F]{7,40}(\s+--)?(\s+\S+)+")
_PLACE = "/workspace"
_IS_FOLDER = re.compile(r"\w[\w.+-]{0,199}")


def with_scripts_beside(record: Record, file: Path) -> Record:
    """`record` with the scripts that the dataset's repository keeps in `run_scripts/<instance_id>/`, where that folder
    lies beside the task file."""
    if not record.get("selected_test_files_to_run"):
        return record
    name_of_folder = str(record.get("instance_id"))
    if not _IS_FOLDER.fullmatch(name_of_folder):  # a record's name leads nowhere else
        return record
    folder = file.parent / "run_scripts" / name_of_folder
    found = {field: folder / name for field, name in _SCRIPTS.items() if not record.get(field)}
    return {**record, **{f: path.read_text(errors="replace") for f, path in found.items() if path.is_file()}}


def from_swe_bench_pro(record: Record) -> Task:
    """SWE-bench Pro. `run_script` and `parser_script` are its two files of a task as text (`with_scripts_beside`)."""
    for field, name in _SCRIPTS.items():
        if not record.get(field):
            where = f"the dataset's repository has it in run_scripts/{record.get('instance_id')}/{name}"
            raise refusal(record, field, f"is missing: {where}; put that folder beside the task file")
    files = texts(record, "selected_test_files_to_run")
    if not files:
        raise refusal(record, "selected_test_files_to_run", "names no file: it would run everything")
    brings = text(record, "before_repo_set_cmd").strip().split("\n")[-1].strip()
    if not _BRINGS_TESTS.fullmatch(brings):
        raise refusal(record, "before_repo_set_cmd", "expected its last line to check test files out of a commit")
    lists = {n: texts(record, n if n in record else n.upper()) for n in ("fail_to_pass", "pass_to_pass")}
    commit = text(record, "base_commit")
    script = (
        f"git config --global --add safe.directory '*'\n{brings} || exit 3\n"
        f"echo '{START_MARKER}'\n"
        f"bash {_PLACE}/run_script.sh {shlex.quote(','.join(files))} > {_PLACE}/stdout.log 2> {_PLACE}/stderr.log\n"
        f"$(command -v python3 || echo python) {_PLACE}/parser.py"
        f" {_PLACE}/stdout.log {_PLACE}/stderr.log {_PLACE}/output.json\n"
        f"printf '\\n%s' '{TESTS_JSON_MARK}'; tr -d '\\n' < {_PLACE}/output.json; echo\n"
        f"echo '{END_MARKER}'\n"
    )
    return Task(
        task_id=text(record, "instance_id"),
        source="swe-bench-pro",
        repository=text(record, "repo"),
        issue=_issue(record),
        fail_to_pass=lists["fail_to_pass"],
        pass_to_pass=lists["pass_to_pass"],
        image=f"jefzda/sweap-images:{text(record, 'dockerhub_tag')}",
        workdir="/app",
        gold_patch=text(record, "patch"),
        test_patch=text(record, "test_patch"),
        test_files={f"{_PLACE}/{name}": text(record, field) for field, name in _SCRIPTS.items()},
        base_commit=commit,
        checkout=commit,
        tests=TestSpec(runner="log", command=script, applies_tests=True, parser="tests-json"),
        metadata={"language": str(record.get("repo_language") or "")},
    )


def _issue(record: Record) -> str:
    """The statement with the requirements and interfaces that its authors give to the agent, too."""
    parts = [text(record, "problem_statement")]
    for field, title in (("requirements", "Requirements"), ("interface", "New interfaces")):
        if isinstance(record.get(field), str) and record[field].strip():
            parts.append(f"{title}:\n{record[field].strip()}")
    return "\n\n".join(parts)
