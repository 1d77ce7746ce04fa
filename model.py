"""A GPT that scores and samples. It knows token ids only: no text, no tasks, no rewards.

Two ways through the same blocks:

    forward(tokens, ok, branch)  every token of every row at once, with gradient  → logits
    extend(cache, tokens, ok)    only new tokens, against a cache of what was read → hidden states

Three rules make ragged rows right by construction.

1. *Validity is a mask, never a token id.* All rows write the same slots; `ok` says which of them
   hold a token. A prompt is padded on the left, a finished attempt leaves holes on its right, and
   both stay unattended for good.
2. *What a token sees decides where it stands.* Its position is the number of tokens it attends to
   besides itself, so padding, holes and branches need no bookkeeping of their own.
3. *The sampler is the scorer.* `decode` draws from softmax(logits / temperature), with no top-k or
   top-p, and returns the log-probabilities of that very distribution.

Dimensions: B rows, T tokens of a call, S slots of a cache, L layers, C width, H query heads,
G key/value heads, D = C / H, V vocabulary.
"""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Raises ValueError, naming the field, where the numbers do not fit."""

    vocab_size: int  # V
    context: int = 64  # most tokens that a row may hold
    layers: int = 3  # L
    heads: int = 4  # H
    kv_heads: int | None = None  # G; fewer than H is grouped-query attention. None: as many as H
    width: int = 64  # C
    tied: bool = True  # the output head is the token embedding

    def __post_init__(self):
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        for name in ("vocab_size", "context", "layers", "heads", "kv_heads", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")

    @property
    def head_width(self) -> int:  # D
        return self.width // self.heads


# ---------------------------------------------------------------------------------------------
# Attention


def visible(ok: Tensor, branch: Tensor | None = None) -> Tensor:
    """Which slots each token attends to, where all of a row's tokens are at hand.

    ok      (B, T) bool: the slots that hold a token.
    branch  (T,) int64: 0 is the trunk, and tokens of branch m > 0 see the trunk and their own
            branch, so that several continuations of one prefix share a row. None: no branches.
    Returns (B, T, T) bool. Every slot sees itself, an empty one too: a softmax over nothing is NaN.
    """
    T = ok.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=ok.device).tril()  # (T, T)
    if branch is not None:
        causal &= (branch[None, :] == 0) | (branch[None, :] == branch[:, None])
    itself = torch.eye(T, dtype=torch.bool, device=ok.device)
    return (causal & ok[:, None, :]) | itself  # (B, T, T)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / √D) v.  q (B, H, T, D), k and v (B, G, S, D), mask (B, T, S) → (B, T, H·D)."""
    B, H, T, D = q.shape
    G = k.shape[1]
    if T > 1:
        y = F.scaled_dot_product_attention(q, k, v, mask[:, None], enable_gqa=G < H)
        return y.transpose(1, 2).reshape(B, T, H * D)
    # One query a row: the H/G heads that share a key head are the rows of one small product, which
    # reads the cache once and contiguously.
    q = q.view(B, G, H // G, D)
    scores = (q @ k.transpose(2, 3)) * D**-0.5  # (B, G, H/G, S)
    scores = scores.masked_fill(~mask[:, None], -math.inf)
    return (scores.softmax(-1) @ v).reshape(B, 1, H * D)


class Cache:
    """What a batch of rows has read: keys and values of every layer, and which slots are in use.

    keys, values  (L, B, G, S, D);  ok (B, S) bool;  `used` of the S slots are written.
    Storage grows by whole blocks, and attention runs over all of it: a product over a slice of a
    longer buffer would copy the slice first.
    """

    BLOCK = 32

    def __init__(self, keys: Tensor, values: Tensor, ok: Tensor, used: int):
        self.keys, self.values, self.ok, self.used = keys, values, ok, used

    @classmethod
    def empty(cls, config: GPTConfig, rows: int, device: torch.device, dtype: torch.dtype):
        shape = (config.layers, rows, config.kv_heads, 0, config.head_width)
        keys, values = (torch.empty(shape, device=device, dtype=dtype) for _ in range(2))
        return cls(keys, values, torch.empty(rows, 0, dtype=torch.bool, device=device), 0)

    def _resize(self, slots: int) -> None:
        """Makes room for `slots` slots. New ones hold zeros, since 0 · NaN would be NaN."""
        more = math.ceil(slots / self.BLOCK) * self.BLOCK - self.ok.shape[1]
        if more > 0:
            self.keys = F.pad(self.keys, (0, 0, 0, more))
            self.values = F.pad(self.values, (0, 0, 0, more))
            self.ok = F.pad(self.ok, (0, more))

    def append(self, ok: Tensor) -> Tensor:
        """Claims T slots for new tokens, ok (B, T), and returns what those see, (B, T, S)."""
        T = ok.shape[1]
        self._resize(self.used + T)
        self.ok[:, self.used : self.used + T] = ok
        self.used += T
        slots = torch.arange(self.ok.shape[1], device=ok.device)  # (S,)
        own = slots[self.used - T : self.used, None]  # (T, 1)
        return (self.ok[:, None, :] & (slots <= own)) | (slots == own)  # (B, T, S)

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k, v (B, G, T, D) in the claimed slots; returns the layer's whole cache."""
        new = slice(self.used - k.shape[2], self.used)
        self.keys[layer, :, :, new] = k
        self.values[layer, :, :, new] = v
        return self.keys[layer], self.values[layer]

    def take(self, rows: Tensor) -> "Cache":
        """A cache of its own with the given rows, (N,) int64, in that order; rows may repeat."""
        return Cache(self.keys[:, rows], self.values[:, rows], self.ok[rows], self.used)

    @staticmethod
    def join(parts: list[tuple[Tensor, "Cache"]]) -> "Cache":
        """Puts caches back into one, each part with its rows' indices in the whole."""
        if len(parts) == 1:
            return parts[0][1]
        used = max(part.used for _, part in parts)
        for _, part in parts:
            part._resize(used)
        order = torch.cat([rows for rows, _ in parts]).argsort()  # (B,)
        return Cache(
            torch.cat([part.keys for _, part in parts], 1)[:, order],
            torch.cat([part.values for _, part in parts], 1)[:, order],
            torch.cat([part.ok for _, part in parts])[order],
            used,
        )


# ---------------------------------------------------------------------------------------------
# The network, bottom-up


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.H, self.G, self.D = config.heads, config.kv_heads, config.head_width
        self.qkv = nn.Linear(config.width, (self.H + 2 * self.G) * self.D)
        self.out = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Tensor:
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, self.H + 2 * self.G, self.D).transpose(1, 2)
        q, k, v = qkv.split([self.H, self.G, self.G], dim=1)  # (B, H or G, T, D)
        if cache is not None:
            k, v = cache.write(layer, k, v)  # (B, G, S, D)
        return self.out(attend(q, k, v, mask))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width)
        self.out = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.gelu(self.up(x)))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(config.width), Attention(config)
        self.norm2, self.mlp = nn.LayerNorm(config.width), MLP(config)

    def forward(self, x: Tensor, mask: Tensor, cache: Cache | None, layer: int) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, cache, layer)
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A decoder with learned positions. GPT(config)(tokens (B, T)) → logits (B, T, V), float32."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self._initialise()

    def _initialise(self) -> None:
        """Linear maps keep the scale of their input; what is added to the residual stream is
        divided by √(2L), one for each addition, so that the stream keeps its scale too (GPT-2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for block in self.blocks:
            for out in (block.attention.out, block.mlp.out):
                out.weight.data /= math.sqrt(2 * self.config.layers)
        # Small embeddings: a tied head then starts near the uniform distribution.
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    def forward(
        self, tokens: Tensor, ok: Tensor | None = None, branch: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T) int64 → logits (B, T, V). `ok` and `branch` as in `visible`."""
        return self.logits(self.hidden(tokens, ok, branch))

    def hidden(
        self, tokens: Tensor, ok: Tensor | None = None, branch: Tensor | None = None
    ) -> Tensor:
        """The normed final states, (B, T, C), for callers that need the head at few of them."""
        if ok is None:
            assert tokens.shape[1] <= self.config.context, "more tokens than the context holds"
            ok = torch.ones_like(tokens, dtype=torch.bool)
        return self._blocks(tokens, visible(ok, branch), None)

    def extend(self, cache: Cache, tokens: Tensor, ok: Tensor) -> Tensor:
        """Reads tokens (B, T), valid where ok (B, T), after what `cache` holds, and adds them to
        it. One step for prefill, decoding and feedback on a warm cache → hidden (B, T, C)."""
        return self._blocks(tokens, cache.append(ok), cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, C) → (…, V) in float32, also where the blocks ran in less."""
        logits = self.head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _blocks(self, tokens: Tensor, mask: Tensor, cache: Cache | None) -> Tensor:
        # Rule 2. Empty slots may count past the end; nothing ever reads what they compute.
        position = (mask.sum(-1) - 1).clamp(max=self.config.context - 1)  # (B, T)
        x = self.tokens(tokens) + self.positions(position)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        return self.norm(x)


# ---------------------------------------------------------------------------------------------
# Sampling


def _signed(constant: int) -> int:
    """The int64 with the lowest 64 bits of an integer."""
    return (constant + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN = _signed(0x9E3779B97F4A7C15)  # 2⁶⁴ / φ, odd: splitmix64's increment


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014) on int64, whose products wrap as in C. Shifting
    right is arithmetic on a signed type, so the copies of the sign bit are masked off."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A key for (key, value), both int64; the order of successive folds matters."""
    step = (value + 1) * GOLDEN  # wraps by itself on a tensor
    return mix(key + (_signed(step) if isinstance(step, int) else step))


