"""A Triton backend that only says "cpu": vLLM then picks model runner V2, whose kernels the
interpreter runs. It compiles nothing."""
