"""The policy that is trained, the reference it is compared with, and what each thinks of responses.

B responses, T response tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlvr_decode.training.config import Train
from rlvr_decode.training.policy.adapted import adapt, write_adapter
from rlvr_decode.training.policy.logprobs import TokenLogprobs, check_head, response_logprobs
from rlvr_decode.training.policy.model import open_model, save_model
from rlvr_decode.training.processes.distributed import Processes
from rlvr_decode.training.processes.sharding import Sharded, full_tensors
from rlvr_decode.training.rollout.rollout import Rollouts


class Policies:
    """A model with an adapter, which is its own reference; or a model and its reference.

    compared  whether a reference is needed.
    """

    def __init__(
        self, config: Train, base: str | Path, *, compared: bool, processes: Processes
    ) -> None:
        self.config, self.processes = config, processes
        self.policy, self.tokenizer = open_model(base)
        self.policy.to(processes.device)  # type: ignore[arg-type]
        check_head(self.policy)
        if config.optim.gradient_checkpointing:
            self.policy.gradient_checkpointing_enable({"use_reentrant": False})
        self.adapter = self.reference = None
        if config.adapter is not None:
            start = Path(config.out) / config.name / "adapter"
            with processes.first_before_others():
                self.adapter = adapt(self.policy, config.adapter, seed=config.seed, directory=start)
        elif compared:
            self.reference = open_model(base)[0].requires_grad_(False)
            self.reference.to(processes.device)  # type: ignore[arg-type]
        self._sharded: dict[PreTrainedModel, Sharded] = {}
        if config.shard and processes.size > 1:
            models = [model for model in (self.policy, self.reference) if model is not None]
            self._sharded = {model: Sharded(model, processes) for model in models}

    def logprobs(self, rollouts: Rollouts, *, entropy: bool = False) -> TokenLogprobs:
        """log p of the responses under the policy, and the entropy at every token if asked for."""
        return self._logprobs(self.policy, rollouts, entropy=entropy)

    @torch.no_grad()
    def reference_logprobs(self, rollouts: Rollouts) -> Tensor:
        """log p under the reference: for an adapter's policy, the base it is without it."""
        if self.adapter is None:
            assert self.reference is not None
            return self._logprobs(self.reference, rollouts).logp_BT
        with self.adapter.disabled():
            return self.logprobs(rollouts).logp_BT

    def _logprobs(
        self, model: PreTrainedModel, rollouts: Rollouts, *, entropy: bool = False
    ) -> TokenLogprobs:
        temperature = self.config.rollout.temperature

        def compute() -> TokenLogprobs:
            with self.autocast():
                return response_logprobs(model, rollouts, temperature=temperature, entropy=entropy)

        return self._sharded[model](compute) if self._sharded else compute()

    def add_gradients(self) -> None:
        """Give every process the sum of all gradients, unless sharding has done so already."""
        if not self._sharded:
            self.processes.add_gradients(self.policy.parameters())

    def autocast(self) -> torch.autocast:
        """Forward passes in bfloat16, if the recipe says so."""
        device = self.processes.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.optim.bf16)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, processes may run different numbers of passes, without gradient."""
        with ExitStack() as stack:
            for sharded in self._sharded.values():
                stack.enter_context(sharded.whole())
            yield

    def save(self, directory: Path) -> None:
        """Write the rlvr half, by the first process: the adapter as LoRA, or the whole model."""
        if self.adapter is not None and self.config.adapter is not None:
            self.adapter.check_base()
            dtype = getattr(torch, self.config.adapter.dtype)
            with self.whole():
                if self.processes.is_first:
                    write_adapter(self.adapter, directory, base=self.config.base, dtype=dtype)
            return
        state = full_tensors(self.policy.state_dict(keep_vars=True), keep=self.processes.is_first)
        if self.processes.is_first:
            save_model(self.policy, self.tokenizer, directory, state)
