"""The command line: train the base model, Stage I and Stage II; evaluate; keep everything safe.

    python train.py --stage 1            Stage I of SCoRe, training the base model first
    python train.py --stage 2            Stage II, running first whatever is missing
    python train.py --eval out/puzzle/stage2
    python train.py --ask out/puzzle/stage2 737152=11      two attempts at a problem of yours
    python train.py --stage 1 --data math --init DIR       the same with an open model on MATH
    python train.py --export out/math/stage1               a folder that transformers loads

Everything a stage leaves behind lies in OUT/TASK/{base,stage1,stage2}/: model.pt (the checkpoint
with the highest training reward), state.pt (all that --resume needs), metrics.jsonl (one line a
step) and results.json (the evaluation on held-out problems). With --init the base model is that
of the folder, which is read and never written.
"""

import os

# Before torch starts its threads. If those that wait for work spin, a step on shared cores takes
# up to three times as long; if they sleep at once, one on idle cores takes a third longer. So they
# spin for microseconds, then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import argparse
import contextlib
import difflib
import fcntl
import importlib
import inspect
import itertools
import json
import math
import re
import resource
import shlex
import shutil
import signal
import sys
import time
import types
import typing
import weakref
import zipfile
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

import data
import rewards
import score
from model import GPT, GPTConfig, common_start, frequencies, round_layers
from pretrained.weights import copy_companions, read_json, read_shape


@dataclass(frozen=True)
class Stage:
    """One stage of training: where it is kept, what it maximises, and settings of its own."""

    number: int  # enters the seeds, so that stages meet problems of their own
    folder: str
    title: str
    returns: score.Returns | None  # None: the base model, which learns from transcripts
    own: dict  # in place of the defaults of Run and score.Config
    posed: dict  # in their place for arithmetic that is posed to an open model


# Of posed arithmetic, in all stages. The KL of an answer is a sum over its few tokens, so it weighs
# more here than in the paper.
POSED = {"transcripts": 32, "problems": 8, "beta2": 2.0, "eval_problems": 500}
STAGES = (
    Stage(0, "base", "base", None, {"steps": 3000, "lr": 4e-3}, POSED | {"steps": 100, "lr": 1e-4}),
    Stage(1, "stage1", "Stage I", score.stage1_returns, {"steps": 400, "lr": 4e-3},
          POSED | {"steps": 30, "lr": 2e-5, "warmup": 5, "beta1": 0.01}),
    Stage(2, "stage2", "Stage II", score.stage2_returns, {"steps": 400, "lr": 1e-3},
          POSED | {"steps": 40, "lr": 5e-6, "warmup": 5, "beta1": 0.1}),
)  # fmt: skip
# Of other data. Long texts take gigabytes: a backward pass sees one problem, and the few problems
# that are longer than all others are left out.
LONG = {"micro": 1, "context": 2048}
# The paper's settings; it gives the steps of both stages together, halved here.
PAPER = {
    "math": LONG | {"steps": 1500, "lr": 5e-6, "beta1": 0.01, "beta2": 0.1},
    "humaneval": LONG | {"steps": 750, "lr": 1e-5, "beta1": 0.01, "beta2": 0.25},
}


