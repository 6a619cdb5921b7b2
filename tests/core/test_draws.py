"""Tokens are drawn with their probabilities, and what has none is never drawn."""

import math

import torch

from rlvr_decode.draws import draw_tokens

INF = math.inf


def uniform(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, 1, dtype=torch.float64, generator=generator)


def test_tokens_come_as_often_as_they_are_likely():
    p_V = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0])
    tokens = draw_tokens(p_V.log().expand(200_000, -1), uniform(200_000))
    count_V = torch.bincount(tokens, minlength=7).double()
    expected_V = 200_000 * p_V.double()
    assert (count_V[expected_V == 0] == 0).all()
    likely = expected_V > 0
    squares = (count_V - expected_V)[likely].square() / expected_V[likely]
    assert squares.sum() < 16.3  # χ² with 3 degrees of freedom: one in a thousand


def test_the_ends_of_the_unit_interval_draw_what_is_possible():
    logp_V = torch.tensor([-INF, math.log(0.5), -INF, math.log(0.5), -INF])
    ends = torch.tensor([[0.0], [0.5], [1 - 2**-53]], dtype=torch.float64)
    assert draw_tokens(logp_V.expand(3, -1), ends).tolist() == [1, 3, 3]


def test_no_token_of_a_large_vocabulary_is_favoured():
    """Each number draws the token at its share of the way, to the token."""
    width = 200_000
    uniform_N1 = (torch.arange(16, dtype=torch.float64)[:, None] + 0.5) / 16
    tokens = draw_tokens(torch.full((16, width), -math.log(width)), uniform_N1)
    assert ((tokens - uniform_N1[:, 0] * width).abs() <= 1).all()


def test_a_row_without_a_distribution_gives_a_token_whose_log_p_says_so():
    logp_NV = torch.tensor([[0.0, -INF], [math.nan, math.nan]])
    assert draw_tokens(logp_NV, uniform(2)).tolist() == [0, 1]