def uniform(key: Tensor, position: int) -> Tensor:
    """One number in the open interval (0, 1) for each key, float32."""
    return to_unit((fold(key, position) >> 41) & ((1 << 23) - 1))


def to_unit(bits: Tensor) -> Tensor:
    """The centre of one of 2²³ equal cells of (0, 1), exactly, in float32."""
    return (bits.float() + 0.5) * 2.0**-23


def row_keys(keys: Tensor, samples: int, seed: int, attempt: int = 0) -> Tensor:
    """The key of every (prompt, sample), samples of a prompt adjacent: (N,) → (N·samples,).
    Nothing else enters, so a row's tokens do not depend on the batch around it."""
    start = torch.tensor(_signed(seed), device=keys.device)
    keys = fold(fold(fold(start, 0), keys), attempt)
    sample = torch.arange(samples, device=keys.device).repeat(len(keys))
    return fold(keys.repeat_interleave(samples), sample)


def sample(logits: Tensor, temperature: float, key: Tensor, position: int) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability, from one pass over the logits, without a host sync.

    logits (N, V) float32, key (N,) int64 → token (N,) int64, logprob (N,) float32.
    Inverse CDF with a single uniform a row. The total comes from the sum that is searched, and the
    target stays below it, so the first cell beyond the target always has mass. Temperature 0 takes
    the arg-max and reports its log-probability at temperature 1.
    """
    z = logits if temperature == 0 else logits / temperature
    z = z - z.amax(-1, keepdim=True)  # (N, V), largest 0
    cdf = z.exp().cumsum(-1)
    total = cdf[:, -1:]  # (N, 1)
    if temperature == 0:
        token = z.argmax(-1, keepdim=True)
    else:
        target = uniform(key, position)[:, None] * total
        below = torch.nextafter(total, torch.zeros_like(total))
        token = torch.searchsorted(cdf, torch.minimum(target, below), right=True)  # (N, 1)
    logprob = z.gather(1, token) - total.log()
    return token[:, 0], logprob[:, 0]


@dataclass(frozen=True)
class Generation:
    """Answers to a batch of prompts, N = prompts · samples rows, samples of a prompt adjacent."""

    tokens: Tensor  # (N, T) int64; 0 where the mask is false
    mask: Tensor  # (N, T) bool: true up to and including eos
    logprobs: Tensor  # (N, T) float32, at the temperature sampled; 0 where the mask is false
    ended: Tensor  # (N,) bool: the row drew eos; false is an answer cut by the length limit
    cache: Cache | None = field(default=None, repr=False)  # all but each row's last token

    @property
    def last(self) -> Tensor:
        """Each row's last token, (N, 1). The cache has not read it: what follows must feed it."""
        return self.tokens.gather(1, self.mask.sum(1, keepdim=True) - 1)


