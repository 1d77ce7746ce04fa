"""A GPT that loads, scores and samples. It knows token ids only: no text, no tasks, no rewards.

One set of modules is GPT-2, Llama 3, SmolLM2, Qwen2, Qwen2.5 and Qwen3: GPTConfig says what is on,
and `GPT.from_pretrained` has it read from a checkpoint folder (pretrained/weights.py). Two ways
through the same blocks:

    forward(tokens, ok, branch)  every token of every row at once, with gradient → logits
    extend(cache, tokens, ok)    only new tokens, after what a cache holds → the last one's state

Three rules make ragged rows right by construction.

1. *Validity is a mask, never a token id.* All rows write the same slots; `ok` says which of them
   hold a token. A prompt is padded on the left, a finished attempt leaves empty slots on its
   right, and both stay unattended for good.
2. *What a token sees decides where it stands.* Its position is the number of tokens it attends to
   besides itself, so padding, empty slots and branches need no bookkeeping of their own.
3. *The sampler is the scorer.* `generate` draws from softmax(logits / temperature), with no top-k
   or top-p, and returns the log-probabilities of that very distribution.

Dimensions: B rows, T tokens of a call, S slots of a cache, L layers, C width, H query heads,
G key/value heads, D width of a head, I width inside the MLP, V vocabulary; N answers, of which R
are still being decoded.
"""

import contextlib
import functools
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pretrained.weights import (
    load_tensors,
    read_shape,
    save_checkpoint,
    shape_from_json,
    shape_to_json,
)

try:  # optional, for CUDA: without it `sample` does what `fused_sample` would
    import triton
    import triton.language as tl
