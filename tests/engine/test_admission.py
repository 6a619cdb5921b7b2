"""What has no room in model runner V2's tables is refused before it gets there."""

import pytest
from vllm import SamplingParams, envs

from rlvr_decode.engine import admission
from rlvr_decode.params import SettingError


def test_the_room_is_vllms():
    from vllm.v1.worker.gpu.sample import logit_bias

    assert admission.ROOM == {
        "allowed_token_ids": logit_bias.MAX_NUM_ALLOWED_TOKEN_IDS,
        "logit_bias": logit_bias.MAX_NUM_LOGIT_BIAS_TOKENS,
    }
    assert admission.STOPS == logit_bias.MAX_NUM_STOP_TOKEN_IDS
    assert admission.BAD_WORDS_TOKENS == envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        ({"stop_token_ids": list(range(113)), "min_tokens": 1}, "stop_token_ids", 113),
        ({"allowed_token_ids": list(range(1025))}, "allowed_token_ids", 1025),
        ({"logit_bias": {i: 1.0 for i in range(1025)}}, "logit_bias", 1025),
        ({"bad_words": [chr(65 + i) * 40 for i in range(13)]}, "bad_words", 13),
        ({"bad_words": ["\N{ARABIC LIGATURE SALLALLAHOU ALAYHE WASALLAM}" * 16]}, "bad_words", 1),
    ],
)
def test_more_than_there_is_room_for_is_refused(settings, name, value):
    with pytest.raises(SettingError, match="at most") as refused:
        admission.refuse_inexact(SamplingParams(**settings))
    assert (refused.value.name, refused.value.value) == (name, value)


@pytest.mark.parametrize(
    "settings",
    [
        {"stop_token_ids": list(range(112)), "min_tokens": 1},
        {"stop_token_ids": list(range(1000))},
        {"allowed_token_ids": list(range(1024))},
        {"logit_bias": {i: 1.0 for i in range(1024)}},
        {"bad_words": [chr(65 + i) * 40 for i in range(12)], "stop": ["a"] * 200},
    ],
)
def test_what_there_is_room_for_passes(settings):
    admission.refuse_inexact(SamplingParams(**settings))
