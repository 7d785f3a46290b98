"""What is lost when anything is killed at any time? `python -m benchmarks.chaos`; open `__main__.py` first."""
