"""Where our reading of a log differs from that of swebench's own parser of the same name."""

from __future__ import annotations

from sandbox.parsers.names import SWEBENCH_PARSERS
from sandbox.parsers.reading import LogSource, parse_log

_AS_OURS = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "xfailed", "XPASS": "xpassed"}


def disagreements(log: str, source: LogSource) -> list[str]:
    """`parser: test` for every test to which both readings do not give the same outcome, over all parsers.

    Where swebench's parser raises on a log, ours must name no test.
    """
    from swebench.harness.log_parsers import PARSER_REGISTRY

    found: list[str] = []
    for name in sorted(SWEBENCH_PARSERS):
        try:
            statuses = PARSER_REGISTRY[name](log, source)
        except Exception:  # whatever a parser raises on a log that is not its own
            statuses = {}
        theirs = {test: _AS_OURS.get(status, "failed") for test, status in statuses.items()}
        ours = parse_log(name, log, source=source).outcomes
        found += [f"{name}: {t}" for t in sorted(theirs.keys() | ours.keys()) if theirs.get(t) != ours.get(t)]
    return found
