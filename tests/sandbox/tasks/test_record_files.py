"""A file is JSONL or Parquet, or is told for what it is in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from protocol.errors import ConfigError
from sandbox.tasks.record_files import records_of_file

RECORDS = [{"task_id": "a", "n": 1}, {"task_id": "\u2028b", "n": 2}]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES,
        LINES.replace(b"\n", b"\r\n"),
        b"\n \n" + LINES,
        LINES.rstrip(),
    ],
)
def test_records_are_read_whatever_wrote_the_lines(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(content)
    assert list(records_of_file(tmp_path / "tasks.jsonl")) == RECORDS


def test_a_line_that_is_no_record_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(b"# mine\n" + LINES + b"{cut")
    broken, *records, cut = records_of_file(tmp_path / "tasks.jsonl")
    assert records == RECORDS
    assert "not JSON" in str(broken) and "not JSON" in str(cut)


def test_parquet_is_known_by_its_content(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / "tasks.data")
    assert list(records_of_file(tmp_path / "tasks.data")) == RECORDS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(RECORDS).encode(), "one JSON array"),
        (json.dumps(RECORDS, indent=1).encode(), "one JSON array"),
        (json.dumps(RECORDS[0], indent=1).encode(), "JSON over several lines"),
        (gzip.compress(LINES), "gzip"),
        (LINES.decode().encode("utf-16"), "UTF-16"),
        (bytes(range(256)), "a binary file"),
        (b"task_id,{n}\na,1\n", "text that begins with 'task_id,{n}'"),
    ],
)
def test_what_is_no_task_file_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "tasks.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match="expected JSONL") as caught:
        list(records_of_file(tmp_path / "tasks.jsonl"))
    assert said in str(caught.value) and "\n" not in str(caught.value)
