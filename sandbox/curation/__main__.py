"""`python -m sandbox.curation build | validate`."""

import sys

from sandbox.curation.commands import main

if __name__ == "__main__":
    sys.exit(main())
