"""The history of an agent from outside, which sends its whole conversation every time. Open `conversation.py` first."""
