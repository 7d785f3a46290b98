"""`python -m benchmarks.learner`: how fast is a step, and in how much memory?"""
