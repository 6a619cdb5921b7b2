"""Two processes that share a run, each with a vLLM engine of its own for its prompts."""

import os
import socket
import subprocess
import sys

from rlvr_decode.testing import make_checkpoints
from rlvr_decode.training.run.metrics import MetricsLog

SHARDED = """
import sys
from rlvr_decode.training.config import Evaluation, Log, Optim, Rollout, Task, Train
from rlvr_decode.training.tasks.task import Prompt
from rlvr_decode.training.trainer import run

class Vowels:
    def prompt(self, index, *, seed, split):
        return Prompt(text="say " * (1 + index % 3), answer="")

    def reward(self, prompt, response):
        return sum(character in "aeiou" for character in response) / max(len(response), 1)

small = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 32, "block_size": 32}
run(
    Train(
        name="sharded",
        base=sys.argv[1],
        out=sys.argv[2],
        task=Task(name="vowels"),
        shard=True,
        rollout=Rollout(prompts=3, group=4, max_new_tokens=12, engine="vllm", vllm=small),
        optim=Optim(steps=3, lr=3e-3, warmup=0),
        evaluation=Evaluation(every=3, prompts=3),
        log=Log(curves=False),
    ),
    Vowels(),
)
"""


def test_each_engine_follows_the_sharded_policy(tmp_path):
    base, _ = make_checkpoints(tmp_path)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        group["MASTER_PORT"] = str(listener.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARDED, str(base), str(tmp_path)],
            env=os.environ | group | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=(tmp_path / f"said-{rank}").open("w"),
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        assert process.wait(300) == 0, (tmp_path / f"said-{rank}").read_text()[-2000:]
    lines = MetricsLog(tmp_path / "sharded" / "metrics.jsonl").read()
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    # The largest gap of all responses, whichever engine has sampled them; and the policy has moved.
    assert all(line["rollout_gap_max"] < 1e-4 for line in lines[1:])
    assert lines[3]["kl_ref"] > 1e-2
    assert (tmp_path / "sharded" / "pair.json").exists()
