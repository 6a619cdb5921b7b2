"""Under torch.compile the sub-models must not share code: it is bound to one KV cache."""

import copy

from rlvr_decode import Extrapolation


def test_compiled_engine_is_exact(start, pair, exact, prompts):
    from vllm import TokensPrompt

    engine = start(pair, enforce_eager=False, max_num_seqs=8)
    asked = prompts(8, seed=11)
    strengths = [-1, 0, 0.5, 1, 1.5, 2, 3, 4]
    params = [
        Extrapolation(strength=s).sampling_params(temperature=0, max_tokens=6, ignore_eos=True)
        for s in strengths
    ]
    inputs = [TokensPrompt(prompt_token_ids=prompt) for prompt in asked]
    answers = engine.generate(inputs, params, use_tqdm=False)
    for prompt, strength, answer in zip(asked, strengths, answers, strict=True):
        tokens = answer.outputs[0].token_ids
        assert exact(prompt, tokens, strength).argmax(-1).tolist() == list(tokens)


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
