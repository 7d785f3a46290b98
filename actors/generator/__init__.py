"""A vLLM engine behind a socket. Open `generator.py` first; `own_process.py` starts it."""
