"""Which models are exact here, what do they cost, and is the cost foretold?

    python -m benchmarks.models [--quick] [--only families|smollm2|memory|moe|lora] [--save]

Every part runs in processes of its own. With --save, figures of parts that were not asked for stay as they were saved.
With --quick pushes of families are judged by the checks alone, and memory is measured at 1,280 tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import families, lora
from benchmarks.report import RESULTS, parser, report
from protocol.errors import ConfigError
from tiny.smollm2 import smollm2

PARTS = ("families", "smollm2", "memory", "moe", "lora")
CASES = [
    f"{tokens}:{dtype}:1{checkpointed}"
    for tokens, checkpointed in ((1280, ""), (2048, ""), (8192, ":checkpointed"))
    for dtype in ("float32", "bfloat16")
]
"""Longer rows are measured with activations recomputed: without that they take more than a small machine has."""
_DEADLINE_S = 560
Found = tuple[dict[str, float | None], dict[str, str], dict[str, Any]]


def main() -> None:
    flags = parser(__doc__, quick="no engine for each family, memory at 1,280 tokens")
    flags.add_argument("--save", action="store_true", help="write benchmarks/results/models.json")
    flags.add_argument("--only", choices=PARTS, action="append")
    options = flags.parse_args()
    figures, missing, details = _saved() if options.save else _nothing()
    for part in options.only or PARTS:
        try:
            measured, reasons, rows = _measure(part, options.quick)
        except (ConfigError, subprocess.SubprocessError, OSError) as error:
            measured, reasons, rows = dict.fromkeys(_NAMES[part]), dict.fromkeys(_NAMES[part], str(error)[:300]), {}
        missing = {name: why for name, why in missing.items() if name not in _NAMES[part]}
        figures |= measured
        missing |= reasons
        details |= rows
    settings = {"quick": options.quick, "lora_rank": lora.RANK, "memory_cases": sorted(details.get("memory", {}))}
    report("models", figures, settings, missing, details=details, save=options.save)


def _measure(part: str, quick: bool) -> Found:
    if part == "families":
        figures, rows = families.measure(engines=not quick)
        return figures, {}, rows
    if part == "smollm2":
        return _smollm2()
    if part == "memory":
        return _memory([case for case in CASES if case.startswith("1280:")] if quick else CASES)
    if part == "moe":
        found = _in_process("moe")
        return {name: found.get(name) for name in _NAMES[part]}, {}, {"moe": found}
    figures = {"lora_push_bytes_share": lora.push_bytes_share(smollm2())}
    return figures | {"lora_merged_max_diff": _in_process("lora")["merged_max_diff"]}, {}, {}


_NAMES: dict[str, tuple[str, ...]] = {
    "families": ("families", "families_exact", "families_refused", "families_silently_wrong"),
    "smollm2": (
        *("smollm2_fp32_mismatch", "smollm2_bf16_mismatch", "smollm2_bf16_rounding"),
        *("smollm2_push_s", "smollm2_tok_s"),
    ),
    "memory": ("memory_estimate_error",),
    "moe": ("moe_mismatch", "moe_mismatch_replay"),
    "lora": ("lora_push_bytes_share", "lora_merged_max_diff"),
}


def _nothing() -> Found:
    return {}, {}, {}


def _smollm2() -> Found:
    smollm2()  # made before anything is measured; where it cannot be had, the reason
    full, half = _in_process("smollm2", "float32"), _in_process("smollm2", "bfloat16")
    figures: dict[str, float | None] = {
        "smollm2_fp32_mismatch": full["mismatch"],
        "smollm2_bf16_mismatch": half["mismatch"],
        "smollm2_bf16_rounding": half["rounding"],
        "smollm2_push_s": full["push_s"],
        "smollm2_tok_s": full["tok_s"],
    }
    return figures, {}, {"smollm2": {"float32": full, "bfloat16": half}}


def _memory(cases: list[str]) -> Found:
    path = smollm2()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.models.memory", str(path), str(out), *cases]
        subprocess.run(command, stdout=sys.stderr, timeout=2 * _DEADLINE_S, check=True)
        rows: dict[str, dict[str, float]] = json.loads(out.read_text())
    errors = {case: row["estimated_gib"] / row["peak_gib"] - 1 for case, row in rows.items()}
    return {"memory_estimate_error": max(map(abs, errors.values()))}, {}, {"memory": rows}


def _in_process(name: str, *arguments: str) -> dict[str, Any]:
    """What `benchmarks.models.NAME` writes, in a process whose environment an engine needs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", f"benchmarks.models.{name}", str(out), *arguments]
        subprocess.run(command, stdout=sys.stderr, timeout=_DEADLINE_S, check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def _saved() -> Found:
    """What was saved before; what never was is missing, with the command that measures it."""
    path = RESULTS / "models.json"
    saved: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    names = {name: part for part in PARTS for name in _NAMES[part]}
    figures = dict.fromkeys(names) | saved.get("figures", {})
    never = {
        name: f"not measured yet: python -m benchmarks.models --only {part} --save"
        for name, part in names.items()
        if figures[name] is None
    }
    return figures, never | saved.get("missing", {}), saved.get("details", {})


if __name__ == "__main__":
    main()
