"""`python -m console RUN_DIR` is `longhaul console RUN_DIR`."""

from __future__ import annotations

import sys

from console.commands import console

if __name__ == "__main__":
    sys.exit(console(sys.argv[1:], "python -m console"))
