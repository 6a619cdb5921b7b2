"""Spectral orthogonal exploration: verified traces on problems a model fails by itself.

`explore.py` is the method, `manifold.py` its geometry, `run.py` the command.
"""
