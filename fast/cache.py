"""Keys and values of tokens that have been read, so that none is read twice.

Dimensions as in model.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Cache:
    """Keys and values of the tokens read so far, for every layer and row, and which slots hold one.

    layers: L pairs of keys and values, (B, G, S, D) each;  ok (B, S) bool;  `used` of the S slots
    are written. Storage grows by whole blocks, and attention runs over all of it: products over
    part of a longer buffer read it more slowly.
    """

    BLOCK = 32

    def __init__(self, layers: list[tuple[Tensor, Tensor]], ok: Tensor, used: int):
        self.layers, self.ok, self.used = layers, ok, used

    @classmethod
    def empty(cls, config, rows: int, device: torch.device, dtype: torch.dtype) -> "Cache":
        """Before the first token, for a model with this GPTConfig."""
        nothing = torch.empty(
            rows, config.kv_heads, 0, config.head_width, device=device, dtype=dtype
        )
        ok = torch.empty(rows, 0, dtype=torch.bool, device=device)
        return cls([(nothing, nothing)] * config.layers, ok, 0)

    def _resize(self, slots: int) -> None:
        """Grows the cache to `slots` slots, layer by layer, so that at most one is held twice."""
        more = math.ceil(slots / self.BLOCK) * self.BLOCK - self.ok.shape[1]
        if more > 0:
            self.ok = F.pad(self.ok, (0, more))
            for layer, pair in enumerate(self.layers):
                # New slots hold zeros, since 0 · NaN would be NaN.
                self.layers[layer] = tuple(F.pad(part, (0, 0, 0, more)) for part in pair)

    def append(self, ok: Tensor) -> Tensor:
        """Claims T slots for new tokens, ok (B, T), and returns their mask, (B, T, S)."""
        T = ok.shape[1]
        self._resize(self.used + T)
        self.ok[:, self.used : self.used + T] = ok
        self.used += T
        slots = torch.arange(self.ok.shape[1], device=ok.device)  # (S,)
        own = slots[self.used - T : self.used, None]  # (T, 1)
        before = self.ok[:, None]  # (B, 1, S); later slots are not ok yet
        return (before if T == 1 else before & (slots <= own)) | (slots == own)  # (B, T, S)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, G, T, D) in the claimed slots; returns all of the layer's."""
        T = k.shape[2]
        for whole, new in zip(self.layers[layer], (k, v)):
            whole.narrow(2, self.used - T, T).copy_(new)
        return self.layers[layer]

    def keep(self, rows: Tensor) -> None:
        """Keeps only these rows, (n,) int64, one layer at a time as in `_resize`."""
        for layer, pair in enumerate(self.layers):
            self.layers[layer] = tuple(part.index_select(0, rows) for part in pair)
        self.ok = self.ok[rows]

    def take(self, rows: Tensor) -> "Cache":
        """A cache of its own with the given rows, (N,) int64, in that order; rows may repeat."""
        layers = [tuple(part.index_select(0, rows) for part in pair) for pair in self.layers]
        return Cache(layers, self.ok[rows], self.used)

    @classmethod
    def stacked(cls, parts: list["Cache"], order: Tensor) -> "Cache":
        """The rows of all parts, padded on the left to the longest, in the given order, (N,) int64.
        Empties the parts, so that at most one layer is held twice."""
        slots = max(part.used for part in parts)
        layers = []
        for _ in range(len(parts[0].layers)):
            pairs = zip(*(part.layers.pop(0) for part in parts))  # all keys, all values
            layers.append(tuple(
                torch.cat([
                    F.pad(x[:, :, : part.used], (0, 0, slots - part.used, 0))
                    for part, x in zip(parts, tensors)
                ])[order]
                for tensors in pairs
            ))  # fmt: skip
        ok = [F.pad(part.ok[:, : part.used], (slots - part.used, 0)) for part in parts]
        return cls(layers, torch.cat(ok)[order], slots)


class SharedPrefix:
    """Keys and values, with their gradient, of a prefix that all rows of a forward pass share. The
    first write to a layer stores the prefix; later ones return the prefix and then the rows'."""

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []  # (1, G, S, D) each

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, G, T, D) → those that the layer's queries attend to, (B, G, S + T, D)."""
        if layer == len(self.layers):
            self.layers.append((k, v))
            return k, v
        before = (part.expand(len(k), -1, -1, -1) for part in self.layers[layer])
        return tuple(torch.cat(pair, 2) for pair in zip(before, (k, v)))
