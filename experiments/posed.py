"""The comparison on an open model that adds: beside SCoRe, naive multi-turn RL and rewarding both.

    python experiments/posed.py naive --task addition --out out …    flags of train.py --stage 1
    python experiments/posed.py --write out/addition …               posed.json and RESULTS.md

A method of methods.py starts from the base model that train.py has left in OUT/TASK, or from the
open model itself, and lies beside it; it makes as many updates as both stages together. --write
keeps the figures of what is finished in such folders, one a seed.
"""

import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from methods import METHODS
from tables import COLUMNS, RESULTS, TITLES, cells, put, rounded, write_rows

import train

FILE = HERE / "posed.json"
BASELINES = ("naive", "both")
ARMS = ("base", "stage1", "stage2", *BASELINES)
WINDOW = 5  # steps that a point of a curve is the mean of


def train_baseline(name: str, flags: list[str]) -> int:
    """train.py's Stage I with another method's returns and name → its exit code."""
    base, stage1, stage2 = train.STAGES
    method = METHODS[name]
    stage = replace(stage1, folder=name, title=method.title, returns=method.learns)
    train.STAGES = (base, stage, stage2)
    steps = [] if "--steps" in flags else ["--steps", str(2 * train.POSED["steps"])]
    return train.main(["--stage", "1", *flags, *steps])


def gather(folders: list[Path]) -> list[dict]:
    """One row a finished run: results in per cent, what it cost, and what its rollouts said."""
    rows = []
    for folder in folders:
        for arm in ARMS:
            if not (folder / arm / "results.json").exists():
                continue
            results = json.loads((folder / arm / "results.json").read_text())
            row = {"arm": arm, "difficulty": results["config"]["difficulty"]}
            row |= train.pick(results, {"seed", "task", "split", "n", "steps", "seconds"})
            row |= {name: 100 * results[name] for name in COLUMNS}
            row |= {"se": {name: 100 * results["se"][name] for name in COLUMNS}}
            row |= {"diagnosis": results["diagnosis"]}
            if arm != "base":
                row |= {"curve": curve(train.read_log(folder / arm))}
            rows.append(rounded(row))
    return rows


def curve(log: list[dict]) -> list[list[float]]:
    """[step, acc_t1, acc_t2, changed], means over windows of steps."""
    return [
        [window[-1]["step"]]
        + [statistics.mean(row[name] for row in window) for name in ("acc_t1", "acc_t2", "changed")]
        for window in (log[i : i + WINDOW] for i in range(0, len(log), WINDOW))
    ]


def table(rows: list[dict]) -> str:
    """In per cent, ± one standard error over problems."""
    lines = [["", "seed", "updates", *TITLES, "p", "f", "b"]]
    for row in sorted(rows, key=lambda row: ARMS.index(row["arm"])):
        line = [METHODS[row["arm"]].title, str(row["seed"]), str(row["steps"] or "")]
        line += [f"{row[name]:.1f} ± {row['se'][name]:.1f}" for name in COLUMNS]
        found = [row["diagnosis"][name] for name in ("p", "f", "b")]
        lines.append(line + ["–" if value is None else f"{value:.3f}" for value in found])
    return cells(lines)


def main(argv: list[str]) -> int:
    if argv[:1] == ["--write"] and argv[1:]:
        rows = gather([Path(folder) for folder in argv[1:]])
        write_rows(FILE, rows)
        put(RESULTS, "posed", table(rows))
        return 0
    if not argv or argv[0] not in BASELINES:
        print(__doc__, file=sys.stderr)
        return 2
    return train_baseline(argv[0], argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
