"""One episode's reasoning: history, actions, tools. Open `loop.py` first."""
