"""Curves of one or several runs, from what training logged.

    pip install matplotlib && python experiments/plot.py out/puzzle/stage1 out/puzzle/stage2
    python experiments/plot.py DIR … --to curves.png

Draws means over --window steps of DIR/metrics.jsonl, sampled in training: both accuracies, the
share of answers that the second attempt changes, both KLs and the reward, or a base model's loss.
Crosses (first attempt) and dots are evaluations on validation problems, of train.py --eval-every.
"""

import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

try:
    import matplotlib
except ImportError:
    sys.exit("figures are drawn with matplotlib, which is not installed: pip install matplotlib")

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import matplotlib.pyplot as plt

from training.checkpoints import read_log

PANELS = {
    "accuracy of the first attempt (dashed) and the second": ("acc_t1", "acc_t2"),
    "changed answers": ("changed",),
    "KL to the base model, first (dashed) and second, nats": ("kl_1", "kl_2"),
    "reward": ("reward",),
}
LOSS = {"loss": ("loss",)}


def read(folder: Path) -> list[dict]:
    """The steps of a run. Raises ValueError or OSError, naming the file, for what is no log."""
    rows = read_log(folder)
    if not rows:
        raise ValueError(f"{folder / 'metrics.jsonl'} holds no step")
    return rows


def smoothed(values: list[float], window: int) -> list[float]:
    """Means over the last `window` values, or over as many as there are."""
    parts = (values[max(0, end - window) : end] for end in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in parts]


def draw(runs: dict[str, list[dict]], window: int):
    """One figure: of rewards, or of the loss if all runs are of base models, which have none."""
    rewarded = any(row.get("reward") is not None for rows in runs.values() for row in rows)
    panels = PANELS if rewarded else LOSS
    n = math.ceil(math.sqrt(len(panels)))
    figure, axes = plt.subplots(n, n, figsize=(5 * n, 3.4 * n), squeeze=False, layout="constrained")
    for axis, (title, columns) in zip(axes.flat, panels.items()):
        for number, (name, rows) in enumerate(runs.items()):
            for column in columns:
                found = [(row["step"], row[column]) for row in rows if row.get(column) is not None]
                if found:
                    steps, values = zip(*found)
                    dashed = len(columns) > 1 and column == columns[0]
                    axis.plot(
                        steps,
                        smoothed(values, window),
                        "--" if dashed else "-",
                        color=f"C{number}",
                        label=None if dashed else name,
                    )
                seen = [row for row in rows if column in row.get("val", {})]
                points = [[row["step"] for row in seen], [row["val"][column] for row in seen]]
                axis.scatter(*points, marker="x" if column == "acc_t1" else "o", color=f"C{number}")
        axis.set(title=title, xlabel="step")
        axis.title.set_fontsize(9)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="of stages")
    parser.add_argument("--window", type=int, default=20, help="steps [20]")
    parser.add_argument("--to", type=Path, help="[curves.png in the first DIR]")
    args = parser.parse_args()
    to = args.to or args.folders[0] / "curves.png"
    try:
        if args.window < 1:
            raise ValueError(f"--window must be at least 1: {args.window}")
        figure = draw({str(folder): read(folder) for folder in args.folders}, args.window)
        figure.savefig(to, dpi=110)
    except (ValueError, OSError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"wrote {to}")


if __name__ == "__main__":
    main()