def read_prompts(model: GPT, prompts: list[list[int]], room: int) -> tuple[Cache, Tensor]:
    """Reads ragged prompts, padded on the left, into a cache → (cache, last hidden state (N, C)).
    Raises ValueError where a prompt is empty or leaves less than `room` tokens of the context."""
    if not prompts or not all(prompts):
        raise ValueError("generation needs at least one prompt, and no empty one")
    longest = max(map(len, prompts))
    if longest + room > model.config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {room} to come exceed the model's context "
            f"of {model.config.context}"
        )
    tokens = np.zeros((len(prompts), longest), dtype=np.int64)
    ok = np.zeros(tokens.shape, dtype=bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        ok[row, longest - len(prompt) :] = True
    cache = Cache.empty(model.config, len(prompts), model.device, model.tokens.weight.dtype)
    tokens, ok = (torch.from_numpy(a).to(model.device) for a in (tokens, ok))
    return cache, model.extend(cache, tokens, ok)[:, -1]


@torch.no_grad()
def decode(
    model: GPT,
    cache: Cache,
    hidden: Tensor,
    max_new_tokens: int,
    *,
    keys: Tensor,
    temperature: float = 1.0,
    eos: int | None = None,
    keep_cache: bool = False,
) -> Generation:
    """Draws an answer for every row of a warm cache.

    hidden (N, C): the state of the last token each row has read; keys (N,) from `row_keys`.
    The device is asked which rows are alive every 8 steps (every step on a CPU, where asking is
    free); when half of them have finished, the others move on in a smaller cache. With
    `keep_cache` the whole is put together again, for the next attempt to continue on.
    """
    N, device = len(hidden), hidden.device
    tokens = torch.zeros(N, max_new_tokens, dtype=torch.int64, device=device)
    mask = torch.zeros(N, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(N, max_new_tokens, device=device)
    ended = torch.zeros(N, dtype=torch.bool, device=device)
    rows = torch.arange(N, device=device)  # the live batch's rows in the whole
    parked: list[tuple[Tensor, Cache]] = []  # finished rows and what they have read
    every = 1 if device.type == "cpu" else 8
    for t in range(max_new_tokens):
        alive = ~ended[rows]  # (live,)
        if t > 0:
            hidden = model.extend(cache, tokens[rows, t - 1, None], alive[:, None])[:, -1]
        token, logprob = sample(model.logits(hidden), temperature, keys[rows], t)
        tokens[rows, t], mask[rows, t], logprobs[rows, t] = token * alive, alive, logprob * alive
        if eos is None:
            continue
        ended[rows] |= alive & (token == eos)
        if (t + 1) % every:
            continue
        live = (~ended[rows]).nonzero()[:, 0]  # the host waits here
        if len(live) == 0:
            break
        if len(live) <= len(rows) // 2:
            if keep_cache:
                done = ended[rows].nonzero()[:, 0]
                parked.append((rows[done], cache.take(done)))
            cache, rows = cache.take(live), rows[live]
    T = t + 1
    whole = Cache.join(parked + [(rows, cache)]) if keep_cache else None
    return Generation(tokens[:, :T], mask[:, :T], logprobs[:, :T], ended, whole)


@torch.no_grad()
def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    samples: int = 1,
    temperature: float = 1.0,
    eos: int | None = None,
    seed: int = 0,
    keys: list[int] | None = None,
) -> Generation:
    """Samples answers to ragged prompts; row b·samples + s is sample s of prompt b.

    A prompt is read once for all its samples, whose first tokens are drawn independently.
    Randomness is keyed by (seed, the prompt's key, sample, position); without `keys` a prompt's
    key is a hash of its tokens. Raises ValueError for an empty prompt, a bad number, or a prompt
    that leaves less than max_new_tokens of the context.
    """
    if (
        max_new_tokens < 1
        or samples < 1
        or not (temperature == 0 or 1e-3 <= temperature < math.inf)
    ):
        raise ValueError(
            "max_new_tokens and samples must be at least 1 and the temperature 0 or between 0.001 "
            f"and infinity: {max_new_tokens}, {samples}, {temperature}"
        )
    if keys is None:
        keys = [token_key(prompt) for prompt in prompts]
    if len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts")
    cache, hidden = read_prompts(model, prompts, room=max_new_tokens)
    expand = torch.arange(len(prompts), device=model.device).repeat_interleave(samples)
    keys = torch.tensor(keys, dtype=torch.int64, device=model.device)
    return decode(
        model,
        cache.take(expand),
        hidden[expand],
        max_new_tokens,
        keys=row_keys(keys, samples, seed),
        temperature=temperature,
        eos=eos,
    )


def token_key(tokens: list[int]) -> int:
    """A 63-bit key of a prompt's tokens, the same in every process."""
    raw = hashlib.blake2b(np.asarray(tokens, dtype="<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(raw, "little") >> 1
