"""What an update costs, in seconds and memory: its head and loss against other ways, and all of it.

    python experiments/bench_update.py
    python experiments/bench_update.py --whole tiny gpt2

The first is the gradient of Σ weight · log π(token) + weight · KL(π ‖ π_ref) with respect to the
final states and the head, for the sizes of GPT-2 unless told otherwise. The ways are

    slices         model.HeadScores: slices of the vocabulary, logits computed twice
    naive          log_softmax of all logits, then gather, and the sum of p · (log p − log p_ref)
    checkpointed   naive in chunks of rows under torch.utils.checkpoint
    torch          F.nll_loss and F.kl_div without reduction

Every way runs in a process of its own, in turn with the others, and reports the median of its
seconds (of CPU time; by the clock on CUDA) and the growth of its peak memory beyond that of the
gradients themselves. Ratios are to `naive` in the same run.

--whole measures score.update on random rollouts instead, for the shapes of bench_rollout.py: both
models' scores, loss, backward pass and Adam, on 4 first attempts a problem and 4 seconds to each,
of 64 tokens after prompts of 32. Its memory is the peak of the process, weights included.
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import bench_rollout
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from model import Generation, HeadScores
from score import Config, Rollout, pack, stage2_returns, try_again, update


def all_logprobs(hidden, weight):
    return (hidden @ weight.T).float().log_softmax(1)


def naive(hidden, weight, ref_hidden, ref_weight, tokens):
    logprobs, ref = all_logprobs(hidden, weight), all_logprobs(ref_hidden, ref_weight)
    kl = (logprobs.exp() * (logprobs - ref)).sum(1)
    return logprobs.gather(1, tokens[:, None])[:, 0], kl


def checkpointed(hidden, weight, ref_hidden, ref_weight, tokens):
    chunks = zip(*(x.split(256) for x in (hidden, ref_hidden, tokens)))
    parts = [
        checkpoint(naive, h, weight, r, ref_weight, t, use_reentrant=False) for h, r, t in chunks
    ]
    return tuple(map(torch.cat, zip(*parts)))


def slices(hidden, weight, ref_hidden, ref_weight, tokens):
    return HeadScores.apply(hidden, weight, ref_hidden, ref_weight, tokens, 1.0)


def library(hidden, weight, ref_hidden, ref_weight, tokens):
    logprobs, ref = all_logprobs(hidden, weight), all_logprobs(ref_hidden, ref_weight)
    # Its KL is that of the second argument from the first.
    kl = F.kl_div(ref, logprobs, reduction="none", log_target=True).sum(1)
    return -F.nll_loss(logprobs, tokens, reduction="none"), kl


SHAPES = ("tiny", "gpt2", "qwen")  # of bench_rollout.py
WAYS = {
    "slices": slices,
    "naive": naive,
    "checkpointed": checkpointed,
    "torch": library,
}


def peak(device: str) -> float:
    """MiB that this process has held at most."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(args: argparse.Namespace) -> dict:
    """Seconds of one gradient and MiB beyond inputs and gradients, in this process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.rows, args.width, device=args.device, dtype=dtype)
    weight = torch.randn(args.vocabulary, args.width, device=args.device, dtype=dtype)
    weight *= 0.02
    tokens = torch.randint(args.vocabulary, (args.rows,), device=args.device)
    weights = torch.randn(2, args.rows, device=args.device)
    ref = hidden.flip(0), weight.flip(0)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    before, clock = peak(args.device), clock_of(args.device)
    for _ in range(2 if args.device == "cuda" else 1):  # the first loads CUDA's kernels
        hidden.grad = weight.grad = None
        started = clock()
        values = torch.stack(WAYS[args.way](*leaves, *ref, tokens))
        values.backward(weights.to(values.dtype))
        seconds = clock() - started
    gradients = sum(leaf.grad.numel() * leaf.grad.element_size() for leaf in leaves) / 2**20
    return {"seconds": seconds, "mib": peak(args.device) - before - gradients}


def random_rollout(vocabulary: int, problems: int, cfg: Config, device: str) -> Rollout:
    """Attempts of 64 random tokens after prompts of 32, with an instruction of 16 between them."""
    N, N2 = problems * cfg.samples, problems * cfg.samples * cfg.revisions

    def attempts(rows: int) -> Generation:
        tokens = torch.randint(vocabulary, (rows, 64), device=device)
        ones = torch.ones_like(tokens, dtype=torch.bool)
        return Generation(tokens, ones, torch.zeros(rows, 64, device=device), ones[:, 0])

    first, second = attempts(N), attempts(N2)
    prompts = torch.randint(vocabulary, (problems, 32)).tolist()
    task = SimpleNamespace(close=[], revise=list(range(16)))
    packed = pack(prompts, first, try_again(task, prompts, first), second)
    r1, r2 = (torch.randint(2, (rows,), device=device).float() for rows in (N, N2))
    return Rollout(first, second, r1, r2, r2 > 0, True, packed)


def measure_whole(args: argparse.Namespace) -> dict:
    """Seconds of an update after one that does not count, and MiB of this process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = Config()
    policy = bench_rollout.build(bench_rollout.named(args.way, 512), args.device)
    ref = copy.deepcopy(policy)
    optimizer = torch.optim.Adam(policy.requires_grad_(True).parameters(), lr=1e-6)
    rolled = random_rollout(policy.config.vocab_size, args.problems, cfg, args.device)
    clock = clock_of(args.device)
    for _ in range(2):
        started = clock()
        with bench_rollout.precision(args.device, args.dtype):
            update(policy, ref, optimizer, [rolled], stage2_returns, cfg)
        seconds = clock() - started
    tokens = rolled.first.tokens.numel() + rolled.second.tokens.numel()
    return {"seconds": seconds, "tokens": tokens, "mib": peak(args.device)}


