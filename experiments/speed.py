"""Writes SPEED.md beside this file from what the benchmarks left there.

    python experiments/speed.py

Each table names the commands that measured it, their machine and their date. A ratio is to another
way in the same run: × eager says how many times as many tokens a second ours draws.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from bench_rollout import PEERS, slope
from bench_update import heads_table, whole_table

FILE = HERE / "SPEED.md"
ROLLOUTS = ("bench_rollout_tiny.json", "bench_rollout_gpt2.json", "bench_rollout_gpt2_ragged.json")
CUDA_ROLLOUTS = ("bench_cuda_gpt2.json", "bench_cuda_qwen.json")
SIZES = {"tiny": "4 × 192, V 128", "gpt2": "GPT-2 124M", "qwen": "Qwen2.5 1.5B"}


def read(name: str) -> dict:
    return json.loads((HERE / name).read_text())


def source(*runs: dict) -> str:
    """Which commands made a table, where and when."""
    libraries = {run["transformers"] for run in runs if run.get("transformers")}
    where = f"{runs[0]['machine']}, {runs[0]['cores']} cores, torch {runs[0]['torch']}"
    where += "".join(f", transformers {version}" for version in sorted(libraries))
    dates = sorted({run["date"] for run in runs})
    return f"{where}, {' and '.join(dates)}:\n\n{shell(*(run['command'] for run in runs))}\n"


def shell(*commands: str) -> str:
    return "\n".join(["```sh", *commands, "```"])


def rows(header: list[str], lines: list[list[str]]) -> str:
    table = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table) + "\n"


def ratio(mine: float, other: dict | None) -> str:
    if other is None or "failed" in other:
        return "–"
    return f"{mine / other['tokens_per_second']:.2f}"


def rollouts() -> str:
    """Ours against each peer of the same run, and against transformers in float32; one thread."""
    runs = [read(name) for name in ROLLOUTS]
    results = [result for run in runs for result in run["results"]]
    assert all((result["rows"], result["threads"]) == (64, 1) for result in results)
    ways = {
        tuple(each[key] for key in ("size", "lengths", "dtype", "way")): each for each in results
    }
    lines = []
    for size, lengths, dtype, way in ways:
        if way != "ours":
            continue
        mine = ways[size, lengths, dtype, "ours"]
        rate = mine["tokens_per_second"]
        cells = [SIZES[size], lengths, dtype, f"{rate:,.0f}"]
        cells += [ratio(rate, ways.get((size, lengths, dtype, peer))) for peer in PEERS]
        cells.append(ratio(rate, ways.get((size, lengths, "float32", "eager"))))
        lines.append([*cells, f"{mine['share_of_limit']:.0%}"])
    header = ["model", "lengths", "dtype", "tokens/s", *(f"× {peer}" for peer in PEERS)]
    table = rows([*header, "× eager float32", "of the limit"], lines)
    return f"{source(*runs)}\n{table}\n{errors(results)}\n"


def errors(results: list[dict]) -> str:
    """What bfloat16 does to log-probabilities: the mean and the largest error of each size."""
    found = {
        result["size"]: result["logprob_error"]
        for result in results
        if "logprob_error" in result and result["lengths"] == "equal"
    }
    each = [
        f"{error['mean']:.1e} on the mean and {error['max']:.1e} at most ({SIZES[size]})"
        for size, error in found.items()
    ]
    return f"In bfloat16 log-probabilities are off by {', '.join(each)}."


def cuda() -> str:
    runs = [read(name) for name in CUDA_ROLLOUTS]
    results = [result for run in runs for result in run["results"]]
    eager = {(each["size"], each["rows"]): each for each in results if each["way"] == "eager"}
    lines = []
    for each in results:
        if each["way"] == "ours":
            rate = each["tokens_per_second"]
            cells = [SIZES[each["size"]], f"{each['rows']:,}", f"{rate:,.0f}"]
            cells.append(ratio(rate, eager.get((each["size"], each["rows"]))))
            lines.append([*cells, f"{each['share_of_limit']:.0%}"])
    table = rows(["model", "rows", "tokens/s", "× eager", "of the limit"], lines)
    left_out = "The machine was given back before Qwen's 256 rows and all updates were measured."
    return f"{source(*runs)}\n{table}\n{errors(results)} {left_out}\n"


def threads() -> str:
    run = read("bench_rollout_threads.json")
    seconds = {
        tuple(each[key] for key in ("size", "rows", "threads")): each["wall_seconds"]
        for each in run["results"]
    }
    lines = []
    for size, count, number in seconds:
        if number == 2:
            one, two = (seconds[size, count, n] for n in (1, 2))
            lines.append([SIZES[size], f"{count}", f"{one:.2f}", f"{two:.2f}", f"{one / two:.2f}"])
    header = ["model", "rows", "seconds with one thread", "with two", "ratio"]
    return source(run) + "\n" + rows(header, lines)


def growth() -> str:
    run = read("bench_growth.json")
    lines = []
    for quantity in dict.fromkeys(each["quantity"] for each in run["results"]):
        points = [each for each in run["results"] if each["quantity"] == quantity]
        for point in points:
            shares = [f"{share:.0%}" for share in point["shares"].values()]
            ms, rate = 1e3 * point["seconds"], point["tokens_per_second"]
            last = f"{slope(points):.2f}" if point is points[-1] else ""
            lines.append(
                [quantity, f"{point['amount']:,}", f"{ms:.2f}", f"{rate:,.0f}", *shares, last]
            )
    header = ["", "", "ms a step", "tokens/s", "products", "weights", "cache", "overhead", "slope"]
    note = (
        "Overhead is all that the limit leaves out: products below the best rate, attention's\n"
        "own, norms, sampling, Python. The slope is the exponent of a power law through them all.\n"
    )
    return f"{source(run)}\n{rows(header, lines)}\n{note}"


def updates() -> str:
    heads, whole = read("bench_update.json"), read("bench_update_whole.json")
    tables = heads_table(heads["results"]), whole_table(whole["results"])
    return "\n".join([source(heads, whole), *tables])


def beside_trl() -> str:
    run = read("bench_trl.json")
    seconds = {way: result["seconds"] for way, result in run["results"].items()}
    lines = [
        [title, f"{1e3 * seconds[way]:.1f}", f"{seconds[way] / seconds['ours']:.2f}"]
        for way, title in (("ours", "ours, Stage II"), ("rloo", f"TRL {run['trl']}, RLOO"))
    ]
    note = "Steps have as many completions; ours has longer prompts before most of them."
    table = rows(["", "CPU ms a completion", "× ours"], lines)
    return f"{source(run)}\n{table}\n{note}\n"


HEAD = """# Speed

