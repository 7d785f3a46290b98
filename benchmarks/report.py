"""What every benchmark says last: one JSON object with its figures, its settings and the machine."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path

import psutil

RESULTS = Path(__file__).parent / "results"


def parser(
    doc: str | None, quick: str = "the same figures from the shortest run that has them"
) -> argparse.ArgumentParser:
    """A parser with the flags that all benchmarks share; `doc` is the module's docstring, `quick` what --quick does."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help=f"{quick}, for a look")
    return flags


def report(
    name: str,
    figures: Mapping[str, float | None],
    settings: Mapping[str, object],
    missing: Mapping[str, str] | None = None,
    *,
    details: Mapping[str, object] | None = None,
    save: bool = False,
) -> None:
    """Print the result as the last line.

    Args:
        figures: names that end in their units; None where a figure could not be measured.
        missing: the reason for every figure that is None (without one: this run had nothing to measure it from).
        details: tables behind the figures, for people.
        save: also write `benchmarks/results/<name>.json`.
    """
    reasons = {n: "nothing to measure it from in this run" for n, v in figures.items() if v is None}
    reasons.update(missing or {})
    result: dict[str, object] = {
        "benchmark": name,
        "figures": {n: v if v is None else _rounded(v) for n, v in figures.items()},
        "settings": dict(settings),
        "host": host(),
    }
    if reasons:
        result["missing"] = reasons
    if details:
        result["details"] = dict(details)
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)


def host() -> dict[str, object]:
    """Cores and memory that this process may use, and the GPU if there is one."""
    cores = len(os.sched_getaffinity(0))
    return {"cores": cores, "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "gpu": _gpu()}


def _gpu() -> str | None:
    names = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return names[0].read_text().split("\n")[0].partition(":")[2].strip() if names else None


def _rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
