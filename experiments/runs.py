"""One run of a method: how it is trained, evaluated and looked at.

A run is a method from one seed's base model. It lies in OUT/BASE/seedN/METHOD: what a stage of
train.py leaves there, and details.json for figures.py, which is written last.
"""

import json
import statistics
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from methods import BASES, METHODS, Imitation, Method

import score
import train
from data.arithmetic import ArithmeticTask, Puzzle
from data.task import Problem
from fast.linear import freeze
from training.checkpoints import load_model, locked, write_json
from training.settings import Job, Stage, read_progress, resolve

LOOK = 25  # steps between evaluations on validation problems
TUNING_SEED = 100  # runs of this seed and of those above are evaluated on validation problems


@dataclass(frozen=True)
class Run:
    """One method, once."""

    method: str
    seed: int
    base: str = "habit"
    lr: float | None = None  # in place of the method's own, while tuning
    times: int = 1  # the budget in steps, of all stages

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
        own = dict(METHODS[self.method].own)
        if self.method != "base":
            own["steps"] *= self.times
        return own if self.lr is None else own | {"lr": self.lr}

    def job(self, out: Path) -> Job:
        method, folder = METHODS[self.method], self.folder(out)
        returns = None if isinstance(method.learns, Imitation) else method.learns
        own = {"arithmetic": self.settings}
        stage = Stage(method.number, self.arm, method.title, returns, own)
        split = "val" if self.seed >= TUNING_SEED else "test"
        every = None if self.method == "base" else LOOK
        known = {"seed": self.seed, "out": str(out), "split": split, "eval_every": every}
        return Job(stage, *resolve(stage, known), folder, *read_progress(folder))

    def perform(self, out: Path) -> None:
        """Trains and evaluates; goes on where it was stopped."""
        folder, device = self.folder(out), torch.device("cpu")
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            job = self.job(out)
            task = ArithmeticTask(Puzzle, job.run.difficulty, BASES[self.base].corpus)
            if not job.finished:
                self.train(job, task, out)
            result = train.evaluate(job, task, device)
            looked_at = details(load_model(folder, task, device), task, result)
            write_json(folder / "details.json", looked_at)
            for path in folder.glob("pairs*.json"):
                path.unlink()  # large, and of use to a stopped run alone

    def train(self, job: Job, task: ArithmeticTask, out: Path) -> None:
        """Trains, from the beginning or where it was stopped."""
        device = torch.device("cpu")
        if self.start is None:
            policy, ref = train.new_model(job, task, device), None
        else:
            base = Run("base", self.seed, self.base)
            policy, ref = (load_model(x.folder(out), task, device) for x in (self.start, base))
            ref = freeze(ref)
        trainer = Trainer(job, task, policy, ref, METHODS[self.method])
        if job.saved is not None:
            trainer.restore()
        train.train(trainer)


class Trainer(train.Trainer):
    """A method in training."""

    def __init__(self, job: Job, task: ArithmeticTask, policy, ref, method: Method):
        super().__init__(job, task, policy, ref)
        self.method = method
        self.pairs: list[tuple[str, str, str]] = []

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
                end = min(self.step + length, self.job.run.steps + 1)
                write_json(file, self.collect(seed, range(self.step, end)))
            collected = json.loads(file.read_text())
            self.pairs = collected["pairs"]
            samples = collected["samples"] if place == 0 else 0
        if self.method.learns.once:  # in a short run there may be fewer pairs than updates
            rows = self.pairs[place % len(self.pairs) :: length]
        else:
            rng = np.random.default_rng([seed, self.step])
            count = min(self.job.run.transcripts, len(self.pairs))
            rows = [self.pairs[i] for i in rng.choice(len(self.pairs), count, replace=False)]
        metrics = train.supervised_step(
            self.policy, self.optimizer, self.task, rows, self.job.cfg.clip, self.method.learns.both
        )
        return metrics | {"samples": samples}

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
        if learns.once:
            pairs = sorted(set(pairs))  # in an order that does not change between processes
            np.random.default_rng([seed, steps.start]).shuffle(pairs)
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
    """For figures.py and some tables: figures of the greedy evaluation `result`, and of samples."""
    ten = score.evaluate(model, task, result.problems, attempts=10, last_only=True)
    ratios = [edit_ratio(*pair) for pair in zip(*result.responses)]
    return {
        "edit_ratio": statistics.mean(ratios),
        "edits": np.histogram(ratios, 20, (0, 1))[0].tolist(),
        "attempts": ten.metrics["acc"],
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


def votes(model, task: ArithmeticTask, problems: list[Problem], most: int = 32) -> dict:
    """Accuracy of the most frequent of K answers sampled at temperature 0.7 [paper]: K first
    attempts, or the second attempts to the first K/2 of them."""
    prompts, keys = [task.prompt(x) for x in problems], [x.key for x in problems]
    first = score.respond(model, task, problems, prompts, keys, most, 0.7, 0)
    again, rows = score.try_again(task, prompts, score.answers(first)), score.repeat(problems, most)
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
