"""SCoRe beside its trained baselines: RESULTS.md, its tables and its figures.

    python experiments/compare.py --quick            one seed of the main methods
    python experiments/compare.py --write            everything, over several seeds: hours
    python experiments/compare.py --parts tuning     learning rates, on validation problems

`methods.py` says what is compared. A run is one method from one seed's base model, in a process of
its own with one thread, --workers at a time; it lies in OUT/BASE/seedN/METHOD. (--quick gives the
base more threads, which round differently, and so has another OUT.) What is finished is left alone
and what was stopped goes on, so this command may be repeated at will. --write keeps the figures of
all finished runs in compare.json, tuning.json and curves.json beside this file, and puts the tables
that are made of them into RESULTS.md and the README; figures.py draws the rest.
"""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import SUPPRESS, ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict
from pathlib import Path

import methods
from runs import TUNING_SEED, Run
from tables import (
    CURVES,
    FIGURES,
    TUNING,
    curves,
    gather,
    lost_rows,
    results_table,
    tables,
    write_pages,
    write_rows,
)

from verifiers.sandbox import usable_cores

HERE = Path(__file__).resolve().parent


def tried(method: str) -> tuple[float, ...]:
    """Three learning rates, the method's own in their middle."""
    middle = methods.LRS.index(methods.METHODS[method].own["lr"])
    return methods.LRS[middle - 1 : middle + 2]


def planned(parts: list[str], seeds: int) -> list[Run]:
    """The runs of some parts of the comparison, what they start from first."""
    few, watched = range(min(3, seeds)), (TUNING_SEED, TUNING_SEED + 1)
    with_and_without = [name for arms in methods.STAGE1_BY_ALPHA.values() for name in arms]
    runs = {
        "tuning": [
            Run(name, TUNING_SEED, lr=lr)
            for name in ("stage1", "stage2", *methods.MAIN, *methods.REST)
            for lr in tried(name)
        ],
        "quick": [Run(name, 0) for name in methods.QUICK],
        "main": [Run(name, seed) for seed in range(seeds) for name in methods.QUICK]
        + [Run(name, seed) for seed in few for name in methods.REST],
        # What speaks against SCoRe is checked on more seeds: Stage II alone, and STaR with three
        # times the budget.
        "ablations": [Run(name, seed) for seed in few for name in methods.ABLATIONS]
        + [Run(name, seed) for seed in range(seeds) for name in with_and_without],
        "reuse": [Run(name, seed) for seed in watched for name in methods.REUSE],
        "budget": [Run(name, 0, times=3) for name in methods.MAIN]
        + [Run(n, seed, times=3) for seed in few for n in ("stage2", "star_plus", "star_once")],
        "firm": [Run(name, seed, "habit_copies") for seed in range(seeds) for name in methods.FIRM],
        "bases": [
            Run(name, 0, base)
            for base in ("habit_edits", "flat", "flat_edits")
            for name in (*methods.SCORE, "naive", "both", "single")
        ],
    }
    return planned_with_starts([run for part in parts for run in runs[part]])


def planned_with_starts(runs: list[Run]) -> list[Run]:
    """Each run once, after those that it starts from."""
    ordered: dict[Run, None] = {}
    for run in runs:
        chain = [run]
        while chain[-1].start is not None:
            chain.append(chain[-1].start)
        ordered |= dict.fromkeys(reversed(chain))
    return list(ordered)


def perform_all(runs: list[Run], out: Path, workers: int, base_threads: int = 1) -> None:
    """Every unfinished run in a process of its own, some at a time, each after what it starts
    from. Raises SystemExit where one fails; the others are stopped and keep what they have."""
    waiting = [run for run in runs if not run.finished(out)]
    total, began, running = len(waiting), time.monotonic(), {}
    steps = done = 0
    try:
        while waiting or running:
            ready = [run for run in waiting if run.start is None or run.start.finished(out)]
            for run in ready[: workers - len(running)]:
                waiting.remove(run)
                running[run] = launch(run, out, 1 if run.start else base_threads)
            time.sleep(0.5)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                if running.pop(run).returncode:
                    sys.exit(f"{run.folder(out)} failed: see {log_of(run, out)}")
                done += 1
                steps += run.settings["steps"]
                left = sum(r.settings["steps"] for r in [*waiting, *running])
                minutes = left * (time.monotonic() - began) / steps / 60
                print(
                    f"{done} of {total} done, {run.folder(out).relative_to(out)}; "
                    f"about {minutes:.0f} minutes left",
                    flush=True,
                )
    finally:
        for process in running.values():
            process.send_signal(signal.SIGINT)  # it saves between two steps
        for process in running.values():
            process.wait()


def log_of(run: Run, out: Path) -> Path:
    return run.folder(out).with_name(f"{run.folder(out).name}.log")


def launch(run: Run, out: Path, threads: int) -> subprocess.Popen:
    log = log_of(run, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--out", str(out), "--perform", json.dumps(asdict(run))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        return subprocess.Popen(
            command, env=environment, stdout=file, stderr=file, start_new_session=True
        )


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parts = ("main", "ablations", "budget", "reuse", "firm", "bases", "tuning")
    parser.add_argument("--quick", action="store_true", help="one seed of the main methods")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="[all]")
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="of the main methods, each α and the base that copies; else at most 3 [5]",
    )
    parser.add_argument("--out", type=Path, help="[out/compare, or out/compare-quick]")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="[one a core]")
    parser.add_argument("--write", action="store_true", help="keep the figures and the tables")
    parser.add_argument("--perform", help=SUPPRESS)
    args = parser.parse_args()
    for name in ("seeds", "workers"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1: {getattr(args, name)}")
    for name in ("parts", "seeds", "write"):
        if args.quick and getattr(args, name) != parser.get_default(name):
            parser.error(f"--quick has no --{name}")
    usual = HERE.parent / "out" / ("compare-quick" if args.quick else "compare")
    out = (args.out or usual).resolve()
    if args.perform:
        return Run(**json.loads(args.perform)).perform(out)
    for which in (signal.SIGTERM, signal.SIGHUP):  # else the runs would go on, unseen
        signal.signal(which, signal.default_int_handler)
    asked = planned(["quick"], 1) if args.quick else planned(args.parts, args.seeds)
    try:
        perform_all(asked, out, args.workers, base_threads=args.workers if args.quick else 1)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it was")
    if args.quick:
        return print(results_table(gather(asked, out), methods.QUICK))
    runs = [run for run in planned(parts, args.seeds) if run.finished(out)]
    tuning = [run for run in runs if run.lr is not None]  # not the base that they start from
    others = [run for run in runs if run.lr is None]
    rows, tuned = gather(others, out), gather(tuning, out)
    kept = curves([run for run in others if run.seed < TUNING_SEED], out)
    made = tables(rows, tuned, kept)
    for name, text in made.items():
        print(f"\n{name}\n{text}")
    if args.write:
        for path, new in ((FIGURES, rows), (TUNING, tuned), (CURVES, kept)):
            if lost := lost_rows(path, new):
                sys.exit(f"{lost.total()} runs of {path.name} are not in {out}: nothing is written")
        write_rows(FIGURES, rows)
        write_rows(TUNING, tuned)
        write_rows(CURVES, kept)
        write_pages(made)


if __name__ == "__main__":
    main()
