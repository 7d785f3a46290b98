"""What is plotted of a run's metrics (`figures.py`) and how it is drawn (`svg.py`): on the page and in the report."""
