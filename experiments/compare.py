"""SCoRe against the obvious, several seeds each: the table in the README.

    python experiments/compare.py --seeds 0 1 2 3 4                  everything, then the table
    python experiments/compare.py --seeds 0 1 2 --arms naive both    some arms
    python experiments/compare.py --seeds 0 1 2 3 4 --arms           only the table of what is there

Every arm of a seed starts from that seed's base model and spends as many samples and updates as
Stage I and Stage II together, at the learning rate of Stage I or of Stage II, whichever the flag
--lr says (default: Stage I's). An arm is a pair of returns and nothing else; the baselines after
the paper's section 6.

    naive    multi-turn RL (Eq. 1 on attempt 2): y1 is sampled from the policy and not trained
    both     both attempts earn their own rewards, without Stage I and without the bonus
    single   single-turn RL (Eq. 2): y1 alone is trained

Runs lie in OUT/seedN/puzzle/ARM, one single-threaded process each, --workers at a time; what is
finished is left alone, so a stopped comparison goes on where it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import train  # before torch: it sets how OpenMP waits
import torch
from score import Config


def naive_returns(r1, r2, kl1, kl2, cfg: Config):
    return torch.zeros_like(r1), r2 - cfg.beta1 * kl2


def both_returns(r1, r2, kl1, kl2, cfg: Config):
    return r1 - cfg.beta1 * kl1, r2 - cfg.beta1 * kl2


def single_returns(r1, r2, kl1, kl2, cfg: Config):
    return r1 - cfg.beta1 * kl1, torch.zeros_like(r2)


STEPS = train.STAGES[1].steps + train.STAGES[2].steps
BASELINES = {
    name: train.Stage(name, name, returns, steps=STEPS, lr=train.STAGES[1].lr, number=1)
    for name, returns in (
        ("naive", naive_returns), ("both", both_returns), ("single", single_returns)
    )
}  # fmt: skip
TITLES = {
    "base": "base", "stage1": "SCoRe, Stage I", "stage2": "SCoRe, Stage II",
    "naive": "naive multi-turn", "both": "both rewarded", "single": "single-turn",
}  # fmt: skip
COLUMNS = ("acc_t1", "acc_t2", "delta", "fixed", "broken", "changed")


def train_baseline(name: str, run: train.Run) -> None:
    """One baseline from its seed's base model; the same trainer as the stages'."""
    stage, device = BASELINES[name], torch.device("cpu")
    task = train.data.load(run.task, run.difficulty)
    base, folder = train.stage_folder(run, 0), Path(run.out) / run.task / name
    folder.mkdir(parents=True, exist_ok=True)
    policy = train.load_model(base, task, device)
    ref = train.frozen(train.load_model(base, task, device))
    trainer = train.Trainer(run, Config(), stage, folder, task, policy, ref)
    if (folder / "state.pt").exists():
        trainer.restore(torch.load(folder / "state.pt", weights_only=True))
    train.train(trainer, train.precision(run, device))
    train.evaluate_folder(folder, run, task, device)


def start(arms: list[str], seed: int, out: Path) -> None:
    """All of one seed's arms in processes of their own, in order: SCoRe first, it makes the base."""
    folder, threads = out / f"seed{seed}", os.environ | {"OMP_NUM_THREADS": "1"}
    folder.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        done = folder / "puzzle" / ("stage2" if arm == "score" else arm) / "results.json"
        if done.exists():
            continue
        flags = ["--out", str(folder), "--seed", str(seed)]
        if arm == "score":
            command = [sys.executable, "train.py", "--stage", "2", "--resume", *flags]
            if not (folder / "puzzle" / "base" / "state.pt").exists():
                command.remove("--resume")
        else:
            command = [sys.executable, __file__, "--baseline", arm, *flags]
        with (folder / f"{arm}.log").open("w") as log:
            subprocess.run(command, cwd=ROOT, env=threads, stdout=log, stderr=log, check=True)


def table(out: Path, seeds: list[int]) -> str:
    """Mean over seeds in per cent ± the standard error of that mean."""
    lines = ["| | seeds | acc@t1 | acc@t2 | Δ(t1,t2) | Δ i→c | Δ c→i | changed |", "|---" * 8 + "|"]
    for arm, title in TITLES.items():
        files = [out / f"seed{seed}" / "puzzle" / arm / "results.json" for seed in seeds]
        results = [json.loads(file.read_text()) for file in files if file.exists()]
        if not results:
            continue
        cells = []
        for column in COLUMNS:
            values = [100 * result[column] for result in results]
            spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}")
        lines.append(f"| {title} | {len(results)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", choices=["score", *BASELINES],
                        default=["score", "naive", "both"])  # fmt: skip
    parser.add_argument("--out", default="out/compare")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--baseline", choices=BASELINES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.baseline:
        return train_baseline(args.baseline, replace(train.Run(), out=args.out, seed=args.seed))
    out = Path(args.out).resolve()
    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(lambda seed: start(args.arms, seed, out), args.seeds))
    print(table(out, args.seeds))


if __name__ == "__main__":
    main()
