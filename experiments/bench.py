"""What sampling answers and updating a policy cost, beside other ways and beside the limit.

    python experiments/bench.py rollouts --sizes tiny gpt2 --dtypes float32 bfloat16
    python experiments/bench.py updates --sizes tiny gpt2     whole, and their head and loss alone
    python experiments/bench.py growth       a decoding step by rows, context and parameters
    python experiments/bench.py trl          a training step beside that of TRL's RLOOTrainer
    python experiments/bench.py page         writes the tables of SPEED.md

Each of the first four prints a table. `--keep PART` or `--keep PART/NAME` stores its figures in
bench.json, from which `page` makes the tables of SPEED.md, one for each PART. SPEED.md says who is
compared, and what the limit is.

The ways take turns, again and again, and a table has their medians. Seconds are CPU time of the
process with one thread, and wall time with several threads or on CUDA. Every ratio is to another
way of the same run.
"""

import copy
import itertools
import json
import math
import multiprocessing
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import date
from functools import cache, partial
from importlib import metadata
from pathlib import Path

# As train.py, before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch
from tables import cells, put
from torch import Tensor

import score
from data import Problem, Task
from fast.linear import has_onednn
from model import GPT, GPTConfig, generate
from training.processes import precision

FILE, PAGE = HERE / "bench.json", HERE / "SPEED.md"

# How much is measured, and with --quick: tokens of a prompt, an answer, the instruction between two
# attempts; tokens that a head scores; rows of a growth table; and training steps beside TRL's.
AMOUNT = {"prompt": 32, "new": 64, "revise": 16, "scored": 4096, "points": 7, "steps": 6}
AMOUNT |= {"cfg": score.Config(problems=8, samples=4, revisions=4), "completions": 160}
QUICK = {"prompt": 8, "new": 4, "revise": 2, "scored": 8, "points": 2, "steps": 2}
QUICK |= {"cfg": score.Config(problems=2, samples=2, revisions=2), "completions": 12}


def plain(layers: int, width: int, heads: int, vocabulary: int, context: int) -> GPTConfig:
    return GPTConfig(vocabulary, context, layers, heads, width=width, activation="gelu_tanh")


QWEN = {"family": "qwen2", "activation": "silu", "gated": True, "mlp_bias": False}
QWEN |= {"out_bias": False, "rms_norm": True, "norm_eps": 1e-6, "rope": 1e6}
SIZES = {
    "tiny": plain(4, 192, 6, 128, 512),
    "gpt2": plain(12, 768, 12, 50257, 1024),
    "qwen": GPTConfig(151936, 2048, 28, 12, 2, 1536, head_width=128, inner=8960, **QWEN),
}
BESIDE_TRL = GPTConfig(1024, 512, 4, 6, 6, 192, inner=512, **QWEN)


def build(config: GPTConfig, device: str = "cpu") -> GPT:
    torch.manual_seed(0)
    with torch.device(device):
        return GPT(config).eval().requires_grad_(False)


def draw_prompts(model: GPT, rows: int, length: int) -> Tensor:
    """Random prompts without the last token, which is eos where there is one. (rows, length)"""
    random, last = torch.Generator().manual_seed(0), model.config.vocab_size - 1
    return torch.randint(last, (rows, length), generator=random).to(model.device)


