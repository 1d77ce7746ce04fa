"""Figures of finished runs, and the tables that are made of them."""

import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import methods
from runs import LOOK, TUNING_SEED, Run

from training import settings
from training.checkpoints import read_log
from training.report import COLUMNS, TITLES, decimal

FIGURES, TUNING, CURVES = (HERE / f"{name}.json" for name in ("compare", "tuning", "curves"))
RESULTS = HERE / "RESULTS.md"
EVALUATED = {"n": 2000, "temperature": 0.0}


def gather(runs: list[Run], out: Path) -> list[dict]:
    """One row a finished run: its results in per cent, and what its training cost. Raises
    SystemExit for a folder that was made with other settings."""
    rows = []
    for run in runs:
        job = run.job(out)
        results = json.loads((job.folder / "results.json").read_text())
        evaluated = EVALUATED | {"split": job.run.split}
        made = results["config"] | settings.pick(results, evaluated.keys())
        try:
            settings.check_settings_match(
                job.folder, made, job.settings() | evaluated | {"seed": run.seed}
            )
        except ValueError as error:
            sys.exit(str(error))
        row = {"arm": run.arm, "seed": run.seed, "n": results["n"]}
        row |= {column: round(100 * results[column], 2) for column in COLUMNS}
        found = json.loads((job.folder / "details.json").read_text())
        row |= {"edit_ratio": round(100 * found["edit_ratio"], 2)}
        row |= {"lr": job.run.lr, "steps": results["steps"], "samples": results["samples"]}
        row |= {"seconds": round(results["seconds"])}
        rows.append(row | {"diagnosis": results["diagnosis"]})
    return rows


def curves(runs: list[Run], out: Path) -> list[dict]:
    """What figures.py draws of each finished run, and some tables tell: its details and its
    validation accuracies."""
    rows = []
    for run in runs:
        job = run.job(out)
        log = read_log(job.folder)
        looks = [[row["step"], *row["val"].values()] for row in log if "val" in row]
        clipped = statistics.mean(row["grad_norm"] > job.cfg.clip for row in log)
        content = {"arm": run.arm, "seed": run.seed, "val": looks, "clipped": clipped}
        content |= json.loads((job.folder / "details.json").read_text())
        # A file that is kept should not be larger than what it says.
        rows.append(json.loads(json.dumps(content), parse_float=lambda x: round(float(x), 4)))
    return rows


