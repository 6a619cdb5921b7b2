"""From a full pair to an adapter pair: quality against a direct computation, gates, files."""

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlvr_decode import Extrapolation, Pair
from rlvr_decode.__main__ import main
from rlvr_decode.deltas import Criterion, low_rank_deltas
from rlvr_decode.extract import extract, markdown, write
from rlvr_decode.fidelity import make_probe, qualities
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints
from rlvr_decode.weight_extrapolation import merge


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A full pair whose update is of rank 16."""
    directory = tmp_path_factory.mktemp("known")
    base, _ = make_checkpoints(directory)
    _, merged = make_adapter(directory, base, rank=16, scale=0.05)
    defaults = Extrapolation(strength=0.5)
    return write_pair(directory, name="known", base=base, rlvr=merged, defaults=defaults)


@pytest.fixture(scope="module")
def probe(known):
    return make_probe(known, [[1, 5, 9], [1, 40]], samples=6, max_tokens=24)


@torch.no_grad()
def logprobs(directory, sequence):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model(sequence[None]).logits[0].double().log_softmax(-1)


def test_the_probe_is_rlvrs_own_text(known, probe):
    assert len(probe.sequences_T) == 6
    assert [sequence[:2].tolist() for sequence in probe.sequences_T[:2]] == [[1, 5], [1, 40]]
    assert all(1 <= length <= 24 for length in probe.lengths)
    assert len(probe.tokens_N) == len(probe.log_rlvr_NV) == sum(probe.lengths)
    sequence, length = probe.sequences_T[0], probe.lengths[0]
    exact = logprobs(known.rlvr.fetch(), sequence)[-length - 1 : -1]
    torch.testing.assert_close(probe.log_rlvr_NV[:length].double(), exact, rtol=0, atol=1e-4)
    again = make_probe(known, [[1, 5, 9], [1, 40]], samples=6, max_tokens=24)
    assert torch.equal(again.tokens_N, probe.tokens_N)


def test_a_probe_starts_without_prompts_and_stops_where_the_pair_stops():
    tiny = Pair.open("tiny")
    probe = make_probe(tiny, samples=12, max_tokens=30)
    assert all(int(sequence[0]) == 1 for sequence in probe.sequences_T)
    for sequence, length in zip(probe.sequences_T, probe.lengths, strict=True):
        assert len(sequence) == length + 1
        assert length == 30 or int(sequence[-1]) == 2
        assert 2 not in sequence[1:-1]
    assert min(probe.lengths) < 30 == max(probe.lengths)
    # What is drawn is as likely as the distribution says; its neighbour's score would not be.
    logp = probe.log_rlvr_NV.gather(-1, probe.tokens_N[:, None]).mean()
    entropy = -(probe.log_rlvr_NV.exp() * probe.log_rlvr_NV).sum(-1).mean()
    assert abs(logp + entropy) < 0.3
    shifted = probe.log_rlvr_NV[1:].gather(-1, probe.tokens_N[:-1, None]).mean()
    assert abs(shifted + entropy) > 1
    with pytest.raises(ValueError, match="samples=0"):
        make_probe(tiny, samples=0)


def test_quality_is_that_of_the_definition(known, probe):
    deltas = low_rank_deltas(known, Criterion(rank=16))
    table = list(qualities(known, deltas, probe, [4, 16]))
    assert [row.rank for row in table] == [0, 4, 16]
    base = load_file(known.base.fetch() / "model.safetensors")
    models = []
    for row in table:
        model = AutoModelForCausalLM.from_pretrained(known.base.fetch(), dtype=torch.float32)
        for layer, each in deltas.low_rank.items():
            update = each.left_MR[:, : row.rank] @ each.right_RN[: row.rank]
            weight = base[f"{layer}.weight"] + update
            model.get_submodule(layer).weight.data.copy_(weight)
        models.append(model)
    with torch.no_grad():
        rows = [
            torch.cat(
                [
                    model(sequence[None]).logits[0, -length - 1 : -1].double().log_softmax(-1)
                    for sequence, length in zip(probe.sequences_T, probe.lengths, strict=True)
                ]
            )
            for model in models
        ]
    log_rlvr = probe.log_rlvr_NV.double()
    tokens = probe.tokens_N[:, None]
    chosen = [each.gather(-1, tokens)[:, 0] for each in (log_rlvr, *rows)]
    for index, row in enumerate(table):
        kl = (log_rlvr.exp() * (log_rlvr - rows[index])).sum(-1).mean().item()
        assert row.kl == pytest.approx(kl, abs=2e-6)
        agreed = (log_rlvr.argmax(-1) == rows[index].argmax(-1)).double().mean().item()
        assert row.top1 == pytest.approx(agreed)
        if row.rank:
            deltas_N = torch.stack([chosen[0] - chosen[1], chosen[index + 1] - chosen[1]])
            assert row.correlation == pytest.approx(torch.corrcoef(deltas_N)[0, 1].item(), abs=1e-5)
    assert table[0].correlation is None and table[0].kl > 100 * table[2].kl
    assert table[2].correlation > 0.9999 and table[1].correlation < 0.99


def test_extracting_and_merging_gives_rlvr_back(known, probe, tmp_path):
    extraction = extract(known, probe, criterion=Criterion(rank=16))
    assert extraction.quality.correlation >= 0.999 and extraction.quality.top1 == 1
    pair = write(extraction, tmp_path / "low", min_correlation=0.999)
    assert pair.name == "low" and pair.rlvr.kind == "adapter" and pair.defaults == known.defaults
    assert pair.base.directory == known.base.directory
    Pair.open(tmp_path / "low", verify=True)
    back = merge(pair, tmp_path / "back").pair
    exact = load_file(known.rlvr.fetch() / "model.safetensors")
    found = load_file(back.rlvr.fetch() / "model.safetensors")
    assert found.keys() == exact.keys()
    for name, tensor in exact.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=3e-6)


def test_stock_peft_loads_it(known, probe, tmp_path):
    extraction = extract(known, probe, criterion=Criterion(energy=0.9))
    pair = write(extraction, tmp_path / "low", min_correlation=0.9)
    config = json.loads((pair.rlvr.fetch() / "adapter_config.json").read_text())
    assert config["rank_pattern"] and config["init_lora_weights"] is True
    model = AutoModelForCausalLM.from_pretrained(known.base.fetch())
    model = PeftModel.from_pretrained(model, pair.rlvr.fetch())
    sequence, length = probe.sequences_T[0], probe.lengths[0]
    with torch.no_grad():
        logp = model(sequence[None]).logits[0, -length - 1 : -1].log_softmax(-1)
    log_rlvr = probe.log_rlvr_NV[:length]
    kl = (log_rlvr.exp() * (log_rlvr - logp)).sum(-1).mean().item()
    table = pair.provenance["quality"]
    assert 0 < kl < 3 * table[-1]["kl"] < table[0]["kl"]


def test_unless_told_the_smallest_sufficient_power_of_two_is_taken(known, probe, tmp_path):
    extraction = extract(known, probe, min_correlation=0.999, max_rank=64)
    assert extraction.rank == 16
    assert [row.rank for row in extraction.table] == [0, 1, 2, 4, 8, 16]
    assert extraction.criterion == {"correlation": 0.999}
    pair = write(extraction, tmp_path / "low", min_correlation=0.999)
    weights = load_file(pair.rlvr.fetch() / "adapter_model.safetensors")
    assert {min(tensor.shape) for tensor in weights.values()} == {16}
    assert pair.provenance["measured_on_tokens"] == sum(probe.lengths)
    assert [row["rank"] for row in pair.provenance["quality"]] == [0, 1, 2, 4, 8, 16]


def test_too_low_a_correlation_is_not_written(known, probe, tmp_path):
    extraction = extract(known, probe, min_correlation=0.999, max_rank=4)
    assert extraction.rank == 4
    with pytest.raises(ValueError, match=r"not written: .* 0\.\d+ at rank 4, below the 0.999"):
        write(extraction, tmp_path / "low", min_correlation=0.999)
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there: is there already"):
        write(extraction, tmp_path / "there", min_correlation=0)


def test_a_moved_norm_is_refused_above_the_limit(known, probe, tmp_path):
    from safetensors.torch import save_file

    rlvr = tmp_path / "rlvr"
    shutil.copytree(known.rlvr.fetch(), rlvr)
    tensors = load_file(rlvr / "model.safetensors")
    tensors["model.norm.weight"] *= 1.03
    save_file(tensors, rlvr / "model.safetensors", metadata={"format": "pt"})
    pair = write_pair(tmp_path / "pair", name="moved", base=known.base.fetch(), rlvr=rlvr)
    with pytest.raises(ValueError, match=r"model.norm.weight has moved by 0.03 .* limit is 0.01"):
        extract(pair, probe, criterion=Criterion(rank=16))
    extraction = extract(pair, probe, criterion=Criterion(rank=16), max_rest=0.1)
    made = write(extraction, tmp_path / "low").provenance["left_out"]
    assert made == {"most_moved": "model.norm.weight", "by": pytest.approx(0.03, rel=1e-3)}


def test_rlvrs_chat_template_and_stops_come_along(known, probe, tmp_path):
    rlvr = tmp_path / "rlvr"
    shutil.copytree(known.rlvr.fetch(), rlvr)
    (rlvr / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    generation = json.loads((rlvr / "generation_config.json").read_text())
    (rlvr / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [2, 7]}))
    pair = write_pair(tmp_path / "pair", name="chat", base=known.base.fetch(), rlvr=rlvr)
    low = write(extract(pair, probe, criterion=Criterion(rank=16)), tmp_path / "low")
    assert low.base.directory == tmp_path / "low" / "base"
    template = low.tokenizer_directory / "chat_template.jinja"
    assert template.read_text() == "{{ messages[0]['content'] }}!"
    assert low.stop_token_ids == pair.stop_token_ids == (2, 7)
    files = [each.base.fetch() / "model.safetensors" for each in (pair, low)]
    assert files[0].read_bytes() == files[1].read_bytes()
    shutil.move(tmp_path / "low", tmp_path / "elsewhere")
    Pair.open(tmp_path / "elsewhere", verify=True)


def test_the_verb_prints_the_table_and_refuses(known, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("what\n\nis it\n")
    out = tmp_path / "low"
    probe = ["--prompts", str(prompts), "--samples", "4", "--max-tokens", "12"]
    argv = ["pair", "extract", str(known.directory), "-o", str(out), *probe]
    with pytest.raises(SystemExit):
        main([*argv, "--rank", "1", "--min-correlation", "0.999"])
    told = capsys.readouterr()
    assert "| 1 |" in told.out and "not written: the delta's correlation" in told.err
    with pytest.raises(SystemExit):
        main([*argv, "--rank", "0"])
    assert "rank=0: must be at least 1" in capsys.readouterr().err
    assert main([*argv, "--rank", "16", "--name", "mine"]) == 0
    told = capsys.readouterr().out
    pair = Pair.open(out)
    table = pair.provenance["quality"]
    assert pair.name == "mine" and f"{table[-1]['correlation']:.4f}" in told
    assert f"on {pair.provenance['measured_on_tokens']} tokens" in told
    with pytest.raises(SystemExit):
        main(argv)
    assert "is there already" in capsys.readouterr().err


def test_the_table_in_markdown(known, probe):
    extraction = extract(known, probe, criterion=Criterion(rank=2))
    lines = markdown(extraction.table, 100_000).splitlines()
    assert len(lines) == 2 + 3 and {line.count("|") for line in lines} == {7}
    assert lines[2].startswith("| base | 0.0% | 0.0% |") and lines[2].endswith("| – |")
    share = extraction.quality.parameters / 100_000
    assert lines[-1].startswith(f"| 2 | {share:.1%} |")
