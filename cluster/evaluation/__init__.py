"""What `--phase eval` asks and says. Open `evaluation.py` first."""
