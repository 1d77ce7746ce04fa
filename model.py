"""A GPT that loads, scores and samples. It knows token ids only: no text, no tasks, no rewards.

One set of modules is GPT-2, Llama 3, SmolLM2, Qwen2, Qwen2.5 and Qwen3: GPTConfig switches their
parts on, and `GPT.from_pretrained` reads it from a checkpoint folder (pretrained/weights.py). Two
ways through the same blocks:

    forward(tokens, ok)          every token of every row at once, with gradient → logits
    extend(cache, tokens, ok)    only new tokens, after what a cache holds → the last one's state

Three rules keep rows of different lengths correct.

1. *Validity is a mask, never a token id.* All rows write the same slots; `ok` says which of them
   hold a token. A prompt is padded on the left, a finished attempt leaves empty slots on its
   right, and no token attends to either.
2. *A token's position follows from its mask.* It is the number of tokens it attends to besides
   itself, so padding, empty slots and branches need no bookkeeping of their own.
3. *The sampler is the scorer.* `generate` draws from softmax(logits / temperature), with no top-k
   or top-p, and returns the log-probabilities of that very distribution.

Dimensions: B rows, T tokens of a call, S slots of a cache, L layers, C width, H query heads,
G key/value heads, D width of a head, I width inside the MLP, V vocabulary; N answers, of which R
are still being decoded.
"""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fast.attention import as_bias, attend_one
from fast.cache import Cache, SharedPrefix
from fast.graphs import GraphCache, graph_cache, uses_graphs
from fast.head import HeadScores, exact_product
from fast.linear import decoding
from pretrained.weights import (
    load_tensors,
    read_shape,
    save_checkpoint,
    shape_from_json,
    shape_to_json,
)

try:  # optional, for CUDA: without Triton, `sample` replaces `fused_sample`
    import triton
    import triton.language as tl
except ImportError:
    triton = None


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. The defaults below `family` are GPT-2's, with the exact GELU.
    Raises ValueError, naming the field, where the numbers do not fit."""

    vocab_size: int  # V
    context: int = 64  # largest number of tokens in a row
    layers: int = 3  # L
    heads: int = 4  # H
    kv_heads: int | None = None  # G, key/value heads; None for H, fewer for grouped queries
    width: int = 64  # C
    tied: bool = True  # output head and token embedding share their weights
    family: str = "gpt2"  # tensor names of its checkpoint folders: gpt2, llama, qwen2 or qwen3
    head_width: int | None = None  # D, None for C / H
    inner: int | None = None  # I, None for 4 · C
    activation: str = "gelu"  # gelu, gelu_tanh or silu
    gated: bool = False  # MLP: activation(gate(x)) · up(x) instead of activation(up(x))
    rms_norm: bool = False  # RMSNorm instead of LayerNorm
    norm_eps: float = 1e-5
    qk_norm: bool = False  # RMSNorm of each head's queries and keys (Qwen3)
    qkv_bias: bool = True
    out_bias: bool = True  # bias of attention's output layer
    mlp_bias: bool = True
    rope: float | None = None  # base of the rotary frequencies, None for learned positions
    rope_scaling: tuple[float, float, float, int] | None = None  # see `frequencies`

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
    """Pads rows on the left → tokens (B, T) int64, and ok (B, T) bool, true where a slot holds a
    token."""
    T = max(map(len, rows))
    tokens = torch.tensor([[0] * (T - len(row)) + row for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return tokens, torch.arange(T, device=device) >= T - lengths[:, None]


def attention_mask(ok: Tensor, branch: Tensor | None = None) -> Tensor:
    """The mask of whole rows: which slots each token attends to.

    ok      (B, T) bool: the slots that hold a token.
    branch  (T,) int64: 0 is the trunk, and tokens of branch m > 0 see the trunk and their own
            branch, so that several continuations of one prefix share a row. None: no branches.
    Returns (B, T, T) bool. Every slot, even an empty one, attends to itself, since a softmax over
    nothing is NaN.
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
    if gqa and q.is_cuda:  # CUDA's kernels with a mask cannot share key heads
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        gqa = False
    y = F.scaled_dot_product_attention(q, k, v, mask[:, None], scale=scale, enable_gqa=gqa)
    return y.transpose(1, 2).flatten(2)


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


