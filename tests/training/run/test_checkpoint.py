"""Checkpoints: what is saved comes back bit for bit, whole or not at all, or is refused."""

import json

import pytest
import torch
from torch import nn

from rlvr_decode.training.config import Optim
from rlvr_decode.training.policy.optim import adamw, muon_and_adamw
from rlvr_decode.training.run.checkpoint import Checkpoints, appearing_whole


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.hidden = nn.Linear(3, width)
        self.out = nn.Linear(width, 2)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)


def trained(steps, seed=0, *, checkpoints=None, muon=False):
    torch.manual_seed(seed)
    net = Net()
    optimizers = (
        muon_and_adamw(net, lr=0.1, weight_decay=0.1) if muon else [adamw(net, Optim(lr=0.1))]
    )
    for step in range(1, steps + 1):
        net.out(net.hidden(torch.full((5, 3), float(step)))).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if checkpoints is not None:
            checkpoints.save(net, optimizers, {"step": step})
    return net, optimizers


def bits(net, optimizers):
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    return [p.tolist() for p in net.parameters()], [
        {
            (index, key): value.tolist()
            for index, slots in state.items()
            for key, value in slots.items()
        }
        for state in states
    ]


@pytest.mark.parametrize("muon", [False, True], ids=["adamw", "muon"])
def test_weights_and_optimizer_come_back_bit_for_bit(tmp_path, muon):
    checkpoints = Checkpoints(directory=tmp_path, keep=2)
    net, optimizers = trained(3, checkpoints=checkpoints, muon=muon)
    fresh, fresh_optimizers = trained(0, seed=1, muon=muon)
    assert bits(net, optimizers) != bits(fresh, fresh_optimizers)
    assert checkpoints.restore(fresh, fresh_optimizers) == {"step": 3}
    assert bits(net, optimizers) == bits(fresh, fresh_optimizers)


def test_only_the_newest_are_kept_and_only_safe_files_written(tmp_path):
    trained(5, checkpoints=Checkpoints(directory=tmp_path, keep=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000004", "step-000005"]
    assert {path.suffix for path in tmp_path.rglob("*.*")} == {".safetensors", ".json"}


def test_no_checkpoint_is_none(tmp_path):
    assert Checkpoints(directory=tmp_path / "none", keep=1).restore(Net(), []) is None


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_damage_is_named(tmp_path, name):
    checkpoints = Checkpoints(directory=tmp_path, keep=0)
    net, optimizers = trained(2, checkpoints=checkpoints)
    file = tmp_path / "step-000002" / name
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"step-000002/{name}: is damaged .* remove step-000002"):
        checkpoints.restore(net, optimizers)


@pytest.mark.parametrize("name", ["state.json", "weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("text", [None, "", "[]", '{"step": 2}', '{"step": 2, "sha'])
def test_what_is_gone_or_cut_short_is_named(tmp_path, name, text):
    checkpoints = Checkpoints(directory=tmp_path, keep=0)
    net, optimizers = trained(2, checkpoints=checkpoints)
    file = tmp_path / "step-000002" / name
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=f"step-000002/{name}: is damaged .* remove step-000002"):
        checkpoints.restore(net, optimizers)


def test_another_models_checkpoint_is_refused(tmp_path):
    checkpoints = Checkpoints(directory=tmp_path, keep=0)
    trained(1, checkpoints=checkpoints)
    with pytest.raises(ValueError, match=r"hidden.weight is \[4, 3\] there and \[5, 3\] here"):
        checkpoints.restore(Net(width=5), [])
    with pytest.raises(ValueError, match=r"is of another model; .* is in only one of them"):
        checkpoints.restore(nn.Linear(3, 4), [])


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step-000001"
    with pytest.raises(RuntimeError), appearing_whole(target) as scratch:
        (scratch / "half").write_text("")
        raise RuntimeError("killed here")
    assert not target.exists()
    with appearing_whole(target) as scratch:
        assert not list(scratch.iterdir())
        (scratch / "state.json").write_text(json.dumps({}))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
