"""The vLLM side: everything that imports vllm lives in this sub-package."""

MODELS = {
    "PairedForCausalLM": "rlvr_decode.engine.full_pair:PairedForCausalLM",
    "AdapterPairForCausalLM": "rlvr_decode.engine.adapter_pair:AdapterPairForCausalLM",
}


def register() -> None:
    """Make the pair's model classes known to vLLM (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    # Called several times in a process, and registering twice warns.
    for name in MODELS.keys() - ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, MODELS[name])
