"""Under torch.compile the sub-models must not share code: it is bound to one KV cache."""

import copy


def test_compiled_engine_is_exact(start, pair, check_greedy):
    check_greedy(start(pair, enforce_eager=False, max_num_seqs=8), seed=11)


def test_the_compile_cache_keys_of_the_sub_models_and_of_their_products_differ(pair):
    from vllm import EngineArgs

    from rlvr_decode.engine.launch import engine_args

    config = EngineArgs(**engine_args(pair, max_model_len=256)).create_engine_config()
    keys = set()
    for role, packed in (("rlvr", True), ("rlvr", False), ("base", True), ("base", False)):
        sub = copy.deepcopy(config.model_config.hf_config)
        sub.rlvr_role, sub.rlvr_packed = role, packed
        keys.add(config.with_hf_config(sub, ["Qwen3ForCausalLM"]).compute_hash())
    assert len(keys) == 4
