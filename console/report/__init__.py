"""`report.html`: what a run amounted to, as one page that needs nothing else. Open `report.py`."""
