"""What runs an attempt: a runner for each kind of task."""
