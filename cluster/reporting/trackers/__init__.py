"""Weights & Biases and MLflow: each in a process that follows `metrics.jsonl`. Open `tracker.py`, then `sending.py`."""
