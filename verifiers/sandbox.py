"""The trainer's side of the sandbox: verdicts on programs, from workers in processes of their own.

worker.py says how a program is tested, confine.py how it is confined.
"""

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import time
from typing import NamedTuple

from verifiers.worker import serialize

TIMEOUT = 3.0  # s of wall-clock time for a program and its tests
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTLE = 1.5  # s beyond a program's own limit after which the trainer kills the whole worker


class Verdict(NamedTuple):
    passed: bool
    reason: str  # passed, failed, error, timeout, memory, refused
    seconds: float


class SandboxError(RuntimeError):
    """Programs cannot be run safely here; one line says why."""


class Worker:
    """A W seen from the trainer, whose calls never block for longer than a start takes."""

    def __init__(self, unsafe: bool):
        if not (sys.platform == "linux" or unsafe and hasattr(os, "fork")):
            raise SandboxError(f"programs are run on Linux only, not on {sys.platform}")
        options = json.dumps({"libraries": numpy_folders(), "unsafe": unsafe})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-B", "-s", "-S", "-m", "verifiers.worker", options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=ROOT,  # where the module is found; the worker leaves it at once
                start_new_session=True,  # a terminal's ^C is the trainer's to handle
                # One hash seed, so that a verdict does not hang on the order of a program's sets.
                env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise SandboxError(f"programs cannot be run on this machine: {error}") from None
        self.inbox, self.outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self.inbox, False)
        os.set_blocking(self.outbox, False)
        self.begin(-1, "", b"", 20.0)
        while (status := self.exchange()) is None and time.monotonic() < self.deadline:
            select.select([self.inbox], [], [], 0.1)
        if status in (None, "died") or status["refused"]:
            self.stop()
            why = "seccomp is missing" if isinstance(status, dict) else "the worker does not start"
            raise SandboxError(f"programs cannot be confined on this machine: {why}")
        self.status = status

    def begin(self, index: int, name: str, task: bytes, timeout: float) -> None:
        """Takes up item index, to be over in timeout seconds."""
        self.index, self.name = index, name
        self.unsent, self.received = memoryview(task), b""
        self.started = time.monotonic()
        self.deadline = self.started + timeout

    def exchange(self):
        """Sends and receives what can be without waiting: the answer, "died", or None for yet."""
        try:
            if self.unsent:
                self.unsent = self.unsent[os.write(self.outbox, self.unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            return "died"
        try:
            data = os.read(self.inbox, 1 << 16)
        except BlockingIOError:
            return None
        self.received += data
        size = 4 + int.from_bytes(self.received[:4], "big")
        if len(self.received) >= max(size, 5):
            return json.loads(self.received[4:size])
        return None if data else "died"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.close()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.stdout.close()


class Pool:
    """Idle workers of this process. A fork of the trainer starts its own: pipes are not shared."""

    def __init__(self):
        self.owner, self.idle, self.unsafe = os.getpid(), [], False

    def take(self) -> Worker:
        if self.owner != os.getpid():
            for worker in self.idle:
                worker.close()
            self.owner, self.idle = os.getpid(), []
        while True:
            try:
                worker = self.idle.pop()
            except IndexError:  # asked for by popping, since threads may share the pool
                return Worker(self.unsafe)
            if worker.process.poll() is None:
                return worker
            worker.close()

    def stop(self) -> None:
        while self.owner == os.getpid() and self.idle:
            self.idle.pop().stop()


POOL = Pool()
atexit.register(POOL.stop)


def numpy_folders() -> list[str]:
    """NumPy's folders if it is installed: the one package beyond the standard library that a
    program may import. The rest of site-packages might hold a benchmark's answers."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = spec.submodule_search_locations[0]
    return [path for path in (folder, f"{folder}.libs") if os.path.isdir(path)]


def sandbox_status(unsafe: bool = False) -> str:
    """One line on the protections that hold here, each tried out; raises SandboxError where
    programs cannot be confined, unless unsafe (which stays allowed from then on)."""
    POOL.unsafe = POOL.unsafe or unsafe
    worker = POOL.take()
    POOL.idle.append(worker)
    missing = f"; missing: {', '.join(worker.status['off'])}" if worker.status["off"] else ""
    return f"sandbox: {', '.join(worker.status['on'] + ['limits'])}{missing}"


def serialize_task(
    name: str, program: str, test: str, entry_point: str, timeout: float = TIMEOUT, prompt: str = ""
) -> tuple[bytes, float]:
    """The task as T reads it, and its limit; TypeError if a text is something else."""
    if not 0 < timeout <= 3600:
        raise ValueError(f"a timeout of {timeout} s is not between 0 and an hour")
    if not all(isinstance(text, str) for text in (program, test, entry_point, prompt)):
        raise TypeError("not text")
    task = {"program": program, "test": test, "entry_point": entry_point, "prompt": prompt}
    return serialize(task | {"name": name, "timeout": timeout}), timeout


def run_tests(
    program: str, test: str, entry_point: str, timeout: float = TIMEOUT, prompt: str = ""
) -> Verdict:
    """Whether the program's function passes check(candidate), which test defines, in timeout
    seconds of wall-clock time. prompt is the task's own text, and defines the tests' helpers.

    Arguments reach the program as copies: it cannot change the tests' own values.
    """
    return run_many([(program, test, entry_point, timeout, prompt)], workers=1)[0]


def run_many(items: list[tuple], workers: int | None = None) -> list[Verdict]:
    """run_tests for each item's arguments, on as many workers as there are cores by default."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1: {workers}")
    verdicts: list[Verdict | None] = [None] * len(items)
    waiting, busy, retried = list(range(len(items)))[::-1], [], set()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                assign(items, waiting.pop(), busy, verdicts)
            wait_for(busy)
            for worker in list(busy):
                answer, now = worker.exchange(), time.monotonic()
                if answer is None and now < worker.deadline:
                    continue
                busy.remove(worker)
                died = False
                if isinstance(answer, list) and answer[0] == worker.name:
                    reason = answer[1]
                    POOL.idle.append(worker)
                else:
                    died = answer is not None
                    reason = "error" if died else "timeout"
                    worker.stop()
                if died and worker.index not in retried:
                    retried.add(worker.index)  # by another's hand: once more, on a fresh worker
                    waiting.append(worker.index)
                    continue
                verdicts[worker.index] = Verdict(reason == "passed", reason, now - worker.started)
    finally:
        for worker in busy:  # interrupted
            worker.stop()
    return verdicts


def assign(items: list[tuple], index: int, busy: list[Worker], verdicts: list) -> None:
    """Gives item index to a worker, or a verdict at once if it cannot be run."""
    try:
        name = os.urandom(8).hex()
        task, timeout = serialize_task(name, *items[index])
        worker = POOL.take()
    except SandboxError:
        verdicts[index] = Verdict(False, "refused", 0.0)
    except TypeError:
        verdicts[index] = Verdict(False, "error", 0.0)
    else:
        worker.begin(index, name, task, timeout + SETTLE)
        busy.append(worker)


def wait_for(busy: list[Worker]) -> None:
    """Sleeps until a worker can go on or is overdue."""
    if not busy:
        return
    poll = select.poll()
    for worker in busy:
        poll.register(worker.inbox, select.POLLIN)
        if worker.unsent:
            poll.register(worker.outbox, select.POLLOUT)
    seconds = min(worker.deadline for worker in busy) - time.monotonic()
    poll.poll(max(0.0, seconds) * 1000 + 1)
