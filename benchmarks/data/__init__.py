"""Are public tasks read, run and judged right? `python -m benchmarks.data`."""
