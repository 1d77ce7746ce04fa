"""What is printed about a stage: its progress and warnings, its cost, its results and examples."""

import difflib
import itertools
import json
import math
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

import data
import score
from model import GPT
from training.checkpoints import Log, read_log
from training.processes import is_first, print_once
from training.settings import Run, read_progress

# ---------------------------------------------------------------------------------------------
# While a stage trains

LIMITS = (  # a metric, whether its mean is bad, and the warning
    ("changed", lambda mean: mean < 0.01, "second attempts change {:.1%} of answers"),
    ("truncated", lambda mean: mean > 0.1, "the length limit cuts {:.0%} of attempts"),
    # A base model that copies starts at 0.96 and still learns.
    ("no_signal", lambda mean: mean > 0.99,
     "{:.0%} of the groups of second attempts have equal rewards and give no gradient"),
    ("kl_1", lambda mean: mean > 20, "kl_1 has risen to {:.1f} nats per attempt"),
    ("kl_2", lambda mean: mean > 20, "kl_2 has risen to {:.1f} nats per attempt"),
)  # fmt: skip


# Rows that a mean is taken over: a quarter of a stage's steps, within these.
LEAST_ROWS, MOST_ROWS = 10, 50


def warnings(rows: list[dict], steps: int, since: int = 1) -> dict[str, str]:
    """The first warning of each kind in the rows of a stage's log, from row number `since` on. Each
    looks at means over the last rows."""
    if not rows or rows[0].get("reward") is None:  # of the base model
        return {}
    window, found = min(MOST_ROWS, max(LEAST_ROWS, steps // 4)), {}
    for end in range(max(window, since), len(rows) + 1):

        def mean(name: str, last: int = end) -> float:
            return sum(row.get(name, 0.0) for row in rows[last - window : last]) / window

        new = {name: text.format(mean(name)) for name, is_bad, text in LIMITS if is_bad(mean(name))}
        gain = mean("reward") - mean("reward", window)
        if end >= max(steps // 2, 2 * window) and gain <= 0:
            new["reward"] = f"the reward is {mean('reward'):.3f}, {gain:+.3f} since the start"
        where = f"warning, steps {end - window + 1} to {end}: "
        found = {name: where + text for name, text in new.items()} | found
    return found


class Report:
    """The progress bar, log and warnings of a stage; only the first process writes them."""

    def __init__(self, title: str, steps: int, done: int, folder: Path):
        self.steps, self.silent = steps, not is_first()
        if not self.silent:
            self.log = Log(folder, done)
            self.printed = warnings(self.log.rows, steps)  # before the run was stopped
        self.bar = tqdm(
            total=steps,
            initial=done,
            desc=title,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
            disable=self.silent,
        )

    def add(self, metrics: dict) -> None:
        if self.silent:
            return
        self.log.add(metrics)
        rows = self.log.rows
        for name, text in warnings(rows, self.steps, since=len(rows)).items():
            if name not in self.printed:
                self.printed[name] = text
                self.bar.write(text, file=sys.stderr)
        self.bar.set_postfix_str(progress(metrics), refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()


def progress(metrics: dict) -> str:
    if "reward" not in metrics:
        return f"loss {metrics['loss']:.3f}"
    return (
        f"reward {metrics['reward']:.3f} t1 {metrics['acc_t1']:.3f} t2 {metrics['acc_t2']:.3f} "
        f"Δ {metrics['delta']:+.3f} KL {metrics['kl_1']:.2f}/{metrics['kl_2']:.2f}"
    )


class AnswersBar(tqdm):
    """The progress bar of an evaluation."""

    right = 0

    def add(self, rewards: torch.Tensor) -> None:
        self.right += int(rewards.sum())
        self.set_postfix_str(f"{self.right} right", refresh=False)
        self.update(len(rewards))


def cost(title: str, seconds: float, folder: Path, device: torch.device) -> str:
    """Time and speed of a stage's training, from its log, and this process's peak memory so far."""
    rows = read_log(folder)

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    parts = ""
    if "rollout_seconds" in rows[0]:
        parts = f" (rollouts {mean('rollout_seconds'):.3f}, update {mean('update_seconds'):.3f})"
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return (
        f"{title}: {seconds:.0f} s for {len(rows)} steps, {mean('seconds'):.3f} s a step{parts}, "
        f"{mean('tokens_per_second'):,.0f} tokens/s, peak memory {peak:,.0f} MiB"
    )


# ---------------------------------------------------------------------------------------------
# After an evaluation


def report(
    folders: list[tuple[str, Path]],
    run: Run,
    result: score.Evaluation,
    task: data.Task,
    temperature: float,
) -> None:
    """Prints the results of stages, (title, folder) each, and examples of the last one's."""
    how = f"temperature {temperature:g}" if temperature else "greedy"
    how += ", each attempt after the last one alone" if run.history == "last" else ""
    what = f"{len(result.problems)} {run.split} problems, {how}"
    print_once(f"\n{what}, in per cent ± one standard error\n{table(folders)}")
    if run.attempts > 2:
        print_once("\n" + each_attempt(result.metrics))
    print_once(
        "\nsampled at temperature 1: p right at first, f right after wrong, b wrong after right"
    )
    print_once(diagnoses(folders))
    print_once("\n" + examples(result, task))
    found = []
    for title, folder in folders:
        saved, _ = read_progress(folder)
        if saved is not None and (folder / "metrics.jsonl").exists():
            texts = warnings(read_log(folder), saved["steps"]).values()
            found += [f"{title}: {text}" for text in texts]
    if found:
        print_once("\n" + "\n".join(found))


COLUMNS = ("acc_t1", "acc_t2", "delta", "fixed", "broken", "changed")
TITLES = ("acc@t1", "acc@t2", "Δ(t1,t2)", "Δ i→c", "Δ c→i", "changed")


def table(folders: list[tuple[str, Path]]) -> str:
    """The results of several stages in per cent, ± one standard error."""
    width = max(10, *(len(title) + 1 for title, _ in folders))
    lines = [" " * width + "".join(f"{title:>14}" for title in TITLES) + "     cut"]
    for title, folder in folders:
        results = json.loads((folder / "results.json").read_text())
        cells = [f"{100 * results[n]:.1f} ± {100 * results['se'][n]:.1f}" for n in COLUMNS]
        cells = [f"{cell:>14}" for cell in cells] + [f"{100 * results['truncated']:8.1f}"]
        lines.append("".join([title.ljust(width)] + cells))
    return "\n".join(lines)


def each_attempt(metrics: dict) -> str:
    """The accuracy of every attempt and the share that the length limit cut."""
    lines = [f"{'attempt':10}" + "".join(f"{n:8}" for n in range(1, len(metrics["acc"]) + 1))]
    for title, name in (("right", "acc"), ("cut", "cut")):
        lines.append(f"{title:10}" + "".join(f"{100 * share:8.1f}" for share in metrics[name]))
    most = max(metrics["cut"][2:])
    if most > 0.1:
        lines.append(f"warning: up to {most:.0%} are cut after attempt 2 (see --history last)")
    return "\n".join(lines)


def diagnose(policy: GPT, task: data.Task, problems: list[data.Problem], **how) -> dict:
    """Would reward on attempt 2 alone first teach this policy to edit or to copy?

    Sampled at temperature 1, once a problem: p = P(y1 right), f = P(y2 right | y1 wrong) and
    b = P(y2 wrong | y1 right). Editing earns (1 − p)·f more right answers than copying and p·b
    fewer, so it pays where `ratio` f/b exceeds `odds` p/(1 − p) (arXiv 2604.22273). A quantity
    without a value (f if nothing was wrong, f/b if nothing broke) is None. `how` is as in
    `score.evaluate`.
    """
    sampled = score.evaluate(policy, task, problems, temperature=1.0, **how).metrics
    p, fixed, broken = (sampled[name] for name in ("acc_t1", "fixed", "broken"))
    f = fixed / (1 - p) if p < 1 else None
    b = broken / p if p > 0 else None
    return {
        "p": p,
        "f": f,
        "b": b,
        "ratio": f / b if f is not None and b else None,
        "odds": p / (1 - p) if p < 1 else None,
        "n": len(problems),
    }


def diagnoses(folders: list[tuple[str, Path]]) -> str:
    """The diagnosis of several stages, and what it means."""
    width = max(10, *(len(title) + 1 for title, _ in folders))
    lines = [" " * width + "".join(f"{name:>9}" for name in ("p", "f", "b", "f/b", "p/(1−p)"))]
    for title, folder in folders:
        found = json.loads((folder / "results.json").read_text())["diagnosis"]
        cells = [decimal(found[name], 3) for name in ("p", "f", "b", "ratio", "odds")]
        lines.append("".join([title.ljust(width)] + [f"{cell:>9}" for cell in cells]))
        lines[-1] += f"   plain reward on attempt 2 {leaning(found)}"
    return "\n".join(lines)


def decimal(value: float | None, places: int) -> str:
    """A dash for None, a quotient without a value, such as f/b where no right answer was broken."""
    return "–" if value is None else f"{value:.{places}f}"


def leaning(diagnosis: dict) -> str:
    """What plain reward on attempt 2 would teach first, to edit or to copy. Neither, if the gain of
    editing over copying is within two standard errors of 0; no verdict if these exceed 3 points."""
    p, n = diagnosis["p"], diagnosis["n"]
    fixed, broken = (1 - p) * (diagnosis["f"] or 0.0), p * (diagnosis["b"] or 0.0)
    gain = fixed - broken
    # Of what was never seen, up to 3/n may be missed (the rule of three).
    margin = max(2 * math.sqrt((fixed + broken - gain**2) / n), 3 / n)
    if abs(gain) > margin:
        return f"would learn to {'edit' if gain > 0 else 'copy'}"
    if margin > 0.03:
        return "may teach either: too few problems to say"
    return "would find copying about as good as editing"


def examples(result: score.Evaluation, task: data.Task) -> str:
    """An example each of a problem that attempt 2 fixed, kept right, broke, or left wrong."""
    first, second = result.rewards[0], result.rewards[1]
    lines = []
    for title, chosen in (
        ("fixed", (first == 0) & (second == 1)),
        ("kept", (first == 1) & (second == 1)),
        ("broken", (first == 1) & (second == 0)),
        ("wrong", (first == 0) & (second == 0)),
    ):
        where = chosen.nonzero()[:, 0].tolist()
        if not where:
            lines.append(f"{title:7} (none of {len(first)})")
            continue
        x = where[0]
        said = task.decode(task.revise).join(answers[x] for answers in result.responses[:2])
        lines.append(f"{title:7} {result.problems[x].prompt}  {said}")
    return "\n".join(lines)


def dialogue(result: score.Evaluation, task: data.Task) -> str:
    """The attempts at one problem with the verifier's verdicts. What changed from the attempt
    before has carets below it."""
    parts, before = [("problem", result.problems[0].prompt)], None
    for number, [response] in enumerate(result.responses, 1):
        shown = response if before is None else underlined(before, response)
        wrong = "wrong" if result.problems[0].gold is not None else "not graded"
        verdict = "right" if result.rewards[number - 1] else wrong
        verdict += "" if result.ended[number - 1] else ", cut by the length limit"
        parts += [(f"attempt {number}", shown), ("", verdict)]
        if number < len(result.responses):
            parts.append(("", task.instruction))
        before = response
    return "\n".join(f"{name:11}" + text.replace("\n", "\n" + " " * 11) for name, text in parts)


def underlined(before: str, after: str) -> str:
    """`after`, with carets below the words and symbols that differ from `before`."""
    old, new = (re.findall(r"\w+|\W", text) for text in (before, after))
    marks = ""
    for same, _, there in compared(old, new):
        marks += re.sub(".", " " if same else "^", "".join(new[there]))
    lines = []
    for text, below in zip(after.split("\n"), marks.split("\n")):
        lines += [text, below] if "^" in below else [text]
    return "\n".join(lines)


def compared(old: list, new: list) -> Iterator[tuple[bool, slice, slice]]:
    """Matching and differing parts of two lists; position by position if they have the same length,
    as attempts at an arithmetic problem do. In lists too long for difflib, which takes cubic time,
    everything between their common beginning and their common end counts as different."""
    if len(old) == len(new):
        places = itertools.groupby(range(len(old)), lambda n: old[n] == new[n])
        for same, run in ((same, list(run)) for same, run in places):
            yield same, *[slice(run[0], run[-1] + 1)] * 2
    elif max(len(old), len(new)) > 2000:
        start = len(os.path.commonprefix([old, new]))
        end = len(os.path.commonprefix([old[start:][::-1], new[start:][::-1]]))
        bounds = [(0, start, len(x) - end, len(x)) for x in (old, new)]
        for n, same in enumerate((True, False, True)):
            yield same, *[slice(x[n], x[n + 1]) for x in bounds]
    else:
        for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new).get_opcodes():
            yield kind == "equal", slice(i, j), slice(k, m)
