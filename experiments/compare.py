"""SCoRe against the obvious, several seeds each: the table in the README.

    python experiments/compare.py --seeds 0 1 2 3 4 --baseline-seeds 0 1 2 --write

Every arm of a seed starts from that seed's base model. A baseline spends as many samples and
updates as Stage I and Stage II together, with Stage I's peak learning rate and the same decay. An
arm is a pair of returns and nothing else:

    naive    multi-turn RL (Eq. 1 on attempt 2): y1 is sampled from the policy and not trained
    both     both attempts earn their own rewards, without Stage I and without the bonus
    single   single-turn RL (Eq. 2): y1 alone is trained

Runs lie in OUT/seedN/puzzle/ARM, one single-threaded process each, --workers at a time; what is
finished is left alone, so a stopped comparison goes on where it was. The table is of all runs under
OUT; --write keeps their figures in experiments/compare.json and puts the table into the README.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

import train
from score import Config


def naive_returns(r1, r2, kl1, kl2, cfg: Config):
    return torch.zeros_like(r1), r2 - cfg.beta1 * kl2


def both_returns(r1, r2, kl1, kl2, cfg: Config):
    return r1 - cfg.beta1 * kl1, r2 - cfg.beta1 * kl2


def single_returns(r1, r2, kl1, kl2, cfg: Config):
    return r1 - cfg.beta1 * kl1, torch.zeros_like(r2)


STEPS = train.STAGES[1].own["steps"] + train.STAGES[2].own["steps"]
BASELINES = {
    name: train.Stage(1, name, name, returns, {"steps": STEPS, "lr": train.STAGES[1].own["lr"]})
    for name, returns in (
        ("naive", naive_returns), ("both", both_returns), ("single", single_returns)
    )
}  # fmt: skip
TITLES = {
    "base": "base", "stage1": "SCoRe, Stage I", "stage2": "SCoRe, Stage II",
    "naive": "naive multi-turn", "both": "both rewarded", "single": "single-turn",
}  # fmt: skip
FIGURES = Path(__file__).with_name("compare.json")
COLUMNS = ("acc_t1", "acc_t2", "delta", "fixed", "broken", "changed")


def train_baseline(name: str, seed: int, out: str) -> None:
    """One baseline from its seed's base model; the same trainer as the stages'."""
    [base] = train.plan({"out": out, "seed": seed}, 0)
    stage, folder = BASELINES[name], base.folder.with_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    shared = train.pick(base.settings(), train.SHARED)
    saved = train.read_settings(folder)
    job = train.Job(stage, *train.resolve(stage, shared), folder, *saved)
    task, device = train.load_task(job.run), torch.device("cpu")
    policy, ref = (train.stage_model(base, task, device) for _ in range(2))
    trainer = train.Trainer(job, task, policy, train.frozen(ref))
    if job.saved is not None:
        trainer.restore()
    train.train(trainer, train.precision(job.run, device))
    train.evaluate(job, task, device)


def launch(arm: str, seed: int, out: Path) -> None:
    """One arm of one seed in a process of its own, unless it is finished; its output in a log."""
    folder = out / f"seed{seed}"
    if (folder / "puzzle" / ("stage2" if arm == "score" else arm) / "results.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["--out", str(folder), "--seed", str(seed)]
    if arm == "score":
        command = [sys.executable, "train.py", "--stage", "2", *flags]
        if any(folder.glob("puzzle/*/state.pt")):
            command.append("--resume")
    else:
        command = [sys.executable, __file__, "--baseline", arm, *flags]
    threads = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    with (folder / f"{arm}.log").open("w") as log:
        subprocess.run(command, cwd=ROOT, env=threads, stdout=log, stderr=log, check=True)


def launch_all(args: argparse.Namespace, out: Path) -> None:
    """--workers processes at a time. SCoRe goes first, since it makes the base of its seed."""
    with ThreadPoolExecutor(args.workers) as pool:
        score = {seed: pool.submit(launch, "score", seed, out) for seed in args.seeds}

        def baseline(arm: str, seed: int) -> None:
            score[seed].result()
            launch(arm, seed, out)

        pairs = [(arm, seed) for seed in args.baseline_seeds for arm in args.arms]
        for future in [*score.values(), *(pool.submit(baseline, *pair) for pair in pairs)]:
            future.result()


def gather(out: Path) -> list[dict]:
    """One row a finished run: arm, seed, its results in per cent, and what its training cost."""
    rows = []
    for stage in (*train.STAGES, *BASELINES.values()):
        for file in sorted(out.glob(f"seed*/puzzle/{stage.folder}/results.json")):
            results = json.loads(file.read_text())
            job = train.Job(stage, *train.resolve(stage, {}), file.parent, None, 0)
            evaluated = {"n": 2000, "temperature": 0.0, "split": "test"}
            made = results["config"] | train.pick(results, evaluated.keys())
            try:
                train.agree(file, made, job.settings() | evaluated | {"seed": results["seed"]})
            except ValueError as error:
                sys.exit(str(error))
            row = {"arm": stage.folder, "seed": results["seed"], "n": results["n"]}
            row |= {column: round(100 * results[column], 2) for column in COLUMNS}
            cost = {name: results[name] for name in ("steps", "samples", "seconds")}
            rows.append(row | cost | {"seconds": round(results["seconds"])})
    return rows


def table(rows: list[dict]) -> str:
    """Means over seeds in per cent ± the standard error of that mean, as Markdown."""
    lines = [
        "| | seeds | acc@t1 | acc@t2 | Δ(t1,t2) | Δ i→c | Δ c→i | changed | seconds |",
        "|---" * 9 + "|",
    ]
    for arm, title in TITLES.items():
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        cells = [title, str(len(mine))]
        for column in COLUMNS:
            values = [row[column] for row in mine]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {error:.1f}")
        cells.append(f"{statistics.mean(row['seconds'] for row in mine):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def marked(name: str, text: str) -> str:
    """A part of the README that a program writes."""
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"


def put(name: str, text: str) -> None:
    """Writes that part."""
    readme = ROOT / "README.md"
    old = re.compile(f"<!-- {name} -->.*?<!-- /{name} -->", re.DOTALL)
    readme.write_text(re.sub(old, lambda _: marked(name, text), readme.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="*", choices=BASELINES, default=["naive", "both"])
    parser.add_argument("--baseline-seeds", type=int, nargs="*", help="among --seeds [all]")
    parser.add_argument("--out", default="out/compare")
    parser.add_argument("--write", action="store_true", help="keep the figures and the table")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--baseline", choices=BASELINES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.baseline:
        return train_baseline(args.baseline, args.seed, args.out)
    out = Path(args.out).resolve()
    args.baseline_seeds = args.seeds if args.baseline_seeds is None else args.baseline_seeds
    if not set(args.baseline_seeds) <= set(args.seeds):
        parser.error("--baseline-seeds must be among --seeds")
    launch_all(args, out)
    rows = gather(out)
    print(table(rows))
    if args.write:
        FIGURES.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        put("compare", table(rows))


if __name__ == "__main__":
    main()
