"""What does an agent from outside cost, and is every token of it accounted for?

    python -m benchmarks.gateway [--quick] [--save]

`added_latency_p50_ms`: a request through HTTP, dialect, history and back over what the scripted policy takes by itself.
`requests_per_s`, `cpu_ms_per_request` (of the gateway): 32 clients of a process of their own, a scripted policy.
`tok_s_share`: 64 episodes of a function through the gateway against the built-in loop, on one vLLM engine in turn. The
released agents play a task each with scripted answers in namespace sandboxes. `agents_alive`: thin agents that all wait
for a turn at the same moment.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from benchmarks.gateway import engine, released, requests, thin
from benchmarks.report import parser, report
from tiny.model import save_random_model


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--save", action="store_true", help="write benchmarks/results/gateway.json")
    options = arguments.parse_args()
    figures: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    details: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        model_dir = save_random_model(Path(directory) / "model")
        figures |= asyncio.run(requests.measure(model_dir, seconds=2.0 if options.quick else 8.0))
        figures |= asyncio.run(thin.measure(model_dir, 20 if options.quick else 200))
        found, missing, details = asyncio.run(released.measure(model_dir, starts=1 if options.quick else 5))
        figures |= found
        if options.quick:
            figures["tok_s_share"] = None
            missing["tok_s_share"] = "starting an engine takes longer than a quick run"
        else:
            figures |= asyncio.run(engine.measure(model_dir))
    report("gateway", figures, {"quick": options.quick}, missing, details=details, save=options.save)


if __name__ == "__main__":
    main()
