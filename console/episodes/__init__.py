"""One episode as a person reads it: its turns, its tokens, its trace. Open `story.py` first."""
