"""The memory that a training step takes, known before any of it is allocated."""

import types
import weakref
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import data
import score
from fast.linear import freeze
from model import GPT, GPTConfig, common_start, frequencies
from training.processes import precision
from training.settings import Run


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most = 0, 0
        self.sizes: dict[int, int] = {}  # by storage

    def __torch_dispatch__(self, function, kinds, args=(), options=None):
        result = function(*args, **(options or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._drop, name)

    def _drop(self, name: int) -> None:
        self.bytes -= self.sizes.pop(name)


@dataclass(frozen=True)
class Plan:
    """Memory of a training step, in bytes, if every answer is as long as allowed."""

    parameters: int  # their number
    kept: int  # both models, gradients, Adam's moments
    update: int  # activations of one backward pass
    rollout: int  # the cache, and the copies of the weights that decode

    @property
    def peak(self) -> int:
        # A rollout's memory stays with the allocator, and an update can reuse little of it.
        return self.kept + self.update + self.rollout

    def table(self) -> str:
        lines = [
            ("both models, gradients, Adam", self.kept),
            ("activations of a backward pass (--micro)", self.update),
            ("cache and copies of the weights in rollouts", self.rollout),
            ("peak, without Python and torch", self.peak),
        ]
        return "\n".join(f"  {name:45}{size / 2**20:>10,.0f} MiB" for name, size in lines)


def plan_text(config: GPTConfig, task: data.Task, run: Run, cfg: score.Config, memory: int) -> str:
    """The plan of a step as text and, if that exceeds `memory` bytes, the first --micro that fits
    as it is halved."""
    found, micro = plan_step(config, task, run, cfg), cfg.micro or cfg.problems
    text = f"{found.parameters:,} parameters\n{found.table()}"
    if found.peak <= memory:
        return text
    while found.peak > memory and micro > 1:
        micro //= 2
        found = plan_step(config, task, run, replace(cfg, micro=micro))
    less = f"; --micro {micro} takes {found.peak / 2**20:,.0f} MiB"
    less = less if found.peak <= memory else ", whatever --micro is"
    return f"{text}\nmore than the {memory / 2**20:,.0f} MiB of this machine{less}"


def plan_step(config: GPTConfig, task: data.Task, run: Run, cfg: score.Config) -> Plan:
    """Runs an update on fake tensors (shapes without memory), with the prompts of one batch, as if
    every answer reached the length limit. A batch with longer prompts takes more."""
    K, M, T = cfg.samples, cfg.revisions, task.max_new_tokens
    prompts = [task.prompt(x) for x in task.batch(run.seed, 1, cfg.problems)]
    longest, start = max(map(len, prompts)), len(common_start(prompts))
    slots = longest + T + len(task.close) + len(task.revise)  # of the trunk
    N, S = K * min(cfg.micro or cfg.problems, cfg.problems), slots - start + M * T

    def table(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    frequencies.cache_clear()  # of real tensors, and below of fake ones
    with FakeTensorMode(), Live() as live:
        policy = GPT(config)
        policy.recompute, weights = run.recompute, live.bytes
        ref = freeze(GPT(config), getattr(torch, run.dtype))
        both = live.bytes
        packed = score.Packed(table(start), table(N, S), table(N, S).bool(), table(S),
                              table(N, T), table(M, T))  # fmt: skip
        rolled = types.SimpleNamespace(packed=packed)
        with precision(run.dtype, torch.device("cpu")):
            states = score.attempt_states(policy, rolled)
            with torch.no_grad():
                ref_states = score.attempt_states(ref, rolled)
            total = torch.zeros(())
            for hidden, ref_hidden in zip(states, ref_states):
                hidden, ref_hidden = (x.flatten(0, 1) for x in (hidden, ref_hidden))
                tokens = table(len(hidden))
                values = policy.scores(hidden, tokens, ref, ref_hidden, cfg.temperature)
                total = total + sum(value.sum() for value in values)
            total.backward()
    frequencies.cache_clear()
    rows = cfg.problems * K * M
    cache = 2 * config.layers * config.kv_heads * config.head_width * rows * (slots + T)
    return Plan(
        parameters=sum(weight.numel() for weight in policy.parameters()),
        kept=both + 3 * weights,  # gradient and two moments
        update=live.most - both - weights,
        rollout=4 * cache + (weights // 2 if run.dtype == "bfloat16" else weights),
    )
