"""ProRL's reset inside a run: KL starts from zero again, and a resumed run has its reference."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file

from rlvr_decode.training.config import Adapter, Checkpoint, Optim
from rlvr_decode.training.run.metrics import MetricsLog
from rlvr_decode.training.trainer import train_recipe


@pytest.fixture
def resetting(micro, tmp_path):
    """Settings of a run of five steps with a reset after every second one."""
    return lambda out: micro(
        reset={"every": 2},
        optim=Optim(steps=5, lr=1e-2, warmup=0, micro_batch=100),
        checkpoint=Checkpoint(every=1, keep=0),
        out=str(tmp_path / out),
    )


def steps_of(pair):
    lines = MetricsLog(pair.parent / "metrics.jsonl").read()
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def test_the_policy_becomes_the_reference(resetting):
    path = train_recipe(resetting("runs"))
    lines = steps_of(path)
    assert [line.get("reset") for line in lines] == [None, None, "2 steps", None, "2 steps", None]
    kl = [line.get("kl_ref") for line in lines]
    assert max(kl[1], kl[3], kl[5]) < 1e-6 < 1e-4 < min(kl[2], kl[4])
    reference = load_file(path.parent / "references" / "step-000004" / "weights.safetensors")
    policy = load_file(path.parent / "checkpoints" / "step-000004" / "weights.safetensors")
    assert all((reference[name] == policy[name]).all() for name in policy)


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_run_cut_short_finds_its_reference(resetting, kept):
    whole, cut = train_recipe(resetting("whole")), train_recipe(resetting("cut"))
    cut.unlink()
    for step in range(kept + 1, 6):
        shutil.rmtree(cut.parent / "checkpoints" / f"step-{step:06d}")
    cut = train_recipe(resetting("cut"))
    assert steps_of(cut) == steps_of(whole)
    weights = "rlvr/model.safetensors"
    assert (cut.parent / weights).read_bytes() == (whole.parent / weights).read_bytes()


def test_what_cannot_be_reset_is_refused(resetting):
    for changes in ({"kl_to_base": False}, {"adapter": Adapter(kind="lora")}):
        with pytest.raises(ValueError, match="reset: there is no reference model to reset"):
            train_recipe(replace(resetting("runs"), name=next(iter(changes)), **changes))
