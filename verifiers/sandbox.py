"""The trainer's side of the sandbox: it sends programs to worker processes and collects verdicts.

worker.py explains how a program is tested, confine.py how it is confined, docs/sandbox.md what a
user should know.
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

TIMEOUT = 3.0  # seconds of wall-clock time for a program and its tests
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SETTLE = 1.5  # seconds after a program's own limit until the trainer kills its worker


class Verdict(NamedTuple):
    passed: bool
    reason: str  # passed, failed, error, timeout, memory, refused
    seconds: float


class SandboxError(RuntimeError):
    """Programs cannot be run safely here; the message is one line."""


class Worker:
    """A worker process as the trainer sees it. No call blocks, except while the worker starts."""

    def __init__(self, unsafe: bool):
        if sys.platform != "linux" and not unsafe:
            raise SandboxError(f"programs are run on Linux only, not on {sys.platform}")
        options = json.dumps({"libraries": numpy_folders(), "unsafe": unsafe})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-B", "-s", "-S", "-m", "verifiers.worker", options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                cwd=ROOT,  # where the module is found; the worker then leaves it
                start_new_session=True,  # so that Ctrl-C reaches only the trainer
                # A fixed hash seed, so that verdicts do not depend on the order of sets.
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
        """Starts on an item, with a deadline in `timeout` seconds."""
        self.index, self.name = index, name
        self.unsent, self.received = memoryview(task), b""
        self.started = time.monotonic()
        self.deadline = self.started + timeout

    def exchange(self):
        """Sends and receives without waiting: returns the answer, "died", or None if not yet."""
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
    """Idle workers of this process. A fork of the trainer starts its own; pipes are not shared."""

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
            except IndexError:  # popped without asking first, since threads may share the pool
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
    """NumPy's folders, if installed: the only package beside the standard library that a program
    may import. The rest of site-packages might contain a benchmark's answers."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = spec.submodule_search_locations[0]
    return [path for path in (folder, f"{folder}.libs") if os.path.isdir(path)]


def sandbox_status(unsafe: bool = False) -> str:
    """One line on the protections that work here; each but the limits was tried. Raises
    SandboxError if programs cannot be confined, unless `unsafe`, which then stays allowed."""
    POOL.unsafe = POOL.unsafe or unsafe
    worker = POOL.take()
    POOL.idle.append(worker)
    missing = f"; missing: {', '.join(worker.status['off'])}" if worker.status["off"] else ""
    return f"sandbox: {', '.join(worker.status['on'] + ['limits'])}{missing}"


def serialize_task(
    name: str, program: str, test: str, entry_point: str, timeout: float = TIMEOUT, prompt: str = ""
) -> tuple[bytes, float]:
    """The task as the tester reads it, and its time limit. Raises TypeError if a text is no str."""
    if not 0 < timeout <= 3600:
        raise ValueError(f"a timeout of {timeout} s is not between 0 and an hour")
    if not all(isinstance(text, str) for text in (program, test, entry_point, prompt)):
        raise TypeError("not text")
    task = {"program": program, "test": test, "entry_point": entry_point, "prompt": prompt}
    return serialize(task | {"name": name, "timeout": timeout}), timeout


def run_tests(
    program: str, test: str, entry_point: str, timeout: float = TIMEOUT, prompt: str = ""
) -> Verdict:
    """Whether the program's function passes check(candidate), which `test` defines, within
    `timeout` seconds of wall-clock time. `prompt` is the task's own text, which may define helpers
    of the tests.

    Arguments reach the program as copies, so it cannot change the tests' values.
    """
    return run_many([(program, test, entry_point, timeout, prompt)], workers=1)[0]


def run_many(items: list[tuple], workers: int | None = None) -> list[Verdict]:
    """run_tests for each item's arguments, by default on one worker a core."""
    workers = usable_cores() if workers is None else workers
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
                if isinstance(answer, list) and answer[0] == worker.name:
                    reason = answer[1]
                    POOL.idle.append(worker)
                else:
                    reason = "timeout" if answer is None else "error"
                    worker.stop()
                    if answer is not None and worker.index not in retried:
                        retried.add(worker.index)  # killed by something else: try once more
                        waiting.append(worker.index)
                        continue
                verdicts[worker.index] = Verdict(reason == "passed", reason, now - worker.started)
    finally:
        for worker in busy:  # interrupted
            worker.stop()
    return verdicts


def usable_cores() -> int:
    """This process's share of the cores that it and torchrun's others may run on. Programs that
    had to wait for a core would run out of time, which is wall-clock time."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def assign(items: list[tuple], index: int, busy: list[Worker], verdicts: list) -> None:
    """Gives an item to a worker, or a verdict at once if it cannot be run."""
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
    """Sleeps until a worker can continue or has passed its deadline."""
    if not busy:
        return
    poll = select.poll()
    for worker in busy:
        poll.register(worker.inbox, select.POLLIN)
        if worker.unsent:
            poll.register(worker.outbox, select.POLLOUT)
    seconds = min(worker.deadline for worker in busy) - time.monotonic()
    poll.poll(max(0.0, seconds) * 1000 + 1)
