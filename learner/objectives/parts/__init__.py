"""What objectives are made of: ratios, clips, advantages of a group, averages. Open `objective.py` first."""
