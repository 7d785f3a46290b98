"""Which dataset a record belongs to, by its own fields, and who reads it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from protocol.errors import TaskError, border
from sandbox.datasets.fields import Record, mapping, name_of, refusal
from sandbox.datasets.harbor import from_harbor
from sandbox.datasets.live import from_swe_bench_live
from sandbox.datasets.multi_swe import from_multi_swe
from sandbox.datasets.pro import from_swe_bench_pro
from sandbox.datasets.r2e import from_r2e_gym
from sandbox.datasets.rebench import from_swe_rebench, from_swe_rebench_v2
from sandbox.datasets.smith import from_swe_smith
from sandbox.datasets.swe_bench import from_swe_bench, from_swe_gym
from sandbox.tasks.repositories import SWE_BENCH, SWE_GYM
from sandbox.tasks.task import Task, check_task

Converter = Callable[[Record], Task]


def from_longhaul(record: Record) -> Task:
    """Our own schema: the fields of `Task`."""
    try:
        return msgspec.convert(record, Task)
    except msgspec.ValidationError as error:
        raise TaskError(f"task {record.get('task_id', '?')!r}: {error}", kind="schema") from error


CONVERTERS: dict[str, Converter] = {
    "longhaul": from_longhaul,
    "swe-bench": from_swe_bench,
    "swe-bench-live": from_swe_bench_live,
    "swe-bench-pro": from_swe_bench_pro,
    "swe-rebench": from_swe_rebench,
    "swe-rebench-v2": from_swe_rebench_v2,
    "swe-smith": from_swe_smith,
    "swe-gym": from_swe_gym,
    "r2e-gym": from_r2e_gym,
    "multi-swe-rl": from_multi_swe,
    "harbor": from_harbor,
}

_PRO = ("selected_test_files_to_run", "before_repo_set_cmd", "dockerhub_tag")


def recognise(record: Record) -> str:
    """Name of the schema that `record` follows, by its fields. Raises `TaskError` where none is certain."""
    if "task_id" in record and "issue" in record:
        return "longhaul"
    if "harbor_task" in record:
        return "harbor"
    if record.get("expected_output_json") is not None:
        return "r2e-gym"
    if "fix_patch" in record and "org" in record:
        return "multi-swe-rl"
    if "instance_id" not in record:
        raise TaskError(f"no known task schema has the fields {sorted(record)[:12]}", kind="schema")
    if any(record.get(field) for field in _PRO):
        return "swe-bench-pro"
    if record.get("test_cmds") is not None:
        return "swe-bench-live"
    if record.get("install_config") is not None:
        return _edition_of_rebench(record)
    if "test_patch" in record:
        return _plain_edition(record)
    if record.get("image_name") and str(record.get("repo") or "").partition("/")[0] in ("swesmith", "SWE-smith"):
        return "swe-smith"
    if record.get("image_name") and str(record["instance_id"]).count(".") >= 2:
        return "swe-smith"
    raise refusal(record, "schema", f"no known dataset has the fields {sorted(record)[:12]} and no others")


def _edition_of_rebench(record: Record) -> str:
    config = mapping(record, "install_config")
    second = record.get("language") or record.get("pr_description") or "docker_specs" in config
    return "swe-rebench-v2" if second or isinstance(config.get("test_cmd"), list) else "swe-rebench"


def _plain_edition(record: Record) -> str:
    """SWE-bench's own fields and no others: in lists (as mirrors of SWE-bench have them, too) or as JSON text."""
    repository = str(record.get("repo"))
    if record.get("eval_script") or record.get("image") or repository in SWE_BENCH:
        return "swe-bench"
    if repository in SWE_GYM:
        return "swe-gym"
    if isinstance(record.get("FAIL_TO_PASS"), str):
        return "swe-bench"
    what = (
        f"neither this field nor the repository {record.get('repo')!r} says which dataset this is, so no image is known"
    )
    raise refusal(record, "image", what)


def read_record(schema: str, record: Record) -> Task:
    """The task of a record of `schema` (`auto`: recognised). Raises `TaskError` for whatever is wrong with it: a record
    of a form that nobody foresaw is one bad record, too."""
    with border(TaskError, f"a record of task {name_of(record)!r} in a known form", kind="record"):
        return check_task(converter(schema, record)(record))


def converter(schema: str, record: Record) -> Converter:
    """The converter of `schema`; `auto` recognises it by the fields of `record`."""
    return CONVERTERS[recognise(record) if schema == "auto" else schema]
