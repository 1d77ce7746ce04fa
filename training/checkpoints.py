"""The files of a stage's folder: model.pt, state.pt, metrics.jsonl and results.json, and what
protects them: a lock, writes that are whole or not made, and checks of what is read."""

import contextlib
import fcntl
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Set
from dataclasses import asdict, fields
from pathlib import Path

import torch

import data
from data.text import read_lines
from model import GPT, Generation, GPTConfig
from training.processes import is_first, one_line, print_once

# ---------------------------------------------------------------------------------------------
# Writing


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Raises ValueError while another process trains in this folder. The operating system releases
    the lock when the process ends, however it ends."""
    path = folder / ".lock"
    if path.is_symlink():
        raise ValueError(f"{path} is a link; remove it, or choose another --out")

    def no_link(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    with open(path, "a+", opener=no_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ValueError(
                f"process {file.read()} is training in {folder}; choose another --out"
            ) from None
        except OSError as error:  # not every network disk has locks
            raise ValueError(
                f"cannot lock {path} ({error.strerror}); choose an --out on another disk"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for partial in folder.glob("*/*.pt.*.partial"):
            partial.unlink()  # of a run that was killed
        yield


def check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from None


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file completely or not at all: a kill or a full disk leaves the old one."""
    # Another process may write the same file: evaluations with the same answers, for example.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.unlink(missing_ok=True)  # left by a kill, or a link that somebody put there
    try:
        partial.touch(exist_ok=False)
        write(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if a write fails
        raise cannot_write(path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def cannot_write(path: Path, error: Exception) -> ValueError:
    free = shutil.disk_usage(path.parent).free >> 20
    return ValueError(f"cannot write {path}: {one_line(error)}; {free} MiB are free")


def keep(path: Path, kept: Path) -> None:
    """Keeps a file as it is now under another name, in place of what had that name."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # not every file system supports hard links
        shutil.copyfile(path, kept)


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, lambda p: p.write_text(json.dumps(content, indent=2) + "\n"))


def write_lines(path: Path, rows: list[dict]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda p: p.write_text(text))


def keep_other_results(folder: Path, evaluation: dict, usual: dict) -> None:
    """Keeps the results of an evaluation with other settings, before new ones take their place,
    under a name made of those that are not the usual ones."""
    try:
        before = usual | json.loads((folder / "results.json").read_text())["evaluation"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # there are none, or not of this program
    if before == evaluation:
        return
    unusual = [f"{name}={before[name]}" for name in usual if before[name] != usual[name]]
    differs = ",".join(unusual) or "defaults"
    ending = re.sub(r"[^\w=,.-]", "_", differs, flags=re.ASCII)
    if len(ending) > 100:  # file names have a limit
        ending = f"{ending[:80]}-{hashlib.sha256(ascii(differs).encode()).hexdigest()[:16]}"
    for path in (folder / "results.json", *folder.glob("samples.jsonl")):
        keep(path, path.with_stem(f"{path.stem}-{ending}"))


def save_model(folder: Path, model: GPT) -> None:
    if is_first():
        content = {"config": asdict(model.config), "model": model.state_dict()}
        write_atomically(folder / "model.pt", lambda p: torch.save(content, p))


def save_state(folder: Path, state: dict) -> None:
    """Replaces state.pt, whose last version remains as state.before.pt."""
    path = folder / "state.pt"
    if path.exists():
        keep(path, folder / "state.before.pt")
    write_atomically(path, lambda p: torch.save(state, p))


# ---------------------------------------------------------------------------------------------
# Reading


def read_pt(path: Path, keys: Set[str], mmap: bool = False) -> dict:
    """Loads a dictionary that this program saved; with mmap, tensors stay on disk until used.
    Raises a one-line ValueError for any other file. Never unpickles code."""
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        check_sums(path, "data.pkl" if mmap else "")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch.load may raise any exception for a damaged file
        reason = one_line(error)
        raise ValueError(f"{path} is damaged or not a checkpoint ({reason})") from None
    if not isinstance(content, dict) or not keys <= content.keys():
        names = ", ".join(sorted(keys))
        raise ValueError(f"{path} is not a checkpoint of this program: no {names}")
    return content


def check_sums(path: Path, ending: str) -> None:
    """Raises BadZipFile if a part whose name ends in `ending` fails its checksum, which torch.save
    stores and torch.load ignores."""
    with zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(ending):
                with file.open(name) as part:
                    while part.read(1 << 20):
                        pass  # the checksum is compared at the end


def read_state(folder: Path, mmap: bool = False) -> dict | None:
    """A folder's state.pt, or state.before.pt if that is damaged, or None without a state.pt.
    Without mmap, state.before.pt replaces the damaged file; otherwise the next save would keep the
    damaged one as its backup."""
    path, before = folder / "state.pt", folder / "state.before.pt"
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
            print_once(f"{one_line(error)}: going back to the state of step {state['step']}")
        return state


def load_model(folder: Path, task: data.Task | None, device: torch.device) -> GPT:
    """Loads the model of a stage's folder. Raises ValueError if it is missing, damaged, or its
    vocabulary is not the task's, if one is given."""
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
    Pretrained models may have more embedding rows than their tokenizer has tokens."""
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


# ---------------------------------------------------------------------------------------------
# What a stage keeps as it goes


class Log:
    """metrics.jsonl, one object a step. On resuming, lines after the saved step are dropped, since
    those steps run again."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "metrics.jsonl"
        self.rows = read_log(folder, step) if step else []
        if len(self.rows) != step:
            raise ValueError(f"{self.path} is not the log of the {step} steps that were saved")
        write_lines(self.path, self.rows)

    def add(self, metrics: dict) -> None:
        self.rows.append(metrics)
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None


def read_log(folder: Path, steps: int | None = None) -> list[dict]:
    """The rows of metrics.jsonl, or the first `steps` of them. Raises ValueError, naming the line,
    for one that is no step's."""
    path = folder / "metrics.jsonl"
    with path.open() as file:
        rows = list(itertools.islice(read_lines(path, file), steps))
    for step, (where, row) in enumerate(rows, 1):
        numbers, val = [x for name, x in row.items() if name != "val"], row.get("val", {})
        numbers += val.values() if isinstance(val, dict) else [None]
        if row.get("step") != step or not all(isinstance(x, int | float) for x in numbers):
            raise ValueError(f"{where}: not the log of step {step}")
    return [row for _, row in rows]


class Best:
    """Tracks the highest training reward: the mean over the last WINDOW steps, since one step's is
    too noisy, compared from step WINDOW on every EVERY steps, and after the last."""

    WINDOW, EVERY = 50, 10

    def __init__(self):
        self.recent: list[float] = []
        self.reward = -math.inf  # before the first comparison

    def add(self, step: int, steps: int, reward: float) -> bool:
        """Whether the weights after this step are the best so far."""
        self.recent = (self.recent + [reward])[-self.WINDOW :]
        mean = sum(self.recent) / len(self.recent)
        compared = step == steps or (step % self.EVERY == 0 and step >= self.WINDOW)
        if not compared or mean <= self.reward:
            return False
        self.reward = mean
        return True

    def restore(self, saved: dict) -> None:
        """Restores what vars() of another instance held. Raises ValueError for impossible
        values."""
        self.recent = [float(reward) for reward in saved["recent"]]
        self.reward = float(saved["reward"])
        if not all(map(math.isfinite, self.recent)) or math.isnan(self.reward):
            raise ValueError("the training rewards are not finite")


# ---------------------------------------------------------------------------------------------
# What an evaluation keeps as it goes


@contextlib.contextmanager
def kept_answers(
    folder: Path, model: GPT, task: data.Task, dtype: str, respond: Callable[..., Generation]
) -> Iterator[Callable[..., Generation]]:
    """Yields `respond` of score.py, but its results are kept in the folder's answers/ and come from
    there if this model was asked the same before. Those of other models are removed at the end. If
    the block is interrupted, raises KeyboardInterrupt with an argument."""
    same = [model.config, dtype, model.device.type, task.max_new_tokens, task.eos]
    model_hash = hashlib.sha256(repr(same).encode())
    for weight in model.parameters():
        model_hash.update(weight.detach().contiguous().view(torch.uint8).cpu().numpy())
    for code in (GPT, respond, type(task)):  # the task says when an answer is over
        model_hash.update(Path(inspect.getfile(code)).read_bytes())
    mine, kept = model_hash.hexdigest()[:16], folder / "answers"
    check_writable(kept)
    names = [field.name for field in fields(Generation)]

    def answer(policy, task, problems, prompts, keys, *how) -> Generation:
        asked = repr([prompts, torch.as_tensor(keys).tolist(), *how]).encode()
        path = kept / f"{mine}-{hashlib.sha256(asked).hexdigest()[:16]}.pt"
        try:
            content = read_pt(path, set(names))
        except ValueError:  # there is none, or it is damaged
            attempt = respond(policy, task, problems, prompts, keys, *how)
            write_atomically(path, lambda p: torch.save(vars(attempt), p))
            return attempt
        return Generation(*(content[name].to(policy.device) for name in names))

    try:
        yield answer
    except KeyboardInterrupt:
        raise KeyboardInterrupt("answers kept") from None
    for path in kept.iterdir():
        if path.is_file() and not path.name.startswith(mine):
            path.unlink(missing_ok=True)
