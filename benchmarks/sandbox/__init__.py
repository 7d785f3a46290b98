"""`python -m benchmarks.sandbox`: how fast are sandboxes, and what do they cost?"""
