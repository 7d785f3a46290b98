"""The replay buffer: a pure state machine, its journal and its server. Open `machine.py` first."""