def add_eos(model: GPT) -> int:
    """Makes the last token of a model with LayerNorms an eos of probability 1/20 after any text.

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


def timed(call: Callable, device: str = "cpu", threads: int = 1) -> tuple:
    """What the call returns, and its seconds."""
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    started, result = clock(), call()
    synchronise()
    return result, clock() - started


def in_turn(ways: dict, repeats: int, warm_ups: int = 0, **setting) -> Iterator[dict]:
    """Calls the ways in turn, each with the number of the turn, below 0 for those that do not
    count → a row for each way: the medians of what it returned, and how many times as fast ours
    was; or why it failed."""
    rows = {way: setting | {"way": way} for way in ways}
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    for turn in range(-warm_ups, repeats):
        for way in [way for way in ways if "failed" not in rows[way]]:
            try:
                runs[way].append(ways[way](turn))
            except (RuntimeError, ImportError) as error:  # such as a lack of memory
                rows[way]["failed"] = str(error).strip().partition("\n")[0]
    for way, row in rows.items():
        if "failed" not in row:
            done = runs[way][warm_ups:]
            row |= {name: statistics.median(run[name] for run in done) for name in done[0]}
            if len(ways) > 1 and "failed" not in (mine := rows["ours"]):
                pace = [
                    each.get("tokens_per_second") or 1 / each["seconds"] for each in (mine, row)
                ]
                row["ours_faster"] = pace[0] / pace[1]
        yield row


def elsewhere(call: Callable[..., dict], args: tuple, turn: int) -> dict:
    """What call(*args) returns in a process of its own, with one thread."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, torch.set_num_threads, (1,)) as pool:
        return pool.submit(call, *args).result()


def peak(device: str) -> float:
    """MiB that this process has held at most: on a CPU what Linux counted since its start, unlike
    getrusage, in which a new process begins with its parent's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


@torch.no_grad()
def measure_peaks(best: dict, device: str, dtype: str, threads: int, tries: int = 20) -> dict:
    """The rates that bound our rollouts, and the bytes of a number: the best so far, kept in `best`
    and measured again and again, since a busy machine may keep two threads on one core."""

    def fastest(*calls: Callable) -> float:
        return min(timed(call, device, threads)[1] for call in calls for _ in range(tries))

    def products(kind: torch.dtype) -> float:
        """flop/s of x (m, k) and a weight (n, k)."""
        m, k, n = (8192, 8192, 8192) if device == "cuda" else (2048, 768, 3072)
        x, weight = (torch.randn(rows, k, device=device, dtype=kind) for rows in (m, n))
        calls = [lambda: x @ weight.T]
        if device == "cpu" and has_onednn(kind):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, m)
            product = torch.ops.mkldnn._linear_pointwise
            calls.append(lambda: product(x, packed, None, "none", [], ""))
        return 2 * m * k * n / fastest(*calls)

    kind = getattr(torch, dtype)
    rest = torch.float32 if device == "cpu" else kind  # of the head and the cache
    new = {"weight_bytes": kind.itemsize, "head_bytes": rest.itemsize}
    new |= {"gemm": products(kind), "head": products(rest)}
    cache, other = (torch.ones(1024, 64, 1024, device=device) for _ in range(2))
    queries = torch.ones(1024, 1, 64, device=device)
    reading, copying = fastest(lambda: queries @ cache), fastest(lambda: other.copy_(cache))
    new["memory"] = cache.nbytes * max(1 / reading, 2 / copying)  # bytes/s
    old = best.setdefault(f"{dtype}, {threads} thread(s)", new)
    old |= {name: max(old[name], new[name]) for name in new}
    return old


def weight_counts(config: GPTConfig) -> tuple[int, int]:
    """Weights of the products in the blocks, and in the head."""
    query, key = config.heads * config.head_width, config.kv_heads * config.head_width
    attention = config.width * (2 * query + 2 * key)
    mlp = config.width * config.inner * (3 if config.gated else 2)
    return config.layers * (attention + mlp), config.vocab_size * config.width


def limit(config: GPTConfig, live: list[int], prompt: int, peaks: dict, first: int = 0) -> dict:
    """The least seconds of a rollout with live[t] rows at step t, by what bounds each step, from
    step `first` on. Before the draw of step 0 the prompt's tokens are read."""
    blocks, head = weight_counts(config)
    slot = 2 * config.layers * config.kv_heads * config.head_width * peaks["head_bytes"]
    weights = (blocks * peaks["weight_bytes"] + head * peaks["head_bytes"]) / peaks["memory"]
    seconds = {"products": 0.0, "weights": 0.0, "cache": 0.0}
    for t in range(first, len(live)):
        tokens = live[t] if t > 0 else live[t] * prompt
        gemm = 2 * blocks * tokens / peaks["gemm"] + 2 * head * live[t] / peaks["head"]
        seconds["products" if gemm >= weights else "weights"] += max(gemm, weights)
        seconds["cache"] += live[t] * (prompt + t) * slot * (t > 0) / peaks["memory"]
    return seconds


