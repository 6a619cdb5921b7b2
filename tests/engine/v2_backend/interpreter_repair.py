"""Triton 3.9's interpreter refuses masks that mix a scalar bool with a vector of bools."""


def repair_interpreter():
    import triton.language as tl
    import vllm  # noqa: F401  vLLM chooses its kernels while it is imported
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def with_bool_mask(method, place):
        def repaired(self, *args, **kwargs):
            mask = args[place]
            if mask is not None:
                mask = TensorHandle(mask.data.astype(bool), tl.int1)
            return method(self, *args[:place], mask, *args[place + 1 :], **kwargs)

        return repaired

    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        setattr(InterpreterBuilder, name, with_bool_mask(getattr(InterpreterBuilder, name), place))
