"""What the console costs and how soon it answers: `python -m benchmarks.console`. Open `__main__.py`."""