class AttentionInputs(NamedTuple):
    """The inputs of attention that every layer of one call shares."""

    mask: Tensor  # (B, T, S) bool
    bias: Tensor | None  # `mask` as an additive bias, if each row has one query and a cache
    rotation: tuple[Tensor, Tensor] | None  # cos and sin, (B, 1, T, D/2), of rotary positions
    cache: Cache | SharedPrefix | None  # stores new keys and values and returns all of them


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

    def forward(self, x: Tensor, inputs: AttentionInputs, layer: int, last_token: bool) -> Tensor:
        """x (B, T, C) → (B, T, C), or with last_token (B, 1, C), of the last token."""
        B, T, _ = x.shape
        # Under autocast, too, queries and keys are normed and rotated in x's dtype.
        qkv = self.qkv(x).to(x.dtype).view(B, T, self.H + 2 * self.G, self.D).transpose(1, 2)
        q, k, v = qkv.split([self.H, self.G, self.G], dim=1)  # (B, H or G, T, D)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if inputs.rotation is not None:
            q, k = rotate(q, *inputs.rotation), rotate(k, *inputs.rotation)
        if inputs.cache is not None:
            k, v = inputs.cache.write(layer, k, v)  # (B, G, S, D)
            q = q.to(k.dtype)
        if inputs.bias is not None:
            return self.out(attend_one(q, k, v, inputs.bias, self.scale))
        mask = inputs.mask
        if last_token:
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

    def forward(self, x: Tensor, inputs: AttentionInputs, layer: int, last_token: bool) -> Tensor:
        """x (B, T, C) → (B, T, C), or with last_token (B, 1, C), of the last token."""
        attended = self.attention(self.norm1(x), inputs, layer, last_token)
        x = (x[:, -1:] if last_token else x) + attended
        return x + self.mlp(self.norm2(x))


class Head(nn.Linear):
    """hidden (…, C) → logits (…, V), in float32 at least, also where the blocks ran in less."""

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return exact_product(hidden.to(self.weight.dtype), self.weight)


