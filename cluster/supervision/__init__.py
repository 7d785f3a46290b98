"""What the supervisor watches a run by: its parts, when they no longer get on, and waits that end."""