# ---------------------------------------------------------------------------------------------
# Rollouts: ways are called with (new tokens, eos, seed) and return tokens and logprobs, (B, T) each

PEERS = ("eager", "compiled")


def ours(model: GPT, prompts: Tensor, dtype: str, new: int, eos: int | None, seed: int):
    with precision(dtype, model.device):
        answers = generate(model, prompts.tolist(), new, eos=eos, seed=seed)
    return answers.tokens, answers.logprobs


def plain_draw(logits: Tensor) -> tuple[Tensor, Tensor]:
    """transformers' sampler here: logits (B, V) → token and log-probability, (B, 1) each.

    For a single draw torch.multinomial makes V exponentials a row; for two with replacement it
    makes two uniform numbers, and the second token is dropped.
    """
    each = logits.softmax(-1)  # (B, V)
    token = torch.multinomial(each, 2, replacement=True)[:, :1]  # (B, 1)
    return token, each.gather(1, token).log()


def load_library(model: GPT, dtype: str):
    """The same weights as a model of transformers."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        library = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    library.generation_config = transformers.GenerationConfig()  # without an eos of the family's
    return library.to(model.device).eval()


def from_library(compiled, load, prompts: Tensor, new: int, eos: int | None, seed: int):
    """What is drawn in the processor becomes the arg-max, which generate then takes."""
    from transformers import CompileConfig, LogitsProcessorList

    torch.manual_seed(seed)
    options, logprobs = {}, []

    def choose(read: Tensor, logits: Tensor) -> Tensor:
        token, logprob = plain_draw(logits)
        logprobs.append(logprob)
        return logits.scatter_(1, token, math.inf)

    if compiled:
        config = CompileConfig()
        config._compile_all_devices = True  # on a CPU, too
        options = {"cache_implementation": "static", "compile_config": config}
    options |= {"max_new_tokens": new, "eos_token_id": eos, "pad_token_id": eos}
    options["logits_processor"] = LogitsProcessorList([choose])
    read = load().generate(prompts, attention_mask=torch.ones_like(prompts), **options)
    tokens = read[:, prompts.shape[1] :]
    # On CUDA generate may look for the end late, and then drops the steps behind it.
    return tokens, torch.cat(logprobs, 1)[:, : tokens.shape[1]]


def answered(tokens: Tensor, eos: int | None) -> Tensor:
    """(B, T) bool: tokens up to and including eos."""
    is_eos = (tokens == eos) if eos is not None else torch.zeros_like(tokens, dtype=torch.bool)
    return is_eos.cumsum(1) - is_eos.long() == 0


@torch.no_grad()
def logprob_error(model: GPT, prompts: Tensor, answers: tuple, eos: int | None) -> dict:
    """How far the log-probabilities of 64 answers are from those of the float32 model."""
    prompts, (tokens, logprobs) = prompts[:64], (each[:64] for each in answers)
    mask = answered(tokens, eos)  # (B, T)
    ok = torch.cat([torch.ones_like(prompts, dtype=torch.bool), mask], 1)
    hidden = model.hidden(torch.cat([prompts, tokens], 1), ok)[:, prompts.shape[1] - 1 : -1]
    exact, _ = model.scores(hidden[mask], tokens[mask], model, hidden[mask], 1.0)
    error = (exact - logprobs[mask]).abs()
    return {"error_mean": error.mean().item(), "error_max": error.max().item()}


def measure_rollouts(args: Namespace, best: dict) -> Iterator[dict]:
    for size, lengths, dtype in itertools.product(args.sizes, args.lengths, args.dtypes):
        model = build(SIZES[size], args.device)
        eos = add_eos(model) if lengths == "ragged" else None
        library = cache(partial(load_library, model, dtype))
        for rows, threads in itertools.product(args.rows, args.threads):
            setting = dict(size=size, lengths=lengths, dtype=dtype, rows=rows, threads=threads)
            yield from compare(setting, model, library, eos, best, args)


def compare(setting: dict, model: GPT, library, eos: int | None, best: dict, args: Namespace):
    """A row for each way. `model` has float32 weights; `best` is `measure_peaks`'."""
    device, dtype, threads = args.device, setting["dtype"], setting["threads"]
    new, length, last = args.amount.new, args.amount.prompt, {}
    torch.set_num_threads(threads)
    torch.compiler.reset()
    prompts = draw_prompts(model, setting["rows"], length)

    def call(way: str, draw: Callable, turn: int) -> dict:
        if turn < 0 and way == "ours":
            measure_peaks(best, device, dtype, threads)
        # The first calls compile, again for every length, and load CUDA's kernels.
        count = min(new, 4) if turn < 0 and way != "compiled" and device == "cpu" else new
        last[way], seconds = timed(lambda: draw(count, eos, turn), device, threads)
        live = answered(last[way][0], eos).sum(0).tolist()
        least = limit(model.config, live, length, best[f"{dtype}, {threads} thread(s)"])
        tokens, share = sum(live), sum(least.values()) / seconds
        return {"seconds": seconds, "tokens_per_second": tokens / seconds, "share_of_limit": share}

    ways = {"ours": partial(ours, model, prompts, dtype)}
    for peer in args.peers:
        ways[peer] = partial(from_library, peer == "compiled", library, prompts)
    calls = {way: partial(call, way, draw) for way, draw in ways.items()}
    for row in in_turn(calls, args.repeats, warm_ups=2, **setting):
        if row["way"] == "ours" and dtype == "bfloat16" and "failed" not in row:
            row |= logprob_error(model, prompts, last["ours"], eos)
        yield row


