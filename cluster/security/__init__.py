"""What a stranger on the network between hosts gets: a Ray cluster's credentials (`up.py` first), who listens where."""
