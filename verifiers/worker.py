"""The worker process, which the trainer (sandbox.py) starts to test untrusted programs.

  trainer ──task──▶ tester ──arguments──▶ runner     the tester runs the tests, the runner the
     ▲                │ ◀──────results────            program, and the runner never sees the tests
     └── worker ◀─────┘ one word

The worker is a fresh interpreter with three fixed variables in its environment, so that it inherits
nothing from the trainer. It forks the runner and the tester before the task is read. The tester
alone reads the task from the trainer's pipe. It hands the program to the runner, runs the tests
with a stand-in for the candidate, and reports how they ended. The runner confines itself before it
runs the program, and the tester before it reads the tests, which were downloaded, too. The runner
can send plain values and errors, but no verdict, and it is killed before the verdict is passed on.

A program that hard-codes the answers to tests which the policy has seen cannot be stopped by any
sandbox.

Only the standard library and confine.py are imported: neither the grader nor anything else of the
trainer is in this process.
"""

import builtins
import fractions
import gc
import importlib
import itertools
import json
import math
import os
import select
import signal
import sys
import types
from collections.abc import Iterator
from operator import index

from verifiers.confine import (
    FILES,
    LIMITS,
    SCRATCH,
    Box,
    build_box,
    die_with,
    enter_box,
    forbid_calls,
    open_standard_files,
    set_limit,
    spawn,
)

MESSAGE_BYTES = 8 << 20  # size limit of a message from the runner
DEPTH = 200  # depth limit of nested containers, in either direction
ITEMS = 100_000  # length limit of an iterator, which may have no end

# Imported before the fork, so that they cost programs no time.
COMMON = """array bisect cmath collections copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math operator queue random re statistics string struct
textwrap threading time typing unicodedata""".split()
# Imported as well if programs may open no files.
RARE = """__future__ abc asyncio base64 binascii calendar concurrent.futures.thread contextlib csv
difflib encodings.ascii encodings.idna encodings.latin_1 encodings.utf_16 graphlib inspect io
numbers pprint secrets traceback uuid warnings weakref zlib""".split()


# ---- messages ----


def to_json(value, depth: int = 0):
    """A plain value as JSON with tags: lists as they are, other containers as {type: items}.

    An instance of a subclass (Counter, namedtuple, IntEnum) becomes its plain base and a NumPy
    scalar a number, since they compare like that in a test. An iterator becomes one over copies of
    its items, if these are not too many. Anything else (a match, an array) becomes a bare object().
    Nothing here is trusted; only from_json() is.
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:  # long ones in base 16, which is read in linear time
        return value if abs(value) < 1 << 63 else {"int": f"{value:x}"}
    if depth > DEPTH:
        raise ValueError("too deep or cyclic")
    if type(value) is list:
        return [to_json(item, depth + 1) for item in value]
    if type(value) in (tuple, set, frozenset):
        return {type(value).__name__: [to_json(item, depth + 1) for item in value]}
    if type(value) is dict:
        return {"dict": [[to_json(k, depth + 1), to_json(v, depth + 1)] for k, v in value.items()]}
    if type(value) in (bytes, bytearray):
        return {type(value).__name__: value.hex()}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value) is range:
        return {"range": to_json([value.start, value.stop, value.step], depth)}
    if type(value) is fractions.Fraction:
        return {"Fraction": to_json([value.numerator, value.denominator], depth)}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not value.shape:
        return to_json(value.item(), depth + 1)
    for base, plain in PLAIN.items():
        if isinstance(value, base):
            return to_json(plain(value), depth + 1)
    if isinstance(value, Iterator):
        items = list(itertools.islice(value, ITEMS + 1))
        if len(items) <= ITEMS:
            return {"iterator": to_json(items, depth)}
    return {"object": None}


PLAIN = {int: int.__int__, float: float.__float__, str: str.__str__, bytes: bytes}
PLAIN |= {kind: kind for kind in (tuple, list, dict, set, frozenset, complex)}
BUILD = {
    "tuple": lambda items, depth: tuple(from_json(items, depth)),
    "set": lambda items, depth: set(from_json(items, depth)),
    "frozenset": lambda items, depth: frozenset(from_json(items, depth)),
    "dict": lambda items, depth: {
        from_json(key, depth + 1): from_json(item, depth + 1) for key, item in items
    },
    "bytes": lambda text, depth: bytes.fromhex(text),
    "bytearray": lambda text, depth: bytearray.fromhex(text),
    "complex": lambda parts, depth: complex(*parts),
    "int": lambda text, depth: int(text, 16),
    "range": lambda parts, depth: range(*from_json(parts, depth)),
    "Fraction": lambda parts, depth: fractions.Fraction(*map(index, from_json(parts, depth))),
    "iterator": lambda items, depth: iter(from_json(items, depth)),
    "object": lambda nothing, depth: object(),
}


def from_json(value, depth: int = 0):
    """The inverse of to_json(), into exact builtin types; raises for anything else.

    No object of the program can reach a test, and so no __eq__ of its own. A value that is not
    plain arrives as an object that is true, as `assert re.search(…)` expects, and equals nothing.
    """
    if depth > DEPTH:
        raise ValueError("too deep")
    if type(value) is list:
        return [from_json(item, depth + 1) for item in value]
    if type(value) is dict:
        ((kind, body),) = value.items()
        return BUILD[kind](body, depth)
    return value


def serialize(message, longest: float = math.inf) -> bytes:
    """A message as its length and JSON. Lone surrogates are kept, as in a Python string."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > longest:
        raise ValueError("message too long")
    return len(data).to_bytes(4, "big") + data


