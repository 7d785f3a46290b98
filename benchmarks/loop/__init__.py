"""How fast is the whole loop, and what does it need? Begin with `__main__.py`."""
