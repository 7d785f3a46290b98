"""The pages and who may see them: an aiohttp application over one run. Open `server.py` first, then `pages.py`."""
