"""Settings of the learner: replay, objective, training, what it publishes and saves."""
