"""What the rows compute from what they measure, by hand."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
from decode import Clock, Round, compare
from decode_arms import two_engines
from draws import p_value
from exactness import compare as compare_answers


def test_pearsons_test_by_hand():
    """60 and 40 of 100 where 50 are expected: 2 · 10²/50 = 4, one degree of freedom."""
    assert p_value(Counter({0: 60, 1: 40}), [0.5, 0.5]) == pytest.approx(0.0455, abs=1e-4)
    assert p_value(Counter({0: 50, 1: 50}), [0.5, 0.5]) == 1.0


def test_rare_cells_are_put_together():
    """Three cells of 2 expected draws each count as one of 6: (6 − 0)²/6 + (94 − 100)²/94."""
    p = p_value(Counter({0: 100}), [0.94, 0.02, 0.02, 0.02])
    assert p == pytest.approx(math.erfc(math.sqrt((6 + 36 / 94) / 2)), rel=1e-6)


def test_a_draw_of_what_cannot_be_drawn_fails():
    assert p_value(Counter({0: 99, 1: 1}), [1.0, 0.0]) == 0.0


def test_tokens_count_up_to_the_first_that_differs():
    ours, theirs = ([1, 2, 9, 4], [-1.0, -2.0, 0.0, 0.0]), ([1, 2, 3, 4], [-1.0, -2.5, 0.0, 0.0])
    assert compare_answers([ours], [theirs]) == (0.5, 0.5)


class Engine:
    """Answers every text with the same likeliest tokens."""

    def __init__(self, logprobs):
        self.logprobs, self.texts = logprobs, []

    def generate(self, inputs, params, use_tqdm):
        assert params.max_tokens == 1
        self.texts += [list(each["prompt_token_ids"]) for each in inputs]
        row = {token: SimpleNamespace(logprob=value) for token, value in self.logprobs.items()}
        return [SimpleNamespace(outputs=[SimpleNamespace(logprobs=[row])]) for _ in inputs]


def test_the_papers_loop_by_hand():
    """Scores at strength 1: 7: −2 + 3 = 1; 8: −2.2 + 3 (base's least) = 0.8; 9 is base's alone."""
    base, rlvr = Engine({7: -3.0, 9: -0.1}), Engine({7: -1.0, 8: -1.1})
    run = two_engines(base, rlvr)
    assert run([[1, 2], [3]], [1.0, 1.0], 2) == [[7, 7], [7, 7]]
    assert base.texts == rlvr.texts == [[1, 2], [3], [1, 2, 7], [3, 7]]
    # At strength 0 base does not matter; below 0 what it dislikes is punished.
    assert run([[1]], [0.0], 1) == [[7]]
    assert two_engines(Engine({7: -3.0, 9: -0.1, 8: -0.2}), rlvr)([[1]], [-0.5], 1) == [[8]]


def rounds(request, step, new=64):
    first = Clock(request - (new - 1) * step, 0.0)
    return [Round(new, Clock(request, 0.0), first), Round(new, Clock(2 * request, 0.0), first)]


def test_a_pair_is_held_against_one_model_and_other_ways():
    taken = {
        "single": rounds(1.0, 0.01),
        "full": rounds(2.1, 0.02),
        "full plain": rounds(1.1, 0.01),
        "adapter": rounds(1.3, 0.013),
        "adapter plain": rounds(1.0, 0.01),
        "transformers": rounds(3.0, 0.01),
    }
    found = {(f.what, f.rival): f for f in compare(taken, 8, "bfloat16")}
    one = "one model in vLLM"
    full = found["full pair, 8 requests, bfloat16: time of a request", one]
    assert full.values == pytest.approx([2.1, 2.1]) and full.holds is False
    adapter = found["adapter pair, 8 requests, bfloat16: time of a request", one]
    assert adapter.median == pytest.approx(1.3) and adapter.holds is True
    step = found["adapter pair, 8 requests, bfloat16: time of a decode step", one]
    assert step.values[0] == pytest.approx(1.3)
    plain = found["full pair, 8 requests, bfloat16: tokens/s at strength 0", "plain vLLM"]
    assert plain.median == pytest.approx(1 / 1.1) and plain.holds is False
    # The rival answered two of the eight requests.
    alone = "transformers, two models, one request at a time"
    rival = found["adapter pair, 8 requests, bfloat16: time", alone]
    assert rival.median == pytest.approx(1.3 / (3.0 * 4))
    assert not any("loop" in who for _, who in found)


def test_long_answers_are_rows_of_their_own():
    taken = {name: rounds(4.0, 0.01, new=256) for name in ("full", "full plain", "adapter plain")}
    taken |= {"single": rounds(3.0, 0.01, new=256), "adapter": rounds(4.2, 0.014, new=256)}
    found = {f.what: f for f in compare(taken, 8, "bfloat16")}
    request = found["adapter pair, 8 requests of 256 tokens, bfloat16: time of a request"]
    assert request.median == pytest.approx(1.4) and request.holds is False
    step = found["adapter pair, 8 requests of 256 tokens, bfloat16: time of a decode step"]
    assert step.values[0] == pytest.approx(1.4)
