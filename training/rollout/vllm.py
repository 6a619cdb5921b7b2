"""Rollouts by a vLLM engine in this process: continuous batching, paged and prefix-cached KV.

The engine holds the base. An adapter is handed over as a plain LoRA under a new name each time it
has changed, never merged; full weights are sent into the engine in place. Whenever either happens
the prefix cache is emptied, because it belongs to the policy before.

Of several processes that share a run, each has such an engine for its share of the prompts.

Its kernels are not the trainer's, so neither are its log-probs to the last bit: the trainer
computes its own, and logs by how much they differ (`rollout_gap_…`, `rollout_kl`). Every response
has a seed of its own. Left out: several GPUs to one engine.

B responses, T response tokens.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import typing
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlvr_decode.training.adapters import AttachedAdapter
from rlvr_decode.training.adapters.export import export, update_factors
from rlvr_decode.training.rollout.rollout import (
    RolloutError,
    Rollouts,
    encode,
    padded,
    prompt_seed,
    stop_ids,
)

T = TypeVar("T")


class EngineThread:
    """The thread in which an engine lives, so that one that stalls stalls nobody else."""

    def __init__(self) -> None:
        self._last: Future[Any] | None = None
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        # A daemon, which does not keep the process from ending.
        threading.Thread(target=self._work, name="rollout engine", daemon=True).start()

    def do(self, job: Callable[[], T], what: str, *, time_out: float) -> T:
        """The job's result; raises RolloutError if there is none in time, or it fails."""
        result: Future[T] = Future()
        self._last = result
        self._jobs.put((job, result))
        try:
            return result.result(time_out)
        except TimeoutError:
            raise RolloutError(
                f"the vLLM engine has not {what} in {time_out:g} s and is given up. The "
                "newest checkpoint is intact; raise rollout.time_out if the work takes that long"
            ) from None
        except (RuntimeError, AssertionError) as error:
            raise RolloutError(f"the vLLM engine died before it had {what}: {error}") from error

    @property
    def is_stuck(self) -> bool:
        """Whether the last job is not done, and nobody waits for it any more."""
        return self._last is not None and not self._last.done()

    def _work(self) -> None:
        while True:
            job, result = self._jobs.get()
            try:
                result.set_result(job())
            except BaseException as error:  # whatever it is belongs to who waits for the result
                result.set_exception(error)


