"""A reference policy at an endpoint: log-probs of the very token ids that were sampled. Open `grading.py` first."""
