"""Which models are exact, and what they cost: `python -m benchmarks.models` (open `__main__.py` first)."""
