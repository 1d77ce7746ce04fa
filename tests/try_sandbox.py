"""Attacks on the grading of programs, and honest programs that must not suffer from the defence.

An attack never solves its problem: where it passes, the reward was fooled. Around every attack the
harness looks at what a program must leave alone: a canary file, sockets, processes, shared memory,
signals and settings of the trainer (the process that calls run_tests), the time that the verdict
took, and the next honest program.

Every attack is bounded (hundreds of forks, 4 GiB, half a minute, harmless signals to strangers), so
that a sandbox that leaks breaks a check and not the machine. Even so: never run these programs
outside a sandbox.

    python -m tests.try_sandbox              a line a case, totals; exit code 1 if one is bad
    python -m tests.try_sandbox NAME ...     the cases whose name or kind is given

The programs are in cases/attacks/KIND.txt and their problems in cases/problems.txt. "#: name
[problem]" starts a program; "#: then" ends a first one, which is run in a call of its own so that
the second may find what it left. In control.txt an honest program may be "optional", or one that
"writes" files, and "#? " stands before the lines of a check of its own; in tests.txt that is the
attack. Names between @ signs are filled in by Host.fill.
"""

import argparse
import ctypes
import glob
import json
import os
import platform
import resource
import secrets
import select
import signal
import site
import socket
import stat
import struct
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from verifiers.sandbox import run_tests, sandbox_status

CASES = Path(__file__).with_name("cases")
GIB = 2**30
ALLOWED_DELAY = 3.0  # seconds that a verdict may take beyond the timeout
ALLOWED_MEMORY = 2 * GIB  # resident, of everything that the trainer has started
SLACK = {"dead processes": 8, "descriptors": 4}  # a sandbox that restarts its parts may need more
SETTLING = 2.0  # seconds in which killed processes and scratch files may still go away


# ---- the cases ----


def read_blocks(text: str) -> list[tuple[list[str], str]]:
    """What stands below each "#: " line, with that line's words. A blank line before the next one
    is the last line end of what stands above it."""
    blocks = [block.split("\n", 1) for block in f"\n{text}".split("\n#: ")[1:]]
    return [(header.split(), body) for header, body in blocks]


@dataclass(frozen=True)
class Problem:
    """A task in HumanEval's form."""

    entry_point: str
    prompt: str
    test: str


def read_problems() -> dict[str, Problem]:
    """By entry point: its block and the next, the test."""
    blocks = read_blocks((CASES / "problems.txt").read_text(encoding="utf-8"))
    problems = [Problem(a[0][0], a[1], b[1]) for a, b in zip(blocks[::2], blocks[1::2])]
    return {problem.entry_point: problem for problem in problems}


PROBLEMS = read_problems()
ADD = PROBLEMS["add"]
HONEST = "def add(a, b):\n    return a + b\n"
WRONG = "def add(a, b):\n    return 4\n"


@dataclass(frozen=True)
class Attack:
    """A program with its problem. An attack must not pass; one of the kind "control" must."""

    name: str
    kind: str
    program: str = field(repr=False)
    problem: Problem = field(default=ADD, repr=False)
    timeout: float = 1.5
    before: str = field(default="", repr=False)  # a program that is run first, in a call of its own
    optional: bool = False  # a control that is reported and not counted
    writes: bool = False  # a control that writes files, which needs the sandbox's private root


def read_attacks(path: Path) -> list[Attack]:
    """The cases of the kind that a file is named after."""
    attacks = []
    for (name, *words), body in read_blocks(path.read_text(encoding="utf-8")):
        if name == "then":
            first = attacks.pop()
            attacks.append(replace(first, program=body, before=first.program))
            continue
        lines = body.split("\n")
        program = "\n".join(line for line in lines if not line.startswith("#? "))
        check = "\n".join(line[3:] for line in lines if line.startswith("#? "))
        if check:
            test = "def check(candidate):\n" + textwrap.indent(check, "    ") + "\n"
            problem = Problem(words[0], "", test)
        else:
            problem = PROBLEMS[words[0]] if words else ADD
        notes = {word: word in words for word in ("optional", "writes")}
        timeout = 3.0 if path.stem == "control" else 1.5
        attacks.append(Attack(name, path.stem, program, problem, timeout, **notes))
    return attacks


