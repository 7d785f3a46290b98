"""Settings of a whole run: its hosts, their network, its evaluation, its pages."""
