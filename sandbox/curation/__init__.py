"""Making and checking task files: `python -m sandbox.curation build | validate`. Open `commands.py` first."""
