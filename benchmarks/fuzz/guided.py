"""Feed one decoder by atheris' coverage-guided fuzzer, until it breaks or is stopped.

    python -m benchmarks.fuzz.guided NAME [libFuzzer's own flags, such as -max_total_time=600]

Needs `pip install 'longhaul[fuzz]'`. An input that breaks the decoder is written to the current directory.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

_OURS = ["protocol", "sandbox", "actors", "learner", "cluster", "msgspec", "json", "tomllib", "jinja2"]


def main() -> int:
    """Never returns once it has begun: atheris ends the process."""
    try:
        import atheris
    except ImportError:
        print("python -m benchmarks.fuzz.guided: atheris is missing: pip install 'longhaul[fuzz]'", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=_OURS):
        from benchmarks.fuzz.inputs import feed
        from benchmarks.fuzz.targets import targets
    known = {target.name: target for target in targets()}
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print(f"expected one of: {', '.join(known)}", file=sys.stderr)
        return 2
    target = known[sys.argv[1]]

    def feed_one(data: bytes) -> None:
        feed(target, data)

    seeds = Path(tempfile.mkdtemp(prefix="fuzz-seeds-"))
    for number, data in enumerate([*target.raw, *map(target.write, target.seeds)]):
        (seeds / str(number)).write_bytes(data)
    atheris.Setup([sys.argv[0], *sys.argv[2:], str(seeds)], feed_one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
