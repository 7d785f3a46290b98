"""Agents from outside, one small file each: how it is installed, started, told its issue. Open `harness.py` first."""
