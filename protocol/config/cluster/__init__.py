"""Settings of a whole run: its network, its evaluation."""
