"""Files of task records: JSONL and Parquet. What is neither is refused in a line that says what it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from protocol.errors import ConfigError, TaskError, border

_HEAD = 1 << 14
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_FOREIGN = {
    b"\x1f\x8b": "compressed (gzip): unpack it",
    b"BZh": "compressed (bzip2): unpack it",
    b"\xfd7zXZ": "compressed (xz): unpack it",
    b"\x28\xb5\x2f\xfd": "compressed (zstd): unpack it",
    b"PK\x03\x04": "an archive (zip): unpack it",
    b"\xff\xfe": "text in UTF-16: write it in UTF-8",
    b"\xfe\xff": "text in UTF-16: write it in UTF-8",
    b"ARROW1": "an Arrow file: name the directory that `save_to_disk` made, or write Parquet",
}
_BEGINS_JSON = {
    b"[": "one JSON array; records stand in a line each, as `jq -c '.[]'` writes them",
    b"{": "JSON over several lines; records stand in a line each, as `jq -c .` writes them",
}


def records_of_file(path: Path) -> Iterator[dict[str, Any] | TaskError]:
    """Its records; an error in the place of a line that cannot be read. Raises `ConfigError`."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
        if path.suffix == ".parquet" or head.startswith(_PARQUET):
            yield from _of_parquet(path)
            return
        if said := what_else(head):
            expected = "expected JSONL (a JSON object a line) or Parquet"
            raise ConfigError(f"tasks.source {str(path)!r}: {expected}, got {said}", kind="tasks")
        yield from _of_lines(path)
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"tasks.source {str(path)!r} cannot be read: {why}", kind="tasks") from error


def what_else(head: bytes) -> str:
    """What a file is whose first bytes are `head`, and what to do, if it cannot be JSONL; else empty."""
    for magic, meaning in _FOREIGN.items():
        if head.startswith(magic):
            return meaning
    lines = [line.strip() for line in head.removeprefix(_BOM).split(b"\n") if line.strip()]
    if not lines:
        return ""
    if b"\0" in head:
        return "a binary file"
    if lines[0] in _BEGINS_JSON:
        return _BEGINS_JSON[lines[0]]
    if any(line.startswith(b"{") for line in lines):
        return ""
    return _BEGINS_JSON[b"["] if lines[0].startswith(b"[") else f"text that begins with {_shown(lines[0])}"


def _shown(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", "replace"))


def _of_lines(path: Path) -> Iterator[dict[str, Any] | TaskError]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            text = line.removeprefix(_BOM) if number == 0 else line
            if not text.strip():
                continue
            try:
                record = msgspec.json.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                yield TaskError(f"not JSON: {error}", kind="json")
                continue
            yield record if isinstance(record, dict) else TaskError("expected a JSON object", kind="json")


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    with border(ConfigError, f"tasks.source {str(path)!r} to be readable Parquet", kind="tasks"):
        import pyarrow.parquet as parquet

        for batch in parquet.ParquetFile(path).iter_batches(batch_size=64):
            yield from batch.to_pylist()
