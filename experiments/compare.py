"""SCoRe beside everything that it claims to beat: RESULTS.md, its tables and its figures.

    python experiments/compare.py --quick            one seed of the main methods, under 15 minutes
    python experiments/compare.py --write            everything, over several seeds: hours
    python experiments/compare.py --parts tuning     learning rates, on validation problems

`methods.py` says what is compared. A run is one method from one seed's base model, in a process of
its own with one thread, --workers at a time; it lies in OUT/BASE/seedN/METHOD. What is finished is
left alone and what was stopped goes on, so this command may be repeated at will. --write keeps the
figures of all finished runs in compare.json, tuning.json and curves.json beside this file, and
writes the tables and plots that are made of them.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE))

import numpy as np
import torch
from methods import BASES, LRS, MAIN, METHODS, SWEEPS, Imitation, Method

import score
import train
from data.arithmetic import ArithmeticTask, Puzzle
from data.task import Problem

# ---------------------------------------------------------------------------------------------
# Runs


@dataclass(frozen=True)
class Run:
    """One method, once."""

    method: str
    seed: int
    base: str = "habit"
    lr: float | None = None  # in place of the method's own, while tuning
    times: int = 1  # the budget in steps, of all stages

    @classmethod
    def of(cls, arm: str, seed: int) -> "Run":
        base, _, method = arm.rpartition("/")
        return cls(method, seed, base or "habit")

    @property
    def arm(self) -> str:
        """Its name in tables."""
        name = self.method if self.times == 1 else f"{self.method}_x{self.times}"
        return name if self.base == "habit" else f"{self.base}/{name}"

    def folder(self, out: Path) -> Path:
        rate = "" if self.lr is None else f"_lr{self.lr:g}"
        times = "" if self.times == 1 else f"_x{self.times}"
        return out / self.base / f"seed{self.seed}" / f"{self.method}{times}{rate}"

    @property
    def start(self) -> "Run | None":
        """The run whose model it goes on from."""
        start = METHODS[self.method].start
        if start is None:
            return None
        if start == "base":
            return Run("base", self.seed, self.base)
        lr = None if self.lr is None else METHODS[start].own["lr"]
        return Run(start, self.seed, self.base, lr, self.times)

    def finished(self, out: Path) -> bool:
        return (self.folder(out) / "details.json").exists()

    @property
    def settings(self) -> dict:
        """In place of the defaults."""
        own = METHODS[self.method].own | BASES[self.base].shape
        own = own | {"steps": own["steps"] * (1 if self.method == "base" else self.times)}
        return own if self.lr is None else own | {"lr": self.lr}

    def job(self, out: Path) -> train.Job:
        method, folder = METHODS[self.method], self.folder(out)
        returns = None if isinstance(method.learns, Imitation) else method.learns
        stage = train.Stage(method.number, self.arm, method.title, returns, self.settings)
        split = "val" if self.seed == TUNING_SEED else "test"
        known = {"seed": self.seed, "out": str(out), "split": split}
        return train.Job(stage, *train.resolve(stage, known), folder, *train.read_settings(folder))

    def perform(self, out: Path) -> None:
        """Trains and evaluates; goes on where it was stopped."""
        job = self.job(out)
        job.folder.mkdir(parents=True, exist_ok=True)
        device, method = torch.device("cpu"), METHODS[self.method]
        task = ArithmeticTask(Puzzle, job.run.difficulty, BASES[self.base].corpus)

        def model_of(run: Run):
            return train.stage_model(run.job(out), task, device)

        if self.start is None:
            policy, ref = train.new_model(job, task, device), None
        else:
            policy = model_of(self.start)
            ref = train.frozen(model_of(Run("base", self.seed, self.base)))
        trainer = Trainer(job, task, policy, ref, method)
        if job.saved is not None:
            trainer.restore()
        train.train(trainer, train.precision(job.run, device))
        result = train.evaluate(job, task, device)
        looked_at = details(train.load_model(job.folder, task, device), task, result)
        train.write_json(job.folder / "details.json", looked_at)
        for path in job.folder.glob("pairs*.json"):
            path.unlink()  # large, and of use to a stopped run alone


class Trainer(train.Trainer):
    """A method in training, looked at on validation problems every LOOK steps."""

    LOOK, PROBLEMS = 25, 500

    def __init__(self, job: train.Job, task: ArithmeticTask, policy, ref, method: Method):
        super().__init__(job, task, policy, ref)
        self.method = method
        self.pairs: list[tuple[str, str, str]] = []
        self.looked_at = task.held_out("val", self.PROBLEMS)

    def advance(self) -> dict:
        metrics = super().advance()
        if self.step % self.LOOK == 0 and self.ref is not None:
            seen = score.evaluate(self.policy, self.task, self.looked_at).metrics
            metrics["val"] = train.pick(seen, {"acc_t1", "acc_t2", "changed"})
        return metrics

    def learn(self, seed: int) -> dict:
        if isinstance(self.method.learns, Imitation):
            return self.imitate(seed)
        return self.learn_offline(seed) if self.method.offline_only else super().learn(seed)

    def learn_offline(self, seed: int) -> dict:
        """`score.train_step` with no first attempt of the policy's own."""
        cfg, returns = self.job.cfg, self.method.learns
        problems = self.task.batch(seed, self.step, cfg.problems)
        seed = seed * 1_000_003 + self.step
        rolled = score.rollout(self.policy, self.task, problems, cfg, seed, first_by=self.ref)
        metrics = score.rollout_metrics(rolled, returns, cfg)
        metrics |= score.update(self.policy, self.ref, self.optimizer, [rolled], returns, cfg)
        self.best.add(self.step, self.job.run.steps, metrics["reward"], self.policy)
        tokens = int(rolled.first.mask.sum() + rolled.second.mask.sum())
        return metrics | {"tokens": tokens, "samples": len(rolled.r1) + len(rolled.r2)}

    def imitate(self, seed: int) -> dict:
        """One update on pairs that the round collected at its beginning."""
        length = -(-self.job.run.steps // self.method.learns.rounds)
        number, place = divmod(self.step - 1, length)
        file = self.job.folder / f"pairs{number}.json"
        samples = 0
        if place == 0 or not self.pairs:
            if not file.exists():  # else it was collected before this run was stopped
                train.write_json(file, self.collect(seed, range(self.step, self.step + length)))
            collected = json.loads(file.read_text())
            self.pairs = collected["pairs"]
            samples = collected["samples"] if place == 0 else 0
        rng = np.random.default_rng([seed, self.step])
        count = min(self.job.run.transcripts, len(self.pairs))
        rows = [self.pairs[i] for i in rng.choice(len(self.pairs), count, replace=False)]
        metrics = train.base_step(
            self.policy, self.optimizer, self.task, rows, self.job.cfg.clip, second_only=True
        )
        return dict.fromkeys(train.REWARDED) | metrics | {"samples": samples}

    def collect(self, seed: int, steps: range) -> dict:
        """The pairs to imitate, out of one rollout a step."""
        cfg, learns = self.job.cfg, self.method.learns
        choose = mixed_pairs if learns.paired else own_pairs
        pairs, samples = [], 0
        for step in steps:
            problems = self.task.batch(seed, step, cfg.problems)
            rolled = score.rollout(self.policy, self.task, problems, cfg, seed * 1_000_003 + step)
            samples += len(rolled.r1) + len(rolled.r2)
            written = answers_by_problem(self.task, rolled, problems, cfg)
            rng = np.random.default_rng([seed, step])
            for problem, (firsts, seconds) in zip(problems, written):
                pairs += [
                    (problem.prompt, y1, y2)
                    for (y1, r1), (y2, r2) in choose(firsts, seconds, rng)
                    if learns.keep(r1, r2) and spelled(self.task, y1) and spelled(self.task, y2)
                ]
        if not pairs:
            raise RuntimeError(f"{self.method.title}: no pair of attempts to imitate")
        return {"samples": samples, "pairs": pairs}


def answers_by_problem(task, rolled: score.Rollout, problems: list[Problem], cfg: score.Config):
    """For each problem its K first answers and its K·M second ones, each (text, reward)."""
    K, M = cfg.samples, cfg.revisions
    firsts = list(zip(score.texts(task, rolled.first), rolled.r1.tolist()))
    seconds = list(zip(score.texts(task, rolled.second), rolled.r2.tolist()))
    for p in range(len(problems)):
        yield firsts[p * K : (p + 1) * K], seconds[p * K * M : (p + 1) * K * M]


def spelled(task: ArithmeticTask, text: str) -> bool:
    """Whether a transcript can hold an answer: a young policy may put a control token into it."""
    try:
        return bool(task.encode(text))
    except ValueError:
        return False


def own_pairs(firsts: list, seconds: list, rng: np.random.Generator) -> list:
    """Each second answer with the first that it followed."""
    return list(zip(score.repeat(firsts, len(seconds) // len(firsts)), seconds))


def mixed_pairs(firsts: list, seconds: list, rng: np.random.Generator) -> list:
    """Each answer, first or second, with another one at random that is right."""
    pairs, answers = [], firsts + seconds
    for i, answer in enumerate(answers):
        right = [other for j, other in enumerate(answers) if other[1] == 1 and j != i]
        if right:
            pairs.append((answer, right[rng.integers(len(right))]))
    return pairs


# ---------------------------------------------------------------------------------------------
# What a finished run is looked at for, besides the results of train.py


def details(model, task: ArithmeticTask, result: score.Evaluation) -> dict:
    """Of the greedy evaluation `result`, and of samples: what figures.py draws."""
    said, rewards = result.responses, result.rewards
    ratios = [edit_ratio(*pair) for pair in zip(*said)]
    return {
        "edit_ratio": statistics.mean(ratios),
        "edits": np.histogram(ratios, 20, (0, 1))[0].tolist(),
        "by_solutions": by_solutions(task, result.problems, rewards),
        "attempts": ten_attempts(model, task, result.problems),
        "votes": votes(model, task, result.problems[:500]),
    }


def edit_ratio(first: str, second: str) -> float:
    """Levenshtein's distance over the length of both together, 0 to 1 [paper]."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1] / max(1, len(first) + len(second))


def by_solutions(task: ArithmeticTask, problems: list[Problem], rewards: torch.Tensor) -> dict:
    """acc@t1, acc@t2 and the count of problems that have so many solutions."""
    groups: dict[str, list[int]] = {}
    for index, problem in enumerate(problems):
        count = len(task.family.solutions(problem.prompt))
        name = "1" if count == 1 else "2" if count == 2 else "3–4" if count < 5 else "5 and more"
        groups.setdefault(name, []).append(index)
    return {
        name: [*rewards[:2, indices].mean(1).tolist(), len(indices)]
        for name, indices in sorted(groups.items())
    }


def ten_attempts(model, task: ArithmeticTask, problems: list[Problem]) -> list[float]:
    """Greedy accuracy of ten attempts, each after the one before alone: the context of this small
    model has no room for all, and it was trained on two."""
    prompts, keys = [task.prompt(x) for x in problems], [x.key for x in problems]
    after, accuracy = prompts, []
    for _ in range(10):
        attempt = score.respond(model, task, problems, after, keys, 1, 0.0, 0)
        accuracy.append(score.grade(task, problems, attempt).mean().item())
        after = score.try_again(task, prompts, attempt)
    return accuracy


def votes(model, task: ArithmeticTask, problems: list[Problem], most: int = 32) -> dict:
    """Accuracy of the most frequent of K answers sampled at temperature 0.7 [paper]: K first
    attempts, or the second attempts to the first K/2 of them."""
    prompts, keys = [task.prompt(x) for x in problems], [x.key for x in problems]
    first = score.respond(model, task, problems, prompts, keys, most, 0.7, 0)
    again, rows = score.try_again(task, prompts, first), score.repeat(problems, most)
    second = score.respond(model, task, rows, again, score.row_keys(keys, most, 0), 1, 0.7, 0)
    texts = [score.texts(task, attempt) for attempt in (first, second)]
    parallel, corrected = (np.array(text).reshape(-1, most) for text in texts)

    def accuracy(answers: np.ndarray) -> float:
        winners = [Counter(row).most_common(1)[0][0] for row in answers.tolist()]
        return statistics.mean(task.rewards(problems, winners))

    counts = [2**n for n in range(most.bit_length())]
    return {
        "samples": counts,
        "parallel": [accuracy(parallel[:, :n]) for n in counts],
        "corrected": [accuracy(corrected[:, : n // 2]) if n > 1 else None for n in counts],
    }


# ---------------------------------------------------------------------------------------------
# Which runs, and in which order

TUNING_SEED = 100  # no table has runs of this seed but tuning's
SCORE = ("base", "stage1", "stage2")
REST = ("trajectory", "star", "pair_sft_plus")
ABLATIONS = (*("no_stage1", "no_bonus", "rloo", "star_stage2", "offline_only", "offline_added"),)
QUICK = (*SCORE, *MAIN)


def planned(parts: list[str], seeds: int) -> list[Run]:
    """The runs of some parts of the comparison, what they start from first."""
    few = range(min(3, seeds))
    runs = {
        "tuning": [
            Run(name, TUNING_SEED, lr=lr)
            for name in ("stage1", "stage2", *MAIN, *REST)
            for lr in LRS
        ],
        "quick": [Run(name, 0) for name in QUICK],
        "main": [Run(name, seed) for seed in range(seeds) for name in QUICK]
        + [Run(name, seed) for seed in few for name in REST],
        "ablations": [Run(name, seed) for seed in few for name in ABLATIONS],
        "budget": [Run(name, 0, times=3) for name in ("stage2", *MAIN)],
        "bases": [
            Run(name, 0, base)
            for base in ("habit_edits", "flat", "flat_edits")
            for name in (*SCORE, "naive", "both", "single")
        ],
        "sweeps": [Run.of(arm, 0) for axis in SWEEPS.values() for arm in axis.values()],
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


# ---------------------------------------------------------------------------------------------
# Figures of finished runs, and tables of them

FIGURES, TUNING, CURVES = (HERE / f"{name}.json" for name in ("compare", "tuning", "curves"))
RESULTS = HERE / "RESULTS.md"
EVALUATED = {"n": 2000, "temperature": 0.0}
COLUMNS = ("acc_t1", "acc_t2", "delta", "fixed", "broken", "changed")


def gather(runs: list[Run], out: Path) -> list[dict]:
    """One row a finished run: its results in per cent, and what its training cost. Raises
    SystemExit for a folder that was made with other settings."""
    rows = []
    for run in runs:
        if not run.finished(out):
            continue
        job = run.job(out)
        results = json.loads((job.folder / "results.json").read_text())
        evaluated = EVALUATED | {"split": job.run.split}
        made = results["config"] | train.pick(results, evaluated.keys())
        try:
            train.agree(job.folder, made, job.settings() | evaluated | {"seed": run.seed})
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
    """What figures.py draws of each finished run: its details, its validation accuracies, and what
    its own rollouts said of right and wrong attempts, over windows of steps."""
    rows = []
    for run in runs:
        if not run.finished(out):
            continue
        folder = run.folder(out)
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        looks = [[row["step"], *row["val"].values()] for row in log if "val" in row]
        windows = [log[i : i + Trainer.LOOK] for i in range(0, len(log), Trainer.LOOK)]
        sampled = [
            [window[-1]["step"], *(mean_of(window, name) for name in SAMPLED)]
            for window in windows
            if window[0]["acc_t1"] is not None
        ]
        found = json.loads((folder / "details.json").read_text())
        content = {"val": looks, "sampled": sampled} | found
        rows.append({"arm": run.arm, "seed": run.seed} | rounded(content))
    return rows


SAMPLED = ("acc_t1", "fixed", "broken")


def mean_of(rows: list[dict], name: str) -> float:
    return statistics.mean(row[name] for row in rows)


def rounded(content):
    """Its numbers to four decimals: a file that is kept should not be larger than what it says."""
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    if isinstance(content, list):
        return [rounded(value) for value in content]
    return round(content, 4) if isinstance(content, float) else content


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


TITLES = ("acc@t1", "acc@t2", "Δ(t1,t2)", "Δ i→c", "Δ c→i", "changed")


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
        shared = own.keys() & best.keys()
        for column in ("acc_t2", "delta"):
            ahead = [best[seed][column] - own[seed][column] for seed in sorted(shared)]
            compared = ahead and arm not in (reference, "base", "stage1")
            line.append(spread(ahead, "+") if compared else "")
        lines.append(line)
    return cells(lines)


def title(arm: str) -> str:
    name, _, times = arm.partition("_x")
    return METHODS[name].title + (f", {times} × the budget" if times else "")


def bases_table(rows: list[dict]) -> str:
    """Does f/b against the odds of p tell what happens, or the headroom of attempt 1?"""
    header = ["base", "p", "f", "b", "f/b", "odds", "odds after single-turn RL", "headroom"]
    lines = [[*header, "naive t2", "both t2", "SCoRe t2", "naive Δ", "both Δ", "SCoRe Δ"]]
    for name in ("habit", "habit_edits", "flat", "flat_edits"):
        prefix = "" if name == "habit" else f"{name}/"
        found = {
            arm: by_seed(rows, prefix + arm).get(0)
            for arm in ("base", "single", "naive", "both", "stage2")
        }
        if not all(found.values()):
            continue
        before, after = found["base"]["diagnosis"], found["single"]["diagnosis"]
        line = [BASES[name].title] + [f"{before[key]:.3f}" for key in ("p", "f", "b")]
        line += [f"{number:.2f}" for number in (before["ratio"], before["odds"], after["odds"])]
        line.append(f"{found['single']['acc_t1'] - found['base']['acc_t1']:+.1f}")
        for column in ("acc_t2", "delta"):
            line += [f"{found[arm][column]:.1f}" for arm in ("naive", "both", "stage2")]
        lines.append(line)
    return cells(lines)


def sweeps_table(rows: list[dict]) -> str:
    """Seed 0 of SCoRe with one setting moved."""
    lines = [["", "", *TITLES[:3], TITLES[4]]]
    for axis, arms in SWEEPS.items():
        for value, arm in arms.items():
            row = by_seed(rows, arm).get(0)
            if row is not None:
                columns = ("acc_t1", "acc_t2", "delta", "broken")
                lines.append([axis, value] + [f"{row[column]:.1f}" for column in columns])
    return cells(lines)


def tuning_table(rows: list[dict]) -> str:
    """acc@t2 on validation problems by learning rate; the best is the one that is used."""
    lines = [["", *(f"{lr:g}" for lr in LRS)]]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        found = {row["lr"]: f"{row['acc_t2']:.1f}" for row in rows if row["arm"] == arm}
        lines.append([METHODS[arm].title, *(found.get(lr, "") for lr in LRS)])
    return cells(lines)


def tables(rows: list[dict], tuning: list[dict]) -> dict[str, str]:
    """By the name of its place in RESULTS.md."""
    return {
        "main": results_table(rows, [*QUICK, *REST]),
        "budget": results_table(rows, [f"{arm}_x3" for arm in ("stage2", *MAIN)], "stage2_x3"),
        "ablations": results_table(rows, ["stage2", *ABLATIONS]),
        "bases": bases_table(rows),
        "sweeps": sweeps_table(rows),
        "tuning": tuning_table(tuning),
    }


def marked(name: str, text: str) -> str:
    """A part of a page that this program writes."""
    return f"<!-- {name} -->\n{text}\n<!-- /{name} -->"


def put(page: Path, name: str, text: str) -> None:
    """Writes that part."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(before + marked(name, text) + rest.partition(end)[2])


def write_pages(rows: list[dict], tuning: list[dict]) -> None:
    """Puts the tables into RESULTS.md, and the main one into the README."""
    parts = tables(rows, tuning)
    for name, text in parts.items():
        put(RESULTS, name, text)
    put(HERE.parent / "README.md", "main", parts["main"])


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ("main", "ablations", "budget", "bases", "sweeps", "tuning")
    parser.add_argument("--quick", action="store_true", help="one seed of the main methods")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="[all]")
    parser.add_argument("--seeds", type=int, default=5, help="of the main methods [5]")
    parser.add_argument("--out", type=Path, default=HERE.parent / "out" / "compare")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="[one a core]")
    parser.add_argument("--write", action="store_true", help="keep the figures and the tables")
    parser.add_argument("--perform", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = args.out.resolve()
    if args.perform:
        return Run(**json.loads(args.perform)).perform(out)
    asked = planned(["quick"], 1) if args.quick else planned(args.parts, args.seeds)
    try:
        perform_all(asked, out, args.workers, base_threads=args.workers if args.quick else 1)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where it was")
    if args.quick:
        return print(results_table(gather(asked, out), QUICK))
    runs = planned(parts, args.seeds)
    tuning = [run for run in runs if run.seed == TUNING_SEED]
    others = [run for run in runs if run.seed != TUNING_SEED]
    rows, tuned = gather(others, out), gather(tuning, out)
    for name, text in tables(rows, tuned).items():
        print(f"\n{name}\n{text}")
    if args.write:
        write_rows(FIGURES, rows)
        write_rows(TUNING, tuned)
        write_rows(CURVES, curves(others, out))
        write_pages(rows, tuned)


if __name__ == "__main__":
    main()
