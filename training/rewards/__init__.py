"""Rewards that can be verified, and the processes that judge where a bad one can be killed."""
