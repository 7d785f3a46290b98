"""How what listens on a host answers a stranger: asked from another host."""

from __future__ import annotations

import json
import os
import sys

from benchmarks.hosts.network import Host
from benchmarks.hosts.run import OURS
from cluster.security.listeners import Listener

_ANSWER_S = 200.0
_PROBE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from cluster.security.listeners import Listener, protection
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(lambda words: protection(Listener(*words)), json.loads(sys.argv[1])))))
"""


def scanned(host: Host, other: Host) -> list[tuple[Listener, str]]:
    """What listens beyond loopback on `host`, each with its protection as `other` finds it."""
    found = [one for one in host.listeners() if not one.is_loopback]
    asked = json.dumps([[one.owner, one.address, one.port] for one in found])
    said = json.loads(other.run(sys.executable, "-c", _PROBE, asked, env=os.environ | OURS, timeout_s=_ANSWER_S))
    now = set(host.listeners())  # what has ended since was no listener when it was asked
    return [(one, protection) for one, protection in zip(found, said, strict=True) if one in now]