# Pieces of programs that several attacks share.
MACROS = {
    # answers add from the text of the test, which the lines before have looked for
    "CHEAT": r"""
def add(a, b):
    import re
    return int(re.search(rf"candidate\({a}, {b}\) == (-?\d+)", text)[1])
""",
    "LIBC": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)",
    # a system call through the 32-bit gate, whose numbers a filter for x86_64 does not know
    "INT80": r"""
import ctypes, mmap, struct
def int80(number, first=0, second=0):
    page = mmap.mmap(-1, 4096, prot=7)
    page.write(struct.pack("<BBiBiBi", 0x53, 0xB8, number, 0xBB, first, 0xB9, second))
    page.write(b"\xcd\x80\x5b\xc3")
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    return ctypes.CFUNCTYPE(ctypes.c_int)(start)()
""",
}

# Programs that the parser has to survive and that are long, or hold what a text file cannot.
PARSER_ATTACKS = {
    "empty": "",
    "white_space": " \n\t\n\f\n",
    "null_byte": WRONG + "\x00",
    "null_byte_hides_the_rest": "import os\nos._exit(0)\n\x00" + WRONG,
    "lone_surrogate": WRONG + "x = '\ud800'\n",
    "surrogate_name": "\udcff = 1\n" + WRONG,
    "deep_parentheses": WRONG + "x = " + "(" * 100_000 + ")" * 100_000,
    "deep_brackets": WRONG + "x = " + "[" * 5_000 + "]" * 5_000,
    "deep_minus": WRONG + "x = " + "-" * 1_000_000 + "1",
    "deep_not": WRONG + "x = " + "not " * 500_000 + "1",
    "deep_lambda": WRONG + "x = " + "lambda: " * 200_000 + "1",
    "deep_attributes": WRONG + "x = add" + ".a" * 500_000,
    "deep_calls": WRONG + "x = add" + "()" * 500_000,
    "long_sum": WRONG + "x = 1" + " + a" * 500_000,
    "deep_blocks": "".join(" " * i + "if 1:\n" for i in range(99)) + " " * 99 + "pass\n" + WRONG,
    "deep_else": WRONG + "if 0: pass\n" + "elif 0: pass\n" * 50_000,
    "deep_functions": "".join(" " * i + "def f():\n" for i in range(90)) + " " * 90 + "pass\n",
    "long_line": WRONG + "x = '" + "a" * 10_000_000 + "'",
    "long_program": "x = 1\n" * 2_000_000 + WRONG,
    "many_constants": WRONG + "x = [" + "1.5, " * 1_000_000 + "]",
    "many_names": WRONG + "\n".join(f"x{i} = {i}" for i in range(200_000)),
    "long_number": WRONG + "x = " + "9" * 1_000_000,
    "line_separators": WRONG.replace("\n", "\u2028"),
}

FILES = {path.stem: path for path in sorted((CASES / "attacks").glob("*.txt"))}
CONTROLS = read_attacks(FILES.pop("control"))
CONTROLS += [
    Attack("line_ends_of_windows", "control", HONEST.replace("\n", "\r\n"), timeout=3.0),
    Attack("tabs", "control", HONEST.replace("    ", "\t"), timeout=3.0),
    Attack("no_last_line_end", "control", HONEST.strip(), timeout=3.0),
    Attack("long_comment", "control", "# " + "x" * 100_000 + "\n" + HONEST, timeout=3.0),
    Attack("byte_order_mark", "control", "\ufeff" + HONEST, timeout=3.0, optional=True),
]
if platform.machine() != "x86_64":
    del FILES["x86"]  # system calls by number, through every gate that the processor has
ATTACKS = [attack for path in FILES.values() for attack in read_attacks(path)]
ATTACKS += [Attack(name, "parser", program) for name, program in PARSER_ATTACKS.items()]


# ---- the host: what a program must leave alone ----

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = os.path.expanduser("~")
LISTENED = "HUP INT QUIT ABRT TERM USR1 USR2 CONT WINCH".split()
DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom"]
MARKED_PLACES = ["/", "/tmp", "/var/tmp", "/run", "/dev/shm", "/dev/mqueue"]
MARKED_PLACES += [str(REPOSITORY), str(REPOSITORY / "verifiers")]
MARKED_PLACES += [f"{HOME}/{name}" for name in ("", ".local/lib", ".config", ".cache")]
MARKED_PLACES += {os.path.dirname(os.__file__), *site.getsitepackages(), *filter(None, sys.path)}


