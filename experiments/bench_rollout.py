"""What sampling answers costs: tokens a second of model.generate, against other ways and the limit.

    python experiments/bench_rollout.py --sizes tiny gpt2 --dtypes float32 bfloat16
    python experiments/bench_rollout.py --growth

Every way has the same random weights, prompts and lengths, and returns the log-probabilities of
what it draws. The ways take turns in one process, after two calls each that do not count.

    ours      model.generate
    eager     transformers' generate; a logits processor draws and scores
    compiled  the same with a static cache and a compiled step
    nocache   every step runs the model over all tokens so far
    concat    keys and values are concatenated at every step; F.scaled_dot_product_attention

All peers draw and score alike, by `plain_draw`: the softmax, torch.multinomial with replacement,
the logarithm of the drawn token's probability. On a CPU this is the cheapest of the ways tried for
any of them; experiments/NOTES.md has the figures of the others.

Ragged answers end by an eos of probability 1/20 a step, and only tokens up to it count: batches
that run until their last row has ended gain nothing from those behind it.

The limit is the time of the matrix products at the fastest rate seen here, or of reading the
weights where that takes longer, plus that of reading the keys and values of all rows that are
still alive. Attention's own products are left out, and what fits a processor's cache is read as if
from memory. For ours bfloat16 means autocast, as in train.py, where on a CPU the head and the keys
and values stay in float32; for transformers it means bfloat16 weights; nocache and concat multiply
by weights that were converted once.

One thread is measured by process CPU time, several threads and CUDA by the wall clock.
"""

import argparse
import contextlib
import copy
import functools
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from model import GPT, GPTConfig, generate, has_onednn

LIBRARY = ("eager", "compiled")  # the ways of transformers
PEERS = (*LIBRARY, "nocache", "concat")
Way = Callable[[int, int | None, int], tuple[Tensor, Tensor]]
# A way is called with (new tokens, eos, seed) and returns tokens and logprobs, (B, T) each.


# ---------------------------------------------------------------------------------------------
# Models


def gpt2(layers: int, width: int, heads: int, vocabulary: int, context: int) -> GPTConfig:
    return GPTConfig(vocabulary, context, layers, heads, width=width, activation="gelu_tanh")


def named(size: str, room: int) -> GPTConfig:
    """The shape of that name, with a context of at least `room` tokens."""
    if size == "tiny":
        return gpt2(4, 192, 6, 128, max(128, room))
    if size == "gpt2":
        return gpt2(12, 768, 12, 50257, max(1024, room))
    norms = {"rms_norm": True, "norm_eps": 1e-6}
    attention = {"heads": 12, "kv_heads": 2, "head_width": 128, "rope": 1e6, "out_bias": False}
    mlp = {"inner": 8960, "activation": "silu", "gated": True, "mlp_bias": False}
    shape = {"layers": 28, "width": 1536} | attention | mlp | norms
    return GPTConfig(151936, max(2048, room), family="qwen2", **shape)


def build(config: GPTConfig, device: str) -> GPT:
    torch.manual_seed(0)
    with torch.device(device):
        return GPT(config).eval().requires_grad_(False)


def precision(device: str, dtype: str) -> contextlib.AbstractContextManager:
    low = dtype == "bfloat16"
    return torch.autocast(device, dtype=torch.bfloat16, enabled=low, cache_enabled=False)


def draw_prompts(model: GPT, rows: int, length: int) -> Tensor:
    """Random prompts without the last token, which is eos where there is one. (rows, length)"""
    random = torch.Generator(model.device).manual_seed(0)
    shape, last = (rows, length), model.config.vocab_size - 1
    return torch.randint(last, shape, generator=random, device=model.device)


