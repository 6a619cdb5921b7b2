"""`rlvr-decode analyze` on the bundled pair: its findings, its page, and bad input."""

import html.parser
import json

import numpy as np
import pytest

from rlvr_decode.__main__ import main
from rlvr_decode.analyze.replacement import replacement_arms
from rlvr_decode.analyze.tokens import Tokens

SHARES = ["0.02", "0.1"]


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    out = tmp_path_factory.mktemp("analysis")
    flags = [
        "--task",
        "add3",
        "--geometry",
        "--prompts",
        "60",
        "--max-tokens",
        "40",
        "-o",
        str(out),
    ]
    criteria = ["--criterion", "delta", "random", "--share", *SHARES, "--top", "5"]
    assert main(["analyze", "tiny", *flags, *criteria]) == 0
    return out


@pytest.fixture(scope="module")
def found(analysed):
    return json.loads((analysed / "analysis.json").read_text())


def test_the_update_is_sparse_and_delta_tells_the_authors_apart(found):
    for author in ("base", "rlvr"):
        beyond = found["tails"][author]["share_beyond"]
        assert 0.01 < beyond["0.5"] < beyond["0.1"] < 0.3
        assert found["tails"][author]["same_first_token"] > 0.8
    assert found["tails"]["rlvr"]["mean_delta"] > 0 > found["tails"]["base"]["mean_delta"]
    separation = found["separations"]["delta"]
    assert separation["of_responses"] > 0.6 and separation["low"] < separation["high"]


def test_replacing_the_tokens_that_delta_names_beats_random_ones(found):
    points = {}
    for point in found["points"]:
        points.setdefault(point["criterion"], []).append(point)
    for criterion in ("delta", "random"):
        shares = [point["share"] for point in points[criterion]]
        assert shares[0] == 0.0 and shares[-1] == 1.0 and shares == sorted(shares)
        assert points[criterion][0]["accuracy"] == found["accuracies"]["base"]
    by_delta, by_chance = (points[name][-2] for name in ("delta", "random"))
    assert by_chance["share"] == pytest.approx(0.1, abs=0.02)
    assert by_delta["share"] < 0.15
    assert by_delta["accuracy"]["mean"] > by_chance["accuracy"]["mean"] + 0.1


def test_top_tokens_are_ordered_and_have_their_context(found):
    raised = [place["delta"] for place in found["raised"]]
    lowered = [place["delta"] for place in found["lowered"]]
    assert raised == sorted(raised, reverse=True) and lowered == sorted(lowered)
    assert raised[-1] > 0 > lowered[-1]
    for place in [*found["raised"], *found["lowered"]]:
        ratio = place["rlvr_probability"] / place["base_probability"]
        assert np.log(ratio) == pytest.approx(place["delta"], abs=1e-4)
        # But for <bos>, the characters are this pair's tokens.
        assert 0 < len(place["before"].replace("<bos>", "^")) <= 24


def test_responses_are_shown_where_the_models_differ(found):
    shown = found["shown"]
    assert [author for author, _, _ in shown] == ["base", "rlvr"] * 4
    texts = ["".join(text for text, _ in tokens) for _, _, tokens in shown]
    assert all(base != rlvr for base, rlvr in zip(texts[::2], texts[1::2], strict=True))
    assert all(prompt.endswith("=?\n") for _, prompt, _ in shown)


def test_the_geometry_is_in_the_findings_and_on_the_page(analysed, found):
    norm = found["geometry"]["all"]["relative_norm"]
    assert 1e-3 < norm < 1e-2
    text = (analysed / "analysis.html").read_text()
    assert "Geometry of the update" in text and f"{norm:.2e}" in text


class Page(html.parser.HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.outside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [value for name, value in attrs if name in ("src", "href", "srcset")]


def test_the_page_stands_alone_in_light_and_dark(analysed):
    text = (analysed / "analysis.html").read_text()
    page = Page(text)
    assert page.outside == [] and "script" not in page.tags and "url(" not in text
    assert page.tags.count("svg") == 6 and page.tags.count("table") == 7
    assert "prefers-color-scheme: dark" in text
    assert (analysed / "analysis.png").read_bytes().startswith(b"\x89PNG")


def test_thresholds_are_at_quantiles_of_the_criterions_own_values():
    values = np.linspace(0, 0.5, 101)
    zeros = np.zeros(101)
    ids = zeros.astype(int)
    base = Tokens(
        response=ids, position=ids, token=ids, base=zeros, rlvr=zeros, delta=values - 0.4,
        base_entropy=values, rlvr_entropy=zeros, kl=values, jsd=values, base_first=ids,
        rlvr_first=ids,
    )  # fmt: skip
    swept = replacement_arms(
        base, criteria=["delta", "kl", "random"], shares=[0.2, 0.1], temperature=1.0
    )
    thresholds = {
        name: [arm.extrapolation.threshold for arm in arms[1:-1]] for name, arms in swept.items()
    }
    assert thresholds["delta"] == pytest.approx([-0.35, -0.3])
    assert thresholds["kl"] == pytest.approx([0.45, 0.4])
    assert thresholds["random"] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--task", "add4"], "task.name='add4': unknown"),
        (["--task", "add3", "--criterion", "loss"], "criterion 'loss': must be one of delta"),
        (["--task", "add3", "--share", "1.5"], "share 1.5: must be between 0 and 1"),
        (["--task", "add3", "--temperature", "0"], "--temperature 0: must be above 0"),
        (["--task", "add3", "--batch", "0"], "--batch 0: at least 1"),
    ],
)
def test_what_cannot_be_analysed_is_said(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["analyze", "tiny", "--prompts", "4", "-o", str(tmp_path / "out"), *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
