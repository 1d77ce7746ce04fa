"""The grader of MATH answers and the sandbox, on cases that were written without sight of them."""

import fractions
import gzip
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import hypothesis
import pytest
from hypothesis import strategies as st

import data
import rewards
import train
from rewards import math_equal, math_reward
from tests import try_grader, try_sandbox
from tests.helpers import PLAIN_JSON, ROOT, anything, shared, source, write_programs
from verifiers import confine, sandbox, worker


def test_tables_are_read_whole():
    """A row that is written wrongly must not go unread."""
    tables = (try_grader.EQUAL, try_grader.DIFFERENT, try_grader.RESPONSES)
    sizes = [sum(map(len, table.values())) for table in tables]
    assert all(size >= least for size, least in zip(sizes, (520, 813, 98)))
    for name in ("equal.txt", "different.txt", "bait.txt"):
        rows = [row for rows in try_grader.read_rows(name).values() for row in rows]
        assert min(map(len, rows)) > 1, name
    assert len(try_grader.BAIT) >= 140
    assert len(try_sandbox.CONTROLS) >= 89 and len(try_sandbox.ATTACKS) >= 447 - 16  # x86's


@pytest.mark.parametrize("category", try_grader.EQUAL)
def test_the_same_answer_written_otherwise(category):
    wrong = [case for case in try_grader.EQUAL[category] if math_equal(*case) is not True]
    assert not wrong


@pytest.mark.parametrize("category", try_grader.DIFFERENT)
def test_another_answer(category):
    pairs = [pair for case in try_grader.DIFFERENT[category] for pair in (case, case[::-1])]
    wrong = [pair for pair in pairs if math_equal(*pair) is not False]
    assert not wrong


@pytest.mark.parametrize("category", try_grader.RESPONSES)
def test_the_answer_in_a_response(category):
    wrong = [case for case in try_grader.RESPONSES[category] if math_reward(*case[:2]) != case[2]]
    assert not wrong


