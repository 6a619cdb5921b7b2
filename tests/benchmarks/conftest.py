"""Benchmarks are scripts that find each other beside themselves; here they are found too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
