"""One file an objective, found by its name: docstring (first line, formula, `Source:`) and `OBJECTIVE`. Open `dapo.py`
first. Adding an objective is adding a file here and its test in `tests/learner/objectives/table/`."""