class Random(Task):
    """Prompts of random tokens, and answers that nothing ends before the limit."""

    def __init__(self, vocabulary: int, amount: Namespace):
        self.eos, self.close, self.revise = vocabulary, [], [3] * amount.revise
        self.max_new_tokens, self.length = amount.new, amount.prompt

    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        draw = torch.Generator().manual_seed(step)
        rows = torch.randint(3, self.eos, (count, self.length), generator=draw)
        return [Problem(self.decode(row)) for row in rows.tolist()]

    def held_out(self, split: str, count: int | None) -> list[Problem]:
        return []

    def prompt(self, problem: Problem) -> list[int]:
        return list(map(int, problem.prompt.split()))

    def decode(self, tokens: list[int]) -> str:
        return " ".join(map(str, tokens))

    def reward(self, problem: Problem, response: str) -> float:
        """Any function of the text: half of all responses are right."""
        return float(sum(map(int, response.split())) % 2)


def naive_scores(policy: GPT, hidden, tokens, ref: GPT, ref_hidden, temperature: float):
    """What `GPT.scores` returns, from the logits of the whole vocabulary."""
    heads = (hidden, policy), (ref_hidden, ref)
    logits = ((x @ model.head.weight.T).float() / temperature for x, model in heads)
    logprobs, ref_logprobs = (each.log_softmax(1) for each in logits)
    kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum(1)
    return logprobs.gather(1, tokens[:, None])[:, 0], kl


