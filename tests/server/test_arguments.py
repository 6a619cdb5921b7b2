"""`rlvr-decode serve`: vLLM's flags pass, the pair sets the rest, what breaks it is refused."""

import pytest

from rlvr_decode.pair import Pair
from rlvr_decode.server.arguments import parse


def test_a_pair_alone_sets_everything_else():
    pair, names, args = parse(["tiny"])
    assert pair.name == "tiny" and names == ("tiny",)
    assert args.host == "127.0.0.1" and args.port == 8000
    assert args.model == str(pair.rlvr.directory)
    assert args.served_model_name == ["tiny", "tiny@rlvr", "tiny@base"]
    assert args.hf_overrides["rlvr_base_model"] == str(pair.base.directory)
    assert args.load_format == "safetensors" and args.trust_remote_code is False
    assert args.api_key is None and args.middleware == []


def test_flags_of_the_engine_and_the_server_pass_through():
    flags = ["--port", "9", "--host", "::1", "--max-model-len", "64", "--enforce-eager"]
    more = ["--middleware", "a.b", "--middleware", "c.d", "--dtype", "bfloat16", "--api-key", "k"]
    _, _, args = parse([*flags, "tiny", *more])
    assert (args.port, args.host, args.max_model_len) == (9, "::1", 64)
    assert args.enforce_eager is True and args.dtype == "bfloat16"
    assert args.middleware == ["a.b", "c.d"] and args.api_key == ["k"]


def test_another_name_takes_the_strengths_with_it():
    _, names, args = parse(["tiny", "--served-model-name", "mine", "alias"])
    assert names == ("mine", "alias")
    assert args.served_model_name == ["mine", "alias", "mine@rlvr", "mine@base"]


def test_verify_hashes_the_files(monkeypatch):
    asked = []
    opened = Pair.open

    def open_pair(source, *, verify):
        asked.append(verify)
        return opened(source)

    monkeypatch.setattr(Pair, "open", open_pair)
    parse(["tiny"])
    parse(["tiny", "--verify"])
    assert asked == [False, True]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "which pair?"),
        (["absent"], "no pair 'absent'"),
        (["tiny", "--model", "other"], "model: set by the pair"),
        (["tiny", "--tokenizer", "other"], "tokenizer: set by the pair"),
        (["tiny", "--revision", "main"], "revision: set by the pair"),
        (["tiny", "--hf-overrides", '{"rope_theta": 1}'], "hf_overrides: set by the pair"),
        (["tiny", "--logits-processors", "a:b"], "logits_processors: set by the pair"),
        (["tiny", "--trust-remote-code"], "--trust-remote-code: a pair never runs code"),
        (["tiny", "--headless"], "--headless: "),
        (["tiny", "--api-server-count", "2"], "--api-server-count: "),
        (["tiny", "--load-format", "pt"], "--load-format: must be one of safetensors"),
        (["tiny", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_would_not_be_this_pair_is_refused_by_name(flags, words, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(flags)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) < 10, "the reason drowns in the usage"
