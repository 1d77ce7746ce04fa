"""Decoding by CUDA graphs, where launching a step's kernels one by one takes longer than running
them."""

import functools
import math
from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor


def uses_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


class StaticCache:
    """The first R rows and S slots of storage that never moves, for steps of one token. The slot to
    write is a tensor, (1,) int64, so that a CUDA graph can repeat the step at the next slot."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], ok: Tensor, slot: Tensor):
        self.layers, self.ok, self.slot = layers, ok, slot

    def append(self, ok: Tensor) -> Tensor:
        """ok (R, 1) → which slots the new tokens attend to, (R, 1, S). Later slots must not be ok
        yet."""
        self.ok.index_copy_(1, self.slot, ok)
        own = torch.arange(self.ok.shape[1], device=ok.device) == self.slot  # (S,)
        return (self.ok | own)[:, None]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for whole, new in zip(self.layers[layer], (k, v)):
            whole.index_copy_(2, self.slot, new.to(whole.dtype))
        return self.layers[layer]


class GraphCache:
    """A cache for decoding by CUDA graphs.

    A graph launches all of a step's kernels at once, on the addresses that it was captured with. So
    the cache and the inputs of a step have fixed storage, which the model keeps between calls. A
    step uses the next power of two of rows, and of slots (at least 64, at most all); it is captured
    once for each such pair and temperature.
    """

    def __init__(self, model: nn.Module, rows: int, slots: int, dtype: torch.dtype):
        config, device = model.config, model.device
        shape = (rows, config.kv_heads, slots, config.head_width)
        self.rows, self.slots, self.weights = rows, slots, addresses(model)
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self.graphs: dict[tuple[int, int, float], Callable] = {}
        self.layers = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            for _ in range(config.layers)
        ]
        self.ok = torch.zeros(rows, slots, dtype=torch.bool, device=device)
        self.alive = torch.zeros(rows, dtype=torch.bool, device=device)
        self.token, self.key = torch.zeros(2, rows, dtype=torch.int64, device=device)
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)

    def load(self, cache) -> None:
        """Moves a cache's content into the fixed storage and empties the cache."""
        self.n, self.used = len(cache.ok), cache.used
        for pair in self.layers:
            for whole, part in zip(pair, cache.layers.pop(0)):
                whole.zero_()  # clear an earlier call's values, since 0 · NaN is NaN
                whole[: self.n, :, : self.used] = part[:, :, : self.used]
        self.ok.zero_()
        self.ok[: self.n, : self.used] = cache.ok[:, : self.used]
        self.alive.zero_()

    def keep(self, rows: Tensor) -> None:
        """Moves these rows, (n,) int64, to the front and keeps only them."""
        self.n = len(rows)
        for whole in (part for pair in self.layers for part in pair):
            whole[: self.n, :, : self.used] = whole[rows, :, : self.used]
        self.ok[: self.n] = self.ok[rows]
        self.ok[self.n :] = False
        self.alive.zero_()

    def step(
        self, step: Callable, temperature: float, token: Tensor, alive: Tensor, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What step(cache, temperature, token, alive, key) does on a plain cache, by a graph of
        it."""
        n = self.n
        self.token[:n], self.alive[:n], self.key[:n] = token, alive, key
        self.slot.fill_(self.used)
        self.used += 1
        R, S = power_of_two(n), min(power_of_two(max(64, self.used)), self.slots)
        which = R, S, temperature
        if which not in self.graphs:
            layers = [tuple(part[:R, :, :S] for part in pair) for pair in self.layers]
            cache = StaticCache(layers, self.ok[:R, :S], self.slot)
            given = self.token[:R], self.alive[:R], self.key[:R]
            self.graphs[which] = capture(
                functools.partial(step, cache, temperature), given, self.pool
            )
        token, logprob = self.graphs[which]()
        return token[:n], logprob[:n]


def graph_cache(model: nn.Module, cache, room: int) -> GraphCache:
    """The model's GraphCache, loaded with this cache, for at most `room` steps; rebuilt if it is
    too small or the weights have moved."""
    rows, slots = power_of_two(len(cache.ok)), math.ceil((cache.used + room) / 256) * 256
    kept = model.graph_cache
    if kept is not None:
        rows, slots = max(rows, kept.rows), max(slots, kept.slots)
    if kept is None or (kept.rows, kept.slots, kept.weights) != (rows, slots, addresses(model)):
        kept = model.graph_cache = None  # free the old one's memory before allocating the new
        model.graph_cache = GraphCache(model, rows, slots, cache.layers[0][0].dtype)
    model.graph_cache.load(cache)
    return model.graph_cache


def addresses(model: nn.Module) -> list[int]:
    """Where a graph of the model finds its weights."""
    return [weight.data_ptr() for weight in model.parameters()]


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def capture(step: Callable, args: tuple[Tensor, ...], pool) -> Callable:
    """A function that runs step(*args) on the current values of these tensors: a CUDA graph, or
    without CUDA the plain call. Graphs of one pool overwrite each other's results, so use them
    before the next replay."""
    if not args[0].is_cuda:
        return functools.partial(step, *args)
    step(*args)  # loads kernels, which a capture must not; the replay will write the same again
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        results = step(*args)

    def replay() -> tuple[Tensor, Tensor]:
        graph.replay()
        return results

    return replay