def measure_head(way: str, size: str, dtype: str, device: str, count: int) -> dict:
    """Seconds of one gradient of log-probabilities and KLs with respect to states and head, and
    MiB of this process beyond inputs and gradients."""
    config = replace(SIZES[size], layers=1)  # of which the head alone is used
    policy, ref = build(config, device), build(config, device)
    weight = policy.head.weight.requires_grad_(True)
    hidden = torch.randn(count, config.width, device=device, requires_grad=True)
    tokens = torch.randint(config.vocab_size, (count,), device=device)
    weights, before = torch.randn(2, count, device=device), peak(device)

    def gradient() -> None:
        hidden.grad = weight.grad = None
        with precision(dtype, hidden.device):
            scores = naive_scores if way == "naive" else GPT.scores
            values = scores(policy, hidden, tokens, ref, hidden.detach().flip(0), 1.0)
        (weights * torch.stack(values)).sum().backward()

    for _ in range(2 if device == "cuda" else 1):  # the first loads CUDA's kernels
        _, seconds = timed(gradient, device)
    gradients = sum(x.grad.numel() * x.grad.element_size() for x in (hidden, weight)) / 2**20
    return {"seconds": seconds, "MiB": peak(device) - before - gradients}


def measure_update(size: str, dtype: str, device: str, amount: Namespace) -> dict:
    """Seconds of an update after one that does not count, and MiB of this process."""
    policy, cfg = build(SIZES[size], device), amount.cfg
    ref, task = copy.deepcopy(policy), Random(policy.config.vocab_size, amount)
    optimizer = torch.optim.Adam(policy.requires_grad_(True).parameters(), lr=1e-6)
    with precision(dtype, policy.device):
        rolled = score.rollout(policy, task, task.batch(0, 1, 1), cfg, seed=0)
        args = policy, ref, optimizer, [rolled], score.stage2_returns, cfg
        for _ in range(2):
            _, seconds = timed(lambda: score.update(*args), device)
    tokens = rolled.first.tokens.numel() + rolled.second.tokens.numel()
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "MiB": peak(device)}


def measure_updates(args: Namespace, best: dict) -> Iterator[dict]:
    for size, dtype in itertools.product(args.sizes, args.dtypes):
        shape, setting = (size, dtype, args.device), dict(size=size, dtype=dtype)
        head = partial(elsewhere, measure_head)
        heads = {way: partial(head, (way, *shape, args.amount.scored)) for way in ("ours", "naive")}
        yield from in_turn(heads, args.repeats, part="head and loss", **setting)
        whole = {"ours": partial(elsewhere, measure_update, (*shape, args.amount))}
        yield from in_turn(whole, args.repeats, part="whole update", **setting)


@torch.no_grad()
def measure_growth(args: Namespace, best: dict) -> Iterator[dict]:
    """A decoding step's seconds, and their shares by what bounds them: what an answer of `new`
    tokens takes, less what one of a single token does, which needs the prompt alone."""
    torch.set_num_threads(1)
    models = [plain(2, 64, 4, 128, 64), plain(5, 128, 4, 128, 64), plain(8, 320, 5, 128, 64)]
    models += [plain(13, 512, 8, 128, 64), plain(12, 768, 12, 50257, 64)]
    quantities = {  # to points: amount, config, rows, prompt, new
        "rows": [(2**n, plain(4, 192, 6, 128, 96), 2**n, 32, 64) for n in range(4, 11)],
        "context": [(2**n, plain(4, 192, 6, 128, 2**n), 64, 2**n - 32, 32) for n in range(6, 10)],
        "parameters": [(sum(weight_counts(each)), each, 64, 32, 32) for each in models],
    }
    for quantity, points in quantities.items():
        done: list[tuple[float, float]] = []
        for amount, config, rows, prompt, most in points[: args.amount.points]:
            model, new = build(config), min(most, args.amount.new)
            answer = partial(generate, model, draw_prompts(model, rows, prompt).tolist())

            def step(turn: int, answer=answer, new=new) -> dict:
                one, whole = (timed(lambda n=n: answer(n))[1] for n in (1, new))
                return {"seconds": max((whole - one) / (new - 1), 1e-9)}  # noise, with --quick

            [row] = in_turn({"ours": step}, args.repeats, 1, quantity=quantity, amount=amount)
            seconds, peaks = row["seconds"], measure_peaks(best, "cpu", "float32", 1)
            bounds = limit(config, [rows] * new, prompt, peaks, first=1)
            shares = {name: each / (seconds * (new - 1)) for name, each in bounds.items()}
            row |= shares | {"overhead": 1 - sum(shares.values())}
            done.append((math.log(amount), math.log(seconds)))
            if len(done) > 1:  # the exponent of a power law through the points so far
                row["slope"] = statistics.linear_regression(*zip(*done)).slope
            yield row | {"tokens_per_second": rows / seconds}


