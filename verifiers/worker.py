"""The process that holds a stranger's program, started by the trainer (sandbox.py).

  trainer ──task──▶ tester T ──arguments──▶ runner U     T knows the tests, U the program;
     ▲                 │ ◀──────results────               neither knows what the other knows
     └── worker W ◀────┘ one word

W is a fresh interpreter with an empty environment, so that nothing of the trainer is inherited.
It forks U and T before the task is read. T alone reads the task from the trainer's pipe, hands U
the program, runs the tests with a stand-in for the candidate and says how they ended. U confines
itself before it runs the program, and T before it reads the tests, which were downloaded, too.
Whatever U sends is a plain value or an error, never a verdict, and U dies before the verdict is
given.

Hard-coding the answers to tests that a policy has seen is outside any sandbox.

Only the standard library and confine.py are imported: neither the grader nor anything else of the
trainer's is in this process.
"""

import builtins
import fractions
import gc
import importlib
import itertools
import json
import math
import os
import random
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

MESSAGE_BYTES = 8 << 20  # what U may send at once
DEPTH = 200  # of nested containers, in either direction
ITEMS = 100_000  # of an iterator, which may have no end

# Imported before the fork, so that a program does not pay for them.
COMMON = """array bisect cmath collections copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math operator queue random re statistics string struct
textwrap threading time typing unicodedata""".split()
# Imported as well where a program may open no file.
RARE = """__future__ abc asyncio base64 binascii calendar concurrent.futures.thread contextlib csv
difflib encodings.ascii encodings.idna encodings.latin_1 encodings.utf_16 graphlib inspect io
numbers pprint secrets traceback uuid warnings weakref zlib""".split()


# ---- messages ----


def to_json(value, depth: int = 0):
    """A plain value as JSON with tags: lists as they are, other containers as {type: items}.

    A subclass (Counter, namedtuple, IntEnum) becomes its plain base and a NumPy scalar a number,
    for they compare so in a test; an iterator one over copies of its items, if they are not too
    many; anything else (a match, an array) a bare object(). Who converts does not matter:
    from_json() alone is trusted.
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:  # long ones in base 16, which takes linear time to read
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
    """to_json()'s inverse, into exact builtin types; raises for anything that it cannot have sent.

    No object of the program's can cross, so none can bring an __eq__ of its own to a test. What
    is not plain arrives as an object that is true, as `assert re.search(…)` expects, and equals
    nothing.
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
    """A message as its length and JSON; lone surrogates pass, as they may in a Python string."""
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
    """The next message; EOFError if the other side has gone, ValueError if it is too long."""

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


# ---- the tester T ----


def tester(task_fd: int, inbox: int, outbox: int, verdict_fd: int) -> None:
    """T's life: one task, one word. The task's name goes before it, so that no verdict is ever
    taken for another task's, whatever is killed when.

    The limit is the kernel's alarm, whose default action ends T, so that nothing a test, a value
    or a silent U does can hold it off; it counts loading the program, too.
    """
    task = receive(task_fd)
    os.write(verdict_fd, task["name"].encode() + b" ")
    signal.setitimer(signal.ITIMER_REAL, task["timeout"])
    random.seed()  # a copy of U's generator would let it foretell a test's random arguments

    def conclude(reason: str) -> None:
        os.write(verdict_fd, reason.encode())
        os._exit(0)

    def ask(message: dict):
        try:
            send(outbox, serialize(message))
            reply = receive(inbox, MESSAGE_BYTES)
            error = rebuild(*reply["raised"]) if "raised" in reply else None
            value = from_json(reply["value"]) if error is None else None
        except Exception:  # a dead or lying U must not look like an exception that a test expects
            conclude("error")
        if error is not None:
            raise error
        return value

    def candidate(*args, **kwargs):
        return ask({"args": to_json(args), "kwargs": to_json(kwargs)})

    conclude(judge(task, ask, candidate))


def judge(task: dict, ask, candidate) -> str:
    """How check(candidate) ends. Only its last line, reached, is a pass.

    The tests' helpers come from the prompt, which is trusted, in a namespace that the program
    never sees. The entry point's name is the stand-in there: HumanEval 33 tests by it.
    """
    try:
        ask({name: task[name] for name in ("program", "entry_point", "timeout")})
        namespace = {"__name__": "tests"}
        try:
            exec(compile(task["prompt"], "prompt", "exec", dont_inherit=True), namespace)
        except SyntaxError:
            pass  # a prompt in prose defines no helpers
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
    """The builtin exception of that name, for tests that expect one; never SystemExit and its
    like, which would end T, nor StopIteration, which would end an all(map(candidate, …)) well."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Exception)):
        kind = RuntimeError
    if issubclass(kind, (StopIteration, StopAsyncIteration)):
        kind = RuntimeError
    for base in kind.__mro__:
        try:
            return base(str(message))
        except TypeError:  # UnicodeDecodeError and a few others want more than a message
            continue


# ---- the runner U ----


def runner(inbox: int, outbox: int, box: Box, parent: int) -> None:
    """U's life: confine itself, load the program, answer calls until killed."""
    enter_box(box)
    die_with(parent)
    close_all_but(inbox, outbox)
    task = receive(inbox)
    set_limit("RLIMIT_CPU", math.ceil(task["timeout"]) + 1)
    forbid_calls(box.filter)
    gc.enable()
    module = types.ModuleType("program")  # not __main__: what a main guard holds is not tested
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
    """Open files beyond the standard ones."""
    ends = [2, *sorted(kept), FILES]
    for before, after in zip(ends, ends[1:]):
        os.closerange(before + 1, after)


def reply(outbox: int, action) -> None:
    """What action returned, or the builtin type next to what it raised, SystemExit included."""
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
    except BaseException:  # the program's own __str__
        return ""


# ---- the worker W ----


def main(options: dict) -> None:
    """W's life: a clean process that forks a U and a T for each task, and outlives both.

    It holds no task itself. Its standard input is the trainer's: T reads the task from there, and
    when the trainer has gone the pipe hangs up and everything ends.
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
    gc.freeze()  # children then write to fewer of the pages that they share
    while (verdict := run_one(box, task_fd)) is not None:
        clear_scratch(box.scratch)
        os.write(verdict_fd, serialize(verdict))


def leave_repository() -> None:
    """This module was found from the repository's root: a program must find nothing there."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != root]
    os.chdir("/")


def detach() -> tuple[int, int]:
    """Sets aside the pipes from and to the trainer, and what else the trainer's state decided."""
    for name in (signal.SIGALRM, signal.SIGCHLD):  # an ignored signal is inherited through exec
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    pipes = os.dup(0), os.dup(1)
    open_standard_files()
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, let the kernel end this before the trainer
    return pipes


def run_one(box: Box, task_fd: int) -> list[str] | None:
    """One task's U and T, started before it comes → [the task's name, how it ended]; None when the
    trainer has gone, or T before it said which task it took: that one's bytes are lost."""
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
    """All that T says until it ends; nothing if the trainer goes first."""
    poll = select.poll()
    poll.register(verdicts, select.POLLIN)
    poll.register(task_fd, 0)  # tells of a hang-up only
    report = b""
    while task_fd not in dict(poll.poll()):
        data = os.read(verdicts, 64)
        if not data:
            return report.decode()
        report += data
    return ""


def clear_scratch(folder: str) -> None:
    """Removes what a program left in the scratch, however deep: folders move up, then go."""
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
