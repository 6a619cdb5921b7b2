"""MRPO and VERL: rewards and bonuses from the effective rank of hidden states."""
