"""From a changed tree to a verdict. Open `grading.py` first."""
