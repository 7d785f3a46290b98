"""Train or evaluate: `python launch.py --num-actors 512`. `--help` explains every setting."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cluster.front_door.launching import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 a part failed, 2 bad input, 130/143 interrupted."""
    return run(sys.argv[1:] if arguments is None else arguments, "python launch.py")


if __name__ == "__main__":
    sys.exit(main())