def cells(lines: list[list[str]]) -> str:
    """Markdown; the first line is the header."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: list[float], sign: str = "") -> str:
    """Mean ± the standard error of that mean; no error of a single run."""
    mean = f"{statistics.mean(values):{sign}.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def by_seed(rows: list[dict], arm: str) -> dict[int, dict]:
    return {row["seed"]: row for row in rows if row["arm"] == arm}


def lead(best: dict[int, dict], own: dict[int, dict], value: Callable) -> list[float]:
    """By how much the value of `best` is larger, on each seed that both have."""
    return [value(best[seed]) - value(own[seed]) for seed in sorted(best.keys() & own.keys())]


def results_table(rows: list[dict], arms: list[str], reference: str = "stage2") -> str:
    """In per cent, means over seeds ± their standard errors; and by how much the reference is
    ahead on the same seeds."""
    lines = [["", "seeds", *TITLES, "edit ratio", "SCoRe's t2 ahead", "SCoRe's Δ ahead"]]
    best = by_seed(rows, reference)
    for arm in arms:
        own = by_seed(rows, arm)
        if not own:
            continue
        line = [title(arm), str(len(own))]
        for column in (*COLUMNS, "edit_ratio"):
            line.append(spread([row[column] for row in own.values()]))
        for column in ("acc_t2", "delta"):
            ahead = lead(best, own, itemgetter(column))
            compared = ahead and arm not in (reference, "base", "stage1")
            line.append(spread(ahead, "+") if compared else "")
        lines.append(line)
    return cells(lines)


def title(arm: str) -> str:
    name, times = re.fullmatch(r"(.+?)(?:_x(\d+))?", arm).groups()
    return methods.METHODS[name].title + (f", {times} × the budget" if times else "")


def on_base(rows: list[dict], base: str) -> list[dict]:
    """The rows of another base than the default, under the names of their methods."""
    prefix = f"{base}/"
    found = [row for row in rows if row["arm"].startswith(prefix)]
    return [row | {"arm": row["arm"].removeprefix(prefix)} for row in found]


def stage1_table(rows: list[dict]) -> str:
    """What Stage I adds at each α."""
    header = ["α", "seeds", "Stage II alone", "Δ(t1,t2)", "both stages", "Δ(t1,t2)"]
    lines = [[*header, "Stage I adds to acc@t2"]]
    for alpha, arms in methods.STAGE1_BY_ALPHA.items():
        alone, after = (by_seed(rows, arm) for arm in arms)
        seeds = sorted(alone.keys() & after.keys())
        if not seeds:
            continue
        line = [alpha, str(len(seeds))]
        for own in (alone, after):
            for column in ("acc_t2", "delta"):
                line.append(spread([own[seed][column] for seed in seeds]))
        lines.append([*line, spread(lead(after, alone, itemgetter("acc_t2")), "+")])
    return cells(lines)


def race_table(kept: list[dict]) -> str:
    """How soon each learns to correct, and how far its first attempt has come by then."""
    header = ["", "seeds", f"acc@t1 after {LOOK} steps", "steps until Δ exceeds 5", "acc@t1 then"]
    lines = [[*header, "gradients clipped, %"]]
    for arm in ("stage1", "no_stage1"):
        own = by_seed(kept, arm).values()
        if not own:
            continue
        early = [100 * row["val"][0][1] for row in own]
        never = (math.inf, math.nan)
        corrects = [
            next(((step, 100 * t1) for step, t1, t2, _ in row["val"] if t2 - t1 > 0.05), never)
            for row in own
        ]
        clipped = [100 * row["clipped"] for row in own]
        lines.append([title(arm), str(len(own)), *map(span, (early, *zip(*corrects), clipped))])
    return cells(lines)


def span(values: list[float]) -> str:
    """The smallest and the largest of those that there are; infinity is never."""
    known = [value for value in values if not math.isnan(value)] or [math.inf]
    low, high = (f"{x:.0f}".replace("inf", "never") for x in (min(known), max(known)))
    return low if low == high else f"{low} to {high}"


def reuse_table(rows: list[dict]) -> str:
    """acc@t1 / acc@t2 on validation problems, by seed."""
    seeds = sorted(by_seed(rows, "star_plus"))
    lines = [["", *(f"seed {seed}" for seed in seeds)]]
    for arm in methods.REUSE:
        own = by_seed(rows, arm)
        pair = "{acc_t1:.1f} / {acc_t2:.1f}"
        found = (pair.format(**own[seed]) if seed in own else "" for seed in seeds)
        lines.append([title(arm), *found])
    return cells(lines)


def attempts_table(kept: list[dict]) -> str:
    """Accuracy of the third and the tenth attempt, each of which reads the one before it alone; and
    of the majority of 32 first attempts and of 16 corrected ones."""
    header = ["", "seeds", "acc@t3", "acc@t10", "SCoRe's t10 ahead"]
    lines = [[*header, "majority of 32", "of 16, corrected"]]
    for reference, others in (
        ("stage2", ("stage1", "no_stage1", *methods.MAIN)),
        ("stage2_x3", ("star_plus_x3",)),
    ):
        best = by_seed(kept, reference)
        for arm in (reference, *others):
            own = by_seed(kept, arm)
            if not own:
                continue
            third, tenth = ([100 * row["attempts"][n] for row in own.values()] for n in (2, 9))
            ahead = lead(best, own, lambda row: 100 * row["attempts"][9])
            compared = ahead and arm not in (reference, "stage1")
            line = [title(arm), str(len(own)), spread(third), spread(tenth)]
            line.append(spread(ahead, "+") if compared else "")
            for kind in ("parallel", "corrected"):
                line.append(spread([100 * row["votes"][kind][-1] for row in own.values()]))
            lines.append(line)
    return cells(lines)


def bases_table(rows: list[dict]) -> str:
    """Does f/b against the odds of p tell what happens, or the headroom of attempt 1?"""
    header = ["base", "p", "f", "b", "f/b", "odds", "odds after single-turn RL", "headroom"]
    lines = [[*header, "t1 / t2 of the base", "naive", "both", "SCoRe"]]
    for name in ("habit", "habit_edits", "flat", "flat_edits"):
        own = rows if name == "habit" else on_base(rows, name)
        found = {
            arm: by_seed(own, arm).get(0) for arm in ("base", "single", "naive", "both", "stage2")
        }
        if not all(found.values()):
            continue
        before, after = found["base"]["diagnosis"], found["single"]["diagnosis"]
        line = [methods.BASES[name].title] + [decimal(before[key], 3) for key in ("p", "f", "b")]
        line += [decimal(x, 2) for x in (before["ratio"], before["odds"], after["odds"])]
        line.append(f"{found['single']['acc_t1'] - found['base']['acc_t1']:+.1f}")
        for arm in ("base", "naive", "both", "stage2"):
            line.append("{acc_t1:.1f} / {acc_t2:.1f}".format(**found[arm]))
        lines.append(line)
    return cells(lines)


def tuning_table(rows: list[dict]) -> str:
    """acc@t2 on validation problems by learning rate; the one that is used is bold."""
    lines = [["", *(f"{lr:g}" for lr in methods.LRS)]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = {row["lr"]: f"{row['acc_t2']:.1f}" for row in rows if row["arm"] == arm}
        used = methods.METHODS[arm].own["lr"]
        if used in found:
            found[used] = f"**{found[used]}**"
        lines.append([methods.METHODS[arm].title, *(found.get(lr, "") for lr in methods.LRS)])
    return cells(lines)


def tables(rows: list[dict], tuning: list[dict], kept: list[dict]) -> dict[str, str]:
    """By the name of its place in RESULTS.md; `kept` are the rows of `curves`."""
    watched = [row for row in rows if row["seed"] >= TUNING_SEED]
    rows = [row for row in rows if row["seed"] < TUNING_SEED]
    return {
        "main": results_table(rows, [*methods.QUICK, *methods.REST]),
        "budget": results_table(
            rows, [f"{arm}_x3" for arm in ("stage2", *methods.MAIN, "star_once")], "stage2_x3"
        ),
        "attempts": attempts_table(kept),
        "ablations": results_table(rows, ["stage2", *methods.ABLATIONS]),
        "stage1": stage1_table(rows),
        "race": race_table(kept),
        "reuse": reuse_table(watched),
        "firm": results_table(on_base(rows, "habit_copies"), methods.FIRM),
        "bases": bases_table(rows),
        "tuning": tuning_table(tuning),
    }


def marked(name: str, text: str) -> str:
    """A part of a page that this program writes."""
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"


def put(page: Path, name: str, text: str) -> None:
    """Replaces the part of that name in a page."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + marked(name, text) + rest.partition(end)[2])


def write_pages(parts: dict[str, str]) -> None:
    """Puts the tables into RESULTS.md, and the main one into the README."""
    for name, text in parts.items():
        put(RESULTS, name, text)
    put(HERE.parent / "README.md", "main", parts["main"])


def lost_rows(path: Path, rows: list[dict]) -> Counter:
    """The methods and seeds of which a file has more runs than `rows`."""

    def runs(rows: list[dict]) -> Counter:
        return Counter((row["arm"], row["seed"]) for row in rows)

    return runs(json.loads(path.read_text())) - runs(rows)


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
