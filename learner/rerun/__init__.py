"""A step of a run taken again, from its journaled batch and the checkpoint before it. Open `command.py` first."""
