"""Devices, and the processes that torchrun starts: each takes a share of a step's problems, and the
first one alone writes and prints."""

import contextlib
import importlib
import os
import re
from collections.abc import Iterator

import torch
import torch.distributed as dist

from fast.processes import averaged, process


def number_of_processes() -> int:
    """The number that torchrun starts, known before they join; 1 without torchrun. Raises
    ValueError if WORLD_SIZE is set and torchrun's other variables are not."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 1
    told = [os.environ.get(name, "") for name in ("RANK", "LOCAL_RANK", "MASTER_PORT")]
    whole = all(re.fullmatch("[0-9]{1,9}", text) for text in (size, *told))
    if not whole or int(told[0]) >= int(size) or not os.environ.get("MASTER_ADDR"):
        raise ValueError(f"WORLD_SIZE is {size!r}, not by torchrun: use torchrun, or unset it")
    return int(size)


def share(count: int, name: str) -> int:
    """A process's part of `count` things of that name. Raises ValueError if parts are not equal."""
    processes = number_of_processes()
    if count % processes:
        raise ValueError(f"{processes} processes cannot share {count} {name} evenly")
    return count // processes


class OwnError(ValueError):
    """An error that perhaps only this process has met, such as divergence, so it prints it."""


def is_first() -> bool:
    """True on rank 0, or without torchrun."""
    try:
        return number_of_processes() == 1 or os.environ["RANK"] == "0"
    except ValueError:  # without a rank, every process prints the error
        return True


def printable(text: str) -> str:
    """Text with unprintable characters, such as terminal control codes, replaced."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def one_line(error: Exception) -> str:
    """The message of an error, or its type if it has none."""
    return printable(" ".join(str(error).split()) or type(error).__name__)[:500]


def print_once(text: str) -> None:
    """Prints text, once however many processes there are. It may hold problems, answers and file
    names, so control codes are replaced."""
    if is_first():
        print(printable(text), flush=True)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins torchrun's other processes, if this is one of them."""
    if number_of_processes() == 1:
        yield
        return
    # A module that is imported later would hold the group as a default argument, and a group that
    # is alive when the interpreter exits aborts the process.
    importlib.import_module("torch.distributed.optim")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_others(device: torch.device) -> None:
    averaged(torch.zeros(1, device=device)).item()  # on CUDA only this waits


def any_process(flags: list[bool], device: torch.device) -> list[bool]:
    """Whether each flag is true in any process: all of them must stop or save at the same step."""
    return (averaged(torch.tensor(flags, dtype=torch.float32, device=device)) > 0).tolist()


def average_metrics(metrics: dict, device: torch.device) -> dict:
    """Metrics over all processes: sums of the counts ("tokens", "samples"), means of the rest."""
    _, processes = process()
    if processes == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    metrics = dict(zip(metrics, averaged(values).tolist()))
    counts = ("tokens", "samples") & metrics.keys()
    return metrics | {name: round(processes * metrics[name]) for name in counts}


def pick_device(name: str) -> torch.device:
    if name == "auto":
        other = "mps" if torch.backends.mps.is_available() else "cpu"
        name = "cuda" if torch.cuda.is_available() else other
    if name == "cuda" and number_of_processes() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:N: {name}")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise OwnError(f"device {name}: {one_line(error)}") from None
    device = torch.device(name)
    if device.index is not None:
        torch.cuda.set_device(device)  # Triton and CUDA graphs use the current device
    return device


# What torch calls a processor's instructions for bfloat16: two names on x86, the last on ARM.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def device_for(name: str, dtype: str) -> torch.device:
    """The device that is named. Prints a warning if it would emulate the dtype."""
    device, has = pick_device(name), torch.cpu.get_capabilities()
    if (device.type, dtype) == ("cpu", "bfloat16") and not any(map(has.get, BFLOAT16)):
        print_once(
            "warning: this processor has no instructions for bfloat16; float32 is probably faster"
        )
    return device


def memory_of(device: torch.device) -> int:
    """The bytes of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def precision(dtype: str, device: torch.device):
    """A context for forward passes in a run's dtype. Weights and optimizer stay in float32."""
    if dtype == "float32":
        return contextlib.nullcontext()
    # Autocast's weight cache would keep the first step's copies for ever.
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
