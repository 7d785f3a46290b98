"""Where tasks come from: task files, task directories, published datasets; one file a dataset's family.

Start with `loading.py`; `formats.py` says which dataset a record belongs to and who reads it.
"""
