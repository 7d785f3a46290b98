"""How weights cross a process boundary: what they are, and the memory or fabric they cross by. Open `manifest.py`."""