class Host:
    """The trainer's surroundings while programs are graded: this process is the trainer.

    It has a secret in its environment and in a canary file, listens on sockets and for signals,
    keeps its temporary files in a folder of its own, and becomes the parent of every orphan, so
    that no process gets lost.
    """

    def __init__(self):
        self.mark = "attackmark" + secrets.token_hex(4)
        self.secret = os.environ.setdefault("TRAINER_SECRET", secrets.token_hex(16))
        self.root = tempfile.mkdtemp(prefix="host-")
        os.chmod(self.root, 0o755)  # a sandbox may change its user
        self.vault, self.tmp = f"{self.root}/vault", f"{self.root}/tmp"
        self.canary = f"{self.vault}/canary"
        self.key = secrets.randbelow(2**30) + 2**20
        self.signals = []
        self.libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self):
        self.saved = os.getcwd(), os.environ.get("TMPDIR")
        os.mkdir(self.tmp)
        os.mkdir(f"{self.root}/work")
        os.chdir(f"{self.root}/work")
        os.environ["TMPDIR"], tempfile.tempdir = self.tmp, None
        self.libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        self.listen()
        self.fill_vault()
        numbers = [getattr(signal, "SIG" + name) for name in LISTENED]
        self.handlers = {
            n: signal.signal(n, lambda n, _: self.signals.append(signal.Signals(n).name))
            for n in numbers
        }
        self.limits = {n: resource.getrlimit(n) for n in range(resource.RLIMIT_NOFILE + 8)}
        for _ in range(3):  # what the sandbox keeps for good is there before the first count
            grade(HONEST, ADD, 10.0)
        self.settings, self.usual = self.facts(), self.counts()
        for _ in range(10):  # a worker forks the next program's processes after the verdict
            time.sleep(0.05)
            self.usual = {n: max(count, self.usual[n]) for n, count in self.counts().items()}
        return self

    def __exit__(self, *_):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        for sock in self.sockets.values():
            sock.close()
        os.close(self.watch)
        os.chdir(self.saved[0])
        os.environ.pop("TMPDIR")
        if self.saved[1]:
            os.environ["TMPDIR"] = self.saved[1]
        tempfile.tempdir = None
        remove(self.root)

    def listen(self):
        tcp = socket.create_server(("127.0.0.1", 0))
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.1", 0))
        self.sockets = {"tcp": tcp, "udp": udp}
        for name, address in ("unix", f"{self.root}/socket"), ("abstract", "\0" + self.mark):
            self.sockets[name] = socket.socket(socket.AF_UNIX)
            self.sockets[name].bind(address)
            self.sockets[name].listen()
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.free_port = free.getsockname()[1]

    def fill_vault(self):
        os.makedirs(self.vault, exist_ok=True)
        Path(self.canary).write_text(self.secret)
        os.chmod(self.canary, 0o600)
        self.watch = self.libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self.libc.inotify_add_watch(self.watch, self.vault.encode(), 0xFFF)  # every event

    def fill(self, text: str) -> str:
        """The text with its @NAMES@ replaced by what an attacker could know or guess."""
        names = MACROS | {
            "TRAINER": os.getpid(),
            "REPO": REPOSITORY,
            "HOME": HOME,
            "TMP": self.tmp,
            "VAULT": self.vault,
            "CANARY": self.canary,
            "MARK": self.mark,
            "KEY": self.key,
            "SECRET": self.secret,
            "SOCKET": f"{self.root}/socket",
            "PORT": self.sockets["tcp"].getsockname()[1],
            "UDP": self.sockets["udp"].getsockname()[1],
            "FREE": self.free_port,
        }
        for name, value in names.items():
            text = text.replace(f"@{name}@", str(value))
        return text

    # What must be the same before and after.

    def facts(self) -> dict:
        return {
            "canary": self.look_at_canary(),
            "devices": {path: kept_of(path) for path in DEVICES},
            "mounts": Path("/proc/self/mounts").read_text(),
            "host name": socket.gethostname(),
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
            "affinity": os.sched_getaffinity(0),
            "scheduler": os.sched_getscheduler(0),
            "limits": [resource.getrlimit(n) for n in self.limits],
            "marked files": self.marked(),
            "shared memory": self.system_v(),
            "secret": os.environ.get("TRAINER_SECRET"),
            "directory": os.getcwd(),
        }

    def look_at_canary(self) -> tuple:
        try:
            file, folder = os.stat(self.canary), os.stat(self.vault)
            found = Path(self.canary).read_text(), os.listdir(self.vault)
        except OSError as error:
            found, file, folder = (str(error),), os.stat("/"), os.stat("/")
        try:
            found += tuple(os.listxattr(self.canary))
        except OSError:
            pass  # not every file system has attributes
        self.touched()  # looking is an event, too
        changing = file.st_mode, file.st_uid, file.st_gid, file.st_nlink, file.st_mtime
        return *found, file.st_ino, *changing, folder.st_mode, folder.st_uid

    def marked(self) -> list[str]:
        found = []
        for place in MARKED_PLACES:
            found += glob.glob(f"{glob.escape(place)}/*{self.mark}*")
            found += glob.glob(f"{glob.escape(place)}/__pycache__/*{self.mark}*")
        return sorted(set(found))

    def system_v(self) -> list[str]:
        lines = []
        for path in glob.glob("/proc/sysvipc/*"):
            lines += [line for line in Path(path).read_text().split("\n") if str(self.key) in line]
        return lines

    # What must not have grown.

    def counts(self) -> dict:
        children = descendants(os.getpid())
        dead = sum(state == "Z" for state in children.values())
        return {
            "processes": len(children) - dead,
            "dead processes": dead,
            "files": sum(len(dirs) + len(names) for _, dirs, names in os.walk(self.tmp)),
            "descriptors": len(os.listdir("/proc/self/fd")),
        }

    # What must not have happened.

    def touched(self) -> list[str]:
        """What has happened to the vault since the last question: masks of inotify and names."""
        events = []
        with suppress(BlockingIOError):
            while buffer := os.read(self.watch, 65536):
                while buffer:
                    _, mask, _, length = struct.unpack_from("iIII", buffer)
                    events.append(f"{mask:#x} {buffer[16 : 16 + length].decode().rstrip(chr(0))}")
                    buffer = buffer[16 + length :]
        return events

    def called(self) -> list[str]:
        """The sockets at which somebody has knocked since the last question."""
        called = []
        for name, sock in self.sockets.items():
            while select.select([sock], [], [], 0)[0]:
                sock.recv(65536) if name == "udp" else sock.accept()[0].close()
                called.append(name + " socket")
        with socket.socket() as probe:
            probe.settimeout(0.2)
            if probe.connect_ex(("127.0.0.1", self.free_port)) == 0:
                called.append("listener")
        return sorted(set(called))

    def broken(self, before: dict, counts: dict) -> list[str]:
        """The names of the checks that do not hold; what may still go away is given time."""
        broken = [f"canary touched: {event}" for event in self.touched()]
        deadline = time.monotonic() + SETTLING
        while True:
            facts, now = self.facts(), self.counts()
            grown = [n for n in now if now[n] > max(counts[n], self.usual[n]) + SLACK.get(n, 0)]
            wrong = [n for n in facts if facts[n] != before[n]] + grown
            if not wrong or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        broken += wrong + self.called() + sorted(set(self.signals))
        if getattr(self.libc, "mq_unlink", lambda name: -1)(b"/" + self.mark.encode()) == 0:
            broken.append("message queue")
        self.signals.clear()
        return broken

    def repair(self, processes: set[int]):
        """Put back what an attack has broken, so that it is not counted against the next."""
        for pid in descendants(os.getpid()).keys() - processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self.marked():
            remove(path)
        for path, (mode, uid, gid, _) in self.settings["devices"].items():
            with suppress(OSError):
                os.chown(path, uid, gid)
                os.chmod(path, stat.S_IMODE(mode))
        self.remove_system_v()
        self.libc.umount2(self.vault.encode(), 2)
        os.close(self.watch)
        remove(self.vault)
        self.fill_vault()
        os.chdir(f"{self.root}/work")
        os.sched_setaffinity(0, self.settings["affinity"])
        with suppress(OSError, ValueError):  # what stays lowered is what the next is compared with
            os.sched_setscheduler(0, self.settings["scheduler"], os.sched_param(0))
            os.setpriority(os.PRIO_PROCESS, 0, self.settings["priority"])
            for number, limit in self.limits.items():
                resource.setrlimit(number, limit)
        if socket.gethostname() != self.settings["host name"]:
            socket.sethostname(self.settings["host name"])

    def remove_system_v(self):
        for kind, sizes in ("shm", (0, 0)), ("sem", (0, 0)), ("msg", (0,)):
            number = getattr(self.libc, kind + "get")(self.key, *sizes)
            if number >= 0:
                getattr(self.libc, kind + "ctl")(number, 0, 0, 0)  # IPC_RMID


