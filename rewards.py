"""Verifiers: text in, number out. They run in training and evaluation; the model never sees them.

A policy under reinforcement may learn to fool its verifier instead of solving the task. So each
verifier is strict and total: any string gets a verdict, and nothing raises. There are three:

    arithmetic    a right answer has one spelling, which is compared     `puzzle_reward`, …
    MATH answers  the same value, however it is written                  `math_reward`
    programs      pass tests that they cannot see, in a sandbox          `run_tests`, `run_many`

The first are here; verifiers/ has the grader (answers.py, latex.py) and the sandbox (sandbox.py,
worker.py, confine.py).

Each right answer of the built-in model has exactly one spelling (`puzzle_reward`, `number_reward`).
The verifier rebuilds that spelling and compares; it never parses numbers out of the response, for
that is where leniency creeps in (int() takes "1_3", " 13", "+13" and "１３"). For pretrained models
`stated_number_reward` takes the number after the last "=", whatever stands before it. What the
strict ones refuse, each tried in tests/test_data.py: a wrong step on the way to the right end; the
end without the steps; steps left out, repeated, reordered or added after the end; a restated
problem with another target; a sum that is right modulo 100; negative zero; leading zeros and signs;
underscores, exponents, blanks, line ends and digits of other scripts; text before or after the
answer; a control token's text; two answers of which one is right; nothing at all.
"""

import ast
import builtins
import re
import textwrap

from verifiers.answers import extract_answer, math_equal, math_reward
from verifiers.sandbox import TIMEOUT, SandboxError, Verdict, run_many, run_tests, sandbox_status


def signed(number: int) -> str:
    """At least two digits, with a minus sign if negative: 7 → "07", −7 → "-07"."""
    return f"{'-' if number < 0 else ''}{abs(number):02d}"


def puzzle_step(sign: str, remains: int, digit: int) -> tuple[str, int]:
    """The text of one step of an attempt, which is the digit's sign and what then remains to the
    target, and that remainder as a number: ("+", 13, 3) → ("+10", 10)."""
    remains -= digit if sign == "+" else -digit
    return sign + signed(remains), remains


def parse_puzzle(prompt: str) -> tuple[list[int], int]:
    """ "3725=13" → ([3, 7, 2, 5], 13). The prompt is the task's own text, never the model's."""
    digits, target = prompt.split("=")
    return [int(digit) for digit in digits], int(target)


def puzzle_reward(prompt: str, response: str) -> float:
    """1.0 if the response gives each digit of the prompt a sign, in order, followed by what then
    remains, and nothing remains at the end: "+10+03-05+00" to "3725=13"."""
    digits, remains = parse_puzzle(prompt)
    for digit in digits:
        text, remains = puzzle_step("+" if response.startswith("+") else "-", remains, digit)
        if not response.startswith(text):
            return 0.0
        response = response[len(text) :]
    return float(response == "" and remains == 0)


def number_reward(prompt: str, response: str) -> float:
    """1.0 if the response is the value of "a+b=" or "a*b=", in the only decimal spelling."""
    left, operator, right = re.split(r"([+*])", prompt.removesuffix("="))
    value = int(left) + int(right) if operator == "+" else int(left) * int(right)
    return float(response == str(value))


STATED = re.compile(r"(?:[^=]*=)*\s*(-?[0-9]{1,40})\s*(?:\.\s*)?")


def stated_number_reward(prompt: str, response: str) -> float:
    """1.0 if the response states the value of "a+b=" or "a*b=": it is that number alone, or ends in
    "=" and the number; a full stop may follow. Anything before the last "=" is working, and is not
    read."""
    stated = STATED.fullmatch(response)
    return number_reward(prompt, stated[1]) if stated else 0.0


def mbpp_test(test_list: list[str], setup: str = "") -> tuple[str, str]:
    """MBPP's asserts as a function check(candidate), and the name of the function that they test.

    That is the function which every assert calls, and a builtin (set(f(x)) == …) only if there is
    no other. Its name is bound inside check, since some records call their function check or sum.
    Some asserts use math or sys without importing them, since MBPP runs them after the program,
    which has. Raises ValueError, in one line, if there is no such function or a test is not Python
    or is too deeply nested: a sum of many terms is a tree as deep as it is long.
    """
    asserts, called = [], []
    for text in test_list:
        try:
            tree = ast.parse(text)
            asserts.append(ast.unparse(tree))
        except (SyntaxError, TypeError, ValueError):
            raise ValueError(f"the test {text!r} is not Python") from None
        except (RecursionError, MemoryError):
            raise ValueError(f"the test {text[:60]!r}… is too deeply nested") from None
        calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
        called.append([function.id for function in calls if isinstance(function, ast.Name)])
    if not called:
        raise ValueError("there is no test")
    shared = [name for name in called[0] if all(name in names for names in called)]
    if not shared:
        raise ValueError("the tests call no function in common")
    entry_point = min(shared, key=lambda name: hasattr(builtins, name))
    lines = [f"{entry_point} = candidate", *asserts]  # one line per assert
    body = textwrap.indent("\n".join(lines), "    ")
    return f"import math\nimport sys\n{setup}\n\n\ndef check(candidate):\n{body}\n", entry_point
