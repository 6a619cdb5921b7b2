"""Several processes that share a run, and a model spread over them."""
