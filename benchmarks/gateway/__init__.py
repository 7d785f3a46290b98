"""What it costs to train an agent from outside through the gateway. `python -m benchmarks.gateway`."""
