"""The model that is trained: on disk, in memory, its log-probabilities and its optimiser."""
