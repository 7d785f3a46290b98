"""`python -m cluster.front_door` is `longhaul` where the package is not installed."""

import sys

from cluster.front_door.main import main

sys.argv[0] = "longhaul"
sys.exit(main())
