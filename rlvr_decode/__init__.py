"""Decode along the direction that reinforcement learning with verifiable rewards taught a model."""

from rlvr_decode.pair import Pair
from rlvr_decode.params import Extrapolation

__all__ = ["Extrapolation", "Pair"]
__version__ = "0.1.0"
