"""Does a strength help? Arms of decoding on the same prompts, paired by prompt, with intervals."""
