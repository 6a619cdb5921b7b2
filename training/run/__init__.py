"""A run's directory: checkpoints, its lock, metrics, and what it tells while it goes on."""
