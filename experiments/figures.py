"""Draws curves, edits, attempts and votes into figures/, from the curves.json of compare.py.

pip install matplotlib && python experiments/figures.py
"""

import json
from pathlib import Path

import numpy as np
from methods import METHODS
from plot import plt
from tables import CURVES

FOLDER = Path(__file__).resolve().parent / "figures"
COLOURS = {
    "base": "0.5",
    "stage1": "tab:cyan",
    "stage2": "tab:blue",
    "no_stage1": "tab:pink",
    "naive": "tab:red",
    "both": "tab:orange",
    "single": "tab:purple",
    "star_plus": "tab:green",
    "pair_sft": "tab:brown",
}


def mean(runs: list[dict], arm: str, *path: str) -> np.ndarray | None:
    """The mean over its seeds of numbers in an arm's curves, element by element; None without runs.
    Where a run has no number the mean is nan, which is not drawn."""
    found = [row for row in runs if row["arm"] == arm]
    for key in path:
        found = [row[key] for row in found]
    return np.array(found, dtype=float).mean(0) if found else None


def draw_curves(runs: list[dict]):
    """t1, t2 and changed on validation problems over the steps of training."""
    figure, axes = plt.subplots(1, 3, figsize=(12.6, 3.4))
    for arm, colour in COLOURS.items():
        looks = mean(runs, arm, "val")
        if looks is None or not looks.size:  # the base is not looked at
            continue
        steps, *shares = looks.T
        if arm == "stage2":  # goes on after Stage I
            steps += METHODS["stage1"].own["steps"]
        for axis, share in zip(axes, shares):
            axis.plot(steps, 100 * share, color=colour, label=METHODS[arm].title)
    for axis, name in zip(axes, ("acc@t1", "acc@t2", "changed")):
        axis.set(title=f"{name}, % (greedy, validation)", xlabel="updates after the base")
        axis.grid(alpha=0.3)
    axes[2].legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_edits(runs: list[dict]):
    arms = ("base", "stage1", "stage2", "naive", "both", "star_plus")
    figure, axes = plt.subplots(1, len(arms), figsize=(14, 2.6), sharey=True)
    for axis, arm in zip(axes, arms):
        counts = mean(runs, arm, "edits")
        if counts is not None:
            share = 100 * counts / counts.sum()
            axis.bar((np.arange(20) + 0.5) / 20, share, 0.05, color=COLOURS[arm])
        axis.set(title=METHODS[arm].title, xlabel="edit distance ratio")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("% of problems")
    return figure


def draw_attempts(runs: list[dict]):
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for arm, colour in COLOURS.items():
        accuracy = mean(runs, arm, "attempts")
        if accuracy is not None:
            axis.plot(range(1, 11), 100 * accuracy, ".-", color=colour, label=METHODS[arm].title)
    axis.set(xlabel="attempt", ylabel="accuracy, % (greedy)", title="ten attempts")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axis.grid(alpha=0.3)
    return figure


def draw_votes(runs: list[dict]):
    samples = [1, 2, 4, 8, 16, 32]
    figure, axis = plt.subplots(figsize=(4.2, 3.4))
    for arm in ("base", "both", "stage2"):
        for kind, style in (("parallel", "--"), ("corrected", "-")):
            accuracy = mean(runs, arm, "votes", kind)
            if accuracy is not None:
                how = {"color": COLOURS[arm], "label": f"{METHODS[arm].title}, {kind}"}
                axis.plot(samples, 100 * accuracy, f"{style}o", markersize=3, **how)
    axis.set(xscale="log", xlabel="samples", ylabel="majority vote right, %")
    axis.set_xticks(samples, [str(n) for n in samples])
    axis.set_ylim(top=axis.get_ylim()[1] + 15)  # room for the legend
    axis.legend(fontsize=7, ncol=2, loc="upper left")
    axis.grid(alpha=0.3)
    return figure


DRAWINGS = {
    "curves": draw_curves,
    "edits": draw_edits,
    "attempts": draw_attempts,
    "votes": draw_votes,
}


def main() -> None:
    runs = json.loads(CURVES.read_text())
    for name, draw in DRAWINGS.items():
        figure = draw(runs)
        figure.tight_layout()
        # Without the version in it the same figures give the same file.
        figure.savefig(FOLDER / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
