"""The console script `longhaul`: a table of commands (open `table.py` first), each a thin call of what does it."""
