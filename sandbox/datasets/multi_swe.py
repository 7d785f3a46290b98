"""Multi-SWE-bench and Multi-SWE-RL: a pull request a record, an image with its own scripts, tests by transition."""

from __future__ import annotations

from collections import Counter

from sandbox.datasets.fields import Record, name_of, refusal, text
from sandbox.parsers.reading import END_MARKER, START_MARKER
from sandbox.tasks.diffs import files_after
from sandbox.tasks.task import Task, TestSpec

_PARSERS = {"go": "parse_log_gotest", "golang": "parse_log_gotest", "rust": "parse_log_cargo"}
_SUFFIXES = {"go": "go", "rs": "rust", "java": "java", "ts": "typescript", "js": "javascript", "c": "c", "cpp": "cpp"}
_HIDDEN = tuple(
    f"/home/{name}"
    for name in ("fix.patch", "test.patch", "fix-run.sh", "test-run.sh", "run.sh", "prepare.sh", "check_git_changes.sh")
)


def from_multi_swe(record: Record) -> Task:
    """The image's `/home/test-run.sh` applies the test patch and runs the tests on the agent's tree.

    The readers of most languages' logs live in that project's harness, one a repository: where none here gives the same
    names, the record is refused unless it names a `log_parser`.
    """
    name = name_of(record)
    organisation, repository, number = text(record, "org"), text(record, "repo"), record.get("number")
    if not isinstance(number, int) or isinstance(number, bool):
        raise refusal(record, "number", "expected the number of a pull request")
    language = str(record.get("lang") or record.get("language") or "").lower() or _language(record)
    parser = str(record.get("log_parser") or _PARSERS.get(language, ""))
    if not parser:
        raise refusal(record, "log_parser", f"nothing here reads the logs of {language or 'an unknown language'} as it")
    base = record.get("base")
    if not isinstance(base, dict):
        raise refusal(record, "base", "expected an object with the base commit as `sha`")
    turning = [test for field in ("f2p_tests", "n2p_tests", "s2p_tests") for test in _names(record, field)]
    return Task(
        task_id=name,
        source="multi-swe-rl",
        repository=f"{organisation}/{repository}",
        issue=_issue(record),
        fail_to_pass=tuple(turning),
        pass_to_pass=tuple(test for test in _names(record, "p2p_tests") if test not in set(turning)),
        image=f"mswebench/{organisation}_m_{repository}:pr-{number}".lower(),
        workdir=f"/home/{repository}",
        removed=_HIDDEN,
        gold_patch=text(record, "fix_patch"),
        test_patch=text(record, "test_patch"),
        base_commit=text(base, "sha", of=name),
        tests=TestSpec(
            runner="log",
            # code under test is not to find the solution
            command="rm -f /home/fix.patch /home/fix-run.sh\n"
            f"echo '{START_MARKER}'\nbash /home/test-run.sh 2>&1\necho '{END_MARKER}'\n",
            applies_tests=True,
            parser=parser,
        ),
        metadata={"language": language},
    )


def _names(record: Record, field: str) -> list[str]:
    """Tests of one transition; Parquet editions have every test of the file as a key, those of others as null."""
    value = record.get(field)
    if value is None:
        return []
    if not isinstance(value, dict):
        raise refusal(record, field, "expected tests by name")
    return sorted(test for test, result in value.items() if result is not None)


def _language(record: Record) -> str:
    endings = Counter(path.rpartition(".")[2] for path in files_after(text(record, "fix_patch")))
    known = [_SUFFIXES[ending] for ending, _ in endings.most_common() if ending in _SUFFIXES]
    return known[0] if known else ""


def _issue(record: Record) -> str:
    issues = record.get("resolved_issues") or []
    if not isinstance(issues, list):
        raise refusal(record, "resolved_issues", f"expected a list of issues, got {type(issues).__name__}")
    parts = [f"{i.get('title') or ''}\n\n{i.get('body') or ''}".strip() for i in issues if isinstance(i, dict)]
    if not any(parts):
        raise refusal(record, "resolved_issues", "expected at least one issue with a title or a body")
    return "\n\n".join(filter(None, parts)) + "\n"
