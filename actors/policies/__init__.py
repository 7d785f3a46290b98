"""Implementations of `actors/policy.py`: generators, an endpoint, a script. `open_policy.py` chooses."""