class GPT(nn.Module):
    """A decoder-only transformer. GPT(config)(tokens (B, T)) → logits (B, T, V). Without
    dropout, so that sampling and scoring use the same distribution."""

    recompute = False  # compute activations again in the backward pass, to save memory
    graph_cache: GraphCache | None = None  # for decoding on CUDA

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.low_copies: dict[str, nn.Linear] = {}  # for decoding on CUDA
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
        """Linear layers preserve the scale of their input. The output layers of attention and MLP
        are divided by √(2L), the number of additions to the residual stream, which then keeps its
        scale too (GPT-2)."""
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
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> "GPT":
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
        model = model.to_empty(device=device)
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
            raise ValueError(f"{family}'s config.json cannot describe a model of this shape")
        save_checkpoint(self, content, Path(folder))

    @property
    def device(self) -> torch.device:
        return self.tokens.weight.device

    def forward(self, tokens: Tensor, ok: Tensor | None = None) -> Tensor:
        """tokens (B, T) int64 → logits (B, T, V). `ok` is as in `attention_mask`."""
        return self.logits(self.hidden(tokens, ok))

    def hidden(
        self,
        tokens: Tensor,
        ok: Tensor | None = None,
        branch: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Tensor:
        """Final states after the last norm, (B, T, C), for callers that need logits of only some.
        `start`, (S,) int64, is a prefix that all rows have in common, and is read once."""
        if ok is None:
            length = tokens.shape[1] + (0 if start is None else len(start))
            assert length <= self.config.context, "more tokens than the context holds"
            ok = torch.ones_like(tokens, dtype=torch.bool)
        mask = attention_mask(ok, branch)
        if start is None or len(start) == 0:
            return self._blocks(tokens, mask)
        store = SharedPrefix()
        self._blocks(start[None], attention_mask(torch.ones_like(start[None]).bool()), store)
        before = mask.new_ones(*tokens.shape, len(start))
        return self._blocks(tokens, torch.cat([before, mask], 2), store)

    def extend(self, cache: Cache, tokens: Tensor, ok: Tensor) -> Tensor:
        """Reads tokens (B, T), valid where ok (B, T), after those in `cache`, and adds them to it →
        the last token's state, (B, C)."""
        mask = cache.append(ok)
        bias = as_bias(mask, cache.layers[0][0]) if tokens.shape[1] == 1 else None
        return self._blocks(tokens, mask, cache, bias, last_token=True)[:, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (…, C) → (…, V), at least float32, also where the blocks ran in less."""
        return self.head(hidden)

    def scores(
        self, hidden: Tensor, tokens: Tensor, ref: "GPT", ref_hidden: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """log π(token | hidden) and KL(π ‖ π_ref), that of the whole distributions there, at a
        temperature: hidden (n, C), tokens (n,) int64 and the reference's states (n, C) → two (n,),
        float32, with the policy's gradient. Many logits are never held at once (`HeadScores`)."""
        heads = hidden, self.head.weight, ref_hidden, ref.head.weight
        return HeadScores.apply(*heads, tokens, temperature)

    def _blocks(
        self,
        tokens: Tensor,
        mask: Tensor,
        cache: Cache | SharedPrefix | None = None,
        bias: Tensor | None = None,
        last_token: bool = False,
    ) -> Tensor:
        """tokens (B, T), which attend to mask (B, T, S) → their final states after the last norm,
        (B, T, C), or the last token's alone, (B, 1, C)."""
        config, rotation = self.config, None
        x = self.tokens(tokens)  # (B, T, C)
        position = mask.sum(-1) - 1  # (B, T), rule 2
        if config.rope is None:
            # An empty slot's position may exceed the context; its output is never read.
            x = x + self.positions(position.clamp(max=config.context - 1))
        else:
            angle = position[:, None, :, None] * frequencies(config, tokens.device)
            rotation = angle.cos(), angle.sin()  # (B, 1, T, D/2) each
        inputs = AttentionInputs(mask, bias, rotation, cache)
        # The shared prefix is written once, so it must not be recomputed.
        again = self.recompute and not last_token and (cache is None or len(cache.layers) > 0)
        for layer, block in enumerate(self.blocks):
            args = x, inputs, layer, last_token and layer == config.layers - 1
            x = checkpoint(block, *args, use_reentrant=False) if again else block(*args)
        return self.norm(x)


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
    increment = (value + 1) * GOLDEN  # + 1, for mix(0) is 0; wraps by itself on a tensor
    return mix(key + (as_int64(increment) if isinstance(increment, int) else increment))


def uniform(key: Tensor) -> Tensor:
    """One number in the open interval (0, 1) for each key, float32."""
    cell = (key >> 41) & ((1 << 23) - 1)  # one of 2²³ equal cells, whose centre float32 has exactly
    return (cell.float() + 0.5) * 2.0**-23


def row_keys(keys: Sequence[int] | Tensor, samples: int, seed: int) -> Tensor:
    """The key of every (prompt, sample), samples of a prompt adjacent: (B,) → (B·samples,).
    It depends on nothing else, so a row's tokens do not depend on the rest of the batch."""
    keys = torch.as_tensor(keys, dtype=torch.int64)
    # The seed is mixed before it is added to a key, so that their sums do not repeat.
    keys = fold(fold(torch.tensor(as_int64(seed)), 0), keys)
    return fold(keys[:, None], torch.arange(samples)).flatten()


def prompt_keys(prompts: list[list[int]]) -> Tensor:
    """A key for each prompt, (B,) int64, made of its tokens and their places."""
    tokens, ok = pad_left(prompts, torch.device("cpu"))  # (B, T)
    places = torch.arange(tokens.shape[1], 0, -1)  # from the end, unmoved by padding
    return mix((fold(places, tokens) * ok).sum(1))


def sample(logits: Tensor, temperature: float, key: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row and its log-probability, from one cumulative sum, without a host sync.

    logits (N, V) float32, key (N,) int64, of the row and its position → token (N,) int64,
    logprob (N,) float32. Inverse CDF with a single uniform a row. The target is kept below the last
    entry of the same cumulative sum, so the token found always has positive probability.
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
        token = token.clamp_(max=z.shape[1] - 1)  # only matters if logits are not finite
    logprob = z.gather(1, token) - peak - total.log()
    return token[:, 0], logprob[:, 0]


def draw(model: GPT, hidden: Tensor, temperature: float, key: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row after hidden (N, C), and its log-probability; as `sample`."""
    fuses = triton is not None and hidden.is_cuda and hidden.dtype != torch.float64
    if temperature == 0 or not fuses:
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
        token = index.gather(1, best)[:, 0].clamp_(max=V - 1)  # as in `sample`
        return token, logprob


# ---------------------------------------------------------------------------------------------
# Generation

Over = Callable[[list[list[int]]], Sequence[bool]]
ASK_EVERY = 16  # tokens between calls of `over`, for which the host waits for a GPU and decodes


@dataclass(frozen=True)
class Generation:
    """Answers to a batch of prompts, N = prompts · samples rows, samples of a prompt adjacent."""

    tokens: Tensor  # (N, T) int64; 0 where the mask is false
    mask: Tensor  # (N, T) bool: true up to and including eos
    logprobs: Tensor  # (N, T) float32, at the sampling temperature; 0 where the mask is false
    ended: Tensor  # (N,) bool: the answer is complete; false if the length limit cut it

    def take(self, rows: slice) -> "Generation":
        return Generation(*(getattr(self, field.name)[rows] for field in fields(self)))


def read_prompts(model: GPT, prompts: list[list[int]], dtype: torch.dtype) -> tuple[Cache, Tensor]:
    """Reads prompts of different lengths → a cache of this dtype, and each last token's state
    (B, C). What all of them begin with, solved examples for instance, is read once."""
    start = common_start(prompts)
    common = Cache.empty(model.config, 1, model.device, dtype)
    if start:
        model.extend(common, *pad_left([start], model.device))
    rest = [row[len(start) :] for row in prompts]
    groups, parts, states = of_similar_length(rest), [], []
    for group in groups:
        part = common.take(torch.zeros(len(group), dtype=torch.int64, device=model.device))
        states.append(model.extend(part, *pad_left([rest[i] for i in group], model.device)))
        parts.append(part)
    if len(groups) == 1:
        return parts[0], states[0]
    order = torch.tensor([i for group in groups for i in group], device=model.device).argsort()
    return Cache.stacked(parts, order), torch.cat(states)[order]


def of_similar_length(rows: list[list[int]]) -> list[list[int]]:
    """Indices of rows, rising in each group, in groups that need little padding: the longest of a
    group is at most a quarter and 16 tokens longer than the shortest."""
    groups: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if not groups or len(rows[i]) > 1.25 * len(rows[groups[-1][0]]) + 16:
            groups.append([])
        groups[-1].append(i)
    return [sorted(group) for group in groups]


def common_start(rows: list[list[int]]) -> list[int]:
    """The longest common prefix of all rows, except that at least one token of each is left: the
    first draw needs the state after it."""
    length = min(map(len, rows)) - 1
    differ = (n for n in range(length) if len({row[n] for row in rows}) > 1)
    return rows[0][: next(differ, length)]


def unpadded(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """The valid tokens of every row; tokens and mask (N, T), whose masks have no gaps."""
    return [row[:n] for row, n in zip(tokens.tolist(), mask.sum(1).tolist())]


def decode_step(
    model: GPT, cache: Cache, temperature: float, token: Tensor, alive: Tensor, key: Tensor
) -> tuple[Tensor, Tensor]:
    """Reads each row's last token, where it is alive, and draws the next → token, logprob. All
    (R,)."""
    hidden = model.extend(cache, token[:, None], alive[:, None])
    return draw(model, hidden, temperature, key)


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
    prompt's last token, keys (N,) from `row_keys`. The cache must not be used afterwards."""
    N, T, device = len(hidden), max_new_tokens, hidden.device
    tokens = torch.zeros(N, T, dtype=torch.int64, device=device)
    logprobs, mask = torch.zeros(N, T, device=device), torch.zeros(N, T, device=device).bool()
    keys = fold(keys[:, None], torch.arange(T, device=device))  # (N, T), one a draw
    live = torch.arange(N, device=device)  # (R,): which answer each row of the cache is
    alive = torch.ones_like(live, dtype=torch.bool)  # (R,): it has not ended
    # Counting the live rows makes the host wait for a GPU, so there it is done at every 8th step.
    look_every = 1 if device.type == "cpu" else 8

    token, logprob = draw(model, hidden, temperature, keys[:, 0])
    step = functools.partial(decode_step, weakref.proxy(model))  # weak, since graphs keep it
    if uses_graphs(device):
        cache = graph_cache(model, cache, room=T)
        step = functools.partial(cache.step, step)
    else:
        step = functools.partial(step, cache)
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
            if len(kept) <= 0.75 * len(live):  # otherwise copying costs more than it saves
                live, token, alive = live[kept], token[kept], alive[kept]
                cache.keep(kept)
        token, logprob = step(temperature, token, alive, keys[live, t + 1])
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
    over: Over | None = None,
) -> Generation:
    """Samples answers to prompts of different lengths; row b·samples + s is sample s of prompt b.

    A prompt is read once for all its samples, whose first tokens are drawn independently.
    Randomness is keyed by (seed, the prompt's key, sample, position); without `keys` a prompt's key
    is a hash of its tokens. `over` ends answers that are complete although the model would write
    on: every ASK_EVERY tokens it is given the tokens of all rows so far and returns, for each row,
    whether its answer is complete. Raises ValueError for an empty prompt, a bad number, or a prompt
    that leaves less than max_new_tokens of the context.
    """
    if not prompts or not all(prompts):
        raise ValueError("generate needs at least one prompt, and none may be empty")
    if max_new_tokens < 1 or samples < 1:
        raise ValueError(
            f"max_new_tokens and samples must be at least 1: {max_new_tokens}, {samples}"
        )
    longest = max(map(len, prompts))
    if longest + max_new_tokens > model.config.context:
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's "
            f"context of {model.config.context}"
        )
    if not (temperature == 0 or 1e-3 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0, or finite and at least 0.001: {temperature}")
    keys = prompt_keys(prompts) if keys is None else keys
    if len(keys) != len(prompts):
        raise ValueError(f"{len(keys)} keys for {len(prompts)} prompts")
    with decoding(model) as cache_dtype:
        cache, hidden = read_prompts(model, prompts, cache_dtype)
        rows = torch.arange(len(prompts), device=model.device).repeat_interleave(samples)
        cache = cache.take(rows) if samples > 1 else cache
        hidden, keys = hidden[rows], row_keys(keys, samples, seed).to(model.device)
        return draw_answers(model, cache, hidden, keys, max_new_tokens, temperature, eos, over)