What sampling answers and updating a policy cost, in tokens a second and in memory. Written by
`python experiments/speed.py` from what the benchmarks left in the JSON files beside it.

**Who is compared.** *Ours* is `model.generate`. *eager* is transformers' `generate`, *compiled* the
same with a static cache and a compiled step, *nocache* a loop that runs the model over all tokens
so far, *concat* one that concatenates its keys and values at every step. All have the same weights,
prompts and lengths, return the log-probabilities of what they draw, and take turns in one process.
The peers draw and score in the cheapest way found for them, in place of what transformers would do
by itself; NOTES.md has the figures of both.

**The limit** is the time of the matrix products, or of reading the weights where that takes longer,
and of reading the cache, at the best rates that the same run measures. `bench_rollout.py` says what
is counted.

**What is done about it.** Rollouts: a prompt is read once for all its samples, and what the second
attempts to one problem have in common once for all of them. The cache grows in blocks of 32 slots,
and attention to it is two products over all of them. A draw takes one uniform number a row. When a
quarter of the rows have ended, the others go on in a smaller cache. Linear layers go through oneDNN
where this build of torch has it, but for those in float32 with less than 65,536 weights. Updates:
the head sees the attempts' tokens only, in slices of the vocabulary, and its gradient is built
slice by slice, so that there are at most 8 million logits in memory at a time (or 256 a token).
CUDA: a decoding step is a CUDA graph for each pair of powers of two of rows and slots, and where
Triton is at hand one kernel does the head's product, temperature, Gumbel noise, arg-max and
log-sum-exp without logits in memory.

Without a GPU the kernel is tested in Triton's interpreter and compiled for compute capability 9.0.
This checks and measures all of it on one:

"""
CUDA = (
    'pytest test_score.py -k "cuda or fused" && '
    "python experiments/bench_rollout.py --device cuda --sizes gpt2 qwen --dtypes bfloat16 "
    "--rows 64 256 1024 --peers eager compiled --write cuda_rollout.json && "
    "python experiments/bench_update.py --device cuda --dtype bfloat16 --rows 8192 "
    "--write cuda_update.json && "
    "python experiments/bench_update.py --device cuda --dtype bfloat16 --whole gpt2 qwen "
    "--problems 4 --write cuda_whole.json"
)


def page() -> str:
    """All of SPEED.md."""
    parts = {
        "Rollouts of 64 rows, one thread": rollouts(),
        "Rollouts on an H200, bfloat16": cuda(),
        "Two threads": threads(),
        "How a decoding step grows": growth(),
        "Updates, one thread": updates(),
        "A step beside TRL's, one thread": beside_trl(),
    }
    tables = "\n".join(f"## {title}\n\n{part}" for title, part in parts.items())
    return f"{HEAD}{shell(CUDA)}\n\n{tables.rstrip()}\n"


if __name__ == "__main__":
    FILE.write_text(page())
