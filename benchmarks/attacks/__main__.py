"""Is any way to a pass without a solution rewarded, on any surface?

Our own runners, logs, generated tasks and (with --tasks) tasks of packages, in namespaces and in containers, and tasks
with an image in the forms of the public datasets. What is done is kept in the run directory: one that was cut goes on.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.attacks import ATTACKS
from benchmarks.attacks.surfaces import Surface, surface_of, with_image, without_image
from benchmarks.attacks.table import attacked
from benchmarks.report import parser, report
from benchmarks.resume import Results, digest_of
from protocol.config import TaskSettings
from sandbox.base import Backend
from sandbox.curation.commands import DEFAULT_CACHE
from sandbox.datasets.loading import load_tasks
from sandbox.docker.backend import DockerBackend
from sandbox.namespace.backend import NamespaceBackend

ROOT = Path(__file__).parents[2]
RUN_DIR = ROOT / "runs" / "benchmark-attacks"


async def main(options: argparse.Namespace) -> None:
    """Try everything and print the table."""
    code = digest_of([*(ROOT / "sandbox").rglob("*.py"), *(ROOT / "benchmarks/attacks").rglob("*.py")])
    results = Results(options.run_dir / f"attacks-{code}.jsonl")
    missing: dict[str, str] = {}
    async with AsyncExitStack() as stack:
        surfaces: list[Surface] = []
        backends: list[Backend] = [NamespaceBackend("attacks"), DockerBackend("attacks")]
        for backend in backends:
            stack.push_async_callback(backend.close)
            capabilities = await backend.probe()
            if not capabilities.available:
                missing[f"surfaces_{backend.name}"] = capabilities.reason
                continue
            surfaces += without_image(backend.name, backend, options.cache_dir)
            if backend.name == "docker":
                surfaces += await stack.enter_async_context(with_image(backend))
        for path in options.tasks:
            tasks = [t for t in load_tasks(TaskSettings(source=str(path), count=100)) if t.source == "injected"]
            surfaces += [surface_of("package", backends[0], task, options.cache_dir) for task in tasks[:1]]
        chosen = [surface for surface in surfaces if options.surface in (None, surface.name)]
        by_attack, by_surface = await attacked(
            chosen[:2] if options.quick else chosen, results, options.cache_dir, options.jobs
        )
    figures: dict[str, float | None] = {
        "attacks_tried": len(ATTACKS),
        "attack_runs": sum(row["tried"] for row in by_attack.values()),
        "attacks_rewarded": sum(row["rewarded"] for row in by_attack.values()),
        "surfaces": len(by_surface),
        **{f"surfaces_{name}": None for name in ("namespace", "docker") if f"surfaces_{name}" in missing},
    }
    details = {"surfaces": by_surface, "attacks": by_attack}
    whole = not options.quick and options.surface is None and not missing
    report("attacks", figures, {"jobs": options.jobs}, missing, details=details, save=whole)


if __name__ == "__main__":
    flags = parser(__doc__, "every attack on two surfaces")
    flags.add_argument("--surface", help="only one, by its name")
    flags.add_argument("--tasks", type=Path, nargs="*", default=[], help="task files; one injected fault of each")
    flags.add_argument("--jobs", type=int, default=2, help="sandboxes at the same time (default 2)")
    flags.add_argument("--run-dir", type=Path, default=RUN_DIR, help="where results are kept")
    flags.add_argument("--cache-dir", type=Path, default=DEFAULT_CACHE, help="where trees are kept")
    chosen_options = flags.parse_args()
    chosen_options.cache_dir = chosen_options.cache_dir.expanduser()
    asyncio.run(main(chosen_options))
