"""What a task is and where tasks come from. Open `task.py` first."""
