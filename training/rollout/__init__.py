"""Responses sampled from the policy, by transformers or by vLLM."""