def our_step(amount: Namespace) -> dict:
    """CPU seconds a completion, of the median step."""
    policy, ref = build(BESIDE_TRL).requires_grad_(True), build(BESIDE_TRL)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-6, fused=True)
    task, cfg, times = Random(policy.config.vocab_size, amount), amount.cfg, []
    for n in range(1, amount.steps + 1):
        args = policy, ref, optimizer, task, task.batch(0, n, cfg.problems), score.stage2_returns
        times.append(timed(lambda args=args, n=n: score.train_step(*args, cfg, seed=n))[1])
    return {"seconds": statistics.median(times[1:]) / amount.completions}


def trl_step(amount: Namespace) -> dict:
    """The same of TRL, with the settings that are its cheapest."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    times, cfg, task = [], amount.cfg, Random(BESIDE_TRL.vocab_size, amount)
    problems = task.batch(0, 1, amount.steps * amount.completions // cfg.samples)
    vocabulary = {str(n): n for n in range(BESIDE_TRL.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "1", "pad_token": "2", "padding_side": "left"}

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **others):
            times.append(time.process_time())

        def on_step_end(self, *args, **others):
            times[-1] = time.process_time() - times[-1]

    size = {"per_device_train_batch_size": amount.completions, "num_generations": cfg.samples}
    size |= {"max_completion_length": amount.new, "max_steps": amount.steps}
    same = {"generation_kwargs": {"min_new_tokens": amount.new}, "shuffle_dataset": False}
    same |= {"beta": cfg.beta1, "learning_rate": 1e-6, "model_init_kwargs": {"dtype": "float32"}}
    cheap = {"gradient_checkpointing": False, "bf16": False, "use_cpu": True, "report_to": []}
    cheap |= {"save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        build(BESIDE_TRL).save_pretrained(folder)
        RLOOTrainer(
            model=folder,
            reward_funcs=lambda completions, **others: [task.reward(None, y) for y in completions],
            args=RLOOConfig(f"{folder}/trl", **size, **same, **cheap),
            train_dataset=Dataset.from_list([{"prompt": x.prompt} for x in problems]),
            processing_class=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
            callbacks=[Clock()],
        ).train()
    return {"seconds": statistics.median(times[1:]) / amount.completions}


def measure_trl(args: Namespace, best: dict) -> Iterator[dict]:
    ways = {"ours": our_step, "rloo": trl_step}
    calls = {way: partial(elsewhere, step, (args.amount,)) for way, step in ways.items()}
    yield from in_turn(calls, args.repeats)


# ---------------------------------------------------------------------------------------------
# Tables, and the command line

# Formats of the columns that a table may have, in their order.
FORMATS = dict.fromkeys(("size", "quantity", "part", "lengths", "dtype"), "")
FORMATS |= {"amount": ",", "rows": ",", "threads": "", "way": "", "seconds": "#.3g"}
FORMATS |= {"tokens_per_second": ",.0f", "ours_faster": ".2f", "MiB": ",.0f"}
FORMATS |= dict.fromkeys(("share_of_limit", "products", "weights", "cache", "overhead"), ".0%")
FORMATS |= {"slope": ".2f", "error_mean": ".1e", "error_max": ".1e", "failed": ""}


def table(rows: list[dict]) -> str:
    names = [name for name in FORMATS if any(name in row for row in rows)]
    lines = [[format(row[n], FORMATS[n]) if n in row else "" for n in names] for row in rows]
    return cells([[name.replace("_", " ") for name in names], *lines])


def parts(kept: dict[str, dict]) -> dict[str, str]:
    """The tables of SPEED.md by the name of their place there, each of one run or of several, under
    where, when and by which commands they were made."""
    texts, groups = {}, {}
    for name, run in kept.items():
        groups.setdefault(name.partition("/")[0], []).append(run)
    for name, runs in groups.items():
        where = "; ".join(dict.fromkeys(map(made_on, runs)))
        commands = "\n".join(run["command"] for run in runs)
        rows = [row for run in runs for row in run["results"]]
        texts[name] = f"{where}:\n\n```sh\n{commands}\n```\n\n{table(rows)}"
    return texts


def made_on(run: dict) -> str:
    where = f"{run['machine']}, {run['cores']} cores, {run['date']}"
    # "commit" stands in figures that were measured by an earlier version of this file.
    for package in ("torch", "transformers", "trl", "commit"):
        where += f", {package} {run[package]}" if package in run else ""
    return where


def about(argv: list[str], device: str) -> dict:
    """What is kept of a run beside its figures."""
    info = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.*)", info.read_text() if info.exists() else "")
    machine = torch.cuda.get_device_name() if device == "cuda" else (*names, "a CPU")[0]
    run = {"command": shlex.join(["python", "experiments/bench.py", *argv])}
    run |= {"date": str(date.today()), "machine": machine, "cores": os.cpu_count()}
    packages = ("torch", "transformers", "trl")
    return run | {d.name: d.version for d in metadata.distributions() if d.name in packages}


FLAGS = {  # name: (default, choices)
    "sizes": (["tiny"], SIZES),
    "dtypes": (["float32"], ["float32", "bfloat16"]),
    "lengths": (["equal"], ["equal", "ragged"]),
    "rows": ([64], None),
    "threads": ([1], None),
    "peers": (PEERS, PEERS),
}
COMMANDS = {  # name: (measurement, flags)
    "rollouts": (measure_rollouts, list(FLAGS)),
    "updates": (measure_updates, ["sizes", "dtypes"]),
    "growth": (measure_growth, []),
    "trl": (measure_trl, []),
}


def read_arguments(argv: list[str]) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("page")
    for name, (_, flags) in COMMANDS.items():
        add = commands.add_parser(name).add_argument
        for flag in flags:
            default, choices = FLAGS[flag]
            add(f"--{flag}", nargs="*", type=type(default[0]), default=default, choices=choices)
        add("--device", default="cpu", choices=("cpu", "cuda") if flags else ("cpu",))
        add("--repeats", type=int, default=3, help="turns of every way [3]")
        add("--quick", action="store_true", help="sizes that measure nothing, to see it run")
        add("--keep", metavar="PART[/NAME]", help="store the figures under this name")
        add("--file", type=Path, default=FILE, help="where they are stored [bench.json]")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    args = read_arguments(argv)
    if args.what == "page":
        for name, text in parts(json.loads(FILE.read_text())).items():
            put(PAGE, name, text)
        return
    args.amount = Namespace(**(QUICK if args.quick else AMOUNT))
    run, ended = about(argv, args.device) | {"peaks": {}, "results": []}, False
    try:
        for row in COMMANDS[args.what][0](args, run["peaks"]):
            print(json.dumps(row), file=sys.stderr, flush=True)
            run["results"].append(row)
        ended = True
    finally:  # of a stopped run, too, but not in place of a whole one
        print(*parts({"": run}).values())
        kept = json.loads(args.file.read_text()) if args.file.exists() else {}
        if args.keep and (ended or args.keep not in kept):
            args.file.write_text(json.dumps(kept | {args.keep: run}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