class VLLMRollout:
    """An engine of the base that follows the policy.

    processes  how many of them share the run, each with such an engine.
    options    engine arguments over the ones chosen here.
    """

    exact = False

    def __init__(
        self,
        *,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: AttachedAdapter | None,
        base: str | Path,
        dtype: str,
        seed: int,
        processes: int,
        time_out: float,
        options: dict[str, Any],
    ) -> None:
        self.policy, self.tokenizer, self.adapter = policy, tokenizer, adapter
        self._scratch = TemporaryDirectory(prefix="rollout-adapter-")
        self._version = 0
        self._lora: Any = None
        arguments = {
            "model": str(base),
            "dtype": dtype,
            "seed": seed,
            "load_format": "safetensors",
            # Of the tempered distribution, as the trainer computes them.
            "logprobs_mode": "processed_logprobs",
            # The trainer needs most of the memory.
            "gpu_memory_utilization": 0.3,
            **platform_arguments(policy.device),
            **({} if adapter is None else lora_arguments(adapter)),
            # The processes are not parts of one engine, though they were launched together.
            **({} if processes == 1 else {"distributed_executor_backend": "external_launcher"}),
            **options,
        }
        self.time_out = time_out
        self._thread = EngineThread()
        self._engine = self._do(lambda: start(arguments), "started")

    def refresh(self) -> None:
        """Hand the policy over, and forget what was cached of the one before."""
        self._version += 1
        if self.adapter is None:
            self._do(self._send_weights, "taken the weights")
        else:
            self._lora = self._do(self._swap_adapter, "taken the adapter")

    def run(self, job: Callable[[Any], T]) -> T:
        """Do something with the engine itself, a `vllm.LLM`, in its own thread."""
        return self._do(lambda: job(self._engine), "done it")

    def close(self) -> None:
        """Give back the engine's memory; one that has stalled has it until the process ends.

        vLLM ends the group of processes with it, whoever has made that.
        """
        if not self._thread.is_stuck:
            self.run(lambda engine: engine.llm_engine.engine_core.shutdown())
        self._scratch.cleanup()

    def sample(
        self,
        prompts: Sequence[str],
        *,
        group: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        first: int = 0,
    ) -> Rollouts:
        """As `TransformersRollout` does, except that nothing waits for the longest response."""
        from vllm import SamplingParams

        encoded = encode(prompts, self.tokenizer, self.policy.config, max_new_tokens=max_new_tokens)
        asked = [ids for ids in encoded for _ in range(group)]
        stop = stop_ids(self.policy).tolist()
        how = [
            SamplingParams(
                temperature=temperature,
                seed=prompt_seed(prompt_seed(seed, first + number), member),
                max_tokens=max_new_tokens,
                logprobs=0,
                stop_token_ids=stop,
                ignore_eos=True,
                detokenize=False,
            )
            for number in range(len(encoded))
            for member in range(group)
        ]
        outputs = self._do(
            lambda: self._engine.generate(
                [{"prompt_token_ids": ids} for ids in asked],
                how,
                lora_request=self._lora,
                use_tqdm=False,
            ),
            f"sampled {len(asked)} responses",
        )
        return self._rollouts(asked, [output.outputs[0] for output in outputs])

    def _do(self, job: Callable[[], T], what: str) -> T:
        return self._thread.do(job, what, time_out=self.time_out)

    def _rollouts(self, asked: list[list[int]], outputs: list[Any]) -> Rollouts:
        device = self.policy.device
        prompt_BP, prompt_mask_BP = padded(asked, self.tokenizer)
        tokens = [torch.tensor(list(output.token_ids)) for output in outputs]
        logps = [
            torch.tensor(
                [at[token].logprob for at, token in zip(o.logprobs, o.token_ids, strict=True)]
            )
            for o in outputs
        ]
        pad = self.tokenizer.pad_token_id
        response_BT = pad_sequence(tokens, batch_first=True, padding_value=pad)
        lengths_B = torch.tensor([len(each) for each in tokens])
        mask_BT = torch.arange(response_BT.shape[1]) < lengths_B[:, None]
        return Rollouts(
            prompt_BP=prompt_BP.to(device),
            prompt_mask_BP=prompt_mask_BP.to(device),
            response_BT=response_BT.to(device),
            mask_BT=mask_BT.to(device),
            logp_BT=pad_sequence(logps, batch_first=True).to(device),
            finished_B=torch.tensor(
                [output.finish_reason == "stop" for output in outputs], device=device
            ),
            texts=self.tokenizer.batch_decode(response_BT, skip_special_tokens=True),
        )

    def _send_weights(self) -> None:
        weights = [(name, p.detach()) for name, p in self.policy.named_parameters()]
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        if self.policy.config.tie_word_embeddings:
            self._engine.apply_model(renew_head)
        self._engine.reset_prefix_cache()

    def _swap_adapter(self) -> Any:
        """The new adapter under a number of its own; the one before is dropped."""
        from vllm.lora.request import LoRARequest

        assert self.adapter is not None
        if self._lora is not None:
            self._engine.llm_engine.remove_lora(self._lora.lora_int_id)
        directory = export(self.adapter, Path(self._scratch.name), dtype=torch.float32)
        request = LoRARequest(f"policy-{self._version}", self._version, str(directory))
        self._engine.llm_engine.add_lora(request)
        self._engine.reset_prefix_cache()
        return request


def start(arguments: dict[str, Any]) -> Any:
    """A `vllm.LLM` whose engine is in this process, where weights can be handed over."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # At each reload it would warn of the modules that have nothing to load.
    logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
    from vllm import LLM

    from rlvr_decode.training.rollout.one_adapter import one_adapter

    with one_adapter():
        return LLM(**arguments)


def renew_head(model: Any) -> None:
    """A head tied to the embedding is not reloaded, and on a CPU it is a packed copy."""
    model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


def lora_arguments(adapter: AttachedAdapter) -> dict[str, Any]:
    """Room for this adapter as it is exported, and no other."""
    from vllm.config.lora import MaxLoRARanks

    rank = max(len(right_RN) for _, right_RN in update_factors(adapter).values())
    ranks = [known for known in typing.get_args(MaxLoRARanks) if known >= rank]
    if not ranks:
        raise ValueError(
            f"adapter: is written with rank {rank}, and vLLM's largest is "
            f"{max(typing.get_args(MaxLoRARanks))}; lower adapter.options.rank, or set "
            "rollout.engine=transformers"
        )
    return {"enable_lora": True, "max_lora_rank": min(ranks), "max_loras": 1, "max_cpu_loras": 1}


def platform_arguments(device: torch.device) -> dict[str, Any]:
    """vLLM's V1 runner dies on a CPU of a seeded request whose prompt is cut into chunks."""
    return {"enable_chunked_prefill": False} if device.type == "cpu" else {}
