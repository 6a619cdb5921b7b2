"""What a run measures on held-out prompts."""
