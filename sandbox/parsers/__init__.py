"""Logs of test runs -> outcomes by test. Start with `reading.py`; `names.py` says which parsers there are."""