def send(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int, longest: float = math.inf):
    """The next message. Raises EOFError if the other side is gone, ValueError if it is too long."""

    def read_exactly(count: int) -> bytes:
        chunks = []
        while count:
            chunks.append(os.read(fd, min(count, 1 << 20)))
            if not chunks[-1]:
                raise EOFError
            count -= len(chunks[-1])
        return b"".join(chunks)

    size = int.from_bytes(read_exactly(4), "big")
    if size > longest:
        raise ValueError("message too long")
    return json.loads(read_exactly(size).decode("utf-8", "surrogatepass"))


# ---- the tester ----


def tester(task_fd: int, inbox: int, outbox: int, verdict_fd: int) -> None:
    """The tester: reads one task and reports one word. It sends the task's name first, so that a
    verdict is never taken for that of another task, whatever is killed when.

    The time limit is the kernel's alarm, whose default action ends the tester. So no test, no value
    and no silent runner can delay it. It includes the time to load the program.
    """
    task = receive(task_fd)
    os.write(verdict_fd, task["name"].encode() + b" ")
    signal.setitimer(signal.ITIMER_REAL, task["timeout"])

    def conclude(reason: str) -> None:
        os.write(verdict_fd, reason.encode())
        os._exit(0)

    def ask(message: dict):
        try:
            send(outbox, serialize(message))
            reply = receive(inbox, MESSAGE_BYTES)
            error = rebuild(*reply["raised"]) if "raised" in reply else None
            value = from_json(reply["value"]) if error is None else None
        except Exception:  # a broken runner must not pass for an exception that a test expects
            conclude("error")
        if error is not None:
            raise error
        return value

    def candidate(*args, **kwargs):
        return ask({"args": to_json(args), "kwargs": to_json(kwargs)})

    conclude(judge(task, ask, candidate))


def judge(task: dict, ask, candidate) -> str:
    """How check(candidate) ends. It has passed only if it reached its last line.

    The tests' helpers come from the prompt, which is trusted, in a namespace that the program never
    sees. There the entry point's name is bound to the stand-in: HumanEval 33 calls it by name.
    """
    try:
        ask({name: task[name] for name in ("program", "entry_point", "timeout")})
        namespace = {"__name__": "tests"}
        try:
            exec(compile(task["prompt"], "prompt", "exec", dont_inherit=True), namespace)
        except SyntaxError:
            pass  # a prompt in prose has no helpers
        namespace[task["entry_point"]] = candidate
        exec(compile(task["test"], "test", "exec", dont_inherit=True), namespace)
        namespace["check"](candidate)
        return "passed"
    except AssertionError:
        return "failed"
    except MemoryError:
        return "memory"
    except BaseException:
        return "error"


def rebuild(name: str, message: str) -> Exception:
    """The builtin exception of that name, for tests that expect it. Never SystemExit or the like,
    which would end the tester, nor StopIteration, which would end all(map(candidate, …)) as true.
    """
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    if issubclass(kind, (StopIteration, StopAsyncIteration)):
        kind = RuntimeError
    for base in kind.__mro__:
        try:
            return base(str(message))
        except TypeError:  # UnicodeDecodeError and a few others need more than a message
            continue


# ---- the runner ----


def runner(inbox: int, outbox: int, box: Box, parent: int) -> None:
    """The runner: confines itself, loads the program, and answers calls until it is killed."""
    enter_box(box)
    die_with(parent)
    close_all_but(inbox, outbox)
    task = receive(inbox)
    set_limit("RLIMIT_CPU", math.ceil(task["timeout"]) + 1)
    forbid_calls(box.filter)
    gc.enable()
    module = types.ModuleType("program")  # not __main__: no main guard runs
    sys.modules["program"] = module  # where dataclasses and typing look for its names

    def load() -> None:
        exec(compile(task["program"], "program", "exec", dont_inherit=True), vars(module))
        vars(module)[task["entry_point"]]

    def call():
        message = receive(inbox)
        args, kwargs = from_json(message["args"]), from_json(message["kwargs"])
        return vars(module)[task["entry_point"]](*args, **kwargs)

    reply(outbox, load)
    while True:
        reply(outbox, call)


