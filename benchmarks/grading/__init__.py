"""`python -m benchmarks.grading`: can a reward be had without solving?"""
