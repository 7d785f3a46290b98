"""The hosts of a run: what goes where (`plan.py`, pure; `demand.py`: what there is to place), and how Ray is told."""
