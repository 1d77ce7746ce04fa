"""Tries the grader of MATH answers on tables of cases, written without sight of it.

    python -m tests.try_grader

cases/grades/ has bare answers that are the same and different by category, whole responses with
their reward, and bait: strings that have hung, crashed or fooled graders. Labels follow the written
policies: the last box only; list order is free; units are dropped; 10\\% is 10 but not 0.1; x = 5
is 5; an unreduced fraction is right; a rounded decimal or a missing base is not; repeats count.
Where graders legitimately differ, there is no case. The categories "found later" hold what was
wrong at first.
"""

import os
import re
import resource
import signal
import sys
import time
from pathlib import Path

from verifiers.answers import extract_answer, math_equal, math_reward

CASES = Path(__file__).with_name("cases") / "grades"
CELL = re.compile(r'"[^"]*"(?:×[0-9]+)?|[^ ]+(?: [^ ]+)*')
PIECE = re.compile(r"(.*?)(?:×([0-9]+))?")


def read_rows(name: str) -> dict[str, list[list[str]]]:
    """A file's rows of cells by category. Its first lines say how it is written."""
    categories, rows = {}, []
    for line in (CASES / name).read_text(encoding="utf-8").split("\n"):
        if line.startswith("#: "):
            rows = categories[line[3:]] = []
        elif line.startswith("    "):
            rows[-1] += CELL.findall(line)
        elif line and not line.startswith("# "):
            rows.append(CELL.findall(line))
    return categories


def plain(cell: str) -> str:
    if cell[0] == cell[-1] == '"':
        cell = cell[1:-1]
    return cell.replace("␤", "\n")


def joined(pieces: list[str]) -> str:
    """piece×3 stands for it three times."""
    matches = map(PIECE.fullmatch, pieces)
    return "".join(plain(match[1]) * int(match[2] or 1) for match in matches)


def read_pairs(name: str) -> dict[str, list[tuple[str, str]]]:
    """(prediction, reference answer) by category."""
    return {
        category: [(plain(cell), plain(gold)) for gold, *cells in rows for cell in cells]
        for category, rows in read_rows(name).items()
    }


EQUAL = read_pairs("equal.txt")
DIFFERENT = read_pairs("different.txt")
# (response, reference answer, reward) by category.
RESPONSES = {
    category: [(joined(pieces), plain(gold), float(reward)) for reward, gold, *pieces in rows]
    for category, rows in read_rows("responses.txt").items()
}
BAIT = {
    name: joined(pieces) for rows in read_rows("bait.txt").values() for name, *pieces in rows
} | {  # what repetition cannot spell, and characters that do not show
    "long list": ", ".join(str(n) for n in range(450)),
    "long set": r"\{" + ",".join(str(n) for n in range(300)) + r"\}",
    "pm exponential": "+".join([r"\pm" + str(n) for n in range(60)]),
    "matrix": r"\begin{pmatrix}" + r"\\".join(["7&" * 30 + "7"] * 15) + r"\end{pmatrix}",
    "many variables": "+".join(chr(97 + n % 26) + "_{" + str(n) + "}" for n in range(120)),
    "null bytes": "7\x00\x00" * 100,
    "controls": "".join(chr(n) for n in range(32)),
    "surrogate": "7\ud800",
    "right to left": "\u202e7\u202c",
    "combining": "7" + "\u0301" * 900,
    "zero width": "7\u200b\u200d\ufeff",
}


def tempt(bait: str) -> int:
    """Every way of grading one bait. Runs in a child that may die."""
    boxed = "\\boxed{" + bait + "}"
    for gold in ("5", r"\frac{1}{2}", "x^2+1", r"\pi", r"\sqrt2 x"):
        if math_equal(bait, gold) or math_equal(gold, bait):
            return 2
        if math_reward(boxed, gold) or math_reward(bait, gold):
            return 2
    math_equal(bait, bait)
    math_equal(bait, bait + "+1")
    math_equal(bait + ",7", "7," + bait)
    extract_answer(bait)
    extract_answer(f"Final Answer: The final answer is ${bait}$. I hope it is correct.")
    return 0


def survive(bait: str, seconds: int = 5) -> str:
    """How a forked child fares with one bait: "" if all is well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(seconds)  # unhandled: it kills even a hang inside C
            # Of data: CUDA reserves far more addresses than that, which the child inherits.
            resource.setrlimit(resource.RLIMIT_DATA, (8 << 30, 8 << 30))
            code = tempt(bait)
        finally:
            os._exit(code)  # an exception leaves code at 1
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hung" if number == signal.SIGALRM else f"crashed, signal {number}"
    return ("", "raised", "accepted")[os.WEXITSTATUS(status)]


class Tally:
    """Results of one category."""

    def __init__(self, name: str):
        self.name, self.accepts, self.rejects = name, 0, 0
        self.times, self.failures = [], []  # ms, lines

    def judge(self, call, arguments: tuple, expected) -> None:
        """Runs one case; an exception counts as the wrong verdict."""
        started = time.perf_counter()
        try:
            got = call(*arguments)
        except Exception as error:
            got = error
        self.times.append(1000 * (time.perf_counter() - started))
        if type(got) is type(expected) and got == expected:
            return
        self.accepts += not expected
        self.rejects += bool(expected)
        shown = "   ".join(a if len(a) < 70 else a[:50] + " … " + a[-15:] for a in arguments)
        self.failures.append(f"{self.name}: {shown!r} gives {got!r}")

    def __str__(self) -> str:
        total = len(self.times)
        right = f"{total - self.accepts - self.rejects}/{total}"
        mean, most = sum(self.times) / total, max(self.times)
        return f"{self.name:36}{right:>9}{self.accepts:9}{self.rejects:9}{mean:9.3f}{most:9.2f}"


def tally_all() -> list[Tally]:
    """One a category, then that of the bait."""
    tallies = []
    for label, table, expected in (("=", EQUAL, True), ("≠", DIFFERENT, False)):
        for category, pairs in table.items():
            tallies.append(Tally(f"{label} {category}"))
            for pair in pairs:
                tallies[-1].judge(math_equal, pair, expected)
    for category, cases in RESPONSES.items():
        tallies.append(Tally(f"response: {category}"))
        for response, gold, reward in cases:
            tallies[-1].judge(math_reward, (response, gold), reward)
    tallies.append(Tally("bait (25 calls each, and a fork)"))
    for bait in BAIT.values():
        tallies[-1].judge(survive, (bait,), "")
    return tallies


def main() -> int:
    tallies = tally_all()
    whole = Tally("all but bait")
    for tally in tallies[:-1]:
        whole.accepts += tally.accepts
        whole.rejects += tally.rejects
        whole.times += tally.times
    print(f"{'category':36}{'right':>9}{'accepts':>9}{'rejects':>9}{'mean ms':>9}{'max ms':>9}")
    for tally in [*tallies, whole]:
        print(tally)
    print("accepts, rejects: the wrong ones; a bait that hangs, raises or crashes is an accept\n")
    print("\n".join(line for tally in tallies for line in tally.failures) or "no failures")
    return int(any(tally.accepts for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
