"""What the head and the loss of an update cost: seconds and memory, against other ways.

    python experiments/bench_update.py

The gradient of Σ weight · log π(token) with respect to the final states and the head, for the sizes
of GPT-2 unless told otherwise. The ways are

    slices         model.HeadLogprobs: slices of the vocabulary, logits computed twice
    naive          log_softmax of all logits, then gather
    logsumexp      the gathered logit minus the logsumexp of all
    checkpointed   naive in chunks of rows under torch.utils.checkpoint
    torch          F.linear_cross_entropy without reduction, where this torch has it

Every way runs in a process of its own, in turn with the others, and reports the median of its CPU
seconds and the growth of its peak memory beyond that of the gradients themselves. Ratios are to
`naive` in the same run.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from model import HeadLogprobs


def naive(hidden, weight, tokens):
    return (hidden @ weight.T).float().log_softmax(1).gather(1, tokens[:, None])[:, 0]


def logsumexp(hidden, weight, tokens):
    logits = (hidden @ weight.T).float()
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


def checkpointed(hidden, weight, tokens):
    pairs = zip(hidden.split(256), tokens.split(256))
    return torch.cat([checkpoint(naive, h, weight, t, use_reentrant=False) for h, t in pairs])


def slices(hidden, weight, tokens):
    return HeadLogprobs.apply(hidden, weight, tokens, 1.0, None)


def library(hidden, weight, tokens):
    return -F.linear_cross_entropy(hidden, weight, tokens, reduction="none")


WAYS = {
    "slices": slices,
    "naive": naive,
    "logsumexp": logsumexp,
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
    weights = torch.randn(args.rows, device=args.device)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    before = peak(args.device)
    if args.device == "cuda":
        WAYS[args.way](*leaves, tokens).backward(weights)  # loads kernels
        torch.cuda.synchronize()
        hidden.grad = weight.grad = None
    clock = time.perf_counter if args.device == "cuda" else time.process_time
    started = clock()
    WAYS[args.way](*leaves, tokens).backward(weights.to(dtype))
    if args.device == "cuda":
        torch.cuda.synchronize()
    seconds = clock() - started
    gradients = sum(leaf.grad.numel() * leaf.grad.element_size() for leaf in leaves) / 2**20
    return {"seconds": seconds, "mib": peak(args.device) - before - gradients}


def ask(way: str, argv: list[str]) -> dict | None:
    """One measurement in a process of its own; None where this torch does not have the way."""
    command = [sys.executable, __file__, *argv, "--way", way]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        print(f"{way} is left out: {run.stderr.strip().splitlines()[-1]}")
        return None
    return json.loads(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4096, help="tokens of the attempts")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--way", choices=list(WAYS), help="measure this one, here (used inside)")
    args = parser.parse_args()
    if args.way:
        print(json.dumps(measure(args)))
        return
    runs: dict[str, list[dict]] = {way: [] for way in args.peers}
    for _ in range(args.repeats):
        for way in list(runs):
            result = ask(way, sys.argv[1:])
            if result is None:
                del runs[way]
            else:
                runs[way].append(result)
    table = {
        way: {key: statistics.median(run[key] for run in done) for key in ("seconds", "mib")}
        for way, done in runs.items()
    }
    print(f"{args.rows} rows, width {args.width}, V {args.vocabulary}, {args.dtype},", end=" ")
    print(f"{args.device}, {args.threads} thread(s), torch {torch.__version__}\n")
    print("| way | seconds | × naive | MiB beyond the gradients | × less than naive |")
    print("|---|---|---|---|---|")
    base = table.get("naive", {"seconds": float("nan"), "mib": float("nan")})
    for way, row in table.items():
        slower, less = row["seconds"] / base["seconds"], base["mib"] / row["mib"]
        print(f"| {way} | {row['seconds']:.2f} | {slower:.2f} | {row['mib']:.0f} | {less:.1f} |")
    settings = {key: value for key, value in vars(args).items() if key not in ("write", "way")}
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    content = {"date": str(date.today()), "torch": torch.__version__, **machine, **settings}
    args.write.write_text(json.dumps(content | {"results": table}, indent=1) + "\n")


if __name__ == "__main__":
    main()
