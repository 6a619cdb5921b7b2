"""The vLLM side: everything that imports vllm lives in this sub-package."""


def register() -> None:
    """Make the pair's model class known to vLLM (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    if "PairedForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(
            "PairedForCausalLM", "rlvr_decode.engine.model:PairedForCausalLM"
        )
