"""RLVR's two stages: their simulator, their monitor, and what schedules and resets make of them."""
