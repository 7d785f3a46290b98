"""How the learner's ranks meet, share and are laid out. Open `group.py` first."""