except ImportError:
    triton = None


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults below `family` are GPT-2's, with the exact GELU.
    Raises ValueError, naming the field, where the numbers do not fit."""

    vocab_size: int  # V
    context: int = 64  # most tokens that a row may hold
    layers: int = 3  # L
    heads: int = 4  # H
    kv_heads: int | None = None  # G; fewer than H is grouped-query attention. None: as many as H
    width: int = 64  # C
    tied: bool = True  # the output head is the token embedding
    family: str = "gpt2"  # gpt2, llama, qwen2 or qwen3: how a checkpoint folder names its tensors
    head_width: int | None = None  # D. None: C / H
    inner: int | None = None  # I. None: 4 · C
    activation: str = "gelu"  # gelu, gelu_tanh or silu
    gated: bool = False  # MLP: activation(gate(x)) · up(x) in place of activation(up(x))
    rms_norm: bool = False  # in place of LayerNorm
    norm_eps: float = 1e-5
    qk_norm: bool = False  # norm queries and keys, head by head (Qwen3)
    qkv_bias: bool = True
    out_bias: bool = True  # of attention's output
    mlp_bias: bool = True
    rope: float | None = None  # base of the rotary frequencies. None: learned positions
    rope_scaling: tuple[float, float, float, int] | None = None  # Llama 3's: see `frequencies`

    def __post_init__(self):
        self._need_counts("vocab_size", "context", "layers", "heads", "width")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        for name, default in (
            ("kv_heads", self.heads),
            ("head_width", self.width // self.heads),
            ("inner", 4 * self.width),
        ):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)
        self._need_counts("kv_heads", "head_width", "inner")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.rope is not None and self.head_width % 2:
            raise ValueError(f"head_width {self.head_width} must be even to be rotated")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}")

    def _need_counts(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")


# ---------------------------------------------------------------------------------------------
# Attention


def pad_left(rows: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged rows as one table → tokens (B, T) int64 and which slots hold one, ok (B, T) bool."""
    T = max(map(len, rows))
    tokens = torch.tensor([[0] * (T - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(T, device=device) >= T - lengths[:, None]


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v.  q (B, H, T, D), k and v (B, G, S, D), mask (B, T, S) bool →
    (B, T, H·D)."""
    gqa = k.shape[1] < q.shape[1]
    if gqa and q.is_cuda:  # where the kernels that take a mask cannot share key heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        gqa = False
    y = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scale, enable_gqa=gqa)
    return y.transpose(1, 2).flatten(2)


def attend_one(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """`attend` for one query a row, q (B, H, 1, D), with `as_bias` of its mask → (B, 1, H·D).

    This costs what it takes to read the cache, and products over all of it read it fastest. The
    heads that share a key head are the rows of one product.
    """
    B, G, S, D = k.shape
    q = q.reshape(B * G, -1, D)  # (B·G, H/G, D)
    k, v = k.view(B * G, S, D), v.view(B * G, S, D)
    if k.dtype == bias.dtype:
        scores = torch.baddbmm(bias, q, k.mT, alpha=scale)  # (B·G, H/G, S)
    else:
        scores = scale * exact_product(q, k) + bias
    return torch.bmm(scores.softmax(-1).to(v.dtype), v).view(B, 1, -1)


def as_bias(mask: Tensor, cache: "Cache") -> Tensor:
    """What the mask of one query a row, (B, 1, S), adds to its scores: 0 or −∞, (B·G, 1, S), in
    float32 at least."""
    k = cache.layers[0][0]
    mask = mask.expand(-1, k.shape[1], -1)  # (B, G, S)
    bias = torch.where(mask, 0.0, -math.inf)
    return bias.to(torch.promote_types(k.dtype, torch.float32)).view(-1, 1, mask.shape[2])


def exact_product(x: Tensor, y: Tensor) -> Tensor:
    """x · yᵀ in float32 at least: what bfloat16 multiplies is exact in float32 and summed there,
    but its results would be rounded to 8 bits. x (…, n, C), y (m, C) → (…, n, m), or batches of
    both."""
    kind = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda and x.dtype != kind and not torch.is_grad_enabled():  # it has no derivative
        if y.ndim == 3:
            return torch.bmm(x, y.mT, out_dtype=kind)
        return torch.mm(x.flatten(0, -2), y.mT, out_dtype=kind).unflatten(0, x.shape[:-1])
    return x.to(kind) @ y.to(kind).mT


@functools.lru_cache
def frequencies(config: GPTConfig, device: torch.device) -> Tensor:
    """Rotary angle per position of each pair of channels, (D/2,) float32: base^(−2i/D).

    Llama 3 was trained on a shorter context and then stretched. rope_scaling is (factor, low,
    high, original context): a pair that rotates less than `low` times over the original context is
    slowed down by the factor, one that rotates more than `high` times is left alone, and those in
    between are blended by how often they do.
    """
    D = config.head_width
    angle = config.rope ** -(torch.arange(0, D, 2, device=device).float() / D)
    if config.rope_scaling is not None:
        factor, low, high, original = config.rope_scaling
        rotations = original * angle / (2 * math.pi)
        keep = ((rotations - low) / (high - low)).clamp(0, 1)
        angle = angle * (keep + (1 - keep) / factor)
    return angle


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates channel pairs (i, i + D/2) by their angle; x (B, H, T, D), cos, sin (B, 1, T, D/2).
    Scores then depend on the distance of two tokens only (RoFormer, arXiv 2104.09864)."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)


class Cache:
    """What a batch of rows has read: keys and values of every layer, and which slots are in use.

    layers: L pairs of keys and values, (B, G, S, D) each;  ok (B, S) bool;  `used` of the S slots
    are written. Storage grows by whole blocks, and attention runs over all of it: products over
    part of a longer buffer read it more slowly.
    """

    BLOCK = 32

    def __init__(self, layers: list[tuple[Tensor, Tensor]], ok: Tensor, used: int):
        self.layers, self.ok, self.used = layers, ok, used

    @classmethod
    def empty(cls, config: GPTConfig, rows: int, device: torch.device, dtype: torch.dtype):
        nothing = torch.empty(
            rows, config.kv_heads, 0, config.head_width, device=device, dtype=dtype
        )
        ok = torch.empty(rows, 0, dtype=torch.bool, device=device)
        return cls([(nothing, nothing)] * config.layers, ok, 0)

    def _resize(self, slots: int) -> None:
        """Makes room for `slots` slots, layer by layer, so that one layer at most is held twice."""
        more = math.ceil(slots / self.BLOCK) * self.BLOCK - self.ok.shape[1]
        if more > 0:
            self.ok = F.pad(self.ok, (0, more))
            for layer, pair in enumerate(self.layers):
                # New slots hold zeros, since 0 · NaN would be NaN.
                self.layers[layer] = tuple(F.pad(part, (0, 0, 0, more)) for part in pair)

    def append(self, ok: Tensor) -> Tensor:
        """Claims T slots for new tokens, ok (B, T), and returns what those see, (B, T, S)."""
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
        """Goes on with these rows alone, (n,) int64, layer by layer as in `_resize`."""
        for layer, pair in enumerate(self.layers):
            self.layers[layer] = tuple(part.index_select(0, rows) for part in pair)
        self.ok = self.ok[rows]

    def take(self, rows: Tensor) -> "Cache":
        """A cache of its own with the given rows, (N,) int64, in that order; rows may repeat."""
        layers = [tuple(part.index_select(0, rows) for part in pair) for pair in self.layers]
        return Cache(layers, self.ok[rows], self.used)


class Start:
    """Keys and values of the tokens with which all rows of a forward begin, kept as they are, with
    their gradient: what is written first is the start, and what follows is read behind it."""

    def __init__(self):
        self.layers: list[tuple[Tensor, Tensor]] = []  # (1, G, S, D) each

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """k, v (B, G, T, D) → those that the layer's queries meet, (B, G, S + T, D)."""
        if layer == len(self.layers):
            self.layers.append((k, v))
            return k, v
        before = (part.expand(len(k), -1, -1, -1) for part in self.layers[layer])
        return tuple(torch.cat(pair, 2) for pair in zip(before, (k, v)))


class Seen(NamedTuple):
    """What the tokens of one call attend to, the same in every layer."""

    mask: Tensor  # (B, T, S) bool
    bias: Tensor | None  # of the scores, for `attend_one`: where one query a row meets a cache
    rotation: tuple[Tensor, Tensor] | None  # cos and sin, (B, 1, T, D/2); None: no rotary positions
    cache: Cache | Start | None  # takes the tokens' keys and values and gives all that it holds


# ---------------------------------------------------------------------------------------------
# The network, bottom-up


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · weight, in float32 whatever the weights are kept in."""

    def __init__(self, width: int, config: GPTConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def make_norm(config: GPTConfig) -> nn.Module:
    if config.rms_norm:
        return RMSNorm(config.width, config)
    return nn.LayerNorm(config.width, config.norm_eps)


class Attention(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.H, self.G, self.D = config.heads, config.kv_heads, config.head_width
        self.scale = self.D**-0.5
        self.qkv = nn.Linear(config.width, (self.H + 2 * self.G) * self.D, bias=config.qkv_bias)
        self.out = nn.Linear(self.H * self.D, config.width, bias=config.out_bias)
        self.q_norm, self.k_norm = (
            RMSNorm(self.D, config) if config.qk_norm else None for _ in range(2)
        )

    def forward(self, x: Tensor, seen: Seen, layer: int, last_only: bool) -> Tensor:
        """x (B, T, C) → (B, T, C), or with last_only (B, 1, C), of the last token."""
        B, T, _ = x.shape
        # Under autocast, too, queries and keys are normed and rotated in x's dtype.
        qkv = self.qkv(x).to(x.dtype).view(B, T, self.H + 2 * self.G, self.D).transpose(1, 2)
        q, k, v = qkv.split([self.H, self.G, self.G], dim=1)  # (B, H or G, T, D)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if seen.rotation is not None:
            q, k = rotate(q, *seen.rotation), rotate(k, *seen.rotation)
        if seen.cache is not None:
            k, v = seen.cache.write(layer, k, v)  # (B, G, S, D)
            q = q.to(k.dtype)
        if seen.bias is not None:
            return self.out(attend_one(q, k, v, seen.bias, self.scale))
        mask = seen.mask
        if last_only:
            q, mask = q[:, :, -1:], mask[:, -1:]
        return self.out(attend(q, k, v, mask, self.scale))


ACTIVATIONS = {
    "gelu": nn.GELU,
    "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"),
    "silu": nn.SiLU,
}


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[config.activation](), config.gated
        rows = config.inner * (2 if config.gated else 1)  # gate, then up
        self.up = nn.Linear(config.width, rows, bias=config.mlp_bias)
        self.out = nn.Linear(config.inner, config.width, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, x = self.up(x).chunk(2, dim=-1)
            return self.out(self.activation(gate) * x)
        return self.out(self.activation(self.up(x)))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.norm1, self.attention = make_norm(config), Attention(config)
        self.norm2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x: Tensor, seen: Seen, layer: int, last_only: bool) -> Tensor:
        """x (B, T, C) → (B, T, C), or with last_only (B, 1, C), of the last token."""
        attended = self.attention(self.norm1(x), seen, layer, last_only)
        x = (x[:, -1:] if last_only else x) + attended
        return x + self.mlp(self.norm2(x))


class Head(nn.Linear):
    """hidden (…, C) → logits (…, V), in float32 at least, also where the blocks ran in less."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return exact_product(hidden.to(self.weight.dtype), self.weight)


class GPT(nn.Module):
    """A decoder. GPT(config)(tokens (B, T)) → logits (B, T, V), float32. There is no dropout, so
    that what is sampled is what is scored."""

    recompute = False  # the activations of blocks in the backward pass, to save memory
    steps: "GraphSteps | None" = None  # of decoding on CUDA, captured for this model

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.low_copies: dict[str, nn.Linear] = {}  # of decoding on CUDA: see `low_layers`
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        if config.rope is None:
            self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.head = Head(config.width, config.vocab_size, bias=False)
        self._tie()
        self._initialise()

    def _tie(self) -> None:
        if self.config.tied:
            self.head.weight = self.tokens.weight

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
        if self.config.rope is None:
            nn.init.normal_(self.positions.weight, std=0.02)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "GPT":
        """The model of a checkpoint folder: config.json and *.safetensors, sharded or not. Tensors
        are read one at a time, so memory holds one copy of the weights. Raises ValueError or
        OSError, in one line that names the file and tensor, for what does not fit."""
        folder = Path(folder)
        shape = read_shape(folder)
        try:
            config = GPTConfig(**shape)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from None
        with torch.device("meta"):
            model = cls(config)
        model = model.to(dtype).to_empty(device=device)
        model._tie()  # to_empty gives every module a weight of its own
        load_tensors(model, folder)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors as the family's own tools read them. Tokenizer
        files are not the model's: copy those of the folder that it came from. Raises ValueError
        where the family has no such model, OSError where it cannot write."""
        content = shape_to_json(asdict(self.config))
        if GPTConfig(**shape_from_json(content)) != self.config:
            family = self.config.family
            raise ValueError(f"a model of this shape is no {family} and has no config.json")
        save_checkpoint(self, content, Path(folder))

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    def forward(
        self, tokens: Tensor, ok: Tensor | None = None, branch: Tensor | None = None
    ) -> Tensor:
        """tokens (B, T) int64 → logits (B, T, V). `ok` and `branch` as in `visible`."""
        return self.logits(self.hidden(tokens, ok, branch))

    def hidden(
        self,
        tokens: Tensor,
        ok: Tensor | None = None,
        branch: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """The normed final states, (B, T, C), for callers that need the head at few of them. All
        rows may go on from one `start`, (S,) int64, which is read once for them."""
        if ok is None:
            assert tokens.shape[1] <= self.config.context, "more tokens than the context holds"
            ok = torch.ones_like(tokens, dtype=torch.bool)
        mask = visible(ok, branch)
        if start is None or len(start) == 0:
            return self._blocks(tokens, mask)
        store = Start()
        self._blocks(start[None], visible(torch.ones_like(start[None]).bool()), store)
        seen = mask.new_ones(*tokens.shape, len(start))
        return self._blocks(tokens, torch.cat([seen, mask], 2), store)

    def extend(self, cache: Cache, tokens: Tensor, ok: Tensor) -> Tensor:
        """Reads tokens (B, T), valid where ok (B, T), after what `cache` holds, and adds them to it
        → the state of the last of them, (B, C). Prompts, what follows a start that they share, and
        single tokens are all read here."""
        return self._blocks(tokens, cache.append(ok), cache, last_only=True)[:, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, C) → (…, V) in float32, also where the blocks ran in less."""
        return self.head(hidden)

    def scores(
        self, hidden: Tensor, tokens: Tensor, ref: "GPT", ref_hidden: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """log π(token | hidden) and KL(π ‖ π_ref), that of the whole distributions there, at a
        temperature: hidden (n, C), tokens (n,) int64 and the reference's states (n, C) → two (n,),
        float32, with the policy's gradient, in memory that does not grow with n · V."""
        heads = hidden, self.head.weight, ref_hidden, ref.head.weight
        return HeadScores.apply(*heads, tokens, temperature)

    def _blocks(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: "Cache | Start | None" = None,
        last_only: bool = False,
    ) -> Tensor:
        """tokens (B, T), which see mask (B, T, S) → their normed final states, (B, T, C), or the
        last token's alone, (B, 1, C)."""
        config, rotation = self.config, None
        x = self.tokens(tokens)  # (B, T, C)
        position = mask.sum(-1) - 1  # (B, T), rule 2
        if config.rope is None:
            # Empty slots may count past the end; nothing ever reads what they compute.
            x = x + self.positions(position.clamp(max=config.context - 1))
        else:
            angle = position[:, None, :, None] * frequencies(config, tokens.device)
            rotation = angle.cos(), angle.sin()  # (B, 1, T, D/2) each
        one_query = isinstance(cache, Cache) and tokens.shape[1] == 1
        seen = Seen(mask, as_bias(mask, cache) if one_query else None, rotation, cache)
        # What a shared start leaves for the rows after it is written only once.
        again = self.recompute and not last_only and (cache is None or len(cache.layers) > 0)
        for layer, block in enumerate(self.blocks):
            args = x, seen, layer, last_only and layer == config.layers - 1
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self.norm(x)


# ---------------------------------------------------------------------------------------------
# Scoring


class HeadScores(torch.autograd.Function):
    """log softmax(z) at one token a row, KL(softmax(z) ‖ softmax(z_ref)), and their gradients, for
    logits z = hidden · weightᵀ / temperature and z_ref alike, without the (n, V) logits: both
    passes go through slices of the vocabulary, and the backward one computes a slice's logits
    again instead of keeping them.

    hidden and ref_hidden (n, C), weight and ref_weight (V, C), tokens (n,) int64 → (n,), (n,)
    float32, float64 for float64 input. The reference has no gradient. Under autocast on CUDA the
    products take its dtype, but logits and what is summed over rows and vocabulary are never less
    than float32, as in the sampler.
    """

    CHUNK = 1 << 23  # most logits of a head at hand at a time, 32 MiB in float32, or 256 a row

    @staticmethod
    def slices(
        hidden: Tensor, table: Tensor, ref_hidden: Tensor, ref_table: Tensor, temperature: float
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slice by slice of the vocabulary: which it is, and z and z_ref there, (n, width) each."""
        # Narrower products are slower; whole multiples of 64 keep the rows of a slice aligned.
        width = max(256, HeadScores.CHUNK // max(1, len(hidden)) // 64 * 64)
        for start in range(0, len(table), width):
            part = slice(start, min(start + width, len(table)))
            z, z_ref = (
                exact_product(x, rows[part]).div_(temperature)
                for x, rows in ((hidden, table), (ref_hidden, ref_table))
            )
            yield part, z, z_ref

    @staticmethod
    def place(part: slice, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where in a slice each row's token lies, (n, 1), and whether it does, (n, 1)."""
        at = (tokens - part.start)[:, None]
        width = part.stop - part.start
        return at.clamp(0, width - 1), (at >= 0) & (at < width)

    @staticmethod
    def forward(ctx, hidden, weight, ref_hidden, ref_weight, tokens, temperature):
        auto = hidden.is_cuda and torch.is_autocast_enabled("cuda")
        low = torch.get_autocast_dtype("cuda") if auto else hidden.dtype
        kind = torch.promote_types(hidden.dtype, torch.float32)
        heads = hidden, weight, ref_hidden, ref_weight
        chosen, mass, gap = torch.zeros(3, len(tokens), 1, dtype=kind, device=hidden.device)
        peak, ref_logsumexp = torch.full((2, *mass.shape), -math.inf).to(mass)
        with torch.autocast(hidden.device.type, enabled=False):
            operands = [x.to(low) for x in heads]
            for part, z, z_ref in HeadScores.slices(*operands, temperature):
                at, inside = HeadScores.place(part, tokens)
                chosen = torch.where(inside, z.gather(1, at), chosen)
                ref_logsumexp = ref_logsumexp.logaddexp(z_ref.logsumexp(1, keepdim=True))
                z_ref = z - z_ref
                higher = peak.maximum(z.amax(1, keepdim=True))
                shrink, peak = (peak - higher).exp(), higher
                z = z.sub_(peak).exp_()
                mass = mass * shrink + z.sum(1, keepdim=True)
                gap = gap * shrink + z.mul_(z_ref).sum(1, keepdim=True)
        logsumexp, gap = peak + mass.log(), gap / mass  # gap: E over softmax(z) of z − z_ref
        ctx.save_for_backward(*heads, tokens, logsumexp, gap)
        ctx.low, ctx.temperature = low, temperature
        return (chosen - logsumexp)[:, 0], (gap - logsumexp + ref_logsumexp)[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_logprob, d_kl):
        *heads, tokens, logsumexp, gap = ctx.saved_tensors
        d_logprob, d_kl = (d[:, None] / ctx.temperature for d in (d_logprob, d_kl))  # (n, 1)
        d_hidden = torch.zeros_like(heads[0], dtype=d_kl.dtype)
        d_weight = torch.empty_like(heads[1])
        with torch.autocast(d_kl.device.type, enabled=False):
            operands = hidden, weight, *_ = [x.to(ctx.low) for x in heads]
            for part, z, z_ref in HeadScores.slices(*operands, ctx.temperature):
                at, inside = HeadScores.place(part, tokens)
                # ∂ log softmax(z)_token = [v = token] − p_v and ∂ KL = p_v (z_v − z_ref_v − gap)
                factor = z_ref.neg_().add_(z).sub_(gap).mul_(d_kl).sub_(d_logprob)
                grad = z.sub_(logsumexp).exp_().mul_(factor)
                grad.scatter_add_(1, at, torch.where(inside, d_logprob, 0))  # (n, width)
                grad = grad.to(ctx.low)
                d_hidden += exact_product(grad, weight[part].T)
                d_weight[part] = exact_product(grad.T, hidden.T)
        return d_hidden.to(heads[0].dtype), d_weight, None, None, None, None


# ---------------------------------------------------------------------------------------------
# Sampling


def as_int64(constant: int) -> int:
    """The int64 with the lowest 64 bits of an integer."""
    return (constant + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN = as_int64(0x9E3779B97F4A7C15)  # 2⁶⁴ / φ, odd: splitmix64's increment


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser (Steele et al. 2014) on int64, whose products wrap as in C. Shifting
    right is arithmetic on a signed type, so the copies of the sign bit are masked off."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * as_int64(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * as_int64(0x94D049BB133111EB)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def fold(key: Tensor, value: Tensor | int) -> Tensor:
    """A key for (key, value), both int64; the order of successive folds matters."""
    increment = (value + 1) * GOLDEN  # wraps by itself on a tensor
    return mix(key + (as_int64(increment) if isinstance(increment, int) else increment))


def uniform(key: Tensor) -> Tensor:
    """One number in the open interval (0, 1) for each key, float32."""
    return to_unit((key >> 41) & ((1 << 23) - 1))


def to_unit(bits: Tensor) -> Tensor:
    """The centre of one of 2²³ equal cells of (0, 1), exactly, in float32."""
    return (bits.float() + 0.5) * 2.0**-23


def row_keys(keys: Sequence[int] | Tensor, samples: int, seed: int) -> Tensor:
    """The key of every (prompt, sample), samples of a prompt adjacent: (B,) → (B·samples,).
    Nothing else enters, so a row's tokens do not depend on the batch around it."""
    keys = torch.as_tensor(keys, dtype=torch.int64)
    keys = fold(fold(torch.tensor(as_int64(seed)), 0), keys)
    return fold(keys[:, None], torch.arange(samples)).flatten()


def prompt_keys(prompts: list[list[int]]) -> Tensor:
    """A key for each prompt, (B,) int64, made of its tokens and their places."""
    tokens, ok = pad_left(prompts, torch.device("cpu"))  # (B, T)
    places = torch.arange(tokens.shape[1], 0, -1)  # from the end: padding must not move them
    return mix((fold(places, tokens) * ok).sum(1))


def sample(logits: Tensor, temperature: float, key: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability, from one pass over the logits, without a host sync.

    logits (N, V) float32, key (N,) int64, of the row and its position → token (N,) int64,
    logprob (N,) float32. Inverse CDF with a single uniform a row. The total comes from the sum that
    is searched, and the target stays below it, so the first cell beyond the target always has mass.
    Temperature 0 takes the arg-max and reports its log-probability at temperature 1.
    """
    z = logits if temperature in (0, 1) else logits / temperature  # (N, V)
    peak = z.amax(-1, keepdim=True)  # (N, 1)
    cdf = (z - peak).exp_()  # in place: where V is large, new memory costs more than the functions
    torch.cumsum(cdf, -1, out=cdf)
    total = cdf[:, -1:]  # (N, 1)
    if temperature == 0:
        token = z.argmax(-1, keepdim=True)
    else:
        below = total * (1 - 2.0**-23)  # less by one or two units in the last place
        target = torch.minimum(uniform(key)[:, None] * total, below)
        token = torch.searchsorted(cdf, target, right=True)  # (N, 1)
        token = token.clamp_(max=z.shape[1] - 1)  # of logits that are not finite
    logprob = z.gather(1, token) - peak - total.log()
    return token[:, 0], logprob[:, 0]


def can_fuse(hidden: Tensor) -> bool:
    return triton is not None and hidden.is_cuda and hidden.dtype != torch.float64


def draw(model: GPT, hidden: Tensor, temperature: float, key: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row after hidden (N, C), and its log-probability; as `sample`."""
    if temperature == 0 or not can_fuse(hidden):
        return sample(model.logits(hidden), temperature, key)
    return fused_sample(hidden, model.head.weight, temperature, key)


if triton is not None:

    @triton.jit
    def gumbel(row, v, GOLDEN: tl.constexpr):
        """Standard Gumbel noise from `fold(row, v)`: row, v int64, broadcast → float32, finite.

        −log(−log1p(−u)) is large where u is near 0, which float32 resolves finely. Triton has no
        log1p outside libdevice, which its interpreter lacks, and log(1 − u) loses what is small in
        u: below 1/4, −log1p(−u) = 2 artanh(u / (2 − u)), four terms of whose series are exact to
        float32 (the fifth is under 2⁻²⁵ of the sum) and need no accurate logarithm near 1.
        """
        x = (row + (v + 1) * GOLDEN).to(tl.uint64, bitcast=True)  # >> is logical on uint64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB
        bits = ((x ^ (x >> 31)) >> 32).to(tl.uint32)
        u = tl.minimum((bits.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
        s = u / (2 - u)
        q = s * s
        series = 2 * s * (1 + q * (1 / 3 + q * (1 / 5 + q / 7)))
        return -tl.log(tl.where(u < 0.25, series, -tl.log(1 - u)))

    @triton.jit
    def head_and_noise(
        hidden, weight, row, partial, index, temperature, N, V, C,
        GOLDEN: tl.constexpr, WIDEN: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr,
    ):  # fmt: skip
        """BLOCK_N rows against BLOCK_V tokens: what `fused_sample` needs to know of those logits.

        hidden (N, C), weight (V, C), row (N,) → partial (N, blocks, 4): the largest perturbed
        logit, that token's plain logit, the largest logit m, Σ exp(z − m); index (N, blocks): the
        token perturbed to the top.
        """
        # int64, since V·C may exceed 2³¹
        n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        v = tl.program_id(1).to(tl.int64) * BLOCK_V + tl.arange(0, BLOCK_V)
        z = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
        for start in range(0, C, BLOCK_C):
            c = start + tl.arange(0, BLOCK_C)
            ok = (n[:, None] < N) & (c[None, :] < C)
            x = tl.load(hidden + n[:, None] * C + c[None, :], ok, 0.0)  # (BLOCK_N, BLOCK_C)
            ok = (c[:, None] < C) & (v[None, :] < V)
            w = tl.load(weight + v[None, :] * C + c[:, None], ok, 0.0)  # (BLOCK_C, BLOCK_V)
            if WIDEN:
                x, w = x.to(tl.float32), w.to(tl.float32)
            z = tl.dot(x, w, z, input_precision="ieee")
        z = tl.where(v[None, :] < V, z / temperature, float("-inf"))

        noise = gumbel(tl.load(row + n, n < N, 0)[:, None], v[None, :], GOLDEN)
        noisy = tl.where(v[None, :] < V, z + noise, float("-inf"))
        best, at = tl.max(noisy, 1, return_indices=True)  # (BLOCK_N,)
        token = tl.program_id(1) * BLOCK_V + at
        chosen = tl.sum(tl.where(v[None, :] == token[:, None], z, 0.0), 1)
        peak = tl.max(z, 1)  # finite: every block holds a token
        mass = tl.sum(tl.exp(z - peak[:, None]), 1)

        cell = n * tl.num_programs(1) + tl.program_id(1)
        tl.store(index + cell, token, n < N)
        tl.store(partial + 4 * cell, best, n < N)
        tl.store(partial + 4 * cell + 1, chosen, n < N)
        tl.store(partial + 4 * cell + 2, peak, n < N)
        tl.store(partial + 4 * cell + 3, mass, n < N)

    def fused_sample(
        hidden: Tensor, weight: Tensor, temperature: float, key: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Head and sampler in one pass, without (N, V) logits in memory and without a host sync.

        hidden (N, C), weight (V, C) float32 or bfloat16, key (N,) int64, of the row and its
        position → token (N,) int64, logprob (N,) float32, of the softmax of logits / temperature.
        The arg-max of logits / temperature + Gumbel noise is a draw from that softmax. The noise
        depends on (key, token) only: not on the batch, the rows' order or the blocks. Temperature
        0 is left to `sample`.
        """
        assert temperature > 0, "fused_sample needs a positive temperature"
        weight, key = weight.contiguous(), key.contiguous()
        hidden = hidden.to(weight.dtype).contiguous()
        (N, C), V = hidden.shape, len(weight)
        line = 128 // weight.element_size()  # channels in a cache line
        grid = (triton.cdiv(N, 64), triton.cdiv(V, 128))
        partial = hidden.new_empty(N, grid[1], 4, dtype=torch.float32)
        index = hidden.new_empty(N, grid[1], dtype=torch.int64)
        # Triton's interpreter multiplies bfloat16 as if its bits were integers.
        widen = not isinstance(head_and_noise, triton.JITFunction)
        head_and_noise[grid](
            hidden, weight, key, partial, index, float(temperature), N, V, C,
            GOLDEN, widen, BLOCK_N=64, BLOCK_V=128, BLOCK_C=line, num_warps=8,
        )  # fmt: skip
        noisy, chosen, peak, mass = partial.unbind(-1)  # (N, blocks) each
        top = peak.amax(1, keepdim=True)  # (N, 1)
        total = (mass * (peak - top).exp()).sum(1)  # (N,) Σ exp(z − top)
        best = noisy.argmax(1, keepdim=True)  # (N, 1)
        logprob = (chosen.gather(1, best) - top)[:, 0] - total.log()
        return index.gather(1, best)[:, 0], logprob


# ---------------------------------------------------------------------------------------------
# Generation

Over = Callable[[list[list[int]]], Sequence[bool]]
ASK_EVERY = 16  # tokens; asking makes the host wait for a GPU and turn what was written into text


@dataclass(frozen=True)
class Generation:
    """Answers to a batch of prompts, N = prompts · samples rows, samples of a prompt adjacent."""

    tokens: Tensor  # (N, T) int64; 0 where the mask is false
    mask: Tensor  # (N, T) bool: true up to and including eos
    logprobs: Tensor  # (N, T) float32, at the temperature sampled; 0 where the mask is false
    ended: Tensor  # (N,) bool: the answer is whole; false where the length limit cut it

    def take(self, rows: slice) -> "Generation":
        return Generation(*(getattr(self, field.name)[rows] for field in fields(self)))


def check_prompts(model: GPT, prompts: list[list[int]], shared: int, room: int) -> None:
    """Raises ValueError for prompts that `generate` cannot answer in `room` tokens."""
    if not prompts or not all(prompts):
        raise ValueError("generation needs at least one prompt, and no empty one")
    longest = max(map(len, prompts))
    if longest + room > model.config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {room} to come exceed the model's context "
            f"of {model.config.context}"
        )
    if shared < 1 or len(prompts) % shared:
        raise ValueError(f"{len(prompts)} prompts are no groups of {shared}")


def read_prompts(
    model: GPT, prompts: list[list[int]], shared: int, dtype: torch.dtype
) -> tuple[Cache, Tensor]:
    """Reads ragged prompts → a cache of this dtype, and the last token's state (B, C). The tokens
    with which groups of `shared` adjacent prompts begin alike are read once a group."""
    cache = Cache.empty(model.config, len(prompts) // shared, model.device, dtype)
    if shared > 1:
        groups = [prompts[start : start + shared] for start in range(0, len(prompts), shared)]
        starts = [common_start(group) for group in groups]
        if any(starts):
            model.extend(cache, *pad_left(starts, model.device))
        rows = torch.arange(len(groups), device=model.device).repeat_interleave(shared)
        cache = cache.take(rows)
        prompts = [row[len(start) :] for start, group in zip(starts, groups) for row in group]
    return cache, model.extend(cache, *pad_left(prompts, model.device))


def common_start(rows: list[list[int]]) -> list[int]:
    """The tokens that all rows begin with. At least one of each row is left over: the first draw
    needs the state after it."""
    length = min(map(len, rows)) - 1
    differ = (n for n in range(length) if len({row[n] for row in rows}) > 1)
    return rows[0][: next(differ, length)]


def unpadded(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """The tokens of every row, (N, T) both, whose masks have no gaps."""
    return [row[:n] for row, n in zip(tokens.tolist(), mask.sum(1).tolist())]


class Steps:
    """Decoding, a token a row at a time, on a cache that grows. On CUDA `GraphSteps` does the same
    on storage that stays where it is."""

    def __init__(self, model: GPT, cache: Cache, temperature: float):
        self.model, self.cache, self.temperature = model, cache, temperature

    def step(self, token: Tensor, alive: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Reads each row's last token, where it is alive, and draws the next → token, logprob. All
        of them (R,)."""
        hidden = self.model.extend(self.cache, token[:, None], alive[:, None])
        return draw(self.model, hidden, self.temperature, key)

    def keep(self, rows: Tensor) -> None:
        self.cache.keep(rows)


def draw_answers(
    model: GPT,
    cache: Cache,
    hidden: Tensor,
    keys: Tensor,
    max_new_tokens: int,
    temperature: float,
    eos: int | None,
    over: Over | None,
) -> Generation:
    """An answer for every row of a cache that holds its prompt: hidden (N, C) the state after the
    prompt's last token, keys (N,) from `row_keys`. Uses the cache up."""
    N, T, device = len(hidden), max_new_tokens, hidden.device
    tokens = torch.zeros(N, T, dtype=torch.int64, device=device)
    logprobs, mask = torch.zeros(N, T, device=device), torch.zeros(N, T, device=device).bool()
    keys = fold(keys[:, None], torch.arange(T, device=device))  # (N, T), one a draw
    live = torch.arange(N, device=device)  # (R,): which answer each row of the cache is
    alive = torch.ones_like(live, dtype=torch.bool)  # (R,): it has not ended
    # Asking how many are alive makes the host wait for a GPU, so there it asks at every 8th step.
    look_every = 1 if device.type == "cpu" else 8

    token, logprob = draw(model, hidden, temperature, keys[:, 0])
    if uses_graphs(device):
        steps = graph_steps(model, cache, temperature, room=T)
    else:
        steps = Steps(model, cache, temperature)
    for t in range(T):
        tokens[live, t], logprobs[live, t], mask[live, t] = token, logprob.float(), alive
        if eos is not None:
            alive = alive & (token != eos)
        if over is not None and (t + 1) % ASK_EVERY == 0:
            complete = torch.as_tensor(over(unpadded(tokens, mask)), device=device)  # (N,)
            alive = alive & ~complete[live]
        if t + 1 == T:
            break
        if (eos is not None or over is not None) and (t + 1) % look_every == 0:
            kept = alive.nonzero()[:, 0]
            if len(kept) == 0:
                break
            if len(kept) <= 0.75 * len(live):  # else copying costs more than it saves
                live, token, alive = live[kept], token[kept], alive[kept]
                steps.keep(kept)
        token, logprob = steps.step(token, alive, keys[live, t + 1])
    tokens, logprobs, mask = tokens[:, : t + 1], logprobs[:, : t + 1], mask[:, : t + 1]
    ended = torch.ones_like(mask[:, 0])
    ended[live[alive]] = False
    return Generation(tokens * mask, mask, logprobs * mask, ended)


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
    keys: Sequence[int] | Tensor | None = None,
    shared: int = 1,
    over: Over | None = None,
) -> Generation:
    """Samples answers to ragged prompts; row b·samples + s is sample s of prompt b.

    A prompt is read once for all its samples, whose first tokens are drawn independently; where
    every `shared` adjacent prompts begin alike, that is read once for them. Randomness is keyed by
    (seed, the prompt's key, sample, position); without `keys` a prompt's key is a hash of its
    tokens. `over` ends answers that are complete although the model would write on: every ASK_EVERY
    tokens it is given the tokens of all rows so far and returns, for each row, whether its answer
    is complete. Raises ValueError for an empty prompt, a bad number, or a prompt that leaves less
    than max_new_tokens of the context.
    """
    check_prompts(model, prompts, shared, max_new_tokens)
    if max_new_tokens < 1 or samples < 1:
        raise ValueError(
            f"max_new_tokens and samples must be at least 1: {max_new_tokens}, {samples}"
        )
    if not (temperature == 0 or 1e-3 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0, or finite and at least 0.001: {temperature}")
    keys = prompt_keys(prompts) if keys is None else keys
    if len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts")
    with decoding(model) as cache_dtype:
        cache, hidden = read_prompts(model, prompts, shared, cache_dtype)
        rows = torch.arange(len(prompts), device=model.device).repeat_interleave(samples)
        cache = cache.take(rows) if samples > 1 else cache
        return draw_answers(
            model,
            cache,
            hidden[rows],
            row_keys(keys, samples, seed).to(model.device),
            max_new_tokens,
            temperature,
            eos,
            over,
        )


# ---------------------------------------------------------------------------------------------
# Linear layers while a model decodes (from here on all may be skipped: it only saves time)


@functools.lru_cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's product with weights laid out in advance, a private
    operator, and this processor multiplies the dtype by it."""
    try:
        one = torch.ones(1, 1, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(one, 1)
        return torch.ops.mkldnn._linear_pointwise(one, packed, None, "none", [], "").item() == 1
    except (AttributeError, RuntimeError):
        return False


class OneDNNLinear(nn.Module):
    """A linear layer on a CPU, by oneDNN, its weights in the layout and dtype that are multiplied
    fastest, and an elementwise function after it. The result has the input's dtype."""

    FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.after = dtype, ("none", "")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), 64)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        function, variant = self.after
        given = x.to(self.dtype), self.weight, self.bias, function, [], variant
        return torch.ops.mkldnn._linear_pointwise.default(*given).to(x.dtype)


class LowLinear(nn.Linear):
    """A linear layer, its weights in fewer bits. The result has the input's dtype, but under
    autocast that of the weights, as any linear layer's has there."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


def linear_layers(model: GPT) -> dict[str, nn.Linear]:
    """By name; not those of another class, which may do more than multiply by their weights."""
    named = model.named_modules()
    return {name: layer for name, layer in named if type(layer) in (nn.Linear, Head)}


def onednn_layers(model: GPT, low: torch.dtype) -> dict[str, nn.Module]:
    """By name, what stands in for a model's linear layers on a CPU: in `low`, but for the head."""
    found: dict[str, nn.Module] = {}
    for name, layer in linear_layers(model).items():
        dtype = torch.float32 if layer is model.head else low
        # For a small product in float32 the call of oneDNN's costs more than it saves.
        small = dtype == torch.float32 and layer.weight.numel() < 1 << 16
        if has_onednn(dtype) and not small:
            found[name] = OneDNNLinear(layer, dtype)
    # A plain MLP applies its activation to all that `up` gives, so the product does that, too; a
    # gated one applies it to half.
    for name in [name for name in found if name.endswith("mlp.up") and not model.config.gated]:
        found[name].after = OneDNNLinear.FUSED[model.config.activation]
        found[name.replace("mlp.up", "mlp.activation")] = nn.Identity()
    return found


def round_layers(model: GPT, low: torch.dtype) -> None:
    """Keeps the weights of a model's linear layers, but for the head, in fewer bits."""
    for name, layer in linear_layers(model).items():
        if layer is not model.head:
            shape = layer.in_features, layer.out_features, layer.bias is not None
            rounded = LowLinear(*shape, device=layer.weight.device, dtype=low)
            rounded.load_state_dict(layer.state_dict())
            model.set_submodule(name, rounded)


def low_layers(model: GPT, low: torch.dtype) -> dict[str, nn.Module]:
    """By name, what stands in for a model's linear layers on CUDA. These copies are kept from call
    to call, since a graph finds them by their addresses."""
    copies = model.low_copies
    for name, layer in linear_layers(model).items():
        place = layer.weight.device
        kept = copies[name].weight if name in copies else None
        if kept is None or (kept.dtype, kept.device) != (low, place):
            kind, bias = Head if layer is model.head else LowLinear, layer.bias is not None
            shape = layer.in_features, layer.out_features, bias
            copy = nn.utils.skip_init(kind, *shape, device=place, dtype=low)
            copies[name] = copy.requires_grad_(False)
        copies[name].load_state_dict(layer.state_dict())
    return copies


@contextlib.contextmanager
def decoding(model: GPT) -> Iterator[torch.dtype]:
    """While it is open, copies stand in for a float32 model's linear layers, which are multiplied
    faster; the weights must not change meanwhile. Yields the dtype to keep keys and values in.

    Under autocast the copies are of its dtype, made once and not at every step. All else stays in
    float32: norms, residual stream, softmax, logits, and on a CPU the head and the cache, which
    would be read no faster.
    """
    device, own = model.device.type, model.tokens.weight.dtype
    auto = own == torch.float32 and torch.is_autocast_enabled(device)
    low = torch.get_autocast_dtype(device) if auto else own
    layers: dict[str, nn.Module] = {}
    if own == torch.float32 and device == "cpu":
        layers = onednn_layers(model, low)
    elif low != own:
        layers = low_layers(model, low)
    originals = {name: model.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        with torch.autocast(device, enabled=False):
            yield low if device == "cuda" else own
    finally:
        for name, layer in originals.items():
            model.set_submodule(name, layer)


# ---------------------------------------------------------------------------------------------
# CUDA graphs, for the same


def uses_graphs(device: torch.device) -> bool:
    return device.type == "cuda"


class StaticCache(Cache):
    """The first R rows and S slots of storage that never moves, for steps of one token. The slot to
    write is a tensor, (1,) int64, so that a CUDA graph can repeat the step at the next slot."""

    def __init__(self, layers: list[tuple[Tensor, Tensor]], ok: Tensor, slot: Tensor):
        self.layers, self.ok, self.slot = layers, ok, slot

    def append(self, ok: Tensor) -> Tensor:
        """ok (R, 1) → what the new tokens see, (R, 1, S). Later slots must not be ok yet."""
        self.ok.index_copy_(1, self.slot, ok)
        own = torch.arange(self.ok.shape[1], device=ok.device) == self.slot  # (S,)
        return (self.ok | own)[:, None]

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for whole, new in zip(self.layers[layer], (k, v)):
            whole.index_copy_(2, self.slot, new.to(whole.dtype))
        return self.layers[layer]


class GraphSteps:
    """`Steps` on CUDA, where launching a step's kernels one by one takes longer than running them.

    A graph launches all of them at once, on the addresses of its capture. So the cache and what
    goes into a step have a fixed place, with room for some rows and slots, which the model keeps
    from one call to the next. Rows and slots are rounded up to powers of two, and a step is
    captured once for each pair of them and temperature.
    """

    def __init__(self, model: GPT, rows: int, slots: int, dtype: torch.dtype):
        config, device = model.config, model.device
        shape = (rows, config.kv_heads, slots, config.head_width)
        self.model = weakref.proxy(model)  # which has us: a cycle would keep both on the device
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

    def load(self, cache: Cache, temperature: float) -> None:
        """Takes over what a cache holds, which is empty then."""
        self.temperature = temperature
        self.n, self.used = len(cache.ok), cache.used
        for pair in self.layers:
            for whole, part in zip(pair, cache.layers.pop(0)):
                whole.zero_()  # of what an earlier call left: 0 · NaN would be NaN
                whole[: self.n, :, : self.used] = part[:, :, : self.used]
        self.ok.zero_()
        self.ok[: self.n, : self.used] = cache.ok[:, : self.used]
        self.alive.zero_()

    def keep(self, rows: Tensor) -> None:
        """Moves these rows, (n,) int64, to the front and goes on with them alone."""
        self.n = len(rows)
        for whole in (part for pair in self.layers for part in pair):
            whole[: self.n, :, : self.used] = whole[rows, :, : self.used]
        self.ok[: self.n] = self.ok[rows]
        self.ok[self.n :] = False
        self.alive.zero_()

    def step(self, token: Tensor, alive: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """As `Steps.step`."""
        n = self.n
        self.token[:n], self.alive[:n], self.key[:n] = token, alive, key
        self.slot.fill_(self.used)
        self.used += 1
        R, S = power_of_two(n), min(power_of_two(max(64, self.used)), self.slots)
        which = R, S, self.temperature
        if which not in self.graphs:
            layers = [tuple(part[:R, :, :S] for part in pair) for pair in self.layers]
            cache = StaticCache(layers, self.ok[:R, :S], self.slot)
            step = Steps(self.model, cache, self.temperature).step
            given = self.token[:R], self.alive[:R], self.key[:R]
            self.graphs[which] = capture(step, given, self.pool)
        token, logprob = self.graphs[which]()
        return token[:n], logprob[:n]


def graph_steps(model: GPT, cache: Cache, temperature: float, room: int) -> GraphSteps:
    """The model's own with this cache in it, for `room` steps at most; made anew where it is too
    small, or where the weights have moved."""
    rows, slots = power_of_two(len(cache.ok)), math.ceil((cache.used + room) / 256) * 256
    if model.steps is not None:
        rows, slots = max(rows, model.steps.rows), max(slots, model.steps.slots)
    fits = model.steps is not None and (model.steps.rows, model.steps.slots) == (rows, slots)
    if not fits or model.steps.weights != addresses(model):
        model.steps = None  # the memory of the old must go before the new asks for its own
        model.steps = GraphSteps(model, rows, slots, cache.layers[0][0].dtype)
    model.steps.load(cache, temperature)
    return model.steps


def addresses(model: GPT) -> list[int]:
    """Where a graph of the model finds its weights."""
    return [weight.data_ptr() for weight in (*model.parameters(), *model.buffers())]


def power_of_two(n: int) -> int:
    """The smallest that is not below n."""
    return 1 << (n - 1).bit_length()


def capture(step: Callable, args: tuple[Tensor, ...], pool) -> Callable:
    """What repeats step(*args) on whatever these tensors then hold: a CUDA graph, whose results
    have a fixed place too; without CUDA the call itself. Graphs of one pool overwrite each other's
    results, which must be used before another one is replayed."""
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
