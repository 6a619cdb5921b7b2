"""Supervised training on traces: labels, order, resuming, and that it learns."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlvr_decode.training import sft
from rlvr_decode.training.policy.model import open_model
from rlvr_decode.training.run.disk import SaveError
from rlvr_decode.training.run.lock import held
from rlvr_decode.training.sft import SFT, batches, main, train_on_traces
from rlvr_decode.training.tasks.traces import Trace, encode

TRACES = [Trace(f"{i}+{i}=?\n", f"{2 * i}") for i in range(20)]


@pytest.fixture
def config(micro_base, tmp_path):
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(trace._asdict()) + "\n" for trace in TRACES))
    return SFT(
        name="cold",
        base=str(micro_base),
        traces=str(path),
        out=str(tmp_path / "runs"),
        batch=6,
        lr=1e-2,
        warmup=0,
        checkpoint_every=2,
    )


def test_labels_are_the_response_and_its_end_alone(micro_base) -> None:
    _, tokenizer = open_model(micro_base)
    inputs_BT, labels_BT = encode([Trace("1+1=?\n", "2"), Trace("?\n", "12")], tokenizer)
    assert tokenizer.decode(inputs_BT[0]) == "<bos>1+1=?\n2<eos>"
    assert tokenizer.decode(inputs_BT[1]) == "<bos>?\n12<eos><pad><pad><pad>"
    eos = tokenizer.eos_token_id
    one, two = tokenizer.convert_tokens_to_ids(["1", "2"])
    assert labels_BT.tolist() == [
        [-100] * 7 + [two, eos],
        [-100] * 3 + [one, two, eos] + [-100] * 3,
    ]


def test_an_epoch_is_every_trace_once(config) -> None:
    epoch = batches(TRACES, config)
    assert [len(batch) for batch in epoch] == [6, 6, 6, 2]
    assert sorted(trace for batch in epoch for trace in batch) == sorted(TRACES)
    assert epoch != batches(TRACES, replace(config, seed=1))
    two = batches(TRACES, replace(config, epochs=2))
    assert two[:4] == epoch and two[4:] != epoch


def test_the_loss_falls(config) -> None:
    directory = train_on_traces(replace(config, epochs=5)).parent
    losses = [json.loads(line)["loss"] for line in (directory / "metrics.jsonl").open()]
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]


def test_a_killed_run_resumes_to_the_same_bits(config, monkeypatch) -> None:
    whole = train_on_traces(replace(config, name="whole"))

    class Killed(Exception):
        pass

    encode_batch, seen = sft.encode, []

    def dying(batch, tokenizer):
        if len(seen) == 3:
            raise Killed
        seen.append(batch)
        return encode_batch(batch, tokenizer)

    monkeypatch.setattr(sft, "encode", dying)
    with pytest.raises(Killed):
        train_on_traces(config)
    monkeypatch.setattr(sft, "encode", encode_batch)
    resumed = train_on_traces(config)
    ours, theirs = (load_file(path / "model.safetensors") for path in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert train_on_traces(config) == resumed


def test_two_at_once_and_a_full_disk_are_told_by_name(config) -> None:
    directory = Path(config.out) / config.name
    message = r"cold: process \d+ on .* is at work here"
    with held(directory), pytest.raises(ValueError, match=message):
        train_on_traces(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(SaveError, match="step-000002: could not be written"):
            train_on_traces(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert train_on_traces(config).exists()


def test_bad_traces_name_the_line(config, tmp_path, capsys) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "1", "response": "2"}\n{"prompt": "1"}\n')
    with pytest.raises(ValueError, match=r'bad.jsonl:2: needs strings "prompt" and "response"'):
        train_on_traces(replace(config, name="bad", traces=str(path)))
    path.write_text("")
    recipe = tmp_path / "empty.toml"
    recipe.write_text(
        f'name = "empty"\nbase = "{config.base}"\ntraces = "{path}"\nout = "{config.out}"\n'
    )
    assert main([str(recipe)]) == 2
    assert "has no traces" in capsys.readouterr().err
    assert main([str(recipe), "batch=0"]) == 2
    assert "batch=0" in capsys.readouterr().err
