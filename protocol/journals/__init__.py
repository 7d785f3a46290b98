"""What journals have in common, on the learner's side and on the actors'."""