@dataclass(frozen=True)
class Run:
    """The settings of a run beside the algorithm's own (score.Config)."""

    # data
    data: str = "arithmetic"  # where problems come from: arithmetic, math, humaneval
    task: str = "puzzle"  # family of arithmetic: puzzle, addition, multiplication
    difficulty: int | None = None  # of the family's problems; puzzle 6, the others 3 if not given
    shots: int = 2  # solved examples before a problem of arithmetic that is posed to an open model
    data_dir: str | None = None  # folder of MATH or of HumanEval and MBPP; data/NAME if not given
    limit: int | None = None  # most problems of a split; all if not given
    levels: str | None = None  # of MATH: 1-3, or 1,5; all if not given
    subjects: str | None = None  # of MATH: algebra,number_theory; all if not given
    unsafe_sandbox: bool = False  # run programs even where they cannot be confined
    # model
    init: str | None = None  # folder of an open model, the base; math and humaneval need one
    layout: str = "auto"  # of prompts: chatml, llama3, plain; auto goes by the model's tokenizer
    max_new_tokens: int | None = None  # of an open model's attempt; its task's own if not given
    context: int | None = None  # most tokens of problem and attempts; the model's if not given
    layers: int = 3  # of a base model of our own
    heads: int = 4  # of a base model of our own
    width: int = 32  # of a base model of our own
    device: str = "auto"  # auto takes cuda, then mps, then cpu
    dtype: str = "float32"  # float32, or bfloat16 for the forward passes (autocast)
    recompute: bool = False  # the activations, in a backward pass: slower, in a tenth of the memory
    shard: bool = False  # of several processes (torchrun) each keeps a part of Adam's state
    # stage
    seed: int = 0  # of the initial weights and of everything drawn
    steps: int | None = None  # of the last stage
    lr: float | None = None  # peak learning rate of the last stage
    warmup: int = 20  # steps until the peak; from there linearly down to 0 at the end
    transcripts: int = 256  # a step of stage 0
    # evaluation
    attempts: int = 2  # of an evaluation; training makes two
    split: str = "test"  # held-out problems of the evaluation: test, or val for development
    eval_problems: int | None = None  # of the evaluation; 2000 of arithmetic, all of other data
    eval_batch: int = 512  # problems answered at a time in the evaluation
    # output
    out: str = "out"  # folder for all that is written

    def __post_init__(self):
        for name in ("layers", "heads", "width", "transcripts", "eval_problems", "eval_batch"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= score.MOST:
                raise ValueError(f"{name} must be between 1 and {score.MOST}: {value}")
        for name in ("steps", "lr", "limit", "max_new_tokens", "context"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and positive: {value}")
        for name, known in (
            ("data", ["arithmetic", *data.OPEN]),
            ("task", list(data.FAMILIES)),
            ("dtype", ["float32", "bfloat16"]),
            ("split", ["val", "test"]),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}: {getattr(self, name)}")
        if not 2 <= self.attempts <= score.MOST or not 0 <= self.shots <= score.MOST:
            raise ValueError(f"attempts must be from 2 to {score.MOST}, shots from 0")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative: {self.warmup}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1: {self.seed}")


# ---------------------------------------------------------------------------------------------
# Settings

# Flags of an open model, of problems from files, of arithmetic, and of a base model of our own.
OPEN_FLAGS = ("init", "layout", "max_new_tokens", "context", "shots")
FILE_FLAGS = ("data_dir", "limit", "levels", "subjects")
ARITHMETIC_FLAGS = ("task", "difficulty")
OWN_FLAGS = ("layers", "heads", "width")
# What the stages of a run have in common: a later one takes it from an earlier one's folder.
SHARED = {"data", "seed", "layers", "heads", "width"}
SHARED |= {*OPEN_FLAGS, *FILE_FLAGS, *ARITHMETIC_FLAGS}
# What the commands beside --stage have a use for.
ASK = {"data", *OPEN_FLAGS, *FILE_FLAGS, *ARITHMETIC_FLAGS, "seed", "device", "dtype", "attempts"}
ASK |= {"temperature", "unsafe_sandbox"}
USED = {"ask": ASK, "eval": ASK | {"split", "eval_problems", "eval_batch"}, "export": set()}
# What may differ where a stage goes on or is evaluated: nothing that it learns depends on it.
FREE = {"out", "device", "attempts", "split", "eval_problems", "eval_batch"}
FREE |= {"unsafe_sandbox", "micro", "recompute", "shard"}


def resolve(stage: Stage, known: dict) -> tuple[Run, score.Config]:
    """A stage's settings: defaults ← its own, or the paper's for other data than arithmetic ← those
    known, from the command line or of a folder. Raises ValueError for an impossible value."""
    known = {name: value for name, value in known.items() if value is not None}
    try:
        kind = known.get("data", Run.data)
        posed = kind == "arithmetic" and "init" in known
        files = {} if kind == "arithmetic" else PAPER.get(kind, PAPER["math"])
        own = stage.own | (stage.posed if posed else files)
        run = Run(**pick(own | known, names(Run)))
        if run.data == "arithmetic" and run.difficulty is None:
            run = replace(run, difficulty=data.FAMILIES[run.task].default)
        return run, score.Config(**pick(own | known, names(score.Config)))
    except TypeError as error:  # of a damaged folder: argparse gives the right types
        raise ValueError(one_line(error)) from None


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def pick(settings: dict, wanted: Set[str]) -> dict:
    return {name: value for name, value in settings.items() if name in wanted}


def agree(folder: Path, saved: dict, wanted: dict) -> None:
    """Raises ValueError where a folder was made with another setting than the one wanted."""
    for name, value in pick(wanted, saved.keys()).items():
        if saved[name] != value:
            raise ValueError(
                f"{folder} was made with {name} {saved[name]}, not {value}; choose another folder"
            )


@dataclass(frozen=True)
class Job:
    """One stage of a run: its settings, its folder, and what an earlier run has left there."""

    stage: Stage
    run: Run
    cfg: score.Config
    folder: Path
    saved: dict | None  # the settings in its state.pt, if there is one
    step: int  # of that state
    last: bool = False  # of those that are asked for

    @property
    def finished(self) -> bool:
        return self.saved is not None and self.step >= self.saved["steps"]

    @property
    def is_init(self) -> bool:
        """The stage is the open model of --init itself: nothing is trained or kept here. With
        arithmetic, --stage 0 warms it up."""
        trained = (self.folder / "model.pt").exists()
        warms = self.last and self.run.data == "arithmetic"
        return self.stage.number == 0 and self.run.init is not None and not (trained or warms)

    def settings(self) -> dict:
        """What a resumed or reused stage must agree on."""
        every = asdict(self.run) | asdict(self.cfg) | {"stage": self.stage.number}
        return pick(every, every.keys() - FREE)


def plan(given: dict, last: int) -> list[Job]:
    """The stages up to the last. A setting is what was given, or else what the stage's own folder
    says, or else what an earlier stage's says, if stages share it, or else the stage's default.
    --steps and --lr are the last stage's alone. A stage that is to be trained must agree with its
    folder; one that is only used, in what stages share."""
    asked = Run(**pick(given, {"data", "task", "out"}))
    check_belong(given, asked.data)
    out = Path(asked.out) / (asked.task if asked.data == "arithmetic" else asked.data)
    folders = [out / stage.folder for stage in STAGES[: last + 1]]
    found = [read_settings(folder) for folder in folders]
    shared = pick(given, SHARED)
    for folder, (saved, _) in zip(folders, found):
        if saved is not None:
            agree(folder, saved, shared)
            shared |= pick(saved, SHARED)
    jobs = []
    for stage, folder, (saved, step) in zip(STAGES, folders, found):
        agree(folder, saved or {}, {"stage": stage.number})
        wanted = given if stage.number == last else pick(given, given.keys() - {"steps", "lr"})
        run, cfg = resolve(stage, shared | (saved or {}) | wanted)
        job = Job(stage, run, cfg, folder, saved, step, last=stage.number == last)
        if not job.finished or stage.number == last:
            agree(folder, saved or {}, wanted)
        jobs.append(job)
    for name in OWN_FLAGS if jobs[0].run.init is not None else OPEN_FLAGS:
        if name in given:
            kind = "an open model" if name in OWN_FLAGS else "a model of our own: add --init"
            raise ValueError(f"{flag(name)} is not a setting of {kind}")
    filed = asked.data != "arithmetic"  # problems from files, of which there are no transcripts
    if filed and (folders[0] / "model.pt").exists():
        raise ValueError(f"{folders[0]}/model.pt is in the way: --init is the base of this run")
    return jobs


def job_of(folder: Path, given: dict) -> Job:
    """The stage that a folder holds, as it was trained. What only chooses the problems that it is
    evaluated on may be given anew."""
    saved, step = read_settings(folder)
    known, results = saved or {}, folder / "results.json"
    if saved is None and results.exists():  # of an open model, or a stage whose state is gone
        known = read_json(results).get("config")
        if not isinstance(known, dict):
            raise ValueError(f"{results} is not of this program: no config")
        known = checked(results, pick(known, known.keys() - FREE))
    agree(folder, known, pick(given, {"data", "task", "difficulty"}))
    by_number = {stage.number: stage for stage in STAGES}
    by_folder = {stage.folder: stage for stage in STAGES}
    stage = by_number.get(known.get("stage")) or by_folder.get(folder.name, STAGES[0])
    return Job(stage, *resolve(stage, known | given), folder, saved, step)


def checked(path: Path, settings: dict) -> dict:
    """Settings that were read from a file. Raises ValueError, naming it, for an impossible one."""
    try:
        resolve(STAGES[0], settings)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(settings.get("stage", 0), int):
        raise ValueError(f"{path}: stage must be a number: {settings['stage']}")
    return settings


# ---------------------------------------------------------------------------------------------
# Checkpoints and logs

BEFORE = "state.before.pt"  # what state.pt was until the last save


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises ValueError while another process trains in this folder. The system lifts the lock of a
    process when it ends, however it ends."""
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"process {file.read()} is training in {folder}; choose another --out"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def write_atomically(path: Path, write) -> None:
    """A file is whole or absent: a kill in the middle leaves the old one; so does a full disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter where a write fails
        free = shutil.disk_usage(path.parent).free >> 20
        partial.unlink(missing_ok=True)
        raise ValueError(f"cannot write {path}: {one_line(error)}; {free} MiB are free") from None


def one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:500]


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def read_pt(path: Path, keys: Set[str], mmap: bool = False) -> dict:
    """A dictionary that this program saved; with mmap its tensors stay on the disk until they are
    used. Raises ValueError, in one line, for anything else. Unpickles no code."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        check_sums(path, "data.pkl" if mmap else "")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch raises nearly anything for bytes that it did not write
        reason = one_line(error)
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason})") from None
    if not isinstance(content, dict) or not keys <= content.keys():
        names = ", ".join(sorted(keys))
        raise ValueError(f"{path} is not a checkpoint of this program: no {names}")
    return content


def check_sums(path: Path, ending: str) -> None:
    """Raises BadZipFile where the parts of a checkpoint whose names end so are not the bytes that
    were written: torch.load itself does not look at the sums that torch.save leaves."""
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(ending):
                with file.open(name) as part:
                    while part.read(1 << 20):
                        pass  # the sum is compared at the end


def read_state(folder: Path, mmap: bool = False) -> dict | None:
    """A folder's state.pt, or the one before where that is damaged, or None if it has none. Without
    mmap the one before takes the damaged one's place, or the next save would keep the wrong one."""
    path, before = folder / "state.pt", folder / BEFORE
    if not path.exists():
        return None
    try:
        return read_pt(path, {"settings", "step"}, mmap)
    except ValueError as error:
        if not before.exists():
            raise
        state = read_pt(before, {"settings", "step"}, mmap)
        if not mmap:
            os.replace(before, path)
            say(f"{one_line(error)}: going back to the state of step {state['step']}")
        return state


def read_settings(folder: Path) -> tuple[dict | None, int]:
    """The settings in a folder's state.pt, None if it has none, and the step that it is at."""
    state = read_state(folder, mmap=True)
    if state is None:
        return None, 0
    saved, step = state["settings"], state["step"]
    whole = isinstance(saved, dict) and isinstance(saved.get("steps"), int)
    if not whole or not isinstance(step, int) or step < 0:
        raise ValueError(f"{folder / 'state.pt'} does not say which of how many steps it holds")
    return checked(folder / "state.pt", saved), step


def load_model(folder: Path, task: data.Task | None, device: torch.device) -> GPT:
    """The model of a stage's folder. Raises ValueError if it is missing, broken or for another
    vocabulary than that of the task, if one is given."""
    path = folder / "model.pt"
    content = read_pt(path, {"config", "model"})
    try:
        model = GPT(GPTConfig(**content["config"]))
        model.load_state_dict(content["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is not a model of this program ({one_line(error)})") from None
    check_model(path, model, task)
    return model.to(device)


def check_model(path: Path, model: GPT, task: data.Task | None) -> None:
    """Raises ValueError for weights that are not finite, or a vocabulary that is not the task's.
    Open models may have rows to spare beyond their tokenizer's."""
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise ValueError(f"{path} has weights that are not finite")
    if task is None:
        return
    has, needs = model.config.vocab_size, task.encoding.n_vocab
    if has < needs or (has > needs and not isinstance(task, data.TextTask)):
        raise ValueError(
            f"{path} has a vocabulary of {has}, but {task.name} needs {needs}; was it trained on "
            "another task?"
        )


def stage_model(job: Job, task: data.Task, device: torch.device) -> GPT:
    """What a stage has left: the best model by training reward, or the open model for the base."""
    if job.is_init:
        model = GPT.from_pretrained(job.run.init, device=device)
        check_model(Path(job.run.init), model, task)
        return model
    return load_model(job.folder, task, device)


def new_model(job: Job, task: data.Task, device: torch.device) -> GPT:
    """What the base model is before its training."""
    if job.run.init is not None:
        return stage_model(replace(job, last=False), task, device)
    torch.manual_seed(job.run.seed)
    return GPT(new_config(job.run, task)).to(device)


def new_config(run: Run, task: data.Task) -> GPTConfig:
    shape = {name: getattr(run, name) for name in ("layers", "heads", "width")}
    return GPTConfig(vocab_size=task.encoding.n_vocab, **shape)


def frozen(model: GPT, dtype: torch.dtype = torch.float32) -> GPT:
    """A reference: it is given no gradient and nothing updates it. What autocast would round to
    this dtype at every step is kept in it."""
    if dtype != torch.float32:
        round_layers(model, dtype)
    return model.requires_grad_(False).eval()


class Log:
    """metrics.jsonl, one object a step. On resuming, lines after the saved step are dropped: those
    steps are run again."""

    def __init__(self, path: Path, step: int):
        kept = path.read_bytes().splitlines(keepends=True)[:step] if step and path.exists() else []
        try:
            steps = [json.loads(line)["step"] for line in kept]
        except (ValueError, KeyError, TypeError):
            steps = None
        if steps != list(range(1, step + 1)):
            raise ValueError(f"{path} is not the log of the {step} steps that were saved")
        write_atomically(path, lambda p: p.write_bytes(b"".join(kept)))
        self.file = path.open("a")

    def add(self, metrics: dict) -> None:
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()


class Alarms:
    """What is likely wrong in a stage, said once each, from the metrics of its steps: means over
    the last MOST of them, or over a quarter of a short stage, but no less than LEAST."""

    LEAST, MOST = 10, 50

    def __init__(self, steps: int):
        self.window = min(self.MOST, max(self.LEAST, steps // 4))
        self.halfway = max(steps // 2, 2 * self.window)
        self.rows: list[dict] = []
        self.rung: set[str] = set()

    def look(self, metrics: dict) -> list[str]:
        """The alarms that the next step's metrics set off."""
        self.rows.append(metrics)
        if metrics["reward"] is None or len(self.rows) < self.window:
            return []
        new = {name: text for name, text in self.ringing() if name not in self.rung}
        self.rung |= new.keys()
        where = f"steps {len(self.rows) - self.window + 1} to {len(self.rows)}"
        return [f"alarm, {where}: {text}" for text in new.values()]

    def ringing(self) -> Iterator[tuple[str, str]]:
        recent = self.rows[-self.window :]

        def mean(name: str, rows: list[dict] = recent) -> float:
            return sum(row.get(name, 0.0) for row in rows) / len(rows)

        if mean("changed") < 0.01:
            yield "changed", f"second attempts change {100 * mean('changed'):.1f} % of answers"
        if mean("truncated") > 0.1:
            yield "truncated", f"the length limit cuts {100 * mean('truncated'):.0f} % of attempts"
        if mean("tied") > 0.99:  # a base that copies begins at .96, and learns
            tied = f"{100 * mean('tied'):.0f} % of the groups of second attempts"
            yield "tied", f"{tied} have one reward and teach nothing"
        for name in ("kl_1", "kl_2"):
            if mean(name) > 20:
                yield name, f"{name} has gone to {mean(name):.1f} nats an attempt"
        if len(self.rows) >= self.halfway:
            first = self.rows[: self.window]
            gain = mean("reward") - mean("reward", first)
            if gain <= 0:
                yield "reward", f"the reward is {mean('reward'):.3f}, {gain:+.3f} from the start"


class Best:
    """The highest training reward, averaged over the last WINDOW steps (a single step's is too
    noisy to choose by) and looked at every EVERY steps and after the last one."""

    WINDOW, EVERY = 50, 10

    def __init__(self):
        self.recent: list[float] = []
        self.reward = -math.inf  # until a first look

    def add(self, step: int, steps: int, reward: float) -> bool:
        """Whether the weights after this step are the best so far."""
        self.recent = (self.recent + [reward])[-self.WINDOW :]
        mean = sum(self.recent) / len(self.recent)
        looked_at = step == steps or (step % self.EVERY == 0 and step >= self.WINDOW)
        if not looked_at or mean <= self.reward:
            return False
        self.reward = mean
        return True

    def restore(self, saved: dict) -> None:
        """Goes on from vars() of another. Raises ValueError for what cannot be that."""
        self.recent = [float(reward) for reward in saved["recent"]]
        self.reward = float(saved["reward"])
        if not all(map(math.isfinite, self.recent)) or math.isnan(self.reward):
            raise ValueError("the training rewards are not finite")


# ---------------------------------------------------------------------------------------------
# Training


# What a step of base training has no figures for.
REWARDED = (
    "reward",
    "acc_t1",
    "acc_t2",
    "delta",
    "fixed",
    "broken",
    "entropy",
    "kl_1",
    "kl_2",
    "changed",
    "truncated",
    "tied",
)


def base_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    task: data.Task,
    transcripts: list[tuple[str, str, str]],
    clip: float,
    both: bool = True,
) -> dict:
    """Cross-entropy on both attempts' tokens, eos included, laid out as in a rollout; or on the
    second's alone."""
    prompts = [task.prompt(data.Problem(prompt)) for prompt, _, _ in transcripts]
    start = common_start(prompts)  # read once for all, as in a rollout
    rows, weights = [], []
    for x, (_, *attempts) in zip(prompts, transcripts):
        x = x[len(start) :]
        y1, y2 = (task.encode(text) + [task.eos] for text in attempts)
        rows.append(x + y1 + task.revise + y2)
        weights.append([0] * len(x) + [both] * len(y1) + [0] * len(task.revise) + [1] * len(y2))
    T = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=model.device)
    scored = torch.tensor([w + [0] * (T - len(w)) for w in weights], device=model.device).bool()
    start = torch.tensor(start, dtype=torch.int64, device=model.device)
    # Padding on the right is after everything that is scored, so no mask is needed to hide it.
    hidden = model.hidden(tokens[:, :-1], start=start)  # (B, T − 1, C)
    loss = F.cross_entropy(model.logits(hidden[scored[:, 1:]]), tokens[scored])
    count = scored.sum().float()
    loss = loss * (count / score.averaged(count.clone()))  # so that processes weigh by their tokens
    optimizer.zero_grad()
    loss.backward()
    norm = score.clipped_step(model, optimizer, clip)
    return {"loss": loss.item(), "grad_norm": norm, "tokens": int(count)}


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Of step 1 … steps: linearly up over `warmup` steps, then down to 0 just after the last."""
    return peak * min(step / (warmup + 1), (steps - step + 1) / max(1, steps - warmup), 1.0)


class Trainer:
    """One stage in progress: everything that changes from step to step, and how it is kept."""

    def __init__(self, job: Job, task: data.Task, policy: GPT, ref: GPT | None):
        self.job, self.task, self.policy, self.ref = job, task, policy, ref
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.best = Best()
        adam = {"lr": job.run.lr, "betas": (0.9, 0.99), "fused": True}
        self.optimizer = torch.optim.Adam(policy.parameters(), **adam)
        self.groups = self.optimizer.state_dict()["param_groups"]
        self.sharded = job.run.shard and score.process()[1] > 1
        if self.sharded:
            from torch.distributed.optim import ZeroRedundancyOptimizer  # costly to import

            self.optimizer = ZeroRedundancyOptimizer(policy.parameters(), torch.optim.Adam, **adam)

    def save(self) -> None:
        """Writes the stage's folder; every process must call it, and the first one writes."""
        if self.sharded:
            self.optimizer.consolidate_state_dict(to=0)
        if not is_first():
            return
        if self.best.reward == -math.inf:
            self.save_model()
        state = {
            "settings": self.job.settings(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }
        path, before = self.job.folder / "state.pt", self.job.folder / BEFORE
        if self.step == self.job.run.steps:  # nothing goes on from here
            write_atomically(path, lambda p: torch.save(state, p))
            return before.unlink(missing_ok=True)
        state["model"] = self.policy.state_dict()
        state["optimizer"], state["best"] = self.optimizer.state_dict(), vars(self.best)
        if path.exists():
            before.unlink(missing_ok=True)
            try:
                os.link(path, before)
            except OSError:  # not every file system has links
                shutil.copyfile(path, before)
        write_atomically(path, lambda p: torch.save(state, p))

    def save_model(self) -> None:
        if is_first():
            content = {"config": asdict(self.policy.config), "model": self.policy.state_dict()}
            path = self.job.folder / "model.pt"
            write_atomically(path, lambda p: torch.save(content, p))

    def restore(self) -> None:
        """Goes on from what `save` has left in the folder. Raises ValueError if that is not of this
        stage."""
        state = read_state(self.job.folder)
        try:
            agree(self.job.folder, state["settings"], self.job.settings())
            self.step = state["step"]
            self.samples, self.seconds = int(state["samples"]), float(state["seconds"])
            self.policy.load_state_dict(state["model"])
            moments = state["optimizer"]["state"].values()  # none before the first step
            for weight, moment in zip(self.policy.parameters(), moments):
                if moment["exp_avg"].shape != weight.shape:  # the fused Adam would read beyond it
                    raise ValueError("the optimizer's moments have other shapes")
            state["optimizer"]["param_groups"] = self.groups  # never the file's
            self.optimizer.load_state_dict(state["optimizer"])
            self.best.restore(state["best"])
            # The best model so far, or one from steps that will be made again.
            read_pt(self.job.folder / "model.pt", {"config", "model"}, mmap=True)
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            path = self.job.folder / "state.pt"
            raise ValueError(f"{path} does not fit its stage ({one_line(error)})") from None

    def advance(self) -> dict:
        """One step. Everything random in it is a function of (seed, stage, step)."""
        run = self.job.run
        self.step += 1
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, run.steps, run.warmup, run.lr)
        seed = run.seed * 1_000_003 + self.job.stage.number
        metrics = self.learn(seed)
        self.samples += metrics.get("samples", 0)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds
        return {"step": self.step, "stage": self.job.stage.number, "seconds": seconds} | metrics

    def learn(self, seed: int) -> dict:
        """One update of the policy, on problems by the stage's seed and the step, of which each
        process takes its share."""
        run, cfg, stage = self.job.run, self.job.cfg, self.job.stage
        rank, processes = score.process()
        if stage.returns is None:
            progress = self.step / run.steps
            rows = self.task.transcripts(seed, self.step, run.transcripts, progress)
            own = rows[rank::processes]
            metrics = base_step(self.policy, self.optimizer, self.task, own, cfg.clip)
            return dict.fromkeys(REWARDED) | together(metrics, self.policy.device)
        metrics = score.train_step(
            self.policy,
            self.ref,
            self.optimizer,
            self.task,
            self.task.batch(seed, self.step, cfg.problems)[rank::processes],
            stage.returns,
            cfg,
            seed * 1_000_003 + self.step,
        )
        metrics = together(metrics, self.policy.device)
        if self.best.add(self.step, run.steps, metrics["reward"]):
            self.save_model()
        return metrics


def together(metrics: dict, device: torch.device) -> dict:
    """Means over all processes, or sums of what is counted."""
    _, processes = score.process()
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    metrics = dict(zip(metrics, score.averaged(values).tolist()))
    counted = {
        name: round(processes * metrics[name]) for name in ("tokens", "samples") & metrics.keys()
    }
    return metrics | counted


class Report:
    """What the first process shows and logs of a stage's steps; the others say nothing."""

    def __init__(self, trainer: Trainer):
        stage, run, folder = trainer.job.stage, trainer.job.run, trainer.job.folder
        self.silent = not is_first()
        self.bar = tqdm(
            total=run.steps,
            initial=trainer.step,
            desc=stage.title,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 30,
            dynamic_ncols=True,
            disable=self.silent,
        )
        if not self.silent:
            self.log, self.alarms = Log(folder / "metrics.jsonl", trainer.step), Alarms(run.steps)
            for metrics in read_log(folder):
                self.alarms.look(metrics)  # what rang before this run was stopped

    def add(self, metrics: dict) -> None:
        if self.silent:
            return
        self.log.add(metrics)
        for text in self.alarms.look(metrics):
            self.bar.write(text, file=sys.stderr)
        self.bar.set_postfix_str(progress(metrics), refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        if not self.silent:
            self.log.file.close()


SAVE_EVERY = 60.0  # s, or as much longer as keeps saving under SAVE_SHARE of the run's time
SAVE_SHARE = 0.02


def train(trainer: Trainer, precision) -> None:
    """Runs a stage to its end, or until Ctrl-C, which is honoured between two steps so that what is
    saved is never half an update. Raises KeyboardInterrupt after saving."""
    interrupted: list[int] = []

    def note(signum, frame):
        if interrupted:
            raise SystemExit(130)  # asked twice: stop at once, the last save stands
        interrupted.append(signum)

    old = {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    shown, stop = Report(trainer), False
    saved, took = time.monotonic(), 0.0  # when the last save ended, and its seconds
    try:
        with precision:
            while trainer.step < trainer.job.run.steps and not stop:
                shown.add(finite_step(trainer))
                started = time.monotonic()
                due = started - saved >= max(SAVE_EVERY, took / SAVE_SHARE)
                stop, due = any_process([bool(interrupted), due], trainer.policy.device)
                if due:
                    trainer.save()
                    saved = time.monotonic()
                    took = saved - started
            trainer.save()
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)
        shown.close()
    if stop or interrupted:  # a stop may have come with the last step, or in its save
        raise KeyboardInterrupt


def any_process(flags: list[bool], device: torch.device) -> list[bool]:
    """Whether each is true in any process: what one of them does, all must do at the same step."""
    return (score.averaged(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()


def finite_step(trainer: Trainer) -> dict:
    """One step. Raises ValueError where it has diverged, and RuntimeError, so that the traceback is
    shown, for a ValueError that is not the user's doing."""
    title = trainer.job.stage.title
    try:
        return trainer.advance()
    except FloatingPointError as error:
        raise ValueError(
            f"{title} diverged at step {trainer.step}: {error}; try a lower --lr"
        ) from None
    except ValueError as error:
        raise RuntimeError(f"{title} failed at step {trainer.step}") from error


def progress(metrics: dict) -> str:
    if metrics["reward"] is None:
        return f"loss {metrics['loss']:.3f}"
    return (
        f"reward {metrics['reward']:.3f} t1 {metrics['acc_t1']:.3f} t2 {metrics['acc_t2']:.3f} "
        f"Δ {metrics['delta']:+.3f} KL {metrics['kl_1']:.2f}/{metrics['kl_2']:.2f}"
    )


def read_log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def alarms(folder: Path) -> list[str]:
    """All that rang in a stage, if it was trained here and its log is left."""
    saved, _ = read_settings(folder)
    if saved is None or not (folder / "metrics.jsonl").exists():
        return []
    heard = Alarms(saved["steps"])
    return [text for row in read_log(folder) for text in heard.look(row)]


def cost(trainer: Trainer) -> str:
    """What the stage's steps cost, from its own log."""
    rows = read_log(trainer.job.folder)

    def mean(name: str) -> float:
        return sum(row[name] for row in rows) / len(rows)

    parts = ""
    if "rollout_seconds" in rows[0]:
        parts = f" (rollouts {mean('rollout_seconds'):.3f}, update {mean('update_seconds'):.3f})"
    if torch.cuda.is_available() and trainer.policy.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return (
        f"{trainer.job.stage.title}: {trainer.seconds:.0f} s for {trainer.step} steps, "
        f"{mean('seconds'):.3f} s a step{parts}, {mean('tokens_per_second'):,.0f} tokens/s, "
        f"peak memory {peak:,.0f} MiB"
    )


# ---------------------------------------------------------------------------------------------
# Evaluation and reports


def evaluate(
    job: Job, task: data.Task, device: torch.device, temperature: float = 0.0
) -> score.Evaluation:
    """Evaluates what a stage has left on held-out problems, as its run says, and writes the
    folder's results.json; its state, if there is one, says what training cost."""
    run, folder, state = job.run, job.folder, read_state(job.folder, mmap=True) or {}
    problems = task.held_out(run.split, run.eval_problems)
    model = stage_model(job, task, device)
    with precision(run, device):
        result = score.evaluate(
            model,
            task,
            problems,
            attempts=run.attempts,
            temperature=temperature,
            seed=run.seed,
            batch=run.eval_batch,
        )
        diagnosis = score.diagnose(model, task, problems, seed=run.seed, batch=run.eval_batch)
    content = {
        "data": run.data,
        "task": task.name,
        "stage": job.stage.number,
        "split": run.split,
        "n": len(problems),
        "skipped": task.skipped.get(run.split, 0),  # problems that do not fit the context
        "seed": run.seed,
        "temperature": temperature,
        **result.metrics,
        "diagnosis": diagnosis,
        "seconds": state.get("seconds"),  # of the training, as the next two
        "steps": state.get("step"),
        "samples": state.get("samples"),
        "config": state.get("settings", job.settings()),
        "command": shlex.join(["python"] + sys.argv),
    }
    write_json(folder / "results.json", content)
    for path in folder.glob("samples_t*.jsonl"):
        path.unlink()  # of another evaluation, with more attempts perhaps
    for number, (responses, ended) in enumerate(zip(result.responses, result.ended), 1):
        # A cut attempt is wrong here whatever it says, and so it shall be elsewhere.
        said = [text if whole else "" for text, whole in zip(responses, ended.tolist())]
        samples = task.samples(problems, said)
        if samples:
            write_samples(folder / f"samples_t{number}.jsonl", samples)
    return result


def write_samples(path: Path, samples: list[dict]) -> None:
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    write_atomically(path, lambda p: p.write_text(text))


def table(folders: list[tuple[str, Path]]) -> str:
    """The results of several stages in per cent, ± one standard error."""
    names = ("acc_t1", "acc_t2", "delta", "fixed", "broken", "changed")
    titles = ("acc@t1", "acc@t2", "Δ(t1,t2)", "Δ i→c", "Δ c→i", "changed")
    lines = ["".join([f"{'':10}"] + [f"{title:>14}" for title in titles])]
    for title, folder in folders:
        results = json.loads((folder / "results.json").read_text())
        cells = [f"{100 * results[n]:.1f} ± {100 * results['se'][n]:.1f}" for n in names]
        lines.append("".join([f"{title:10}"] + [f"{cell:>14}" for cell in cells]))
    return "\n".join(lines)


def diagnoses(folders: list[tuple[str, Path]]) -> str:
    """What `score.diagnose` found of several stages, and what it means."""
    lines = ["".join([f"{'':10}"] + [f"{name:>9}" for name in ("p", "f", "b", "f/b", "p/(1−p)")])]
    for title, folder in folders:
        found = json.loads((folder / "results.json").read_text())["diagnosis"]
        numbers = [found[name] for name in ("p", "f", "b", "ratio", "odds")]
        cells = ["–" if number is None else f"{number:.3f}" for number in numbers]
        lines.append("".join([f"{title:10}"] + [f"{cell:>9}" for cell in cells]))
        lines[-1] += f"   plain reward on attempt 2 {leaning(found)}"
    return "\n".join(lines)


def leaning(diagnosis: dict) -> str:
    """What plain reward on attempt 2 would first learn; nothing is said within two standard errors
    of what editing gains over copying."""
    p, n = diagnosis["p"], diagnosis["n"]
    fixed, broken = (1 - p) * (diagnosis["f"] or 0.0), p * (diagnosis["b"] or 0.0)
    gain = fixed - broken
    if abs(gain) <= 2 * math.sqrt((fixed + broken - gain**2) / n):
        return "would find copying about as good as editing"
    return f"would learn to {'edit' if gain > 0 else 'copy'}"


def dialogue(result: score.Evaluation, task: data.Task, colour: bool) -> str:
    """The attempts at one problem with the verifier's verdicts. What an attempt does not have from
    the one before is reversed on a terminal, and has carets below it elsewhere."""
    parts, before = [("problem", result.problems[0].prompt)], None
    for number, [response] in enumerate(result.responses, 1):
        response = printable(response)
        pieces = [(response, False)] if before is None else changes(before, response)
        verdict = "right" if result.rewards[number - 1] else "wrong"
        verdict += "" if result.ended[number - 1] else ", cut by the length limit"
        parts += [(f"attempt {number}", marked(pieces, colour)), ("", verdict)]
        if number < len(result.responses):
            parts.append(("", task.instruction))
        before = response
    return "\n".join(f"{name:11}" + text.replace("\n", "\n" + " " * 11) for name, text in parts)


def printable(text: str) -> str:
    """Without what would steer a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def changes(before: str, after: str) -> list[tuple[str, bool]]:
    """`after` in pieces, and whether each of them is new, by words and signs."""
    old, new = (re.findall(r"\w+|\W", text) for text in (before, after))
    return [("".join(new[there]), not same) for same, _, there in compared(old, new) if new[there]]


def compared(old: list, new: list) -> Iterator[tuple[bool, slice, slice]]:
    """Both lists in parts that are the same in both or not; place by place where they are of one
    length, as attempts at an arithmetic problem are."""
    if len(old) == len(new):
        places = itertools.groupby(range(len(old)), lambda n: old[n] == new[n])
        for same, run in ((same, list(run)) for same, run in places):
            yield same, *[slice(run[0], run[-1] + 1)] * 2
        return
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        yield kind == "equal", slice(i, j), slice(k, m)


def marked(pieces: list[tuple[str, bool]], colour: bool) -> str:
    """The pieces as one text, the new ones marked."""
    if colour:
        return "".join(f"\033[7m{text}\033[27m" if new else text for text, new in pieces)
    text = "".join(text for text, _ in pieces)
    below = "".join(re.sub(r".", "^" if new else " ", text) for text, new in pieces)
    lines = zip(text.split("\n"), below.split("\n"))
    return "\n".join(line for pair in lines for line in pair if line is pair[0] or "^" in line)


def examples(result: score.Evaluation, task: data.Task) -> str:
    """One problem each that the second attempt fixed, kept right, and broke."""
    first, second = result.rewards[0], result.rewards[1]
    lines = []
    for title, chosen in (
        ("fixed", (first == 0) & (second == 1)),
        ("kept", (first == 1) & (second == 1)),
        ("broken", (first == 1) & (second == 0)),
    ):
        where = chosen.nonzero()[:, 0].tolist()
        if not where:
            lines.append(f"{title:7} (none of {len(first)})")
            continue
        x = where[0]
        said = task.decode(task.revise).join(answers[x] for answers in result.responses[:2])
        lines.append(f"{title:7} {result.problems[x].prompt}  {said}")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# What a step will need


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and remembers the most."""

    def __init__(self):
        super().__init__()
        self.bytes, self.most = 0, 0
        self.sizes: dict[int, int] = {}  # by storage

    def __torch_dispatch__(self, function, kinds, args=(), options=None):
        result = function(*args, **(options or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        name = storage._cdata
        if name not in self.sizes:
            self.sizes[name] = storage.nbytes()
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._drop, name)

    def _drop(self, name: int) -> None:
        self.bytes -= self.sizes.pop(name)


@dataclass(frozen=True)
class Plan:
    """The bytes that a step of reinforcement takes at its longest."""

    parameters: int
    kept: int  # both models, gradients, Adam's moments
    update: int  # activations of one backward pass
    rollout: int  # the cache, and the copies of the weights that decode

    @property
    def peak(self) -> int:
        """Allocators keep what a rollout has used, and an update finds little of it that fits."""
        return self.kept + self.update + self.rollout

    def table(self) -> str:
        lines = [
            ("both models, gradients, Adam", self.kept),
            ("activations of a backward pass (--micro)", self.update),
            ("cache and copies of the weights in rollouts", self.rollout),
            ("peak, beside what Python and torch take", self.peak),
        ]
        return "\n".join(f"  {name:45}{size / 2**20:>10,.0f} MiB" for name, size in lines)


def plan_step(config: GPTConfig, task: data.Task, run: Run, cfg: score.Config) -> Plan:
    """Runs the update on tensors that have shapes and no memory, laid out as rollouts would be in
    which every answer is as long as it may be."""
    K, M, T = cfg.samples, cfg.revisions, task.max_new_tokens
    prompts = [task.prompt(x) for x in task.batch(run.seed, 1, cfg.problems)]
    longest, start = max(map(len, prompts)), len(common_start(prompts))
    slots = longest + T + len(task.close) + len(task.revise)  # of the trunk
    N, S = K * (cfg.micro or cfg.problems), slots - start + M * T

    def table(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64)

    frequencies.cache_clear()  # those of real tensors, and below those of shapes
    with FakeTensorMode(), Live() as live:
        policy = GPT(config)
        policy.recompute, weights = run.recompute, live.bytes
        ref = frozen(GPT(config), getattr(torch, run.dtype))
        both = live.bytes
        packed = score.Packed(table(start), table(N, S), table(N, S).bool(), table(S),
                              table(N, T), table(M, T))  # fmt: skip
        rolled = types.SimpleNamespace(packed=packed)
        with precision(run, torch.device("cpu")):
            states = score.attempt_states(policy, rolled)
            with torch.no_grad():
                ref_states = score.attempt_states(ref, rolled)
            total = torch.zeros(())
            for hidden, ref_hidden in zip(states, ref_states):
                hidden, ref_hidden = (x.flatten(0, 1) for x in (hidden, ref_hidden))
                tokens = table(len(hidden))
                values = policy.scores(hidden, tokens, ref, ref_hidden, cfg.temperature)
                total = total + sum(value.sum() for value in values)
            total.backward()
    frequencies.cache_clear()
    rows = cfg.problems * K * M
    cache = 2 * config.layers * config.kv_heads * config.head_width * rows * (slots + T)
    return Plan(
        parameters=sum(weight.numel() for weight in policy.parameters()),
        kept=both + 3 * weights,  # gradient and two moments
        update=live.most - both - weights,
        rollout=4 * cache + (weights // 2 if run.dtype == "bfloat16" else weights),
    )


# ---------------------------------------------------------------------------------------------
# Stages


def pick_device(name: str) -> torch.device:
    if is_one_of_several() and name in ("auto", "cuda") and torch.cuda.is_available():
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:N: {name}")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name}: {one_line(error)}") from None
    device = torch.device(name)
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton and graphs run on the current one
    return device


def precision(run: Run, device: torch.device):
    """A context for forward passes in the run's dtype. Weights and optimizer stay in float32."""
    if run.dtype == "float32":
        return contextlib.nullcontext()
    # Without its cache: that would keep the first step's copies of the weights for good.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def run_stage(
    jobs: list[Job], number: int, resume: bool, task: data.Task, device: torch.device
) -> None:
    """Trains one of the stages, or goes on with it, or finds that it is there."""
    job, last = jobs[number], jobs[-1].stage
    title, folder = job.stage.title, job.folder
    if job.is_init:
        return say(f"base: using {job.run.init}")
    if job.saved is None:
        # A model without a log was put there, and one with results was finished.
        has = {path.name for path in folder.iterdir()}
        if "model.pt" in has and ("metrics.jsonl" not in has or "results.json" in has):
            return say(f"{title}: using {folder}/model.pt")
        if number < last.number:
            say(f"{last.title} needs the {title} model; {folder} has none: training it")
    elif job.finished:
        return say(f"{title}: using {folder}, finished after {job.step} steps")
    elif not resume:
        raise ValueError(
            f"{folder} holds an unfinished run (step {job.step} of {job.run.steps}): "
            "add --resume to go on with it, or choose another --out"
        )
    policy = stage_model(jobs[number - 1], task, device) if number else new_model(job, task, device)
    ref = None
    if number:
        ref = frozen(stage_model(jobs[0], task, device), getattr(torch, job.run.dtype))
    policy.recompute = job.run.recompute
    trainer = Trainer(job, task, policy, ref)
    if job.saved is not None:
        trainer.restore()
        say(f"{title}: going on after step {trainer.step} of {job.run.steps}")
    train(trainer, precision(job.run, device))
    say(cost(trainer))


def say(line: str) -> None:
    if is_first():
        print(line, flush=True)


def is_first() -> bool:
    """Of torchrun's processes, or alone."""
    return not is_one_of_several() or os.environ.get("RANK") == "0"


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins torchrun's other processes, if this is one of them."""
    if not is_one_of_several():
        yield
        return
    # Modules imported later would hold the group as a default argument. Whatever holds it keeps the
    # group's threads, which abort the process if they meet the interpreter's end.
    importlib.import_module("torch.distributed.optim")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def wait_for_others(device: torch.device) -> None:
    score.averaged(torch.zeros(1, device=device))


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------
# The command line


def add_flags(parser: argparse.ArgumentParser, config: type, group: str = "") -> None:
    """One flag a field, with its type and defaults. The help is the comment behind the field, and a
    comment on a line of its own begins a group; both are read from the class's source, so that they
    are written once."""
    comments = dict(re.findall(r"^    (\w+): .*?# (.+)$", inspect.getsource(config), re.MULTILINE))
    begins = dict(re.findall(r"^    # (\w+)\n    (\w+):", inspect.getsource(config), re.MULTILINE))
    begins = {first: title for title, first in begins.items()}
    hints, flags = typing.get_type_hints(config), parser.add_argument_group(group)
    for field in fields(config):
        if field.name in begins:
            flags = parser.add_argument_group(begins[field.name])
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        text = comments[field.name].replace("%", "%%")
        if kind is bool:
            options = {"action": "store_true", "help": text}
        else:
            options = {"type": kind, "help": text + defaults(field)}
        flags.add_argument(flag(field.name), default=argparse.SUPPRESS, **options)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def defaults(field) -> str:
    """Of a setting: one, or one a stage, and what other data has in its place."""

    def by_stage(values: list) -> str:
        alike = all(value == values[0] for value in values)
        return str(values[0]) if alike else f"{', '.join(map(str, values))} by stage"

    own = [stage.own.get(field.name, field.default) for stage in STAGES]
    posed = [stage.posed.get(field.name, value) for stage, value in zip(STAGES, own)]
    parts = [by_stage(own)] if own != [None] * len(own) else []
    parts += [f"{name} {paper[field.name]}" for name, paper in PAPER.items() if field.name in paper]
    if posed != own:
        parts.append(f"arithmetic with --init {by_stage(posed)}")
    return f" [{'; '.join(parts)}]" if parts else ""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    """What to do, and the settings that were given. Raises ValueError for an unknown flag."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_argument_group("command")
    what = commands.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", type=int, choices=range(len(STAGES)), help="train up to a stage")
    what.add_argument("--eval", metavar="DIR", help="evaluate the checkpoint in a stage's folder")
    what.add_argument("--ask", nargs="+", metavar=("DIR", "PROBLEM"), help="see it answer twice")
    what.add_argument("--export", metavar="DIR", help="write DIR/pretrained for transformers")
    commands.add_argument("--plan", action="store_true", help="say what a step of --stage takes")
    commands.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    add_flags(parser, Run)
    add_flags(parser, score.Config, "algorithm (score.Config)")
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = ["--stage", "--eval", "--ask", "--export", "--plan", "--resume"]
        known += map(flag, names(Run) | names(score.Config))
        near = difflib.get_close_matches(unknown[0].partition("=")[0], sorted(known), 1)
        raise ValueError(f"unknown: {unknown[0]}" + "".join(f"; is {n} meant?" for n in near))
    for name, value in vars(args).items():
        if value in ([], "--", ["--"]):  # what argparse makes of it, by the version of Python
            raise ValueError(f"{flag(name)}: -- is no value")
    given = vars(args).copy()
    for name in ("stage", "eval", "ask", "export", "plan", "resume"):
        del given[name]
    check_used(args, given)
    return args, given


def check_used(args: argparse.Namespace, given: dict) -> None:
    """A setting that the command has no use for is a misunderstanding, better said than ignored."""
    for command, used in USED.items():
        if getattr(args, command) is None:
            continue
        for name in given:
            if name not in used:
                raise ValueError(f"{flag(name)} is not a setting of --{command}")
        for other in ("resume", "plan"):
            if getattr(args, other):
                raise ValueError(f"--{other} is of no use to --{command}")
    for name in given:
        if args.stage == 0 and name in names(score.Config) - {"clip"}:
            raise ValueError(f"{flag(name)} is not a setting of stage 0, which learns by imitation")


def load_task(run: Run) -> data.Task:
    if run.data == "arithmetic" and run.init is None:
        return data.load(run.task, run.difficulty)
    if run.data == "humaneval":
        say(rewards.sandbox_status(run.unsafe_sandbox))
    name = run.task if run.data == "arithmetic" else run.data
    task = data.load(name, run.difficulty, source(run))
    for note in task.notes:
        say(note)
    return task


def source(run: Run) -> data.Source:
    """Where the problems and tokens of an open model's task come from."""
    if run.init is None:
        raise ValueError(f"--data {run.data} needs --init DIR, the folder of an open model")
    init = Path(run.init)
    if not init.is_dir():
        raise ValueError(f"--init {init}: no such folder")
    folder = Path(run.data_dir or f"data/{run.data}")
    for path in (path for place in (folder, init) for path in place.rglob("*")):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is no file to read from")  # a device or pipe: it may not end
    return data.Source(
        folder=folder,
        init=init,
        layout=run.layout,
        max_new_tokens=run.max_new_tokens,
        context=run.context,
        attempts=run.attempts,
        limit=run.limit,
        levels=None if run.levels is None else parse_levels(run.levels),
        subjects=None if run.subjects is None else frozenset(run.subjects.split(",")),
        shots=run.shots,
    )


def parse_levels(text: str) -> frozenset[int]:
    """ "1-3" → {1, 2, 3};  "1,5" → {1, 5}."""
    if not re.fullmatch(r"[1-5](-[1-5])?(,[1-5](-[1-5])?)*", text):
        raise ValueError(f"levels must be like 1-3 or 1,5, between 1 and 5: {text}")
    ranges = [(int(part[0]), int(part[-1])) for part in text.split(",")]
    for low, high in ranges:
        if low > high:
            raise ValueError(f"levels {text}: {low} to {high} are none")
    return frozenset(n for low, high in ranges for n in range(low, high + 1))


def check_belong(given: dict, kind: str) -> None:
    """A flag that the data has no use for is a misunderstanding, better said than ignored."""
    foreign = FILE_FLAGS if kind == "arithmetic" else (*ARITHMETIC_FLAGS, "shots")
    if kind == "humaneval":
        foreign += ("levels", "subjects")
    for name in foreign:
        if name in given:
            raise ValueError(f"{flag(name)} is not a setting of --data {kind}")


def check_evaluation(run: Run, task: data.Task) -> None:
    """Better before hours of training than after them."""
    problems = task.held_out(run.split, run.eval_problems)
    if run.init is not None:
        return  # its task has left out what does not fit
    longest = max(len(task.prompt(problem)) for problem in problems)
    needed, context = longest + task.room(run.attempts), GPTConfig.context
    if needed > context:
        raise ValueError(
            f"attempts {run.attempts} take {needed} tokens, more than the context of {context}"
        )


def train_command(given: dict, last: int, resume: bool) -> None:
    jobs = plan(given, last)
    run = jobs[-1].run
    device, task = pick_device(run.device), load_task(run)
    check_evaluation(run, task)
    if last > 0:
        task.batch(0, 1, jobs[-1].cfg.problems)  # raises ValueError where there are fewer
    check_shares(jobs)
    if resume and all(job.saved is None for job in jobs):
        raise ValueError(f"nothing to resume: no state.pt in {jobs[0].folder.parent}")
    with contextlib.ExitStack() as training:
        with process_group(device):
            if is_first():
                for job in jobs:
                    check_writable(job.folder)
                training.enter_context(locked(jobs[0].folder.parent))
            wait_for_others(device)
            jobs = plan(given, last)  # again: another run may have ended just now
            for number in range(len(jobs)):
                run_stage(jobs, number, resume, task, device)
                wait_for_others(device)  # until its model is written
        if not is_first():
            return
        for job in jobs:
            result = evaluate(replace(job, run=run), task, device)  # the last one's is reported
    folders = [(job.stage.title, job.folder) for job in jobs]
    report(folders, run.split, result, task, 0.0)


def plan_command(given: dict, last: int) -> None:
    """Says what a step of the stage takes, before anything is allocated."""
    if last == 0:
        raise ValueError("--plan is of stages 1 and 2")
    job = plan(given, last)[-1]
    task = load_task(job.run)
    if job.run.init is not None:
        config = GPTConfig(**read_shape(Path(job.run.init)))
    else:
        config = new_config(job.run, task)
    found, cfg = plan_step(config, task, job.run, job.cfg), job.cfg
    say(
        f"{job.stage.title}: {found.parameters:,} parameters; {cfg.problems} problems a step, "
        f"{cfg.samples} first attempts, {cfg.revisions} second ones to each\n{found.table()}"
    )


def check_shares(jobs: list[Job]) -> None:
    """Raises ValueError where several processes cannot take equal shares of a step."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    for job in jobs:
        shares = {"transcripts": job.run.transcripts}
        if job.stage.returns is not None:
            offline = round(job.cfg.offline * job.cfg.problems)
            shares = {"problems": job.cfg.problems, "offline problems": offline}
        for name, count in shares.items():
            if count % processes:
                raise ValueError(f"{processes} processes cannot share {count} {name} evenly")


def evaluation_temperature(given: dict) -> float:
    """Takes it from the settings: in training it is that of sampling, elsewhere 0 if not given."""
    temperature = given.pop("temperature", 0.0)
    if not (temperature == 0 or 1e-3 <= temperature < math.inf):
        raise ValueError(f"temperature must be 0, or finite and at least 0.001: {temperature}")
    return temperature


def eval_command(given: dict, folder: Path) -> None:
    temperature = evaluation_temperature(given)
    job = job_of(folder, given)
    if job.is_init:
        check_writable(folder)  # it may be new: the base of an open model leaves nothing before
    task = load_task(job.run)
    result = evaluate(job, task, pick_device(job.run.device), temperature)
    report([(folder.resolve().name, folder)], job.run.split, result, task, temperature)


def ask_command(given: dict, folder: Path, problems: list[str]) -> None:
    """Shows attempts at problems: those given, or one a line of the standard input."""
    temperature = evaluation_temperature(given)
    job = job_of(folder, given)
    device, task = pick_device(job.run.device), load_task(job.run)
    model, colour = stage_model(job, task, device), sys.stdout.isatty()

    def answer(text: str) -> str:
        with precision(job.run, device):
            result = score.evaluate(
                model,
                task,
                [task.problem(text)],
                attempts=job.run.attempts,
                temperature=temperature,
                seed=job.run.seed,
            )
        return dialogue(result, task, colour)

    for text in problems:
        say(answer(text))
    while not problems:
        try:
            say(answer(input("problem> ").strip()))
        except EOFError:
            return say("")
        except ValueError as error:
            say(one_line(error))


def export_command(given: dict, folder: Path) -> None:
    """Writes a trained open model as a folder like the one that it began from, in float32: the
    steps of training are smaller than bfloat16's."""
    init, target = job_of(folder, given).run.init, folder / "pretrained"
    if init is None:
        raise ValueError(f"{folder} was not trained from an open model (--init)")
    model = load_model(folder, None, torch.device("cpu"))
    try:
        model.save_pretrained(target)
        copy_companions(Path(init), target)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot export to {target}: {one_line(error)}") from None
    say(f"wrote {target}")


def report(
    folders: list[tuple[str, Path]],
    split: str,
    result: score.Evaluation,
    task: data.Task,
    temperature: float,
) -> None:
    how = f"temperature {temperature:g}" if temperature else "greedy"
    say(f"\n{len(result.problems)} {split} problems, {how}, in per cent ± one standard error")
    say(table(folders))
    say("\nsampled at temperature 1: p right at first, f right after wrong, b wrong after right")
    say(diagnoses(folders))
    say("\n" + examples(result, task))
    rung = [f"{title}: {text}" for title, folder in folders for text in alarms(folder)]
    if rung:
        say("\n" + "\n".join(rung))


def main(argv: list[str] | None = None, called: list[str] | None = None) -> int:
    """The command line → its exit code. `called`: script and arguments to resume by, if others."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ^C does
    try:
        args, given = parse(argv)
        if args.stage is None and is_one_of_several():
            raise ValueError("only --stage runs in several processes")
        if args.eval is not None:
            eval_command(given, Path(args.eval))
        elif args.ask is not None:
            ask_command(given, Path(args.ask[0]), args.ask[1:])
        elif args.export is not None:
            export_command(given, Path(args.export))
        elif args.plan:
            plan_command(given, args.stage)
        else:
            train_command(given, args.stage, args.resume)
    except (ValueError, OSError, rewards.SandboxError) as error:
        if is_first():  # one line, however many processes say it
            print(f"train.py: {one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    except KeyboardInterrupt:
        called = called or ["train.py", *argv]
        again = shlex.join(["python", *(arg for arg in called if arg != "--resume")])
        trained = any(arg.startswith("--stage") for arg in argv)
        saved = f"; what is saved goes on with: {again} --resume" if trained else ""
        if is_first():
            print(f"train.py: interrupted{saved}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
