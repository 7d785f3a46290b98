"""Hosts made of namespaces, and what a run over several of them does and costs; begin with `network.py`."""