def add_eos(model: GPT) -> int:
    """Makes the last token an eos that has probability 1/20 whatever was read.

    A LayerNorm's output has mean 0, up to its bias: with u = 1/√C, the bias u and rows of the head
    without a part along u, the state's part along u is 1 and is seen by eos's row b · u alone.
    """
    eos, table = model.config.vocab_size - 1, model.tokens.weight
    along = torch.full_like(table[0], table.shape[1] ** -0.5)  # u
    table -= table.mean(1, keepdim=True)
    model.norm.bias += along
    logits = model.logits(model.hidden(draw_prompts(model, 16, 32))[:, -1])
    table[eos] = along * (logits[:, :eos].logsumexp(1).mean() - math.log(19))
    return eos


# ---------------------------------------------------------------------------------------------
# The ways


def ours(model: GPT, prompts: list[list[int]], new: int, eos: int | None, seed: int):
    answers = generate(model, prompts, new, eos=eos, seed=seed)
    return answers.tokens, answers.logprobs


def plain_draw(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The peers' sampler: logits (B, V) → token and log-probability, (B, 1) each.

    For a single draw torch.multinomial makes V exponentials a row; for two with replacement it
    makes two uniform numbers, and the second token is dropped.
    """
    each = logits.softmax(-1)  # (B, V)
    token = torch.multinomial(each, 2, replacement=True)[:, :1]  # (B, 1)
    return token, each.gather(1, token).log()


def loop(step: Callable[[Tensor], Tensor], prompts: Tensor, new: int, eos: int | None, seed: int):
    """Draws until every row has ended. step(new tokens (B, T)) → logits (B, V)."""
    torch.manual_seed(seed)
    read, tokens, logprobs = prompts, [], []
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    for _ in range(new):
        read, logprob = plain_draw(step(read))  # (B, 1) each
        tokens.append(read)
        logprobs.append(logprob)
        if eos is not None:
            ended |= read[:, 0] == eos
            if ended.all():
                break
    return torch.cat(tokens, 1), torch.cat(logprobs, 1)


@torch.no_grad()
def nocache(model: GPT, prompts: Tensor, new: int, eos: int | None, seed: int):
    so_far = prompts[:, :0]

    def step(read: Tensor) -> Tensor:
        nonlocal so_far
        so_far = torch.cat([so_far, read], 1)
        return model.logits(model.hidden(so_far)[:, -1])

    return loop(step, prompts, new, eos, seed)


@torch.no_grad()
def concat(model: GPT, prompts: Tensor, new: int, eos: int | None, seed: int):
    """GPT-2's family only."""
    past: list[tuple[Tensor, Tensor] | None] = [None] * model.config.layers

    def attention(x: Tensor, layer: int) -> Tensor:
        (B, T, C), here = x.shape, model.blocks[layer].attention
        qkv = F.linear(x, here.qkv.weight, here.qkv.bias).view(B, T, 3, here.H, here.D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
        if past[layer] is not None:
            k, v = (torch.cat(pair, 2) for pair in zip(past[layer], (k, v)))
        past[layer] = k, v
        y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
        return F.linear(y.transpose(1, 2).reshape(B, T, C), here.out.weight, here.out.bias)

    def step(read: Tensor) -> Tensor:
        start = 0 if past[0] is None else past[0][0].shape[2]
        where = torch.arange(start, start + read.shape[1], device=read.device)
        x = model.tokens(read) + model.positions(where)  # (B, T, C)
        for layer, block in enumerate(model.blocks):
            x = x + attention(block.norm1(x), layer)
            x = x + block.mlp(block.norm2(x))
        return F.linear(model.norm(x[:, -1]), model.head.weight).float()

    return loop(step, prompts, new, eos, seed)


def load_library(folder: str, dtype: str, device: str):
    """The same weights as a model of transformers, which only its two ways need."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = getattr(torch, dtype)
    library = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=kind).to(device)
    library.generation_config = transformers.GenerationConfig()  # without an eos of the family's
    return library.eval()


def from_library(compiled: bool, library, prompts: Tensor, new: int, eos: int | None, seed: int):
    """What is drawn in the processor becomes the arg-max, which generate then takes."""
    from transformers import LogitsProcessorList

    torch.manual_seed(seed)
    options, logprobs = {}, []

    def choose(read: Tensor, logits: Tensor) -> Tensor:
        token, logprob = plain_draw(logits)
        logprobs.append(logprob)
        return logits.scatter_(1, token, math.inf)

    if compiled:
        from transformers import CompileConfig

        config = CompileConfig()
        config._compile_all_devices = True  # on a CPU, too
        options = {"cache_implementation": "static", "compile_config": config}
    read = library.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        logits_processor=LogitsProcessorList([choose]),
        max_new_tokens=new,
        eos_token_id=eos,
        pad_token_id=eos,
        **options,
    )
    tokens = read[:, prompts.shape[1] :]
    # On CUDA generate may look for the end late, and then drops the steps behind it.
    return tokens, torch.cat(logprobs, 1)[:, : tokens.shape[1]]


def answered(tokens: Tensor, eos: int | None) -> Tensor:
    """(B, T) bool: tokens up to and including eos."""
    is_eos = (tokens == eos) if eos is not None else torch.zeros_like(tokens, dtype=torch.bool)
    return is_eos.cumsum(1) - is_eos.long() == 0


# ---------------------------------------------------------------------------------------------
# Clocks and limits


CLOCKS = ("cpu", "wall")


def timed(call: Callable, device: str):
    """What the call returns, and its seconds of process CPU time and by the wall clock."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    cpu, wall = time.process_time(), time.perf_counter()
    result = call()
    synchronise()
    return result, {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def clock_name(device: str, threads: int) -> str:
    return "cpu" if device == "cpu" and threads == 1 else "wall"


def fastest(call: Callable, device: str, threads: int, tries: int) -> float:
    """The fewest seconds of a call."""
    clock = clock_name(device, threads)
    return min(timed(call, device)[1][clock] for _ in range(tries))


@torch.no_grad()
def gemm_rate(device: str, dtype: torch.dtype, threads: int) -> float:
    """flop/s of the fastest product of x (m, k) and a weight (n, k)."""
    rates = []
    cpu = [(64, 768, 3072), (256, 768, 768), (1024, 1024, 1024), (2048, 768, 3072)]
    cuda = [(4096, 4096, 4096), (8192, 8192, 8192), (1024, 1536, 17920)]
    for m, k, n in cuda if device == "cuda" else cpu:
        x, weight = (torch.randn(rows, k, device=device, dtype=dtype) for rows in (m, n))
        calls = [functools.partial(torch.mm, x, weight.T)]
        if device == "cpu" and has_onednn(dtype):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)
            product = torch.ops.mkldnn._linear_pointwise
            calls.append(functools.partial(product, x, packed, None, "none", [], ""))
        rates += [2 * m * k * n / fastest(call, device, threads, 20) for call in calls]
    return max(rates)


@torch.no_grad()
def memory_rate(device: str, threads: int) -> float:
    """Bytes read and written a second, over 256 MiB: a sum, a copy, and a cache's product."""
    cache, other = (torch.ones(1024, 64, 1024, device=device) for _ in range(2))
    queries = torch.ones(1024, 1, 64, device=device)
    size = cache.numel() * cache.element_size()
    calls = {cache.sum: size, lambda: other.copy_(cache): 2 * size, lambda: queries @ cache: size}
    return max(count / fastest(call, device, threads, 5) for call, count in calls.items())


@dataclass(frozen=True)
class Peaks:
    """The rates that bound our rollouts, and the bytes of a number in each place."""

    gemm: float  # flop/s in the blocks
    head: float
    memory: float  # bytes/s
    weight_bytes: int
    head_bytes: int
    cache_bytes: int


def measure_peaks(best: dict[str, Peaks], device: str, dtype: str, threads: int) -> Peaks:
    """The best rates so far, kept in `best`: measured again and again, since a busy machine may
    keep two threads on one core for seconds."""
    kind = getattr(torch, dtype)
    rest = torch.float32 if device == "cpu" else kind  # the head and the cache: see `decoding`
    memory, gemm = memory_rate(device, threads), gemm_rate(device, kind, threads)
    head = gemm if rest == kind else gemm_rate(device, rest, threads)
    new = Peaks(gemm, head, memory, kind.itemsize, rest.itemsize, rest.itemsize)
    name = f"{dtype}, {threads} thread(s)"
    best[name] = Peaks(*map(max, zip(astuple(best.get(name, new)), astuple(new))))
    return best[name]


def weight_counts(config: GPTConfig) -> tuple[int, int]:
    """Weights of the products in the blocks, and in the head."""
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    attention = config.width * (2 * query + 2 * key)
    mlp = config.width * config.inner * (3 if config.gated else 2)
    return config.layers * (attention + mlp), config.vocab_size * config.width


def limit(
    config: GPTConfig, live: list[int], prompt: int, peaks: Peaks, first: int = 0
) -> dict[str, float]:
    """The least seconds of a rollout with live[t] rows at step t, by what bounds each step, from
    step `first` on. Before the draw of step 0 the prompt's tokens are read."""
    blocks, head = weight_counts(config)
    slot = 2 * config.layers * config.kv_heads * config.head_width * peaks.cache_bytes
    seconds = {"products": 0.0, "weights": 0.0, "cache": 0.0}
    for t in range(first, len(live)):
        rows = live[t]
        tokens = rows if t > 0 else rows * prompt
        gemm = 2 * blocks * tokens / peaks.gemm + 2 * head * rows / peaks.head
        read = blocks * peaks.weight_bytes + head * peaks.head_bytes
        weights = read / peaks.memory
        seconds["products" if gemm >= weights else "weights"] += max(gemm, weights)
        seconds["cache"] += rows * (prompt + t) * slot * (t > 0) / peaks.memory
    return seconds


# ---------------------------------------------------------------------------------------------
# One comparison


@dataclass(frozen=True)
class Setting:
    size: str
    dtype: str
    threads: int
    rows: int
    lengths: str


def converted(model: GPT, dtype: torch.dtype) -> GPT:
    """A copy with the linear layers' weights in that dtype: autocast would convert them at every
    step."""
    model = copy.deepcopy(model)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        for name, part in list(layer.named_parameters()):
            # A parameter of its own, since the head's is the embedding's, too.
            setattr(layer, name, nn.Parameter(part.to(dtype), requires_grad=False))
    return model


def make_ways(model: GPT, library, dtype: str, peers: list[str], prompts: Tensor) -> dict[str, Way]:
    def lowered(way: Callable, model: GPT, prompts: Tensor | list[list[int]], *call):
        with precision(model.device.type, dtype):
            return way(model, prompts, *call)

    other = model
    if dtype == "bfloat16" and {"nocache", "concat"} & set(peers):
        other = converted(model, torch.bfloat16)
    calls = {
        "eager": functools.partial(from_library, False, library, prompts),
        "compiled": functools.partial(from_library, True, library, prompts),
        "nocache": functools.partial(lowered, nocache, other, prompts),
        "concat": functools.partial(lowered, concat, other, prompts),
    }
    mine = functools.partial(lowered, ours, model, prompts.tolist())
    return {"ours": mine} | {peer: calls[peer] for peer in peers}


def measure_ways(ways: dict[str, Way], eos: int | None, args: argparse.Namespace):
    """Runs the ways in turn → (way → its runs, way → why it has none, ours' last answers). A run
    is its seconds, the tokens that count, and how many rows were alive at each step."""
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    failed: dict[str, str] = {}
    answers = None
    for turn in range(-2, args.repeats):
        for way in [way for way in ways if way not in failed]:
            # The first calls compile, again for every length, and load CUDA's kernels.
            short = turn < 0 and way != "compiled" and args.device == "cpu"
            call = functools.partial(ways[way], min(args.new, 4) if short else args.new, eos, turn)
            try:
                result, seconds = timed(call, args.device)
            except RuntimeError as error:
                memory = isinstance(error, torch.OutOfMemoryError)
                reason = str(error).strip().partition("\n")[0]
                failed[way] = "out of memory" if memory else f"left out: {reason}"
                continue
            if turn >= 0:
                live = answered(result[0], eos).sum(0).tolist()
                runs[way].append(seconds | {"tokens": sum(live), "live": live})
                answers = result if way == "ours" else answers
            del result  # the next way may need its memory
    return runs, failed, answers


@torch.no_grad()
def logprob_error(model: GPT, prompts: Tensor, answers: tuple, eos: int | None) -> dict:
    """How far the log-probabilities of 64 answers are from those of the float32 model."""
    prompts, (tokens, logprobs) = prompts[:64], (each[:64] for each in answers)
    mask = answered(tokens, eos)  # (B, T)
    ok = torch.cat([torch.ones_like(prompts, dtype=torch.bool), mask], 1)
    hidden = model.hidden(torch.cat([prompts, tokens], 1), ok)[:, prompts.shape[1] - 1 : -1]
    exact, _ = model.scores(hidden[mask], tokens[mask], model, hidden[mask], 1.0)
    error = (exact - logprobs[mask]).abs()
    return {"mean": error.mean().item(), "max": error.max().item()}


def compare(
    setting: Setting, model: GPT, library, peers: list[str], eos: int | None, best: dict, args
) -> list[dict]:
    """One result for each way. `model` has float32 weights; `best` is `measure_peaks`'."""
    torch.set_num_threads(setting.threads)
    torch.compiler.reset()
    measure_peaks(best, args.device, setting.dtype, setting.threads)
    prompts = draw_prompts(model, setting.rows, args.prompt)
    ways = make_ways(model, library, setting.dtype, peers, prompts)
    runs, failed, answers = measure_ways(ways, eos, args)
    peaks = measure_peaks(best, args.device, setting.dtype, setting.threads)
    clock, median = clock_name(args.device, setting.threads), statistics.median
    most = None
    if "ours" not in failed:
        least = [limit(model.config, run["live"], args.prompt, peaks) for run in runs["ours"]]
        most = median(run["tokens"] / sum(each.values()) for run, each in zip(runs["ours"], least))
    results = {}
    for way, done in runs.items():
        results[way] = asdict(setting) | {"way": way}
        if way in failed:
            results[way]["failed"] = failed[way]
            continue
        results[way] |= {f"{name}_seconds": median(run[name] for run in done) for name in CLOCKS}
        rate = median(run["tokens"] / run[clock] for run in done)
        length = statistics.mean(run["tokens"] for run in done) / setting.rows
        results[way] |= {"tokens_per_second": rate, "mean_length": length}
    base = results.get(args.base, {}).get("tokens_per_second")
    for result in results.values():
        rate = result.get("tokens_per_second")
        result["ratio"] = rate / base if rate and base else None
        result["share_of_limit"] = rate / most if rate and most else None
    if answers is not None and setting.dtype == "bfloat16":
        results["ours"]["logprob_error"] = logprob_error(model, prompts, answers, eos)
    return list(results.values())


SETTING = ("size", "dtype", "threads", "rows", "lengths")
FORMATS = {
    "tokens_per_second": ",.0f",
    "cpu_seconds": ".2f",
    "wall_seconds": ".2f",
    "ratio": ".2f",
    "share_of_limit": ".0%",
}


def print_result(result: dict) -> None:
    cells = [str(result[key]) for key in (*SETTING, "way")]
    numbers = [(result.get(key), form) for key, form in FORMATS.items()]
    cells += ["–" if number is None else format(number, form) for number, form in numbers]
    print(f"| {' | '.join(cells)} | {result.get('failed', '')} |", flush=True)


def print_notes(results: list[dict], peaks: dict[str, Peaks]) -> None:
    """What the table has no column for."""
    print()
    for name, peak in peaks.items():
        rates = f"products {peak.gemm / 1e9:,.0f} GF/s, head {peak.head / 1e9:,.0f} GF/s"
        print(f"- limit, {name}: {rates}, memory {peak.memory / 1e9:,.0f} GB/s")
    walls: dict[tuple, dict[int, float]] = {}
    for result in results:
        if result["way"] != "ours" or "failed" in result:
            continue
        name = ", ".join(str(result[key]) for key in SETTING)
        if result["lengths"] == "ragged":
            print(f"- {name}: {result['mean_length']:.1f} tokens an answer")
        if "logprob_error" in result:
            error = result["logprob_error"]
            text = f"mean {error['mean']:.1e}, max {error['max']:.1e}"
            print(f"- {name}: log-probabilities off by {text}")
        case = tuple(result[key] for key in SETTING if key != "threads")
        seconds_a_token = result["wall_seconds"] / result["mean_length"]
        walls.setdefault(case, {})[result["threads"]] = seconds_a_token
    for case, times in walls.items():
        few, many = min(times), max(times)
        if few < many:
            name = ", ".join(map(str, case))
            print(f"- {name}: {many} threads are {times[few] / times[many]:.2f} × {few} (wall)")


def compare_all(args: argparse.Namespace, content: dict) -> None:
    """The table, written after every setting."""
    print(f"Prompts of {args.prompt} tokens, at most {args.new} new ones\n")
    numbers = f"tokens/s | CPU s | wall s | × {args.base} | of the limit | failed"
    print(f"| {' | '.join(SETTING)} | way | {numbers} |\n" + "|" + "---|" * (len(SETTING) + 7))
    best = content["peaks"]
    for size, lengths in itertools.product(args.sizes, args.lengths):
        model = build(named(size, args.prompt + args.new), args.device)
        eos = add_eos(model) if lengths == "ragged" else None
        peers = [peer for peer in args.peers if size != "qwen" or peer in LIBRARY]
        with tempfile.TemporaryDirectory() as folder:
            if set(LIBRARY) & set(peers):
                model.save_pretrained(folder)
            for dtype in args.dtypes:
                library = None
                if set(LIBRARY) & set(peers):
                    library = load_library(folder, dtype, args.device)
                for threads, rows in itertools.product(args.threads, args.rows):
                    setting = Setting(size, dtype, threads, rows, lengths)
                    for result in compare(setting, model, library, peers, eos, best, args):
                        content["results"].append(result)
                        print_result(result)
                    save(args.write, content)
    print_notes(content["results"], best)


# ---------------------------------------------------------------------------------------------
# Growth


@torch.no_grad()
def measure_step(config: GPTConfig, rows: int, prompt: int, new: int, best: dict, args) -> dict:
    """A decoding step's seconds, and their shares by what bounds them: what an answer of `new`
    tokens takes, less what one of a single token does, which needs the prompt alone."""
    model = build(config, args.device)
    prompts = draw_prompts(model, rows, prompt).tolist()
    clock = clock_name(args.device, args.threads[0])
    times = []
    with precision(args.device, args.dtypes[0]):
        for _ in range(args.repeats + 1):
            calls = (functools.partial(generate, model, prompts, count) for count in (1, new))
            one, whole = (timed(call, args.device)[1][clock] for call in calls)
            times.append((whole - one) / (new - 1))
    seconds = statistics.median(times[1:])
    peaks = measure_peaks(best, args.device, args.dtypes[0], args.threads[0])
    bounds = limit(config, [rows] * new, prompt, peaks, first=1)
    shares = {name: each / (seconds * (new - 1)) for name, each in bounds.items()}
    shares["overhead"] = 1 - sum(shares.values())
    return {"tokens_per_second": rows / seconds, "seconds": seconds, "shares": shares}


def growth_points() -> dict[str, list[tuple[int, GPTConfig, int, int, int]]]:
    """quantity → its points: (amount, config, rows, prompt, new)."""
    tiny = functools.partial(gpt2, 4, 192, 6, 128)
    shapes = [(2, 64, 4, 128), (5, 128, 4, 128), (8, 320, 5, 128), (13, 512, 8, 128)]
    models = [gpt2(*each, 64) for each in [*shapes, (12, 768, 12, 50257)]]
    return {
        "rows": [(2**n, tiny(96), 2**n, 32, 64) for n in range(4, 11)],
        "context": [(2**n, tiny(2**n), 64, 2**n - 32, 32) for n in range(6, 10)],
        "parameters": [(sum(weight_counts(each)), each, 64, 32, 32) for each in models],
    }


def slope(points: list[dict]) -> float:
    """How seconds grow with the amount: the exponent of a power law."""
    logs = [[math.log(point[key]) for point in points] for key in ("amount", "seconds")]
    return statistics.linear_regression(*logs).slope


def grow(args: argparse.Namespace, content: dict) -> None:
    """Three tables of a decoding step, ours only, without the reading of the prompts."""
    torch.set_num_threads(args.threads[0])
    for quantity, points in growth_points().items():
        print(f"\n| {quantity} | tokens/s | ms a step | products | weights | cache | overhead |")
        print("|" + "---|" * 7)
        done = []
        for amount, *point in points:
            result = {"quantity": quantity, "amount": amount}
            result |= measure_step(*point, content["peaks"], args)
            shares = " | ".join(f"{share:.0%}" for share in result["shares"].values())
            rate, ms = result["tokens_per_second"], 1e3 * result["seconds"]
            print(f"| {amount:,} | {rate:,.0f} | {ms:.2f} | {shares} |", flush=True)
            done.append(result)
        first, last = (max(end["shares"], key=end["shares"].get) for end in (done[0], done[-1]))
        print(f"\nSeconds grow as {quantity}^{slope(done):.2f}, ", end="")
        print(f"between the last two as {quantity}^{slope(done[-2:]):.2f}. ", end="")
        print(f"Largest share: {first} at the first point, {last} at the last.")
        content["results"] += done
        save(args.write, content)


# ---------------------------------------------------------------------------------------------
# The command line


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def about(script: str, device: str) -> dict:
    """What a JSON file says of the run that made it."""
    return {
        "command": " ".join(["python", f"experiments/{Path(script).name}", *sys.argv[1:]]),
        "date": str(date.today()),
        "machine": machine(device),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }


def save(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1, default=asdict) + "\n")


def whole(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(text)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sizes", nargs="+", default=["tiny"], choices=["tiny", "gpt2", "qwen"])
    add("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    add("--threads", nargs="+", type=whole, default=[1])
    add("--rows", nargs="+", type=whole, default=[64])
    add("--lengths", nargs="+", default=["equal"], choices=["equal", "ragged"])
    add("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    add("--prompt", type=whole, default=32, help="tokens of a prompt")
    add("--new", type=whole, default=64, help="most tokens of an answer")
    add("--repeats", type=whole, default=3)
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--growth", action="store_true", help="ours alone: a step by rows, context, parameters")
    add("--write", type=Path, help="the JSON file; default: beside this one")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch finds no CUDA device")
    if "qwen" in args.sizes and "ragged" in args.lengths:
        parser.error("ragged lengths need the bias of a LayerNorm, which qwen lacks")
    if args.write is None:
        name = "bench_growth.json" if args.growth else "bench_rollout.json"
        args.write = Path(__file__).with_name(name)
    return args


def leave_out(args: argparse.Namespace) -> str | None:
    """Drops the peers that cannot run here, in a line each → transformers' version."""
    version = None
    try:
        from transformers import __version__ as version
    except ImportError:
        args.peers = [peer for peer in args.peers if peer not in LIBRARY]
        print("eager and compiled are left out: transformers is not installed")
    if "qwen" in args.sizes and {"nocache", "concat"} & set(args.peers):
        print("nocache and concat are left out for qwen: they are GPT-2's")
    return version


def main() -> None:
    args = read_arguments()
    version = None if args.growth else leave_out(args)
    args.base = next((peer for peer in LIBRARY if peer in args.peers), "transformers")
    content = about(__file__, args.device)
    content |= {"transformers": version, "peaks": {}, "results": []}
    print(f"{content['machine']}, {args.device}, torch {torch.__version__}", end="")
    print(f", transformers {version}" if version else "")
    (grow if args.growth else compare_all)(args, content)


if __name__ == "__main__":
    main()