def clock_of(device: str) -> Callable[[], float]:
    if device != "cuda":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return clock


def ask(way: str, argv: list[str]) -> dict | None:
    """One measurement in a process of its own; None where this torch does not have the way, or the
    memory does not hold it."""
    command = [sys.executable, sys.argv[0], *argv, "--way", way]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"{way} is left out: {run.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(run.stdout.splitlines()[-1])


def medians(ways: list[str], repeats: int) -> dict[str, dict]:
    """way → its figures, over runs of all ways in turn."""
    runs: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way in list(runs):
            result = ask(way, sys.argv[1:])
            if result is None:
                del runs[way]
            else:
                runs[way].append(result)
    return {
        way: {key: statistics.median(run[key] for run in done) for key in done[0]}
        for way, done in runs.items()
    }


def heads_table(results: dict[str, dict]) -> str:
    lines = [
        "| head and loss | seconds | × naive | MiB beyond the gradients | × less than naive |",
        "|---|---|---|---|---|",
    ]
    base = results.get("naive", {"seconds": float("nan"), "mib": float("nan")})
    for way, row in results.items():
        slower, less = row["seconds"] / base["seconds"], base["mib"] / row["mib"]
        cells = f"{row['seconds']:.2f} | {slower:.2f} | {row['mib']:,.0f} | {less:.1f}"
        lines.append(f"| {way} | {cells} |")
    return "\n".join(lines) + "\n"


def whole_table(results: dict[str, dict]) -> str:
    lines = [
        "| whole update | tokens of attempts | seconds | tokens/s | peak MiB |",
        "|---|---|---|---|---|",
    ]
    for shape, row in results.items():
        rate = row["tokens"] / row["seconds"]
        cells = f"{row['tokens']:,} | {row['seconds']:.2f} | {rate:,.0f} | {row['mib']:,.0f}"
        lines.append(f"| {shape} | {cells} |")
    return "\n".join(lines) + "\n"


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add, whole = parser.add_argument, bench_rollout.whole
    add("--rows", type=whole, default=4096, help="tokens of the attempts")
    add("--width", type=whole, default=768)
    add("--vocabulary", type=whole, default=50257)
    add("--dtype", default="float32", choices=["float32", "bfloat16"])
    add("--device", default="cpu", choices=["cpu", "cuda"])
    add("--threads", type=whole, default=1)
    add("--peers", nargs="+", default=list(WAYS), choices=list(WAYS))
    add("--whole", nargs="+", choices=SHAPES, help="measure all of an update of these shapes")
    add("--problems", type=whole, default=1, help="of such an update")
    add("--repeats", type=whole, default=3)
    add("--write", type=Path, help="the JSON file; default: beside this one")
    add("--way", choices=[*WAYS, *SHAPES], help=argparse.SUPPRESS)  # one measurement, here
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch finds no CUDA device")
    if args.write is None:
        name = "bench_update_whole.json" if args.whole else "bench_update.json"
        args.write = Path(__file__).with_name(name)
    return args


def main() -> None:
    args = read_arguments()
    if args.way:
        print(json.dumps((measure_whole if args.way in SHAPES else measure)(args)))
        return
    machine = bench_rollout.machine(args.device)
    size = "" if args.whole else f"{args.rows} rows, width {args.width}, V {args.vocabulary}, "
    print(f"{machine}, {size}{args.dtype}, {args.device}, {args.threads} thread(s)", end="")
    print(f", torch {torch.__version__}\n")
    results = medians(args.whole or args.peers, args.repeats)
    print((whole_table if args.whole else heads_table)(results))
    content = bench_rollout.about(__file__, args.device) | {"results": results}
    args.write.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
