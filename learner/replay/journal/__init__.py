"""What was acknowledged, on disk before the acknowledgement leaves. Open `journal.py` first."""