def test_bait_neither_hangs_nor_crashes_nor_pays():
    """Each in a forked process with an alarm: nesting, towers of powers, 100,000 characters, …
    They are forked from a small process, since forking this one takes longer than most baits."""
    program = (
        "from tests.try_grader import BAIT, survive\n"
        "print([name for name, bait in BAIT.items() if survive(bait)], len(BAIT))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"[] {len(try_grader.BAIT)}\n", done


def test_every_reference_answer_equals_itself():
    answers = {gold for cases in try_grader.EQUAL.values() for pair in cases for gold in pair}
    assert all(math_equal(gold, gold) for gold in answers)
    lines = shared("gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["answer"].rpartition("#### ")[2] for line in lines]
    assert len(golds) == 1319
    for gold in golds:
        plain = gold.replace(",", "")
        assert math_equal(gold, plain) and math_equal(f"\\${plain}.00", gold)
        assert not math_equal(plain + "0", gold) or plain == "0"
        assert not math_equal(str(int(plain) + 1), gold)


@pytest.mark.parametrize(
    "response, gold",
    [
        ("**Final Answer**: The final answer is $5$. I hope it is correct.", "5"),
        ("**Final Answer: The final answer is $5$.** I hope it is correct.", "5"),
        ("**Final Answer:** The final answer is **5**. I hope it is correct.", "5"),
        ("*Final Answer:*\r\nThe final answer is **$5$**.", "5"),
        ("Final Answer:\tThe final answer is $2⋅3$. I hope it is correct.", "6"),
        (r"\boxed{(r,\theta) = (3, \pi/2)}", r"\left(3, \frac{\pi}{2}\right)"),
        (r"\boxed{(x_1,x_2) = (1,2)}", "(1,2)"), (r"\boxed{(A,B,C) = (1,2,3)}", "(1,2,3)"),
        (r"\boxed{\boldsymbol{5}}", "5"), (r"\boxed{\bm{x}+1}", "x+1"),
    ],
)  # fmt: skip
def test_ways_to_write_an_answer(response, gold):
    assert math_reward(response, gold) == 1.0 and math_reward(response, gold + "1") == 0.0


def test_an_equation_of_two_names_has_no_value():
    assert math_equal("x=y", "y=x") and math_equal(r"x=\pi", r"\pi") and math_equal("5=x", "5")
    assert not math_equal("x", "y=x") and not math_equal("y", "y=x")


@pytest.mark.parametrize("word", ["bn", "kilo", "milli", "teen", "smaller", "nope"])
def test_a_word_that_changes_a_number_is_no_unit(word):
    assert not math_equal(rf"5 \text{{ {word}}}", "5") and math_equal(r"5 \text{ apples}", "5")


def test_an_answer_is_never_executed():
    marker = "import os; os.environ.__setitem__('SCORE_EXECUTED', '1')"
    for text in (f"exec({marker!r})", "__import__('os').environ.update(SCORE_EXECUTED='1')"):
        math_reward(f"\\boxed{{{text}}}", "1")
    assert "SCORE_EXECUTED" not in os.environ


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """What an attack must leave alone: files, processes, sockets, settings, the next program."""
    tmp_path_factory.getbasetemp()  # which must not lie in the folder that Host makes and removes
    with try_sandbox.Host() as watched:
        yield watched


# Those of the kind "time" take their whole limit; the command line runs them all.
SLOW = [case for case in try_sandbox.ATTACKS if case.kind == "time"]
QUICK = [case for case in try_sandbox.ATTACKS if case.kind != "time"] + SLOW[::6]
HONEST = [case for case in try_sandbox.CONTROLS if not case.optional]


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_attack_fails_and_leaves_the_host_alone(case, host):
    outcome = try_sandbox.run(case, host)
    assert outcome.good, outcome


@pytest.mark.parametrize("case", HONEST, ids=lambda case: case.name)
def test_honest_program_passes(case, host):
    if case.writes and "private root" in try_sandbox.missing():
        pytest.skip("without a private root, which this machine does not offer, no file is written")
    outcome = try_sandbox.run(case, host)
    assert outcome.good, outcome


def test_every_canonical_solution_passes():
    """All 164 of HumanEval, through run_many, with the prompt's helpers for 32, 38 and 50."""
    with gzip.open(shared("HumanEval.jsonl.gz"), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    items = [
        (r["prompt"] + r["canonical_solution"], r["test"], r["entry_point"], 10.0, r["prompt"])
        for r in records
    ]
    verdicts = rewards.run_many(items)
    failed = [r["task_id"] for r, verdict in zip(records, verdicts) if not verdict.passed]
    assert len(records) == 164 and failed == []
    empty = [(r["prompt"] + "    pass\n", *item[1:]) for r, item in zip(records, items)]
    assert not any(verdict.passed for verdict in rewards.run_many(empty))


# MBPP's tests of these hand over objects or functions of the program's own, which do not cross.
OBJECTS = {367, 533, 601, 927}


def test_mbpp_solutions_pass():
    lines = shared("mbpp.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    items = []
    for r in records:
        test, entry_point = rewards.mbpp_test(r["test_list"], r["test_setup_code"])
        items.append((r["code"], test, entry_point, 30.0))  # 123 takes up to 9 s on a slow core
    verdicts = rewards.run_many(items)
    failed = {r["task_id"] for r, verdict in zip(records, verdicts) if not verdict.passed}
    assert len(records) == 974 and failed <= OBJECTS


@pytest.mark.parametrize(
    "tests, named",
    [([], "no test"), (["assert f(1) =="], "assert f(1) =="), (["assert 1 == 1"], "function")],
)
def test_mbpp_records_without_a_test_are_named(tests, named):
    with pytest.raises(ValueError) as error:
        rewards.mbpp_test(tests)
    assert named in str(error.value)


def test_a_worker_that_cannot_start_is_a_verdict_and_ends_a_run(chatty, tmp_path, monkeypatch):
    """As where a machine runs out of processes: no exception, and no reward of 0 either."""

    def fails(*args, **options):
        raise OSError(11, "Resource temporarily unavailable")

    task = data.load("humaneval", source=source(chatty, write_programs(tmp_path)))
    sandbox.POOL.stop()
    monkeypatch.setattr(sandbox.subprocess, "Popen", fails)
    test = "def check(candidate):\n    assert candidate() == 1\n"
    assert rewards.run_tests("def f(): return 1", test, "f").reason == "refused"
    with pytest.raises(rewards.SandboxError, match="no longer"):
        task.rewards(task.splits["test"][:1], ["    return 0"])


ONE = "def check(candidate):\n    assert candidate() == 1\n"
RIGHT = ("def f(): return 1", ONE, "f")


def test_each_watchdog_works_by_itself():
    """The tester's alarm, before the trainer's later deadline; the deadline, where the worker has
    stopped."""
    slow = "import time\ndef f():\n    time.sleep(1)\n    return 1"
    assert rewards.run_tests(slow, ONE, "f", 0.5).reason == "timeout"
    assert rewards.run_tests(*RIGHT).passed
    os.kill(sandbox.POOL.idle[-1].process.pid, signal.SIGSTOP)
    verdict = rewards.run_tests(*RIGHT, 0.5)
    assert verdict.reason == "timeout" and verdict.seconds < 10
    assert rewards.run_tests(*RIGHT).passed


def test_a_task_is_tried_again_once_if_its_worker_dies(monkeypatch):
    exchange, deaths = sandbox.Worker.exchange, [1]

    def dies(worker):
        starts = worker.index < 0
        return "died" if not starts and deaths and deaths.pop() else exchange(worker)

    monkeypatch.setattr(sandbox.Worker, "exchange", dies)
    assert rewards.run_tests(*RIGHT).passed
    deaths += [1, 1]
    assert rewards.run_tests(*RIGHT).reason == "error"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_an_interrupted_run_leaves_no_process():
    """Not even that of a program which sleeps for ever."""
    rewards.run_tests(*RIGHT)
    pid, left = sandbox.POOL.idle[-1].process.pid, []

    def interrupt(*args):
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        left.extend(pathlib.Path(f"/proc/{child}/stat") for child in children)
        raise KeyboardInterrupt

    sleeps = "import time\ndef f():\n    while True:\n        time.sleep(1)"
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.7)
    try:
        with pytest.raises(KeyboardInterrupt):
            rewards.run_tests(sleeps, ONE, "f", 30.0)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(left) == 2
    deadline = time.monotonic() + 5
    while any(map(lives, left)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(lives, left))


def lives(stat: pathlib.Path) -> bool:
    """Whether a process runs. A zombie, which waits for whoever reaps it, does not."""
    try:
        return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_the_limits_are_set_inside_of_a_program():
    program = """
import os, resource
def f():
    limits = [getattr(resource, f"RLIMIT_{x}") for x in "FSIZE NOFILE CORE NPROC CPU".split()]
    scratch = os.statvfs(".")
    room = [scratch.f_blocks * scratch.f_frsize, scratch.f_files]
    try:
        writes = open("file", "x").writable()
    except OSError:
        writes = False
    return [resource.getrlimit(x)[1] for x in limits], room, writes
"""
    test = """
def check(candidate):
    (size, files, core, threads, seconds), room, writes = candidate()
    assert 0 < size <= 4 << 20 and 0 < files <= 64 and core == 0
    assert threads > 0 and 0 < seconds <= 4
    assert not writes or room == [64 << 20, 4096]
"""
    assert rewards.run_tests(program, test, "f", 3.0).passed


WITHOUT_SECCOMP = """
import json, sys
from verifiers import confine
confine.call_filter = lambda *args: None
from verifiers import worker
worker.main(json.loads(sys.argv[1]))
"""


def test_without_seccomp_nothing_runs_unless_asked(monkeypatch):
    start = sandbox.subprocess.Popen

    def unfiltered(command, **options):
        assert command[-3:-1] == ["-m", "verifiers.worker"]
        return start([*command[:-3], "-c", WITHOUT_SECCOMP, command[-1]], **options)

    monkeypatch.setattr(sandbox.subprocess, "Popen", unfiltered)
    monkeypatch.setattr(sandbox, "POOL", sandbox.Pool())
    with pytest.raises(rewards.SandboxError, match="seccomp is missing"):
        rewards.sandbox_status()
    assert re.search("missing: .*seccomp", rewards.sandbox_status(unsafe=True))
    sandbox.POOL.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tries Linux' protections")
def test_landlock_private_root_and_seccomp_each_hold_alone(tmp_path):
    """Where they work at all. An attack meets all layers at once, so one hides another's loss."""
    (tmp_path / "secret").touch()
    paths = confine.python_paths([])

    def restrict() -> None:
        confine.restrict_files(confine.landlock_rules(paths, None))

    def reads_python_alone(protect) -> None:
        protect()
        open(os.__file__).close()
        with pytest.raises(OSError):
            (tmp_path / "secret").open()

    tried = 0
    for protect in (restrict, lambda: confine.enter_private_root(paths)):
        if confine.works_in_child(protect):
            assert confine.works_in_child(reads_python_alone, protect)
            tried += 1

    def no_calls() -> None:
        confine.forbid_calls(confine.call_filter(True, True, True))
        for call in (socket.socket, lambda: os.kill(os.getpid(), 0), os.fork):
            with pytest.raises(OSError):
                call()

    missing = try_sandbox.missing()
    assert tried == ("Landlock" not in missing) + ("private root" not in missing)
    assert confine.works_in_child(no_calls)


def test_programs_run_in_parallel_and_in_order():
    """Half a second each on two workers is half the time on one; verdicts keep their places."""
    programs = [f"import time\ndef f():\n    time.sleep(0.5)\n    return {n % 2}" for n in range(6)]
    items = [(program, ONE, "f") for program in programs]
    rewards.run_many(items[:2], workers=2)  # starts the workers
    started = time.monotonic()
    verdicts = rewards.run_many(items, workers=6)
    assert [verdict.passed for verdict in verdicts] == [False, True] * 3
    assert time.monotonic() - started < sum(verdict.seconds for verdict in verdicts) / 2
    for workers in (0, -1):
        with pytest.raises(ValueError, match="workers"):
            rewards.run_many(items, workers)


@pytest.mark.parametrize("cores, processes, workers", [(8, 1, 8), (8, 3, 2), (1, 4, 1)])
def test_there_are_no_more_workers_than_cores(cores, processes, workers, monkeypatch):
    """Of those that this process may use: more would make honest programs run out of time."""
    allowed = set(range(cores))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: allowed, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)  # where there is no affinity
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert sandbox.usable_cores() == workers


def test_the_sandbox_says_what_holds_and_refuses_elsewhere(monkeypatch, tmp_path, capsys):
    assert rewards.sandbox_status().startswith("sandbox: ")
    assert "seccomp" in rewards.sandbox_status()
    monkeypatch.setattr(sandbox, "POOL", sandbox.Pool())
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(rewards.SandboxError, match="darwin"):
        rewards.sandbox_status()
    verdict = rewards.run_tests("def f(): pass", "def check(candidate): pass", "f")
    assert (verdict.passed, verdict.reason) == (False, "refused")
    flags = ["--stage", "1", "--data", "humaneval", "--init", str(tmp_path)]
    assert train.main(flags) == 2
    assert "darwin" in capsys.readouterr().err


def test_the_worker_holds_nothing_of_ours_but_itself():
    """Asked from inside of a program: the grader, the data and the model are not in its process,
    and the repository, in which its worker started, is not where it looks for modules."""
    program = """
import os, sys
def f(repository):
    files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
    ours = {name: file for name, file in files.items() if file and file.startswith(repository)}
    return ours, [os.path.abspath(path) for path in sys.path], os.getcwd(), sys.argv[1:]
"""
    folder = ROOT.resolve()
    ours = {
        "__main__": str(folder / "verifiers" / "worker.py"),
        "verifiers": str(folder / "verifiers" / "__init__.py"),
        "verifiers.confine": str(folder / "verifiers" / "confine.py"),
    }
    test = f"""
def check(candidate):
    ours, path, directory, arguments = candidate({str(folder)!r})
    assert ours == {ours!r}
    assert path and {str(folder)!r} not in path
    assert directory != {str(folder)!r} and arguments == []
"""
    assert rewards.run_tests(program, test, "f", 10.0).passed


def test_a_verdict_is_never_another_program_s():
    """A tester or runner that is killed while it waits costs no program the verdict of the one
    before, though worker and trainer speak through a pipe that outlives them."""
    right, wrong = RIGHT, ("def f(): return 2", ONE, "f")
    for which in (0, 1):
        rewards.run_many([right, wrong], workers=1)
        worker = sandbox.POOL.idle[-1].process.pid
        children = pathlib.Path(f"/proc/{worker}/task/{worker}/children")
        deadline = time.monotonic() + 5
        while len(waiting := children.read_text().split()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(int(waiting[which]), signal.SIGKILL)
        rewards.run_tests(*right)  # may be lost with what was killed
        passed = [rewards.run_tests(*item).passed for item in (wrong, right, wrong, wrong, right)]
        assert passed == [False, True, False, False, True]


PIECES = list("0123456789+-*/^_(){}[]|,.:=<>! xyzei\\$%°½²９") + " and |\n|\u202e|cm".split("|")
PIECES += r"\frac \sqrt \left( \pi \text{ \cup \lfloor \rfloor \! \, \boxed{ \binom \infty".split()
PIECES += [r"\begin{pmatrix}", r"\end{pmatrix}"]
LATEX = st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@anything(1500)
@hypothesis.given(a=LATEX, b=LATEX)
def test_any_answers_have_a_verdict(a, b):
    """Without an exception, and the same either way round."""
    assert math_equal(a, b) == math_equal(b, a)
    rewards.extract_answer(a + b)


@anything(3000)
@hypothesis.given(
    text=st.lists(st.sampled_from("0123456789+-*/() "), max_size=12).map("".join),
    gold=st.integers(-9, 9),
)
def test_no_sum_is_taken_for_another_number(text, gold):
    """Python's own arithmetic judges what is accepted."""
    if math_equal(text, str(gold)):
        explicit = re.sub(r"(?<=[\d)]) *(?=\()", "*", text.strip().rstrip("."))
        exact = re.sub(r"\d+", lambda number: f"Fraction({int(number[0])})", explicit)
        assert eval(exact, {"Fraction": fractions.Fraction}) == gold


@anything(500)
@hypothesis.given(
    message=PLAIN_JSON
    | st.dictionaries(st.sampled_from(sorted(worker.BUILD)), PLAIN_JSON, min_size=1, max_size=1)
)
def test_any_message_of_a_program_is_a_plain_value_or_refused(message):
    try:
        value = worker.from_json(message)
    except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError):
        return
    assert type(value).__module__ in ("builtins", "fractions")
