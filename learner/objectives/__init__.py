"""What is optimised: samples, advantages and losses, as pure functions. `table/` has one file an objective.

Open `registry.py` first.
"""
