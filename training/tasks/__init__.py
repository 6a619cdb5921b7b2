"""What is trained on: prompts that can be counted, and a verdict on each response."""
