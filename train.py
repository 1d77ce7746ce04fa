"""The command line: train the base model, Stage I and Stage II; evaluate; keep everything safe.

    python train.py --stage 1            Stage I of SCoRe, training the base model first
    python train.py --stage 2            Stage II, running first whatever is missing
    python train.py --eval out/puzzle/stage2
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
import inspect
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
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import rewards
import score
from model import GPT, GPTConfig


class BadInput(Exception):
    """What the user gave cannot be used: one line on stderr, exit code 2."""


@dataclass(frozen=True)
class Stage:
    """One stage of training: where it is kept, what it maximises, and its schedule."""

    folder: str
    title: str
    returns: score.Returns | None  # None: the base model, which learns from transcripts
    steps: int
    lr: float
    number: int  # enters the seeds, so that stages meet problems of their own
    beta1: float | None = None  # in place of Config's default
    beta2: float | None = None  # in place of Config's default


STAGES = (
    Stage("base", "base", None, steps=1500, lr=2e-3, number=0),
    Stage("stage1", "Stage I", score.stage1_returns, steps=300, lr=5e-4, number=1),
    Stage("stage2", "Stage II", score.stage2_returns, steps=400, lr=2e-4, number=2, beta1=0.05),
)
# The paper's settings for other data; it gives the steps of both stages together, halved here.
PAPER = {
    "math": {"steps": 1500, "lr": 5e-6, "beta1": 0.01, "beta2": 0.1},
    "humaneval": {"steps": 750, "lr": 1e-5, "beta1": 0.01, "beta2": 0.25},
}


@dataclass(frozen=True)
class Run:
    """The settings of a run beside the algorithm's own (score.Config)."""

    data: str = "arithmetic"  # where problems come from: arithmetic, math, humaneval
    task: str = "puzzle"  # family of arithmetic: puzzle, addition, multiplication
    difficulty: int | None = None  # of the family's problems; its own default if not given
    init: str | None = None  # folder of an open model, for math and humaneval
    data_dir: str | None = None  # folder of MATH or of HumanEval and MBPP; data/NAME if not given
    limit: int | None = None  # most problems of a split
    levels: str | None = None  # of MATH: 1-3, or 1,5; all if not given
    subjects: str | None = None  # of MATH: algebra,number_theory; all if not given
    layout: str = "auto"  # of prompts: chatml, llama3, plain; auto goes by the model's tokenizer
    max_new_tokens: int | None = None  # of an open model's attempt; 512 of math, 384 of humaneval
    unsafe_sandbox: bool = False  # run programs even where they cannot be confined
    out: str = "out"  # folder for all that is written
    seed: int = 0  # of the initial weights and of everything drawn
    steps: int | None = None  # of this stage; its own default if not given
    lr: float | None = None  # peak learning rate of this stage; its own default if not given
    warmup: int = 20  # steps until the peak; from there linearly down to 0 at the end
    layers: int = 3  # of the base model
    heads: int = 4  # of the base model
    width: int = 64  # of the base model
    transcripts: int = 256  # a step of base training
    device: str = "auto"  # auto takes cuda, then mps, then cpu
    dtype: str = "float32"  # float32, or bfloat16 for the forward passes (autocast)
    attempts: int = 2  # of an evaluation; training makes two
    split: str = "test"  # held-out problems of the evaluation: test, or val for development
    eval_problems: int | None = None  # of the evaluation; 2000 of arithmetic, all of other data
    eval_batch: int = 512  # problems answered at a time in the evaluation

    def __post_init__(self):
        for name in (
            *("steps", "lr", "layers", "heads", "width", "transcripts", "limit"),
            *("max_new_tokens", "eval_problems", "eval_batch"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and positive: {value}")
        for name, known in (
            ("data", ["arithmetic", *data.OPEN]),
            ("dtype", ["float32", "bfloat16"]),
            ("split", ["val", "test"]),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}: {getattr(self, name)}")
        if self.attempts < 2 or self.warmup < 0:
            raise ValueError("attempts must be at least 2, warmup not negative")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be between 0 and 2**32 - 1: {self.seed}")


# ---------------------------------------------------------------------------------------------
# Checkpoints and logs


def write_atomically(path: Path, write) -> None:
    """A file is whole or absent: a kill in the middle leaves the old one; so does a full disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter where a write fails
        partial.unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:500]


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def read_json(path: Path) -> dict:
    """A JSON object. Raises ValueError or OSError, in one line that names the file."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def read_pt(path: Path, keys: set[str]) -> dict:
    """A dictionary that this program saved; BadInput for anything else. Unpickles no code."""
    if not path.is_file():
        raise BadInput(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything for bytes that it did not write
        reason = first_line(error)
        raise BadInput(f"{path} is truncated or not a checkpoint ({reason})") from None
    if not isinstance(content, dict) or not keys <= content.keys():
        raise BadInput(f"{path} is not a checkpoint of this program: no {', '.join(sorted(keys))}")
    return content


def load_model(folder: Path, task: data.Task | None, device: torch.device) -> GPT:
    """The model of a stage's folder; BadInput if missing, broken or for another vocabulary than
    that of the task, if one is given."""
    path = folder / "model.pt"
    content = read_pt(path, {"config", "model"})
    try:
        model = GPT(GPTConfig(**content["config"]))
        model.load_state_dict(content["model"])
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise BadInput(f"{path} is not a model of this program ({first_line(error)})") from None
    check_model(path, model, task)
    return model.to(device)


def check_model(path: Path, model: GPT, task: data.Task | None) -> None:
    """BadInput for weights that are not finite, or a vocabulary that is not the task's. Open models
    may have rows to spare beyond their tokenizer's."""
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise BadInput(f"{path} has weights that are not finite")
    if task is None:
        return
    has, needs = model.config.vocab_size, task.encoding.n_vocab
    if has < needs or (has > needs and not isinstance(task, data.TextTask)):
        raise BadInput(
            f"{path} has a vocabulary of {has}, but {task.name} needs {needs}; was it trained on "
            "another task?"
        )


def open_model(run: Run, task: data.Task, device: torch.device) -> GPT:
    """The model of --init."""
    try:
        model = GPT.from_pretrained(run.init, device=device)
    except (ValueError, OSError) as error:
        raise BadInput(first_line(error)) from None
    check_model(Path(run.init), model, task)
    return model


def stage_model(run: Run, number: int, task: data.Task, device: torch.device) -> GPT:
    """What a stage has left: the best model by training reward, or the open model for the base."""
    if number == 0 and run.init is not None:
        return open_model(run, task, device)
    return load_model(stage_folder(run, number), task, device)


def save_model(path: Path, config: GPTConfig, weights: dict) -> None:
    content = {"config": asdict(config), "model": weights}
    write_atomically(path, lambda p: torch.save(content, p))


def copy_weights(model: GPT) -> dict:
    """The weights on the host; a tied head is the same tensor there, too."""
    copies: dict[int, torch.Tensor] = {}
    for weight in model.state_dict().values():
        if weight.data_ptr() not in copies:
            copies[weight.data_ptr()] = weight.detach().to("cpu", copy=True)
    return {name: copies[weight.data_ptr()] for name, weight in model.state_dict().items()}


STATE = {
    "settings": dict,
    "step": int,
    "steps": int,
    "samples": int,
    "seconds": float,
    "model": dict,
    "optimizer": dict,
    "best": dict,
}


def read_state(folder: Path) -> dict | None:
    """A stage's state.pt, or None if it has none; BadInput if it is not one of this program's."""
    path = folder / "state.pt"
    if not path.exists():
        return None
    state = read_pt(path, set(STATE))
    for name, kind in STATE.items():
        if not isinstance(state[name], kind):
            raise BadInput(f"{path}: {name} is not of type {kind.__name__}")
    return state


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
            raise BadInput(f"{path} is not the log of the {step} steps that were saved")
        write_atomically(path, lambda p: p.write_bytes(b"".join(kept)))
        self.file = path.open("a")

    def add(self, metrics: dict) -> None:
        self.file.write(json.dumps(metrics) + "\n")
        self.file.flush()


class Best:
    """The weights with the highest training reward, averaged over the last WINDOW steps (a single
    step's is too noisy to choose by) and looked at every EVERY steps and after the last one."""

    WINDOW, EVERY = 50, 10

    def __init__(self):
        self.recent: list[float] = []
        self.reward = -math.inf
        self.weights: dict | None = None

    def add(self, step: int, steps: int, reward: float, model: GPT) -> None:
        self.recent = (self.recent + [reward])[-self.WINDOW :]
        mean = sum(self.recent) / len(self.recent)
        looked_at = step == steps or (step % self.EVERY == 0 and step >= self.WINDOW)
        if looked_at and mean > self.reward:
            self.reward, self.weights = mean, copy_weights(model)


# ---------------------------------------------------------------------------------------------
# Training


# What a step of base training has no figures for.
REWARDED = ("reward", "acc_t1", "acc_t2", "delta", "kl_1", "kl_2", "changed", "truncated")


def base_step(
    model: GPT, optimizer, task: data.Task, transcripts: list[tuple[str, str, str]], clip: float
) -> dict:
    """Cross-entropy on both attempts' tokens, eos included, laid out as in a rollout."""
    rows, weights = [], []
    for prompt, first, second in transcripts:
        x = task.encode(prompt)
        y1, y2 = (task.encode(text) + [task.eos] for text in (first, second))
        rows.append(x + y1 + task.revise + y2)
        weights.append([0] * len(x) + [1] * len(y1) + [0] * len(task.revise) + [1] * len(y2))
    T = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=model.device)
    scored = torch.tensor([w + [0] * (T - len(w)) for w in weights], device=model.device).bool()
    # Padding on the right is after everything that is scored, so no mask is needed to hide it.
    hidden = model.hidden(tokens[:, :-1])  # (B, T − 1, C)
    loss = F.cross_entropy(model.logits(hidden[scored[:, 1:]]), tokens[scored])
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return {"loss": loss.item(), "grad_norm": norm.item(), "tokens": int(scored.sum())}


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Of step 1 … steps: linearly up over `warmup` steps, then down to 0 just after the last."""
    return peak * min(step / (warmup + 1), (steps - step + 1) / max(1, steps - warmup), 1.0)


# Settings that do not change what a stage learns, so that they may change on the way.
FREE = {"out", "device", "attempts", "split", "eval_problems", "eval_batch"}
FREE |= {"unsafe_sandbox", "micro"}


@dataclass
class Trainer:
    """One stage in progress: everything that changes from step to step, and how it is kept."""

    run: Run
    cfg: score.Config
    stage: Stage
    folder: Path
    task: data.Task
    policy: GPT
    ref: GPT | None
    step: int = 0
    samples: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self.steps = self.run.steps or self.stage.steps
        self.peak = self.run.lr or self.stage.lr
        self.best = Best()
        self.optimizer = torch.optim.Adam(
            self.policy.parameters(), lr=self.peak, betas=(0.9, 0.99), fused=True
        )

    def settings(self) -> dict:
        """What a resumed or reused run must agree on."""
        own = {"stage": self.stage.number, "steps": self.steps, "lr": self.peak}
        every = asdict(self.run) | asdict(self.cfg) | own
        return {name: value for name, value in every.items() if name not in FREE}

    def save(self) -> None:
        best = self.best.weights or copy_weights(self.policy)
        save_model(self.folder / "model.pt", self.policy.config, best)
        state = {
            "settings": self.settings(),
            "step": self.step,
            "steps": self.steps,
            "samples": self.samples,
            "seconds": self.seconds,
            "model": copy_weights(self.policy),
            "optimizer": self.optimizer.state_dict(),
            "best": {
                "recent": self.best.recent,
                "reward": self.best.reward,
                "weights": self.best.weights,
            },
        }
        write_atomically(self.folder / "state.pt", lambda p: torch.save(state, p))

    def restore(self, state: dict) -> None:
        for name, value in self.settings().items():
            if state["settings"].get(name) != value:
                raise BadInput(
                    f"{self.folder} was begun with {name} {state['settings'].get(name)}, not "
                    f"{value}; give the same settings with --stage {self.stage.number}, or "
                    "another --out"
                )
        try:
            moments_of = state["optimizer"]["state"].values()  # none before the first step
            for weight, moments in zip(self.policy.parameters(), moments_of):
                if moments["exp_avg"].shape != weight.shape:
                    raise ValueError("the optimizer's moments have other shapes")
            self.policy.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.best.recent, self.best.reward = state["best"]["recent"], state["best"]["reward"]
            self.best.weights = state["best"]["weights"]
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            what = first_line(error)
            raise BadInput(f"{self.folder}/state.pt does not fit its stage ({what})") from None
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]

    def advance(self) -> dict:
        """One step. Everything random in it is a function of (seed, stage, step)."""
        self.step += 1
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.run.warmup, self.peak)
        seed = self.run.seed * 1_000_003 + self.stage.number
        if self.stage.returns is None:
            rows = self.task.transcripts(
                seed, self.step, self.run.transcripts, progress=self.step / self.steps
            )
            metrics = dict.fromkeys(REWARDED) | base_step(
                self.policy, self.optimizer, self.task, rows, self.cfg.clip
            )
        else:
            problems = self.task.batch(seed, self.step, self.cfg.problems)
            metrics = score.train_step(
                self.policy,
                self.ref,
                self.optimizer,
                self.task,
                problems,
                self.stage.returns,
                self.cfg,
                seed * 1_000_003 + self.step,
            )
            self.best.add(self.step, self.steps, metrics["reward"], self.policy)
        if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
            raise BadInput(f"{self.stage.title} diverged at step {self.step}; try a lower --lr")
        self.samples += metrics.get("samples", 0)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds
        head = {"step": self.step, "stage": self.stage.number, "seconds": seconds}
        return head | metrics


SAVE_EVERY = 50


def train(trainer: Trainer, precision) -> None:
    """Runs a stage to its end, or until Ctrl-C, which is honoured between two steps so that what is
    saved is never half an update. Raises KeyboardInterrupt after saving."""
    interrupted: list[int] = []

    def note(signum, frame):
        if interrupted:
            raise SystemExit(130)  # asked twice: stop at once, the last save stands
        interrupted.append(signum)

    log = Log(trainer.folder / "metrics.jsonl", trainer.step)
    old = {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(
        total=trainer.steps,
        initial=trainer.step,
        desc=trainer.stage.title,
        unit="step",
        mininterval=1 if sys.stderr.isatty() else 30,
        dynamic_ncols=True,
    )
    try:
        with bar, precision:
            while trainer.step < trainer.steps and not interrupted:
                metrics = trainer.advance()
                log.add(metrics)
                bar.set_postfix_str(progress(metrics), refresh=False)
                bar.update()
                if trainer.step % SAVE_EVERY == 0:
                    trainer.save()
            trainer.save()
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)
        log.file.close()
    if interrupted:
        raise KeyboardInterrupt


def progress(metrics: dict) -> str:
    if metrics["reward"] is None:
        return f"loss {metrics['loss']:.3f}"
    return (
        f"reward {metrics['reward']:.3f} t1 {metrics['acc_t1']:.3f} t2 {metrics['acc_t2']:.3f} "
        f"Δ {metrics['delta']:+.3f} KL {metrics['kl_1']:.2f}/{metrics['kl_2']:.2f}"
    )


def cost(folder: Path, trainer: Trainer) -> str:
    """What the stage's steps cost, from its own log."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

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
        f"{trainer.stage.title}: {trainer.seconds:.0f} s for {trainer.step} steps, "
        f"{mean('seconds'):.3f} s a step{parts}, {mean('tokens_per_second'):,.0f} tokens/s, "
        f"peak memory {peak:,.0f} MiB"
    )


# ---------------------------------------------------------------------------------------------
# Evaluation and reports


def evaluate(
    folder: Path, model: GPT, run: Run, task: data.Task, temperature: float, facts: dict
) -> score.Evaluation:
    """Evaluates a model on held-out problems and writes the folder's results.json."""
    try:
        problems = task.held_out(run.split, run.eval_problems)
        result = score.evaluate(
            model,
            task,
            problems,
            attempts=run.attempts,
            temperature=temperature,
            seed=run.seed,
            batch=run.eval_batch,
        )
    except ValueError as error:  # more problems than the split has, or attempts than fit
        raise BadInput(str(error)) from None
    content = {
        "data": run.data,
        "task": task.name,
        "stage": facts["stage"],
        "split": run.split,
        "n": len(problems),
        "skipped": task.skipped.get(run.split, 0),  # problems that do not fit the context
        "seed": run.seed,
        "temperature": temperature,
        **result.metrics,
        **{name: facts[name] for name in ("seconds", "steps", "samples")},  # of the training
        "config": facts["config"],
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


def transcripts(result: score.Evaluation, task: data.Task) -> str:
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
# Stages


def pick_device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise BadInput(f"device must be auto, cpu, mps, cuda or cuda:N: {name}")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {name}: {first_line(error)}") from None
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


def context_for(task: data.Task) -> int:
    """The context of a new model: a prompt and two attempts at least."""
    return max(64, 16 + 2 * (task.max_new_tokens + len(task.revise)))


def new_policy(run: Run, number: int, task: data.Task, device: torch.device) -> GPT:
    """What a stage starts from: fresh weights for the base model, else the stage before."""
    if number > 0:
        return stage_model(run, number - 1, task, device)
    torch.manual_seed(run.seed)
    try:
        config = GPTConfig(
            vocab_size=task.encoding.n_vocab,
            context=context_for(task),
            layers=run.layers,
            heads=run.heads,
            width=run.width,
        )
    except ValueError as error:
        raise BadInput(str(error)) from None
    return GPT(config).to(device)


def stage_folder(run: Run, number: int) -> Path:
    name = run.task if run.data == "arithmetic" else run.data
    return Path(run.out) / name / STAGES[number].folder


def stage_of(run: Run, number: int) -> Stage:
    return replace(STAGES[number], **PAPER.get(run.data, {}))


def frozen(model: GPT) -> GPT:
    """A reference: it is given no gradient and nothing updates it."""
    return model.requires_grad_(False).eval()


def run_stage(run: Run, given: dict, number: int, last: int, resume: bool, task, device) -> None:
    """Trains one stage of `--stage last`, or goes on with it, or finds it finished."""
    stage, folder = stage_of(run, number), stage_folder(run, number)
    if number == 0 and run.init is not None:
        return say(f"base: using {run.init}")
    if number < last:
        run = replace(run, steps=None, lr=None)  # those flags are the last stage's
    state = read_state(folder)
    if state is not None:
        check_same_problems(folder, state["settings"], run)
        if state["step"] < state["steps"] and not resume:
            raise BadInput(
                f"{folder} holds an unfinished run (step {state['step']} of {state['steps']}): "
                "add --resume to go on with it, or choose another --out"
            )
        if state["step"] >= state["steps"] and number < last:
            return say(f"{stage.title}: using {folder}, finished after {state['steps']} steps")
    elif (folder / "model.pt").exists() and not (folder / "metrics.jsonl").exists():
        return say(f"{stage.title}: using {folder}/model.pt")
    elif number < last:
        say(f"{STAGES[last].title} needs the {stage.title} model; {folder} has none: training it")
    cfg = stage_config(stage, given)
    policy = new_policy(run, number, task, device)
    ref = frozen(stage_model(run, 0, task, device)) if number else None
    trainer = Trainer(run, cfg, stage, folder, task, policy, ref)
    if state is not None:
        trainer.restore(state)
        if trainer.step >= trainer.steps:
            return say(f"{stage.title}: {folder} is finished, nothing to train")
        say(f"{stage.title}: going on after step {trainer.step} of {trainer.steps}")
    train(trainer, precision(run, device))
    say(cost(folder, trainer))


def stage_config(stage: Stage, given: dict) -> score.Config:
    own = {"beta1": stage.beta1, "beta2": stage.beta2}
    own = {name: value for name, value in own.items() if value is not None}
    return settings(score.Config, own | given)


def check_same_problems(folder: Path, settings: dict, run: Run) -> None:
    """A stage found on disk is of use only to the same problems and seed."""
    names = SOURCE if run.init is not None else ("task", "difficulty")
    for name in (*names, "seed"):
        if settings.get(name) != getattr(run, name):
            raise BadInput(
                f"{folder} was made with {name} {settings.get(name)}, not {getattr(run, name)}; "
                "choose another --out"
            )


def say(line: str) -> None:
    print(line, flush=True)


def evaluate_folder(
    folder: Path, run: Run, task: data.Task, device: torch.device, temperature: float = 0.0
) -> score.Evaluation:
    """Evaluates a checkpoint folder; its state, if it is there, says what training cost."""
    facts = {"stage": None, "seconds": None, "steps": None, "samples": None, "config": asdict(run)}
    if run.init is not None and not (folder / "model.pt").exists():
        model, facts["stage"] = open_model(run, task, device), 0  # nothing was trained here
    else:
        model = load_model(folder, task, device)
    state = read_state(folder)
    if state is not None:
        facts = {
            "stage": state["settings"].get("stage"),
            "seconds": state["seconds"],
            "steps": state["step"],
            "samples": state["samples"],
            "config": state["settings"],
        }
    with precision(run, device):
        return evaluate(folder, model, run, task, temperature, facts)


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise BadInput(f"cannot write to {folder}: {error.strerror}") from None


# ---------------------------------------------------------------------------------------------
# The command line


def add_flags(parser: argparse.ArgumentParser, config: type) -> None:
    """One flag a field of a dataclass, with its type, default and comment."""
    comments = dict(re.findall(r"^    (\w+): .*?# (.+)$", inspect.getsource(config), re.MULTILINE))
    hints = typing.get_type_hints(config)
    for field in fields(config):
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        flag = "--" + field.name.replace("_", "-")
        text = comments[field.name].replace("%", "%%")
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        default = "" if field.default in (None, MISSING) else f" [{field.default}]"
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, help=text + default)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise BadInput(message)


def parse(argv: list[str]) -> tuple[argparse.Namespace, dict]:
    """What to do, and the settings that were given; BadInput for a flag that does not exist."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", type=int, choices=range(len(STAGES)), help="train up to a stage")
    what.add_argument("--eval", metavar="DIR", help="evaluate the checkpoint in a stage's folder")
    what.add_argument("--export", metavar="DIR", help="write DIR/pretrained for transformers")
    parser.add_argument("--resume", action="store_true", help="go on where a run was stopped")
    add_flags(parser.add_argument_group("run"), Run)
    add_flags(parser.add_argument_group("algorithm (score.Config)"), score.Config)
    args = parser.parse_args(argv)
    given = vars(args).copy()
    for name in ("stage", "eval", "export", "resume"):
        del given[name]
    return args, given


def settings(kind: type, given: dict):
    """A Run or a Config of what was given and the defaults; BadInput for an impossible value."""
    try:
        return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})
    except (ValueError, TypeError) as error:
        raise BadInput(first_line(error)) from None


def adopt(given: dict, folder: Path, names: tuple[str, ...]) -> dict:
    """The settings that a finished folder determines, unless something else was asked for."""
    state = read_state(folder)
    if state is None:
        return given
    for name in names:
        saved = state["settings"].get(name)
        if given.get(name, saved) != saved:
            raise BadInput(
                f"{folder} was made with {name} {saved}, not {given[name]}; choose another folder"
            )
        given = given | {name: saved}
    return given


def load_task(run: Run) -> data.Task:
    try:
        if run.data == "arithmetic":
            return data.load(run.task, run.difficulty)
        if run.data == "humaneval":
            say(rewards.sandbox_status(run.unsafe_sandbox))
        task = data.load(run.data, source=source(run))
    except (ValueError, OSError, rewards.SandboxError) as error:
        raise BadInput(str(error)) from None
    for note in task.notes:
        say(note)
    return task


def source(run: Run) -> data.Source:
    """Where the problems and tokens of an open model's task come from."""
    if run.init is None:
        raise BadInput(f"--data {run.data} needs --init DIR, the folder of an open model")
    init = Path(run.init)
    if not init.is_dir():
        raise BadInput(f"--init {init}: no such folder")
    return data.Source(
        folder=Path(run.data_dir or f"data/{run.data}"),
        init=init,
        layout=run.layout,
        max_new_tokens=run.max_new_tokens,
        attempts=run.attempts,
        limit=run.limit,
        levels=None if run.levels is None else parse_levels(run.levels),
        subjects=None if run.subjects is None else frozenset(run.subjects.split(",")),
    )


def parse_levels(text: str) -> frozenset[int]:
    """ "1-3" → {1, 2, 3};  "1,5" → {1, 5}."""
    if not re.fullmatch(r"[1-5](-[1-5])?(,[1-5](-[1-5])?)*", text):
        raise BadInput(f"levels must be like 1-3 or 1,5, between 1 and 5: {text}")
    ranges = [(int(part[0]), int(part[-1])) for part in text.split(",")]
    for low, high in ranges:
        if low > high:
            raise BadInput(f"levels {text}: {low} to {high} are none")
    return frozenset(n for low, high in ranges for n in range(low, high + 1))


# Settings that choose an open model's problems, and those that only arithmetic has.
SOURCE = ("data", "init", "data_dir", "limit", "levels", "subjects", "layout", "max_new_tokens")
ARITHMETIC = ("task", "difficulty", "layers", "heads", "width", "transcripts")


def check_belong(given: dict, kind: str) -> None:
    """A flag that the data has no use for is a misunderstanding, better said than ignored."""
    foreign = SOURCE[1:] if kind == "arithmetic" else ARITHMETIC
    if kind == "humaneval":
        foreign += ("levels", "subjects")
    for name in foreign:
        if name in given:
            raise BadInput(f"--{name.replace('_', '-')} is not a setting of --data {kind}")


def check_evaluation(run: Run, task: data.Task) -> None:
    """Better before hours of training than after them."""
    try:
        problems = task.held_out(run.split, run.eval_problems)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if run.init is not None:
        return  # its task has left out what does not fit
    longest = max(len(task.prompt(problem)) for problem in problems)
    room = longest + run.attempts * (task.max_new_tokens + len(task.revise))
    if room > context_for(task):
        raise BadInput(
            f"attempts {run.attempts} take {room} tokens, more than a context of "
            f"{context_for(task)}"
        )


def check_batch(cfg: score.Config, task: data.Task) -> None:
    try:
        task.batch(0, 1, cfg.problems)
    except ValueError as error:
        raise BadInput(f"problems {cfg.problems}: {error}") from None


def train_command(args: argparse.Namespace, given: dict) -> None:
    run = settings(Run, given)
    check_belong(given, run.data)
    base = stage_folder(run, 0)
    if run.data == "arithmetic":
        run = settings(Run, adopt(given, base, ("difficulty", "layers", "heads", "width")))
    cfg = settings(score.Config, given)
    device, task = pick_device(run.device), load_task(run)
    run = replace(run, difficulty=task.difficulty)
    check_evaluation(run, task)
    if args.stage > 0:
        check_batch(cfg, task)
    numbers = range(args.stage + 1)
    for number in numbers:
        check_writable(stage_folder(run, number))
    if args.resume and all(read_state(stage_folder(run, number)) is None for number in numbers):
        raise BadInput(f"nothing to resume: no state.pt in {base.parent}")
    for number in numbers:
        run_stage(run, given, number, args.stage, args.resume, task, device)
    folders = [(STAGES[number].title, stage_folder(run, number)) for number in numbers]
    for _, folder in folders:
        result = evaluate_folder(folder, run, task, device)
    report(folders, result, run, task, 0.0)


def eval_command(args: argparse.Namespace, given: dict) -> None:
    folder = Path(args.eval)
    # In training --temperature is that of sampling; an evaluation is greedy unless it is given.
    temperature = given.get("temperature", 0.0)
    if not (temperature == 0 or 1e-3 <= temperature < math.inf):
        raise BadInput(f"temperature must be 0, or finite and at least 0.001: {temperature}")
    run = trained_as(given, folder)
    if run.init is not None:
        check_writable(folder)  # it may be new: the base of an open model leaves nothing before
    task = load_task(run)
    run = replace(run, difficulty=task.difficulty)
    result = evaluate_folder(folder, run, task, pick_device(run.device), temperature)
    report([(folder.name, folder)], result, run, task, temperature)


def trained_as(given: dict, folder: Path) -> Run:
    """A stage's settings from its folder. Those that only choose what it is evaluated on may be
    given anew."""
    free = [name for name in ("seed", *SOURCE[1:]) if name not in given]
    names = ("data", "task", "difficulty", *free)
    given = adopt(given, folder, names)
    if not (folder / "state.pt").exists() and (folder / "results.json").exists():
        # The base of an open model has been evaluated, and nothing else is kept of it.
        try:
            config = dict(read_json(folder / "results.json")["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(f"{folder}/results.json is not of this program ({error})") from None
        given = {name: config[name] for name in names if name in config} | given
    return settings(Run, given)


def export_command(args: argparse.Namespace, given: dict) -> None:
    """Writes a trained open model as a folder like the one that it began from, in float32: the
    steps of training are smaller than bfloat16's."""
    folder = Path(args.export)
    run = trained_as(given, folder)
    if run.init is None:
        raise BadInput(f"{folder} was not trained from an open model (--init)")
    model = load_model(folder, None, torch.device("cpu"))
    target, config = folder / "pretrained", Path(run.init) / "config.json"
    try:
        model.save_pretrained(target)
        ends = {k: v for k, v in read_json(config).items() if k.endswith("_token_id")}
        write_json(target / "config.json", read_json(target / "config.json") | ends)
        for pattern in ("*token*", "vocab.json", "merges.txt", "chat_template.*", "generation_*"):
            for path in Path(run.init).glob(pattern):
                shutil.copy(path, target)
    except (OSError, ValueError) as error:
        raise BadInput(f"cannot export to {target}: {first_line(error)}") from None
    say(f"wrote {target}")


def report(
    folders: list[tuple[str, Path]],
    result: score.Evaluation,
    run: Run,
    task: data.Task,
    temperature: float,
) -> None:
    how = f"temperature {temperature:g}" if temperature else "greedy"
    say(f"\n{len(result.problems)} {run.split} problems, {how}, in per cent ± one standard error")
    say(table(folders))
    say("\n" + transcripts(result, task))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        args, given = parse(argv)
        if args.eval is not None:
            eval_command(args, given)
        elif args.export is not None:
            export_command(args, given)
        else:
            train_command(args, given)
    except (BadInput, OSError) as error:  # an OSError: a folder that was taken away, say
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        flags = [arg for arg in argv if arg != "--resume"]
        again = shlex.join(["python", "train.py", *flags])
        print(
            f"train.py: interrupted; what is saved goes on with: {again} --resume", file=sys.stderr
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
