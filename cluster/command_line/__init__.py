"""From flags and files to settings. Open `cli.py` first."""
