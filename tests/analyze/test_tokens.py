"""Every token as both models see it, against both models run alone."""

import numpy as np
import pytest
import torch

from rlvr_decode.analyze import differences, tokens
from rlvr_decode.analyze.tokens import Tokens, read_tokens
from rlvr_decode.evaluate.with_transformers import open_models
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15]]
RESPONSES = [[20, 21, 2], [30, 31, 32, 33], [40]]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pair")
    base, rlvr = make_checkpoints(directory, update=0.05)
    return open_models(write_pair(directory, name="random", base=base, rlvr=rlvr))


@torch.no_grad()
def logp(model, ids):
    return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize("elements", [1, tokens.ELEMENTS])
def test_columns_are_those_of_each_model_alone(models, monkeypatch, elements):
    monkeypatch.setattr(tokens, "ELEMENTS", elements)
    found = read_tokens(models, PROMPTS, RESPONSES)
    assert found.response.tolist() == [0, 0, 0, 1, 1, 1, 1, 2]
    assert found.position.tolist() == [0, 1, 2, 0, 1, 2, 3, 0]
    assert found.token.tolist() == [token for response in RESPONSES for token in response]
    row = 0
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        base, rlvr = (logp(model, prompt + response) for model in (models.base, models.rlvr))
        for place, token in enumerate(response):
            b, r = (each[len(prompt) + place - 1] for each in (base, rlvr))
            middle = torch.logaddexp(b, r) - np.log(2)
            expected = {
                "base": b[token],
                "rlvr": r[token],
                "delta": r[token] - b[token],
                "base_entropy": -(b.exp() * b).sum(),
                "rlvr_entropy": -(r.exp() * r).sum(),
                "kl": (r.exp() * (r - b)).sum(),
                "jsd": ((r.exp() * (r - middle)).sum() + (b.exp() * (b - middle)).sum()) / 2,
            }
            for name, value in expected.items():
                assert getattr(found, name)[row] == pytest.approx(value.item(), abs=2e-5), name
            assert found.base_first[row] == b.argmax() and found.rlvr_first[row] == r.argmax()
            row += 1
    assert found.of_response(1) == slice(3, 7)


def test_an_adapter_pair_reads_as_its_merged_weights(tmp_path):
    base, _ = make_checkpoints(tmp_path)
    adapter, merged = make_adapter(tmp_path, base)
    found = []
    for rlvr in (adapter, merged):
        pair = write_pair(tmp_path / rlvr.name / "pair", name="pair", base=base, rlvr=rlvr)
        found.append(read_tokens(open_models(pair), PROMPTS, RESPONSES))
    assert np.abs(found[0].delta).max() > 0.1
    np.testing.assert_allclose(found[0].delta, found[1].delta, atol=1e-4)


def table(delta, responses):
    """A table whose Δ are given and whose other columns follow from it somehow."""
    delta = np.array(delta, dtype=float)
    whole = np.arange(len(delta))
    return Tokens(
        response=np.array(responses), position=whole, token=whole,
        base=np.full(len(delta), -1.0), rlvr=delta - 1.0, delta=delta,
        base_entropy=np.abs(delta), rlvr_entropy=np.ones(len(delta)), kl=delta**2, jsd=delta**2,
        base_first=whole, rlvr_first=np.where(delta == 0, whole, -1),
    )  # fmt: skip


def test_tails_by_hand():
    found = differences.tails(table([0, 0, 0.2, -0.6, 4], [0, 0, 0, 1, 1]))
    assert found["share_beyond"] == {"0.1": 0.6, "0.5": 0.4, "1": 0.2, "3": 0.2}
    assert found["share_above"]["0.1"] == 0.4 and found["share_below"]["-0.1"] == 0.2
    assert found["mean_delta"] == pytest.approx(0.72) and found["same_first_token"] == 0.4


def test_separation_by_hand():
    base, rlvr = table([0, -1, 0, 0], [0, 0, 1, 1]), table([0, 2, 0, 1], [0, 0, 1, 1])
    found = differences.separations(base, rlvr)["delta"]
    # Of 16 pairs of tokens 10 are won and 6 tied; of the 4 pairs of responses all are won.
    assert found.of_tokens == pytest.approx((10 + 6 / 2) / 16) and found.of_responses == 1.0
    assert found.low <= found.of_tokens <= found.high
    same = differences.separations(base, base)
    assert {each.of_tokens for each in same.values()} == {0.5}


def test_histograms_are_densities_on_common_edges():
    found = differences.histograms(
        {"base": table([0, 0, 1], [0] * 3), "rlvr": table([3, 3], [0, 0])}
    )
    width = np.diff(found["delta"]["edges"])
    assert (width * found["delta"]["base"]).sum() == pytest.approx(1)
    assert (width * found["delta"]["rlvr"]).sum() == pytest.approx(1)
    assert (found["delta"]["edges"][0], found["delta"]["edges"][-1]) == (0, 3)
    # A metric without any spread still has a place.
    assert found["rlvr_entropy"]["edges"][0] == 0.5


def test_probabilities_by_delta():
    rows = differences.by_delta([table([0, 0, 3], [0] * 3)], bins=3)
    assert [row["tokens"] for row in rows] == [2, 1]
    assert rows[0]["base_probability"] == pytest.approx(np.exp(-1))
    assert rows[1]["rlvr_probability"] == pytest.approx(np.exp(2))
