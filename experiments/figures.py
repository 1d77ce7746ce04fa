"""Draws figures/*.png from what compare.py has left beside this file, compare.json and curves.json.

pip install matplotlib && python experiments/figures.py
"""

import json
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

try:
    import matplotlib
except ImportError:
    sys.exit("figures.py draws with matplotlib, which is not installed: pip install matplotlib")

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from methods import METHODS, SWEEPS
from tables import CURVES, FIGURES, by_seed

FOLDER = HERE / "figures"
COLOURS = {
    "base": "0.5",
    "stage1": "tab:cyan",
    "stage2": "tab:blue",
    "naive": "tab:red",
    "both": "tab:orange",
    "single": "tab:purple",
    "star_plus": "tab:green",
    "pair_sft": "tab:brown",
}


class Runs:
    """What was kept of every run, by arm; a figure shows means over an arm's seeds."""

    def __init__(self):
        self.rows = json.loads(FIGURES.read_text())
        self.curves = json.loads(CURVES.read_text())

    def mean(self, arm: str, *path: str) -> list[float] | None:
        """Of a list of numbers in an arm's curves, element by element; None without runs."""
        found = [row for row in self.curves if row["arm"] == arm]
        for key in path:
            found = [row[key] for row in found]
        if not found:
            return None
        return [None if None in column else statistics.mean(column) for column in zip(*found)]

    def series(self, arm: str) -> list[list[float]] | None:
        """[steps, t1, t2, changed] on validation problems, averaged over seeds."""
        found = [row["val"] for row in self.curves if row["arm"] == arm and row["val"]]
        if not found:
            return None
        points = [[statistics.mean(values) for values in zip(*point)] for point in zip(*found)]
        return [list(column) for column in zip(*points)]

    def lines(self):
        """(arm, title, series) of what is trained from the base; Stage II goes on after Stage I."""
        for arm in COLOURS:
            series = self.series(arm)
            if series is None:
                continue
            if arm == "stage2":
                series[0] = [METHODS["stage1"].own["steps"] + step for step in series[0]]
            yield arm, METHODS[arm].title, series


def panels(count: int, **options):
    return plt.subplots(1, count, figsize=(4.2 * count, 3.4), squeeze=False, **options)


def draw_curves(runs: Runs):
    """t1, t2 and changed on validation problems over the steps of training."""
    figure, [axes] = panels(3)
    for axis, (column, name) in zip(axes, enumerate(("acc@t1", "acc@t2", "changed"), 1)):
        for arm, title, series in runs.lines():
            percent = [100 * value for value in series[column]]
            axis.plot(series[0], percent, color=COLOURS[arm], label=title)
        axis.set(title=f"{name}, % (greedy, validation)", xlabel="updates after the base")
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=7)
    return figure


def draw_edits(runs: Runs):
    arms = ("base", "stage1", "stage2", "naive", "both", "star_plus")
    figure, [axes] = plt.subplots(1, len(arms), figsize=(14, 2.6), squeeze=False, sharey=True)
    for axis, arm in zip(axes, arms):
        counts = runs.mean(arm, "edits")
        if counts is not None:
            share = [100 * count / sum(counts) for count in counts]
            axis.bar([(i + 0.5) / 20 for i in range(20)], share, 0.05, color=COLOURS[arm])
        axis.set(title=METHODS[arm].title, xlabel="edit distance ratio")
        axis.title.set_fontsize(9)
    axes[0].set_ylabel("% of problems")
    return figure


def draw_attempts(runs: Runs):
    figure, [[axis]] = panels(1)
    for arm, colour in COLOURS.items():
        accuracy = runs.mean(arm, "attempts")
        if accuracy is not None:
            percent = [100 * value for value in accuracy]
            axis.plot(range(1, 11), percent, ".-", color=colour, label=METHODS[arm].title)
    axis.set(xlabel="attempt", ylabel="accuracy, % (greedy)", title="ten attempts")
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3)
    return figure


def draw_votes(runs: Runs):
    figure, [[axis]] = panels(1)
    for arm in ("base", "both", "stage2"):
        for kind, style in (("parallel", "--"), ("corrected", "-")):
            accuracy = runs.mean(arm, "votes", kind)
            if accuracy is None:
                continue
            points = [(2**n, 100 * a) for n, a in enumerate(accuracy) if a is not None]
            label = f"{METHODS[arm].title}, {kind}"
            axis.plot(*zip(*points), f"{style}o", color=COLOURS[arm], label=label, markersize=3)
    axis.set(xscale="log", xlabel="samples", ylabel="majority vote right, %")
    axis.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axis.set_ylim(top=axis.get_ylim()[1] + 15)  # room for the legend
    axis.legend(fontsize=7, ncol=2, loc="upper left")
    axis.grid(alpha=0.3)
    return figure


def draw_sweeps(runs: Runs):
    figure, [axes] = plt.subplots(1, len(SWEEPS), figsize=(14, 3), squeeze=False, sharey=True)
    for axis, (name, arms) in zip(axes, SWEEPS.items()):
        found = {value: by_seed(runs.rows, arm).get(0) for value, arm in arms.items()}
        found = {value: row for value, row in found.items() if row is not None}
        for column, colour in (("acc_t1", "tab:cyan"), ("acc_t2", "tab:blue")):
            axis.plot(list(found), [row[column] for row in found.values()], "o-", color=colour)
        axis.set(xlabel=name)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("%")
    axes[0].legend(["acc@t1", "acc@t2"], fontsize=7)
    return figure


DRAWINGS = {
    "curves": draw_curves,
    "edits": draw_edits,
    "attempts": draw_attempts,
    "votes": draw_votes,
    "sweeps": draw_sweeps,
}


def main() -> None:
    runs = Runs()
    FOLDER.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        figure = draw(runs)
        figure.tight_layout()
        # Without the version in it the same figures give the same file.
        figure.savefig(FOLDER / f"{name}.png", dpi=110, metadata={"Software": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
