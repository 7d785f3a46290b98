"""Settings of tasks and of the sandboxes in which they are worked on."""