def close_all_but(*kept: int) -> None:
    """Closes all files but these and the standard ones."""
    ends = [2, *sorted(kept), FILES]
    for before, after in zip(ends, ends[1:]):
        os.closerange(before + 1, after)


def reply(outbox: int, action) -> None:
    """Sends what `action` returns, or the nearest builtin type of anything that it raises."""
    try:
        data = serialize({"value": to_json(action())}, MESSAGE_BYTES)
    except BaseException as error:
        kinds = type(error).__mro__
        name = next(kind.__name__ for kind in kinds if kind.__module__ == "builtins")
        data = serialize({"raised": [name, error_text(error)]})
    send(outbox, data)


def error_text(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except BaseException:  # from the program's own __str__
        return ""


# ---- the worker ----


def main(options: dict) -> None:
    """The worker: a clean process that forks a runner and a tester for each task.

    It never reads a task itself: the tester does, from the pipe that is the worker's standard
    input. When the trainer is gone the pipe hangs up, and everything ends.
    """
    leave_repository()
    task_fd, verdict_fd = detach()
    sys.path += [os.path.dirname(path) for path in options["libraries"][:1]]
    sys.argv[1:] = []
    for name in COMMON:
        importlib.import_module(name)
    box, on, off = build_box(options["libraries"])
    refused = box.filter is None and not options["unsafe"]
    os.write(verdict_fd, serialize({"on": on, "off": off, "refused": refused}))
    if refused:
        return
    for name in RARE if box.ruleset is None and box.scratch == "/" else ():
        importlib.import_module(name)
    for name, value in LIMITS.items():
        set_limit(name, value)
    gc.collect()
    gc.freeze()  # so that children write to fewer shared pages
    while (verdict := run_one(box, task_fd)) is not None:
        clear_scratch(box.scratch)
        os.write(verdict_fd, serialize(verdict))


def leave_repository() -> None:
    """Removes the repository from sys.path and leaves it, so that programs find nothing there."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != root]
    os.chdir("/")


def detach() -> tuple[int, int]:
    """Moves the trainer's pipes to other files, and resets signals and the priority for the OOM
    killer, which the trainer decided."""
    for name in (signal.SIGALRM, signal.SIGCHLD):  # exec keeps ignored signals ignored
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    pipes = os.dup(0), os.dup(1)
    open_standard_files()
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # if memory runs out, the kernel kills this before the trainer
    return pipes


def run_one(box: Box, task_fd: int) -> list[str] | None:
    """Starts a runner and a tester, which wait for a task → [the task's name, how it ended]. None
    if the trainer is gone, or if the tester ended before it sent the name: that task is lost."""
    parent = os.getpid()
    (calls, to_runner), (from_runner, results) = os.pipe(), os.pipe()
    runner_pid = spawn(runner, calls, results, box, parent)
    verdicts, verdict = os.pipe()

    def test() -> None:
        enter_box(box)
        die_with(parent)
        close_all_but(task_fd, from_runner, to_runner, verdict)
        forbid_calls(box.tests_filter)
        tester(task_fd, from_runner, to_runner, verdict)

    tester_pid = spawn(test)
    for fd in (calls, to_runner, from_runner, results, verdict):
        os.close(fd)
    report = await_report(verdicts, task_fd)
    os.close(verdicts)
    for pid in (runner_pid, tester_pid):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(runner_pid, 0)
    status = os.waitpid(tester_pid, 0)[1]
    name, _, reason = report.partition(" ")
    alarmed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
    return [name, reason or ("timeout" if alarmed else "error")] if name else None


def await_report(verdicts: int, task_fd: int) -> str:
    """Everything that the tester reports until it ends; nothing if the trainer goes first."""
    poll = select.poll()
    poll.register(verdicts, select.POLLIN)
    poll.register(task_fd, 0)  # reports a hang-up only
    report = b""
    while task_fd not in dict(poll.poll()):
        data = os.read(verdicts, 64)
        if not data:
            return report.decode()
        report += data
    return ""


def clear_scratch(folder: str) -> None:
    """Empties the scratch. Nested folders, however deep, are moved up first and then removed."""
    if folder != SCRATCH:
        return
    prefix, moved = os.urandom(8).hex(), 0
    while entries := list(os.scandir(folder)):
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            os.chmod(entry.path, 0o700)
            for inner in list(os.scandir(entry.path)):
                os.rename(inner.path, f"{folder}/{prefix}{moved}")
                moved += 1
            os.rmdir(entry.path)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