def kept_of(path: str) -> tuple:
    """What a change of a file's inode would change."""
    found = os.stat(path)
    return found.st_mode, found.st_uid, found.st_gid, found.st_mtime


def remove(path: str):
    """rm -rf, which also removes trees too deep for Python."""
    os.spawnlp(os.P_WAIT, "rm", "rm", "-rf", "--one-file-system", path)


def descendants(root: int) -> dict[int, str]:
    """The states of all processes that stem from one."""
    parents, states = {}, {}
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            fields = Path(path).read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        pid = int(path.split("/")[2])
        states[pid], parents[pid] = fields[0], int(fields[1])
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {pid: states[pid] for pid in found - {root}}


class Memory(threading.Thread):
    """Watches how much more memory the trainer and its descendants come to hold."""

    def __init__(self):
        super().__init__(daemon=True)
        self.start_level, self.peak, self.over = resident(), 0, threading.Event()

    def run(self):
        while not self.over.wait(0.1):
            self.peak = max(self.peak, resident() - self.start_level)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()


def resident() -> int:
    """Bytes in memory, of this process and its descendants."""
    pages = 0
    for pid in [os.getpid(), *descendants(os.getpid())]:
        with suppress(OSError, IndexError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def printed() -> int:
    """What has come out of the trainer's own output, where that is a file."""
    return sum(s.st_size for s in map(os.fstat, (1, 2)) if stat.S_ISREG(s.st_mode))


# ---- running them ----


@dataclass(frozen=True)
class Outcome:
    name: str
    kind: str
    optional: bool
    passed: bool
    reason: str
    seconds: float
    broken: list[str]  # the checks of the host that did not hold

    @property
    def good(self) -> bool:
        return self.passed == (self.kind == "control") and not self.broken

    def __str__(self):
        wrong = ["REWARD FOOLED"] if self.passed and self.kind != "control" else []
        wrong += ["NOT PASSED"] if not self.passed and self.kind == "control" else []
        note = " (optional)" if self.optional else ""
        said = ", ".join(wrong + self.broken) or "ok"
        name = self.name + note
        return f"{name:<40} {self.kind:<10} {self.reason:<10} {self.seconds:6.2f}  {said}"


def grade(program: str, problem: Problem, timeout: float):
    """The verdict, and what was wrong with the way in which it came."""
    broken, verdict = [], None
    start = time.monotonic()
    try:
        verdict = run_tests(program, problem.test, problem.entry_point, timeout, problem.prompt)
    except BaseException as error:
        broken.append(f"run_tests raised {type(error).__name__}")
    wall = time.monotonic() - start
    if wall > timeout + ALLOWED_DELAY:
        broken.append(f"verdict after {wall:.1f} s")
    return verdict, wall, broken


def run(attack: Attack, host: Host) -> Outcome:
    """Grade one program and look at the host before and after."""
    problem = replace(attack.problem, test=host.fill(attack.problem.test))
    before, counts, output = host.facts(), host.counts(), printed()
    processes = set(descendants(os.getpid()))
    broken = []
    with Memory() as memory:
        if attack.before:
            broken += grade(host.fill(attack.before), problem, attack.timeout)[2]
        verdict, wall, late = grade(host.fill(attack.program), problem, attack.timeout)
    broken += late + host.broken(before, counts)
    if memory.peak > ALLOWED_MEMORY:
        broken.append(f"{memory.peak / GIB:.1f} GiB")
    if printed() - output > 2**20:
        broken.append("output of the trainer")
    if host.secret in str(verdict):
        broken.append("secret in the verdict")
    if broken:
        host.repair(processes)
    following = grade(HONEST, ADD, 3.0)[0]
    if not (following and following.passed):
        broken.append("next honest program")
    passed, reason = bool(verdict and verdict.passed), str(verdict and verdict.reason)
    return Outcome(attack.name, attack.kind, attack.optional, passed, reason, wall, broken)


def trainer(cases: list[Attack], pipe: int, output: int):
    """The child process: one JSON line a case, into the pipe."""
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    with Host() as host, open(pipe, "w", buffering=1) as lines:
        for case in cases:
            lines.write(json.dumps(asdict(run(case, host))) + "\n")


def read_outcomes(lines: list[bytes]):
    for line in lines:
        with suppress(ValueError, TypeError):  # an attack may have written into the pipe
            yield Outcome(**json.loads(line))


def watch(pid: int, pipe: int, patience: float = 60.0):
    """The outcomes of a trainer until it has ended: woken where it stops, killed where it hangs."""
    text, last, ended = b"", time.monotonic(), False
    while True:
        ready = select.select([pipe], [], [], 0.2)[0]
        if ready and (part := os.read(pipe, 65536)):
            *lines, text = (text + part).split(b"\n")
            last = time.monotonic()
            yield from read_outcomes(lines)
            continue
        if ended:
            return
        done, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if done and os.WIFSTOPPED(status):
            os.kill(pid, signal.SIGCONT)
        elif done:
            ended = True  # what it has written is still to be read
        elif time.monotonic() - last > patience:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def start_trainer(cases: list[Attack]):
    """A trainer's process number, the pipe with its outcomes and the file with its output."""
    pipe, end = os.pipe()
    output = tempfile.TemporaryFile()
    if (pid := os.fork()) == 0:
        os.close(pipe)
        try:
            trainer(cases, end, output.fileno())
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(0)
    os.close(end)
    return pid, pipe, output


def supervise(cases: list[Attack]):
    """The outcome of every case, with another trainer wherever an attack has ended the last."""
    while cases:
        pid, pipe, output = start_trainer(cases)
        try:
            for outcome in watch(pid, pipe):
                cases = cases[1:]
                yield outcome
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        os.close(pipe)
        if cases:
            case, cases = cases[0], cases[1:]
            output.seek(max(0, output.seek(0, os.SEEK_END) - 500))
            print(output.read().decode(errors="replace"), file=sys.stderr)
            broken = ["trainer ended"]
            yield Outcome(case.name, case.kind, case.optional, False, "none", 0.0, broken)


def missing() -> str:
    """The protections that this machine does not offer. Without a private root, as in most
    containers, programs cannot write files."""
    return sandbox_status().partition("missing: ")[2]


def summary(outcomes: list[Outcome]) -> bool:
    """Print the totals; whether all is as it must be."""
    attacks = [o for o in outcomes if o.kind != "control"]
    controls = [o for o in outcomes if o.kind == "control" and not o.optional]
    print(f"attacks stopped {sum(o.good for o in attacks)} of {len(attacks)}")
    print(f"reward fooled   {sum(o.passed for o in attacks)}")
    print(f"host harmed     {sum(bool(o.broken) for o in outcomes)}")
    print(f"controls passed {sum(o.passed for o in controls)} of {len(controls)}")
    return all(o.good for o in attacks + controls)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="names or kinds of cases (default: all)")
    args = parser.parse_args()
    # /proc/PID/environ shows the environment with which a process was started.
    if "TRAINER_SECRET" not in os.environ:
        os.environ["TRAINER_SECRET"] = secrets.token_hex(16)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    tempfile.tempdir = tempfile.mkdtemp(prefix="attacks-")
    os.chmod(tempfile.tempdir, 0o755)
    cases = [c for c in ATTACKS + CONTROLS if not args.names or {c.name, c.kind} & {*args.names}]
    if "private root" in missing():
        cases = [replace(c, optional=c.optional or c.writes) for c in cases]
    outcomes = []
    try:
        for outcome in supervise(cases):
            outcomes.append(outcome)
            print(outcome, flush=True)
    finally:
        remove(tempfile.tempdir)
        tempfile.tempdir = None
    return 0 if summary(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
