"""Verifiers: text in, number out. They run at training time only and never tell the model anything.

A verifier is the one thing that a policy under reinforcement can win against instead of the task,
so each is strict and total: any string gets a verdict and nothing raises. There are three:

    arithmetic    one spelling is right, and it is compared              `puzzle_reward`, …
    MATH answers  the same value, however it is written                  `math_reward`
    programs      they pass tests that they cannot see, in a sandbox     `run_tests`, `run_many`

Only the standard library is imported, for the sandbox's processes run this very file.

In arithmetic a right answer has exactly one spelling, the verifier's own. It rebuilds that spelling
and compares; it never parses numbers out of the response, for that is where leniency creeps in
(int() takes "1_3", " 13", "+13" and "１３"). What the arithmetic verifiers refuse, each tried in
test_score.py: a wrong step on the way to the right end; the end without the steps; steps left out,
repeated, reordered or added after the end; a restated problem with another target; a sum that is
right modulo 100; negative zero; leading zeros and signs; underscores, exponents, blanks, line ends
and digits of other scripts; text before or after the answer; a control token's text; two answers of
which one is right; nothing at all.
"""

import ast
import atexit
import builtins
import cmath
import ctypes
import errno
import functools
import gc
import glob
import importlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import textwrap
import time
import types
from collections import Counter
from collections.abc import Set
from fractions import Fraction
from typing import NamedTuple

# ---------------------------------------------------------------------------------------------
# Arithmetic


def signed(number: int) -> str:
    """Two digits at least, and a minus where there is one: 7 → "07", −7 → "-07"."""
    return f"{'-' if number < 0 else ''}{abs(number):02d}"


def puzzle_step(sign: str, remains: int, digit: int) -> tuple[str, int]:
    """One step of an attempt as it is spelled, the sign given to the digit joined with what then
    remains to the target, and that number: ("+", 13, 3) → ("+10", 10)."""
    remains -= digit if sign == "+" else -digit
    return sign + signed(remains), remains


def parse_puzzle(prompt: str) -> tuple[list[int], int]:
    """ "3725=13" → ([3, 7, 2, 5], 13). The prompt is the task's own text, never the model's."""
    digits, target = prompt.split("=")
    return [int(digit) for digit in digits], int(target)


def puzzle_reward(prompt: str, response: str) -> float:
    """1.0 if the response signs the prompt's digits, in order, so that nothing remains at the end,
    and every step says what then remains: "+10+03-05+00" to "3725=13"."""
    digits, remains = parse_puzzle(prompt)
    for digit in digits:
        text, remains = puzzle_step("+" if response.startswith("+") else "-", remains, digit)
        if not response.startswith(text):
            return 0.0
        response = response[len(text) :]
    return float(response == "" and remains == 0)


def number_reward(prompt: str, response: str) -> float:
    """1.0 if the response is the value of "a+b=" or "a*b=", in the only decimal spelling."""
    operator = "+" if "+" in prompt else "*"
    left, right = prompt.removesuffix("=").split(operator)
    value = int(left) + int(right) if operator == "+" else int(left) * int(right)
    return float(response == str(value))


# ---------------------------------------------------------------------------------------------
# MATH answers
#
# Is the answer in the response the reference answer, perhaps written otherwise? extract_answer cuts
# it out of the response, math_equal compares two bare answers: rewrite → tokens → classify (list,
# union, relation, ratio, tuple or interval with its brackets, set, matrix, numeral with a base,
# scalar, text) and recurse → compare the two readings.
#
# A scalar reads as the values that it takes at a few fixed points, by recursive descent over LaTeX.
# They are exact fractions as long as the operations stay rational, so 9999 is not 10000, 1/3 is not
# 0.333333333333 and polynomials are compared without a tolerance. Behind a root, a logarithm, π, e
# or i they are complex floats, equal to 1e-11, and a point at which floats cannot tell (a pole, an
# overflow, a cancellation, a term that vanishes beside another) does not count. What cannot be read
# is compared as text. Nothing evaluates, imports or executes the answer; numbers, depth and length
# are capped.


LONGEST_ANSWER = 1000  # characters; longer answers are equal only as strings
MOST_TOKENS = 400  # of a reading; beyond, an answer is text
DEEPEST = 30  # nested brackets, so that recursion stays far from Python's limit
MOST_BITS = 6000  # of an exact value: towers of powers are not computed
POINTS = 8  # values that each variable takes; an expression needs three of them
TOLERANCE = 1e-11  # relative, between floats

# ---- text → tokens ----

PLAIN_FUNCTIONS = "arcsin arccos arctan sin cos tan cot sec csc log ln".split()
TOKEN_NAMES = {  # a token → its other names
    "": r"\left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \displaystyle \textstyle"
    r" \limits \boxed \fbox \text \mbox \rm \bf \( \) \[ \]",
    r"\frac": r"\dfrac \tfrac \cfrac \nicefrac \sfrac",
    **{r"\binom": r"\dbinom \tbinom", "*": r"\cdot \times \ast × · ∗", "/": r"\div ÷", "-": "− –"},
    **{"<": r"\lt", "≤": r"\le \leq \leqslant \leqq <=", "≥": r"\ge \geq \geqslant \geqq >="},
    **{">": r"\gt", "≠": r"\ne \neq", "∈": r"\in", "∪": r"\cup", "∩": r"\cap", "±": r"\pm"},
    **{"∓": r"\mp", ":": r"\colon", ",": "; ∧", "°": r"\degree", "|": r"\lvert \rvert \vert \mid"},
    **{"∞": r"\infty infinity", "∅": r"\emptyset \varnothing", r"\{": r"\lbrace", "[": r"\lbrack"},
    **{r"\}": r"\rbrace", "]": r"\rbrack", r"\pi": "π pi", r"\theta": "θ", r"\sqrt": "√ sqrt"},
    '"percent"': r"\% %",
    **{"\\" + name: name for name in PLAIN_FUNCTIONS},
}
ALIASES = {name: token for token, names in TOKEN_NAMES.items() for name in names.split()}
FONTS = "text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|emph"
UNIT = (
    "(?:inch(?:es)?|(?<= )in|feet|foot|ft|yards?|yd|miles?|[cmk]?meters?|[cmk]m|kg|grams?|pounds?"
    "|lbs?|ounces?|oz|liters?|ml|gallons?|seconds?|secs?|minutes?|mins?|hours?|hrs?|days?|weeks?"
    "|months?|years?|degrees?|radians?|percent|dollars?|cents?|units?|mph|kph|square|sq|cubic|cu"
    "|km/h|m/s|per|pm|am)(?![A-Za-z])"
)
UNIT_LETTERS = "mgshLJNWVKCF"  # \text{m} behind a number is a unit, \text{A} is a letter
# Words that change what the number before them means, so that they are not dropped as a unit.
NOT_UNITS = frozenset(
    "am pm ad bc bce mod is are be if for where when with without not no none all any only to than"
    " more less least most over under about at between even odd prime base choose times plus minus"
    " hundred thousand million billion trillion dozen half third quarter root sqrt pi infinity sin"
    " cos tan log left right up down north south east west january february march april may june"
    " july august september october november"
    " december squared cubed factorial below above negative positive divided multiplied halves"
    " thirds quarters fourths fifths sixths eighths tenths hundredths score gross pairs".split()
)
SHORT_WORDS = {"no", "yes", "odd", "one", "two", "six", "ten"}  # not products of variables


def quote_words(match: re.Match) -> str:
    """Marks the words of a match's last group, so that each becomes one token and not a product of
    variables."""

    def quote(word: re.Match) -> str:
        return f'"{word[0]}"' if len(word[0]) > 1 or word[0] in UNIT_LETTERS else word[0]

    before = match[1] if match.lastindex == 2 else ""
    return f"{before} " + re.sub(r"(?<![\\A-Za-z])[A-Za-z]+", quote, match[match.lastindex]) + " "


def repeating_decimal(match: re.Match) -> str:
    """0.1\\overline{6} as an exact fraction."""
    whole, start, cycle = match.groups()
    top = int(whole + start + cycle) - int(whole + start or "0")
    return rf"\frac{{{top}}}{{{10 ** len(start) * (10 ** len(cycle) - 1)}}}"


BASES = dict(zip("two three four five six seven eight nine ten".split(), range(2, 11)))
# Applied in this order. Each pattern is linear in a text whose runs of blanks are single.
REWRITES = [
    (re.compile(r"\\\\(?: ?\[-?[0-9.]+(?:pt|em|ex|mm|cm)\])?"), r"\\cr "),
    (re.compile(r"\\?\$|\\$"), " "),
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\!,|,\\!|\\,)(?=[0-9]{3}(?![0-9]))"), ""),
    (re.compile(r"\\(?:left|right) ?\.|\\[,;:!> ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))(?: ?[CF](?![A-Za-z]))?"), "°"),
    (
        re.compile(
            r"(?<![0-9])([0-9]*)\.([0-9]*)\\(?:overline|bar|dot) ?"
            r"\{?((?<=\{)[0-9]+(?=\})|[0-9])\}?"
        ),
        repeating_decimal,
    ),
    (re.compile(r"\\not ?=|\\not ?\\in(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"(?<=[0-9}])–"), r"\\to "),  # a range; elsewhere it is a minus
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"(?<=\.)([0-9]+)[eE]([-+]?[0-9]+)(?![0-9A-Za-z.])"), r"\1\\cdot 10^{\2}"),
    (re.compile(r"(?:√|(?<![\\A-Za-z])sqrt) ?([0-9]+)"), r"\\sqrt{\1}"),
    (re.compile(rf"\\(?:operatorname\*?|mathrm) ?\{{({'|'.join(PLAIN_FUNCTIONS)})\}}"), r"\\\1 "),
    (re.compile(r"_ ?\{ ?\(([0-9]+)\) ?\}"), r"_{\1}"),
    (
        re.compile(rf"_ ?(?:\{{ ?)?\\text ?\{{({'|'.join(BASES)})\}}(?: ?\}})?"),
        lambda match: f"_{{{BASES[match[1]]}}}",
    ),
    (re.compile(r"\\mathbb ?(?:R|\{R\})"), r"(-\\infty,\\infty)"),
    (re.compile(r"(\\begin ?\{array\}) ?\{[^{}]*\}"), r"\1"),
    (re.compile(r"\b([AaPp])\. ?([Mm])\b\.?"), r"\1\2"),
    (re.compile(rf"\\(?:{FONTS}) ?\{{([^{{}}]*)\}}"), quote_words),
    (re.compile(rf"(?<=[0-9}})°]) {{0,3}}({UNIT}(?:[ /.]{UNIT})*)", re.I), quote_words),
    # Behind a number that is all there is, a noun needs no command: 42 students.
    (re.compile(r"^(-?[0-9][0-9.,/]*)( [a-z]{4,}(?: [a-z]{3,}){0,2})$"), quote_words),
    (re.compile(r"(?<=[0-9]) ([0-9]+) ?/ ?([0-9]+)"), r"\\frac{\1}{\2}"),
    (re.compile(r",? {0,3}([∧∩∪]) {0,3},?"), r"\1"),
]
CONNECTIVE = re.compile(r"(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])")
INEQUALITY = re.compile(r"[<>≤≥]|\\[lg](?:eq?(?:slant|q)?|t)(?![A-Za-z])")
BRACKET = re.compile(r"[(\[]|\\\{")
THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
TOKEN = re.compile(
    r"""\\(?:begin|end)\ *\{[^{}]*\}    # an environment
    | \\[A-Za-z]+ | \\.                 # a command
    | "[^"]*"                           # a word
    | [0-9]+(?:\.[0-9]+)? | \.[0-9]+    # a number
    | (?<=[0-9])\ (?=[0-9])             # the blank of 2 1/2
    | (?<![A-Za-z])(?:sqrt|pi|infinity|FUNCTIONS)(?![A-Za-z])
    | [<>]= | [^ ]""".replace("FUNCTIONS", "|".join(PLAIN_FUNCTIONS)),
    re.VERBOSE,
)


FRACTIONS = str.maketrans(
    {"½": r"\frac12", "⅓": r"\frac13", "⅔": r"\frac23", "¼": r"\frac14", "¾": r"\frac34"}
)
RAISED, LOWERED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+"), str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


def tokenize(text: str) -> list[str]:
    """LaTeX → tokens, each under one name."""
    text = text.replace('"', "''").translate(FRACTIONS)
    text = RAISED.sub(lambda match: f"^{{{match[0].translate(LOWERED)}}}", text)
    text = " ".join(text.split())
    if INEQUALITY.search(text):  # "x < 1 or x > 2" is a union; "1 or 2" and "1 and 2" are lists
        text = CONNECTIVE.sub(lambda match: "∪" if match[0] == "or" else "∩", text)
    text = CONNECTIVE.sub("∧", text)
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    if not BRACKET.search(text):  # inside of brackets a comma separates: (1,234) is a pair
        text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    tokens = [ALIASES.get(token, token) for token in TOKEN.findall(text)]
    return [token for token in tokens if token]


# ---- values: int or Fraction where exact, complex elsewhere ----

FUNCTIONS = {
    **{r"\sin": cmath.sin, r"\cos": cmath.cos, r"\tan": cmath.tan},
    **{r"\cot": lambda x: 1 / cmath.tan(x), r"\sec": lambda x: 1 / cmath.cos(x)},
    **{r"\csc": lambda x: 1 / cmath.sin(x), r"\ln": cmath.log, r"\log": cmath.log10},
    **{r"\arcsin": cmath.asin, r"\arccos": cmath.acos, r"\arctan": cmath.atan},
}
TRIGONOMETRIC = frozenset((r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc"))
INVERSES = {r"\sin": r"\arcsin", r"\cos": r"\arccos", r"\tan": r"\arctan"}
CONSTANTS = {r"\pi": complex(math.pi), "e": complex(math.e), "i": 1j}
LETTERS = frozenset(
    [letter for letter in map(chr, range(128)) if letter.isalpha()]
    + r"\alpha \beta \gamma \delta \epsilon \varepsilon \zeta \eta \theta \iota \kappa \lambda \mu"
    r" \nu \xi \rho \sigma \tau \phi \varphi \chi \psi \omega \Gamma \Delta \Theta \Lambda \Xi \Pi"
    r" \Sigma \Phi \Psi \Omega \ell ∞ ∅".split()
)
GROUPS = {"(": ")", "[": "]", "{": "}", "|": "|"}
COMMANDS = (r"\frac", r"\sqrt", r"\binom")
STARTS_FACTOR = frozenset([*LETTERS, *CONSTANTS, *FUNCTIONS, *GROUPS, *COMMANDS])
STARTS_OPERAND = STARTS_FACTOR - {*FUNCTIONS, *GROUPS}


class Unreadable(Exception):
    """No expression that this grader knows; it is compared as text."""


@functools.lru_cache(maxsize=512)
def variable(name: str) -> list[Fraction]:
    """A variable's value at each point, of either sign and size, so that what holds for some only,
    |x − 1| = 1 − x, is no identity: all are positive at the first point, negative at the second."""
    draw = random.Random(name)
    scales = [1, -1, draw.choice((1, -1)), draw.choice((1, -1)), 16, -16, 64, -64]
    tops = draw.sample(range(151, 700, 2), POINTS)
    return [scale * Fraction(top, 256) for scale, top in zip(scales, tops)]


def exact(*values) -> bool:
    return all(isinstance(value, (int, Fraction)) for value in values)


def bits(value) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def sound(value):
    """The value, unless to go on with it would cost too much or mean nothing."""
    if bits(value) > MOST_BITS if exact(value) else not 1e-200 < abs(value) < 1e200:
        raise ArithmeticError("too many digits, an overflow, an underflow, or not a number")
    return value


def add(terms: list):
    """The sum, unless floats would lose a term beside a larger one, or most digits cancel."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
        if exact(total):
            sound(total)
    if len(terms) > 1 and not exact(total):
        sizes = [abs(complex(term)) for term in terms if term]
        if min(sizes) < 1e-6 * max(sizes) or abs(total) < 1e-3 * max(sizes):
            raise ArithmeticError("lost to rounding")
    return total


def multiply(a, b):
    return sound(a * b) if a and b else 0


def exact_root(base: Fraction, degree: int) -> Fraction | None:
    if base < 0 and degree % 2 == 0:
        return None
    roots = [
        math.isqrt(number) if degree == 2 else round(number ** (1 / degree))
        for number in (abs(base.numerator), base.denominator)
    ]
    root = Fraction(*roots) if base > 0 else -Fraction(*roots)
    return root if root**degree == base else None


def power(base, exponent):
    """base ** exponent; an odd root of a negative number is the real one."""
    if exact(base, exponent):
        base, exponent = Fraction(base), Fraction(exponent)
        if bits(base) * abs(exponent) > MOST_BITS:
            raise OverflowError("too many digits")
        root = base if exponent.denominator == 1 else exact_root(base, exponent.denominator)
        if root is not None:
            return root**exponent.numerator
    if not base or abs(exponent) > 1000:
        raise ArithmeticError("undefined, or rounding errors grow with the exponent")
    base = complex(base)
    if exact(exponent) and exponent.denominator % 2 and not base.imag and base.real < 0:
        return sound((-1) ** exponent.numerator * (-base) ** complex(exponent))
    return sound(base ** complex(exponent))


def divide(a, b):
    return multiply(a, power(b, -1))


def apply(name: str, x):
    """A function's value. cos 90° is 6e-17 in floats: what should be zero is made so."""
    if name in TRIGONOMETRIC and abs(x) > 1e5:
        raise ArithmeticError("a float this large has no phase")
    value = FUNCTIONS[name](complex(x))
    if abs(value) > 1e12:
        raise ZeroDivisionError("a pole")
    return 0 if value == 0 or abs(value) < 1e-14 and abs(x) > 1e-3 else sound(value)


def binomial(n, k):
    """n over k; n! is spelled binomial(n, None). With a variable n it is a polynomial."""
    if not exact(n, k or 0) or k and (k.denominator != 1 or k < 0):
        raise Unreadable
    if n > 1000 or (k or 0) > 1000:
        raise OverflowError("too many digits")
    if n.denominator != 1 and k is not None and k <= 20:
        value = 1
        for i in range(int(k)):
            value = sound(value * Fraction(n - i, i + 1))
        return value
    if n.denominator != 1 or n < 0:
        raise Unreadable
    return math.factorial(int(n)) if k is None else math.comb(int(n), int(k))


def is_number(token: str) -> bool:
    return token[:1] in set("0123456789") or token[:1] == "." and len(token) > 1


class Evaluator:
    """Recursive descent over a scalar's tokens, which yields its value at one point.

    sum → product → factor → atom. Products may be implicit, 2x or (a)(b), but no number stands
    right behind another factor: x2 and \\sqrt{2}3 are refused, and so are a^b^c, 2^3!,
    \\sin(x)^2 and \\sin x/2, which TeX, or the next reader, takes differently than the author.
    """

    def __init__(self, tokens: list[str], point: int):
        self.tokens, self.point = list(tokens), point
        self.at = self.depth = 0
        self.in_bars = self.degrees = self.has_variables = False

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def skip(self, *tokens: str) -> bool:
        """Step over the next token if it is one of these."""
        found = self.peek() in tokens
        self.at += found
        return found

    def take(self) -> str:
        if self.at >= len(self.tokens):
            raise Unreadable
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self):
        terms = []
        while not terms or self.peek() in ("+", "-"):
            terms.append(self.signed(self.product))
        return add(terms)

    def signed(self, part):
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = part()
        return -value if negative else value

    def product(self):
        value = self.factor()
        while True:
            if self.skip("*"):
                value = multiply(value, self.signed(self.factor))
            elif self.skip("/"):
                value = divide(value, self.signed(self.factor))
            elif self.peek() in STARTS_FACTOR and not (self.in_bars and self.peek() == "|"):
                value = multiply(value, self.factor())
            elif is_number(self.peek()) and self.tokens[self.at - 1] == "!":  # 5!5!
                value = multiply(value, self.factor())
            else:
                return value

    def factor(self):
        """An atom and what is written behind it: n!, x^2, 45°."""
        value = self.atom()
        if self.skip("!"):
            value = binomial(value, None)
        if self.skip("^"):
            value = power(value, self.signed(self.exponent))
        self.degrees |= self.skip("°")
        if self.peek() in ("!", "^"):
            raise Unreadable
        return value

    def exponent(self):
        return Fraction(self.take()) if is_number(self.peek()) else self.atom()

    def argument(self):
        """What TeX takes for an argument: a group, or one token, of a number its first digit."""
        self.skip(" ")
        token = self.peek()
        if not is_number(token):
            return self.atom()
        if not token.isdigit():
            raise Unreadable
        if len(token) > 1:
            self.tokens[self.at] = token[1:]
        else:
            self.take()
        return int(token[0])

    def atom(self):
        self.depth += 1
        token = self.take()
        if self.depth > DEEPEST:
            raise Unreadable
        if is_number(token):
            value = self.number(token)
        elif token in GROUPS:
            value = self.group(token)
        elif token == r"\frac":
            value = divide(self.argument(), self.argument())
        elif token == r"\binom":
            value = binomial(self.argument(), self.argument())
        elif token == r"\sqrt":
            degree = self.group("[") if self.skip("[") else 2
            value = power(self.argument(), divide(1, degree))
        elif token in FUNCTIONS:
            value = self.function(token)
        else:
            value = self.symbol(token)
        self.depth -= 1
        return value

    def number(self, token: str):
        """A number; a whole one right before a fraction of digits makes a mixed number."""
        value, start = int(token) if token.isdigit() else Fraction(token), self.at
        if not self.skip(r"\frac"):
            return value
        part = divide(self.argument(), self.argument())
        inside = self.tokens[start + 1 : self.at]
        if not all(is_number(symbol) or symbol in ("{", "}", " ") for symbol in inside):
            return multiply(value, part)
        if "." in token or not 0 < part < 1:
            raise Unreadable
        return value + part

    def group(self, opening: str):
        outside, self.in_bars = self.in_bars, opening == "|"
        value = self.sum()
        if not self.skip(GROUPS[opening]):
            raise Unreadable
        self.in_bars = outside
        return abs(value) if opening == "|" else value

    def function(self, name: str):
        base = self.argument() if name == r"\log" and self.skip("_") else 10
        exponent = self.signed(self.exponent) if self.skip("^") else 1
        if exponent == -1:  # of the others it might be meant either way
            if name not in INVERSES:
                raise Unreadable
            name, exponent = INVERSES[name], 1
        outside, self.degrees = self.degrees, False
        x = self.operand()
        if name in TRIGONOMETRIC and self.degrees:
            x = multiply(x, math.pi / 180)
        self.degrees = outside
        value = apply(name, x) if base == 10 else divide(apply(r"\ln", x), apply(r"\ln", base))
        return value if exponent == 1 else power(value, exponent)

    def operand(self):
        """What a function applies to: a group, or factors up to the next group or function."""
        self.skip(" ")
        is_group = self.peek() in GROUPS
        value = self.atom() if is_group else self.factor()
        while not is_group and self.peek() in STARTS_OPERAND:
            value = multiply(value, self.factor())
        if self.peek() in (("^", "!") if is_group else ("/",)):
            raise Unreadable
        return value

    def symbol(self, token: str):
        """A constant or a variable; a subscript is part of its name."""
        if token in CONSTANTS and self.peek() != "_":
            return CONSTANTS[token]
        if token not in LETTERS or token in ("f", "g") and self.peek() == "(":
            raise Unreadable
        if self.skip("_"):
            token += "_" + self.take()
            while token.count("{") > token.count("}"):
                token += self.take()
        self.has_variables = True
        return variable(re.sub("[{}]", "", token))[self.point]


def evaluate(tokens: list[str]) -> tuple:
    """A scalar's reading: its value at each point, None where it has none."""
    values = []
    for point in range(POINTS):
        evaluator = Evaluator(tokens, point)
        try:
            values.append(evaluator.sum())
        except (ArithmeticError, ValueError):
            values.append(None)
        else:
            if evaluator.peek():
                raise Unreadable
        if not evaluator.has_variables:
            values *= POINTS
            break
    if values.count(None) > POINTS - 3:
        raise Unreadable
    if exact(*values):
        return "exact", tuple(values)
    # Beside something irrational a decimal this long can only be a rounded one: 1.41421356 π.
    if any(is_number(token) and len(token) > 8 for token in tokens):
        raise Unreadable
    return "float", tuple(values)


# ---- tokens → a reading: ("exact" or "float", values), ("text", string), ("named", name,
# reading), or a kind and its members ----

BRACKETS = {
    **dict.fromkeys(("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"), 1),
    **dict.fromkeys((")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"), -1),
}
RELATIONS = frozenset("=<>≤≥≠∈")
UNORDERED = frozenset((",", r"\{\}", "∪", "∩", "≠", "="))
MATRIX = re.compile(r"\\begin *\{(?:[pb]?(?:small)?matrix|array)\}")
MAGNITUDE = re.compile(
    r"tens?|dozens?|googol|hundreds|thousands|(?!mill?i?onth)[a-z]+illions?|[a-z]*(?<!mo)(?:n|f|x|h|d)ths?"
    r"|[a-z]+ty|twice|double|triple|factorials?|powers?|binary|hex|repeating|recurring|noon|midnight"
    r"|wrong|false|incorrect|never|n?either|inverse|reciprocal|conjugate|modulo|theta|alpha|beta|phi"
)
VARIABLES = r"\([a-z](?:,[a-z])*\)"  # of f(x), or for the left side of (x, y) = (1, 2)
NAME = re.compile(rf'(?:[A-Za-z]|\\[a-z]+ )(?:_\{{?\w+\}}?)?(?:{VARIABLES})?|{VARIABLES}|"\w+"')
# What else may stand before "=" for the value behind it: ∠ABC, AB, P(A), f(2), |z|, [ABC], det A.
LABEL = re.compile(
    r"(?:m?\\angle |\\det |\\overline |\\vec )\{?[A-Za-z]{1,3}\}?|[A-Z]{2,3}|\[[A-Z]{3,}\]"
    r"|\|[A-Za-z]\||[A-Za-z](?:\^\{?-1\}?)?\((?:[0-9A-Za-z,-])+\)"
)
NUMERAL = re.compile(r"\(?([0-9A-Z]*[0-9][0-9A-Z]*)\)?")
UNIT_TAIL = re.compile(r'"percent"|(?:"(?!percent)[A-Za-z]+"(?:\^(?:[23]|\{[23]\}))?[/*.-]?)+')


def join(tokens: list[str]) -> str:
    return "".join(token + " " * (token[0] == "\\" and token[-1].isalpha()) for token in tokens)


def step(token: str) -> int:
    """How a token changes the depth of brackets, of which any may close any: (1, 2]."""
    return BRACKETS.get(token) or token.startswith(r"\begin") - token.startswith(r"\end")


def split(tokens: list[str], separators: Set[str]) -> tuple[list[list[str]], list[str]]:
    """The parts between the separators that stand outside of brackets, and these separators."""
    if separators.isdisjoint(tokens):
        return [tokens], []
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += step(token)
        if depth == 0 and token in separators:
            found.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, found


def is_enclosed(tokens: list[str]) -> bool:
    """The first token is a bracket that the last one closes."""
    depths = list(itertools.accumulate(map(step, tokens)))
    return depths[-1] == 0 < min(depths[:-1], default=0)


def trim(tokens: list[str]) -> list[str]:
    """Without an outer TeX group, a final stop, and units behind a number."""
    while tokens and tokens[-1] == " " or tokens[-1:] == ["."] != tokens[-2:-1]:
        tokens = tokens[:-1]  # but not the dots of 0.333...
    if tokens and tokens[0] == "{" and is_enclosed(tokens):
        return trim(tokens[1:-1])
    first_word = next((k for k, token in enumerate(tokens) if token[0] == '"'), None)
    if first_word is None:
        return tokens
    head, tail = tokens[:first_word], tokens[first_word:]
    words = {token.strip('"').lower() for token in tail}
    changes = words & NOT_UNITS or any(map(MAGNITUDE.fullmatch, words))
    if head and re.search(r"[A-Za-z0-9)}\]|!°] ?$", join(head)) and not changes:
        if any(is_number(token) or token == r"\pi" for token in head):
            return trim(head) if UNIT_TAIL.fullmatch(join(tail)) else tokens
    return [tokens[0][1]] if len(tokens) == 1 and len(tokens[0]) == 3 else tokens


def read(tokens: list[str]):
    """Classify and recurse."""
    tokens = trim(tokens)
    if not tokens:
        raise Unreadable
    for separator in (",", "∪", "∩"):
        parts, found = split(tokens, {separator})
        if found:
            return separator, members(parts)
    parts, found = split(tokens, RELATIONS)
    if found:
        return read_relation(parts, found)
    if tokens.count("±") == 1 and tokens[0] != r"\{":
        upper = [{"±": "+", "∓": "-"}.get(token, token) for token in tokens]
        lower = [{"±": "-", "∓": "+"}.get(token, token) for token in tokens]
        return ",", (read(upper), read(lower))
    parts, found = split(tokens, {":"})
    # Two digits behind the colon may be minutes, which are no ratio: 1:20 is not 2:40.
    if found and not (len(parts[-1]) == 1 and re.fullmatch("[0-9]{2}", parts[-1][0])):
        return ":", members(parts)
    if step(tokens[0]) == 1 and is_enclosed(tokens):
        return read_bracket(tokens)
    return read_scalar(tokens)


def members(parts: list[list[str]]) -> tuple:
    """The readings of the parts. One that is itself a list came from ± and is merged."""
    readings = [read(part) for part in parts]
    return tuple(x for one in readings for x in (one[1] if one[0] == "," else (one,)))


def is_name(side: list[str]) -> bool:
    """A variable, a function of variables, a word or a label; \\sim and "not" are none."""
    text = join(side)
    command = side[0] if side and side[0][:1] == "\\" else None
    if command and command not in LETTERS and not LABEL.fullmatch(text):
        return False
    if text.strip('"').lower() in ("not", "wrong", "false", "no"):
        return False
    return bool(NAME.fullmatch(text) or LABEL.fullmatch(text))


def is_constant(reading) -> bool:
    return reading[0] in ("exact", "float") and len({*reading[1]}) == 1


def read_relation(sides: list[list[str]], signs: list[str]):
    """An equation that is solved for a name, "x = 5", reads as ("named", "x", 5), and so does an
    inequality, as an interval. An open finite one has its own kind: (1, 2) may be a point."""
    names = [join(side) if is_name(side) else None for side in sides]
    if names[0] and len(sides) > 2 and all(sign == "=" for sign in signs):
        values = [read(side) for side in sides[1:]]  # x = 6/8 = 3/4, worked out
        if all(is_constant(value) and same(values[0], value) for value in values):
            return "named", names[0], values[-1]
    if len(signs) == 1 and signs[0] in "=∈≠":
        if signs == ["="] and names[1] and not (names[0] and names[0] <= names[1]):
            sides, names = sides[::-1], names[::-1]
        if names[0] and signs != ["≠"]:
            return "named", names[0], read(sides[1])
        return signs[0], (read(sides[0]), read(sides[1]))
    if all(sign in ">≥" for sign in signs):
        sides, names = sides[::-1], names[::-1]
        signs = [{">": "<", "≥": "≤"}[sign] for sign in reversed(signs)]
    if not all(sign in "<≤" for sign in signs):
        raise Unreadable
    named = [k for k, name in enumerate(names) if name]
    if (len(sides), *named) not in ((2, 0), (2, 1), (3, 1)):
        return "".join(signs), tuple(read(side) for side in sides)
    at = named[0]
    low, opening = (sides[at - 1], signs[at - 1]) if at else (["-", "∞"], "<")
    high, closing = (sides[at + 1], signs[at]) if at + 1 < len(sides) else (["∞"], "<")
    kind = ("[" if opening == "≤" else "(") + ("]" if closing == "≤" else ")")
    if kind == "()" and "∞" not in low + high:
        kind = "open interval"
    return "named", names[at], (kind, (read(low), read(high)))


def read_bracket(tokens: list[str]):
    """(a) is a; otherwise the brackets are the kind: () is a tuple or an interval, (] … One kind of
    matrix is like another, but for a determinant."""
    kind, inside = tokens[0] + tokens[-1], tokens[1:-1]
    if MATRIX.match(kind):
        rows = split(inside, {r"\cr"})[0]
        rows = rows if rows[-1] else rows[:-1]
        return "matrix", tuple(("row", members(split(row, {"&"})[0])) for row in rows)
    if kind == r"\{\}" and not inside:
        return read(["∅"])
    inner = members(split(inside, {","})[0])
    if len(inner) == 1 and (kind == "()" or inner[0][0] == "matrix"):
        return inner[0]
    return kind, inner


def read_scalar(tokens: list[str]):
    if "_" in tokens:
        place = tokens.index("_")
        numeral = NUMERAL.fullmatch(join(tokens[:place]))
        if numeral:
            return "base", (("text", numeral[1]), read_text(trim(tokens[place + 1 :])))
    word = "".join(tokens)
    is_word = len(word) > 3 or word.lower() in SHORT_WORDS or word != word.lower()
    if len(word) > 1 and word.isalpha() and is_word:
        return read_text(tokens)
    if not {"∞", "∅"}.isdisjoint(tokens) and len(tokens) > 1 + (tokens[0] in ("+", "-")):
        return read_text(tokens)
    try:
        return evaluate(tokens)
    except Unreadable:
        return read_text(tokens)


def read_text(tokens: list[str]):
    """Words regardless of case; one or two letters, or a few capitals, are symbols."""
    text = re.sub(r"\{(\w)\}", r"\1", join(tokens).replace('"', ""))  # \pmod{5} is \pmod 5
    is_symbol = len(text) < 3 or "\\" in text or len(text) == 3 and text.isupper()
    return "text", text if is_symbol and text.lower() not in SHORT_WORDS else text.casefold()


def read_answer(text: str):
    """What has no reading, is unbalanced or too large is text; None if there is nothing at all."""
    tokens = tokenize(text)
    depths = list(itertools.accumulate(map(step, tokens), initial=0))
    if len(tokens) > MOST_TOKENS or min(depths) < 0 or max(depths) > DEEPEST or depths[-1]:
        return read_text(tokens)
    try:
        return read(tokens) if trim(tokens) else None
    except Unreadable:
        return read_text(tokens)


# ---- comparison ----


def same(a, b) -> bool:
    """Two readings of the same answer."""
    if a == b:
        return True
    if a[0] == b[0] == "named":
        return a[1] == b[1] and same(a[2], b[2])
    if a[0] == "named" or b[0] == "named":
        named, other = (a, b) if a[0] == "named" else (b, a)
        return is_rearranged(named, other) if other[0] == "=" else same(named[2], other)
    kinds = {a[0], b[0]}
    if kinds <= {"exact", "float"}:
        return same_values(a[1], b[1])
    if len(kinds) > 1 and kinds != {",", r"\{\}"} or a[0] == "text" or len(a[1]) != len(b[1]):
        return False
    if a[0] in UNORDERED:
        return same_members(a[1], b[1]) or a[0] == "=" and in_proportion(a, b)
    return all(map(same, a[1], b[1])) or a[0] == ":" and in_proportion(a, b)


def same_values(a: tuple, b: tuple) -> bool:
    """Equal wherever both have a value, which is at three points at least."""
    pairs = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    for x, y in pairs:
        try:
            if x != y if exact(x, y) else abs(x - y) > TOLERANCE * max(abs(x), abs(y)):
                return False
        except OverflowError:  # an exact value beyond all floats
            return False
    if len(pairs) < 3:
        return False
    # A rational constant this close to an irrational one has many digits, unless it is equal.
    rational = [Fraction(x) for x in pairs[0] if exact(x)]
    if len(rational) == 1 and len({*a}) == len({*b}) == 1:
        return max(abs(rational[0].numerator), rational[0].denominator) < 100_000
    return True


def same_members(a: tuple, b: tuple) -> bool:
    """Equal as multisets. Exact members cancel by hash, so that few are left to try in pairs."""
    left = list((Counter(a) - Counter(b)).elements())
    right = list((Counter(b) - Counter(a)).elements())
    if len(left) > 16:
        return False
    for member in left:
        match = next((k for k, other in enumerate(right) if same(member, other)), None)
        if match is None:
            return False
        right.pop(match)
    return True


def is_rearranged(solved, equation) -> bool:
    """2x − y + 3 = 0 is y = 2x + 3, all terms on one side; 4x − 2y + 6 = 0 is not quite. One that
    gives a number, x = 5, has to be solved."""
    _, name, reading = solved
    if len(name) > 1 or reading[0] != "exact" or len({*reading[1]}) == 1:
        return False
    return ratios((("exact", tuple(variable(name))), reading), equation[1], "=") <= {1, -1}


def in_proportion(a, b) -> bool:
    """2:4 is 1:2; 4x + 6y − 10 = 0 is 2x + 3y = 5."""
    return len(ratios(a[1], b[1], a[0])) == 1


def ratios(a: tuple, b: tuple, kind: str) -> set:
    """The quotients of two ratios' members, or of two equations' sides when moved to the left, at
    each point. More than one value, and none of them 1, where there are none."""
    nothing = {2, 3}
    if any(part[0] != "exact" for part in (*a, *b)):
        return nothing
    if kind == ":":
        first, second = ([x for part in one for x in part[1]] for one in (a, b))
    else:
        first, second = ([x - y for x, y in zip(one[0][1], one[1][1])] for one in (a, b))
        if len({*first}) == 1:  # no variable: 1 = 2
            return nothing
    if not (all(first) and all(second)):
        return nothing
    return {Fraction(x) / y for x, y in zip(first, second)}


def math_equal(prediction: str, gold: str) -> bool:
    """Whether two bare answers, what stands inside the box, are the same. Never raises.

    Policies; where two are possible, the one that accepts less:

    accepted  list members in any order, and a set for a list; an unreduced fraction or ratio; an
              exact decimal; a mixed number, never as a product; an expression that is identical
              (unsimplified, too: the grader does not see what was asked); 10 for 10%, $10, 10 cm
              and 10°; "x = 5" and "x ∈ [1, 2]" for the bare value; ± for both values; "x > 5" for
              (5, ∞) and "1 ≤ x < 2" for [1, 2); an equation in several variables with terms moved
              to the other side; x^10 and 2^-1 for what their authors mean
    refused   a rounded decimal; 0.1 for 10%; a member of a list, set or union missing, added or
              repeated; other brackets, (1, 2) for "1, 2", and "1 < x < 2" for (1, 2), which may be
              a point; a missing base, or a value for a numeral with one; one side of an equation;
              "x = 5" for "y = 5"; 2x = 10 for x = 5; a row for a column; an identity of positive
              variables only, √(x²) = x; "1 2" for 12; anything empty or undefined
    """
    prediction, gold = prediction.strip(), gold.strip()
    if prediction == gold or max(len(prediction), len(gold)) > LONGEST_ANSWER:
        return prediction == gold and read_answer(gold[:LONGEST_ANSWER]) is not None
    # The same but for blanks behind commas: 121,242 reads as a number and "121, 242" as a list.
    if re.sub(r",\s+", ",", prediction) == re.sub(r",\s+", ",", gold):
        return True
    first, second = read_answer(prediction), read_answer(gold)
    return first is not None and second is not None and same(first, second)


# ---- the answer in a response ----

# The paper's line is "Final Answer: The final answer is $answer$. I hope it is correct."
FINAL_ANSWER = "The final answer is"
BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(
    r"\\(?:boxed|fbox)"
    r"(?: {0,9}(-?[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?|\\[A-Za-z]{1,30})| {1,9}([A-Za-z]))"
    r"(?=[.,]?(?:\s|\$|\\[)\]]|$))"
)
LONGEST_BOX = 10_000  # characters in which a box must close, so that no response takes long


def extract_answer(response: str) -> str | None:
    """What the last \\boxed{…} holds, or the paper's "Final Answer" line if that comes later.

    There is no second choice: if the last one is empty or never closes there is no answer. Of
    boxes inside each other the outermost counts, or \\boxed{7, \\boxed{2}} would have two answers.
    """
    box = max(response.rfind(r"\boxed"), response.rfind(r"\fbox"))
    line = response.rfind(FINAL_ANSWER)
    if not response[max(0, line - 20) : max(0, line)].rstrip(" \n*").endswith("Final Answer:"):
        line = -1
    if box < 0 and line < 0:
        return None
    answer = boxed(response, box) if box > line else final_answer(response, line)
    return answer.strip() or None if answer else None


def boxed(response: str, last: int) -> str | None:
    """The content of the box that opens at `last`, or of the outermost one around it. Escaped
    braces do not count; without braces a box holds one number, letter or command."""
    bare = BARE_BOX.match(response, last)
    if bare:
        return bare[1] or bare[2]
    open_braces, content = [], None  # a box's brace as (its start, its content's start)
    window = BOX_OR_BRACE.finditer(response, max(0, last - LONGEST_BOX), last + LONGEST_BOX)
    for token in window:
        if token[0] == "{":
            open_braces.append(None)
        elif token[0] == "}":
            box = open_braces.pop() if open_braces else None
            if box and box[0] <= last < token.start():
                content = response[box[1] : token.start()]
        elif len(token[0]) > 2:
            open_braces.append((token.start(), token.end()))
    return content


def final_answer(response: str, line: int) -> str | None:
    """The rest of the line up to "I hope it is correct", all of it: "$5$ or $6$" is not 5."""
    rest = response[line + len(FINAL_ANSWER) :][:LONGEST_BOX].lstrip()
    answer, closing, _ = rest.partition("I hope it is correct")
    if not closing:
        answer = rest.split("\n")[0]
    answer = answer.strip().removesuffix(".").strip()
    dollars = re.findall(r"(?<!\\)\$", answer)
    if len(dollars) % 2:
        return None
    whole = re.fullmatch(r"\$\$?((?:[^$\\]|\\.)*)\$?\$", answer, re.DOTALL)
    return whole[1] if whole else answer


def math_reward(response: str, gold: str) -> float:
    """1.0 if the response's answer is the reference answer, else 0.0."""
    answer = extract_answer(response)
    return float(answer is not None and math_equal(answer, gold))


# ---------------------------------------------------------------------------------------------
# Programs
#
#   trainer ──task──▶ tester T ──arguments──▶ runner U     T knows the tests, U the program;
#      ▲                 │ ◀──────results────               neither knows what the other knows
#      └── worker W ◀────┘ one word
#
# W is a fresh interpreter with an empty environment, so that nothing of the trainer is inherited.
# It forks U and T before the task is read. T alone reads the task from the trainer's pipe, hands U
# the program, runs the tests with a stand-in for the candidate and says how they ended. U confines
# itself before it runs the program. Whatever U sends is a plain value or an error, never a verdict,
# and U dies before the verdict is given.
#
# Hard-coding the answers to tests that a policy has seen is outside any sandbox.


class Verdict(NamedTuple):
    passed: bool
    reason: str  # passed, failed, error, timeout, memory, refused
    seconds: float


TIMEOUT = 3.0  # s of wall-clock time for a program and its tests
SETTLE = 1.5  # s beyond a program's own limit after which the trainer kills the whole worker
MESSAGE_BYTES = 8 << 20  # what U may send at once
DEPTH = 200  # of nested containers, in either direction
SCRATCH = "/scratch"  # inside the private root
SCRATCH_LIMITS = "size=64m,nr_inodes=4096,mode=1777"
THREADS, FILES = 64, 64
LIMITS = {"RLIMIT_AS": 1 << 30, "RLIMIT_FSIZE": 4 << 20, "RLIMIT_NOFILE": FILES, "RLIMIT_CORE": 0}
LIMITS["RLIMIT_STACK"] = 64 << 20  # for deep recursion through C

# Imported before the fork, so that a program does not pay for them.
COMMON = """array bisect cmath collections copy dataclasses datetime decimal enum fractions
functools hashlib heapq itertools json math operator queue random re statistics string struct
textwrap threading time typing unicodedata""".split()
# Imported as well where a program may open no file.
RARE = """__future__ abc asyncio base64 binascii calendar concurrent.futures.thread contextlib csv
difflib encodings.ascii encodings.idna encodings.latin_1 encodings.utf_16 graphlib inspect io
numbers pprint secrets traceback uuid warnings weakref zlib""".split()


def encode(value, depth: int = 0):
    """A plain value as JSON with tags: lists as they are, other containers as {type: items}.

    A subclass (Counter, namedtuple, IntEnum) becomes its plain base and a NumPy scalar a number,
    for they compare so in a test; anything else (a match, a generator) becomes a bare object().
    Who converts does not matter: decode() alone is trusted.
    """
    if value is None or type(value) in (bool, float, str):
        return value
    if type(value) is int:  # long ones in base 16, which takes linear time to read
        return value if abs(value) < 1 << 63 else {"int": f"{value:x}"}
    if depth > DEPTH:
        raise ValueError("too deep or cyclic")
    if type(value) is list:
        return [encode(item, depth + 1) for item in value]
    if type(value) in (tuple, set, frozenset):
        return {type(value).__name__: [encode(item, depth + 1) for item in value]}
    if type(value) is dict:
        return {"dict": [[encode(k, depth + 1), encode(v, depth + 1)] for k, v in value.items()]}
    if type(value) in (bytes, bytearray):
        return {type(value).__name__: value.hex()}
    if type(value) is complex:
        return {"complex": [value.real, value.imag]}
    if type(value).__module__ == "numpy" and hasattr(value, "dtype") and not value.shape:
        return encode(value.item(), depth + 1)
    for base, plain in PLAIN.items():
        if isinstance(value, base):
            return encode(plain(value), depth + 1)
    return {"object": None}


PLAIN = {int: int.__int__, float: float.__float__, str: str.__str__, bytes: bytes}
PLAIN |= {kind: kind for kind in (tuple, list, dict, set, frozenset, complex)}
BUILD = {
    "tuple": lambda items, depth: tuple(decode(items, depth)),
    "set": lambda items, depth: set(decode(items, depth)),
    "frozenset": lambda items, depth: frozenset(decode(items, depth)),
    "dict": lambda items, depth: {decode(k, depth + 1): decode(v, depth + 1) for k, v in items},
    "bytes": lambda text, depth: bytes.fromhex(text),
    "bytearray": lambda text, depth: bytearray.fromhex(text),
    "complex": lambda parts, depth: complex(*parts),
    "int": lambda text, depth: int(text, 16),
    "object": lambda nothing, depth: object(),
}


def decode(value, depth: int = 0):
    """encode()'s inverse, into exact builtin types; raises for anything that it cannot have sent.

    No object of the program's can cross, so none can bring an __eq__ of its own to a test. What
    is not plain arrives as an object that is true, as `assert re.search(…)` expects, and equals
    nothing.
    """
    if depth > DEPTH:
        raise ValueError("too deep")
    if type(value) is list:
        return [decode(item, depth + 1) for item in value]
    if type(value) is dict:
        ((kind, body),) = value.items()
        return BUILD[kind](body, depth)
    return value


def pack(message, limit: float = math.inf) -> bytes:
    """A message as its length and JSON; lone surrogates pass, as they may in a Python string."""
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > limit:
        raise ValueError("message too long")
    return len(data).to_bytes(4, "big") + data


def send(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def receive(fd: int, limit: float = math.inf):
    """The next message; EOFError if the other side has gone, ValueError if it is too long."""

    def read(count: int) -> bytes:
        chunks = []
        while count:
            chunks.append(os.read(fd, min(count, 1 << 20)))
            if not chunks[-1]:
                raise EOFError
            count -= len(chunks[-1])
        return b"".join(chunks)

    size = int.from_bytes(read(4), "big")
    if size > limit:
        raise ValueError("message too long")
    return json.loads(read(size).decode("utf-8", "surrogatepass"))


# The tester T


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
            send(outbox, pack(message))
            reply = receive(inbox, MESSAGE_BYTES)
            error = rebuild(*reply["raised"]) if "raised" in reply else None
            value = decode(reply["value"]) if error is None else None
        except Exception:  # a dead or lying U must not look like an exception that a test expects
            conclude("error")
        if error is not None:
            raise error
        return value

    def candidate(*args, **kwargs):
        return ask({"args": encode(args), "kwargs": encode(kwargs)})

    conclude(judge(task, ask, candidate))


def judge(task: dict, ask, candidate) -> str:
    """How check(candidate) ends. Only its last line, reached, is a pass.

    The tests' helpers come from the prompt, which is trusted, in a namespace that the program
    never sees. The entry point's name is the stand-in there: HumanEval 33 tests by it.
    """
    try:
        ask({"program": task["program"], "entry_point": task["entry_point"],
             "timeout": task["timeout"]})  # fmt: skip
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


# The runner U


def runner(inbox: int, outbox: int, box: "Box", parent: int) -> None:
    """U's life: confine itself, load the program, answer calls until killed."""
    low, high = sorted((inbox, outbox))
    confine(box)
    die_with(parent)
    for first, last in ((3, low), (low + 1, high), (high + 1, FILES)):
        os.closerange(first, last)
    task = receive(inbox)
    limit("RLIMIT_CPU", math.ceil(task["timeout"]) + 1)
    forbid_calls(box.filter)
    gc.enable()
    module = types.ModuleType("program")  # not __main__: what a main guard holds is not tested
    sys.modules["program"] = module  # where dataclasses and typing look for its names

    def load() -> None:
        exec(compile(task["program"], "program", "exec", dont_inherit=True), vars(module))
        vars(module)[task["entry_point"]]

    def call():
        message = receive(inbox)
        args, kwargs = decode(message["args"]), decode(message["kwargs"])
        return vars(module)[task["entry_point"]](*args, **kwargs)

    reply(outbox, load)
    while True:
        reply(outbox, call)


def reply(outbox: int, action) -> None:
    """What action returned, or the builtin type next to what it raised, SystemExit included."""
    try:
        data = pack({"value": encode(action())}, MESSAGE_BYTES)
    except BaseException as error:
        kinds = type(error).__mro__
        name = next(kind.__name__ for kind in kinds if kind.__module__ == "builtins")
        data = pack({"raised": [name, message_of(error)]})
    send(outbox, data)


def message_of(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except BaseException:  # the program's own __str__
        return ""


# Confinement. Each protection is tried out in a child before it is relied on; W reports which hold.
#
#   private root    a root directory that holds Python, its shared libraries and NumPy, read-only,
#                   and a scratch tmpfs of 64 MiB: no secrets, no answers, no /proc, nothing to fill
#   namespaces      no network, no shared memory or message queues of others
#   Landlock        the same files, from the kernel's other side; no TCP, abstract sockets, signals
#   seccomp         an allow list of system calls: no process, program, signal, socket, mount, …
#   user id         one of its own, so that permissions and the limit on threads hold against root
#   limits          memory, CPU time, file size, open files, threads
#
# One SIGKILL ends U because it cannot fork. Seccomp is therefore required; the rest adds to it.
# Without a private root a program cannot write files, without Landlock either it cannot open any.


class Box(NamedTuple):
    """What W found to work here and U applies to itself."""

    filter: bytes | None  # seccomp's, compiled
    ruleset: int | None  # Landlock's, an open file
    uid: int | None  # a user id of U's own
    capabilities: int  # kept with that: at most the right to read Python below another's home
    scratch: str  # working directory
    threads: int  # RLIMIT_NPROC


@functools.cache
def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def libc_call(name: str, *args) -> int:
    """A C function's result, OSError if it is −1."""
    if (result := getattr(libc(), name)(*args)) == -1:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result


def limit(name: str, value: int) -> None:
    """Sets a resource limit for good, at most what the limit was."""
    import resource  # not on Windows, where the rest of this file works

    hard = resource.getrlimit(getattr(resource, name))[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(getattr(resource, name), (value, value))


def confine(box: Box) -> None:
    """All of U's confinement but the filter, which would forbid the rest."""
    os.chdir(box.scratch)
    limit("RLIMIT_NPROC", box.threads)
    drop_rights(box.uid, box.capabilities)
    if box.ruleset is not None:
        restrict_files(box.ruleset)


def die_with(parent: int) -> None:
    """SIGKILL as soon as W is gone. The kernel forgets this when the user id changes."""
    if sys.platform == "linux":
        libc_call("prctl", 1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def drop_rights(uid: int | None, capabilities: int) -> None:
    """Another user and group, if root may choose one, and no capabilities but those given."""
    if uid is not None:
        libc_call("prctl", 8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS, so that the next call decides
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    if sys.platform == "linux":
        header = struct.pack("=Ii", 0x20080522, 0)  # version 3, this process
        sets = struct.pack("=6I", capabilities, capabilities, 0, 0, 0, 0)
        libc_call("capset", header, sets)


# Name, number on x86_64, number on aarch64 (- where it has none).
CALLS = """
read 0 63 write 1 64 readv 19 65 writev 20 66 pread64 17 67 pwrite64 18 68 close 3 57
close_range 436 436 fstat 5 80 stat 4 - lstat 6 - newfstatat 262 79 statx 332 291 lseek 8 62
mmap 9 222 mprotect 10 226 munmap 11 215 brk 12 214 mremap 25 216 madvise 28 233
rt_sigaction 13 134 rt_sigprocmask 14 135 rt_sigreturn 15 139 sigaltstack 131 132
access 21 - faccessat 269 48 faccessat2 439 439 getcwd 79 17 chdir 80 49 fchdir 81 50
getdents64 217 61 readlink 89 - readlinkat 267 78 statfs 137 43 fstatfs 138 44 umask 95 166
pipe 22 - pipe2 293 59 dup 32 23 dup2 33 - dup3 292 24 select 23 - pselect6 270 72 poll 7 -
ppoll 271 73 epoll_create 213 - epoll_create1 291 20 epoll_ctl 233 21 epoll_wait 232 -
epoll_pwait 281 22 epoll_pwait2 441 441 eventfd2 290 19 sendto 44 206 recvfrom 45 207
sendmsg 46 211 recvmsg 47 212 shutdown 48 210 getsockopt 55 209
getsockname 51 204 getpeername 52 205 alarm 37 - pause 34 - setitimer 38 103 getitimer 36 102
nanosleep 35 101 clock_nanosleep 230 115 clock_gettime 228 113 clock_getres 229 114
gettimeofday 96 169 time 201 - times 100 153 getcpu 309 168 sched_yield 24 124
sched_getaffinity 204 123 sched_getparam 143 121 sched_getscheduler 145 120 futex 202 98
set_robust_list 273 99 get_robust_list 274 100 set_tid_address 218 96 rseq 334 293
membarrier 324 283 arch_prctl 158 - getrandom 318 278 restart_syscall 219 128 exit 60 93
exit_group 231 94 getpid 39 172 gettid 186 178 getppid 110 173 getuid 102 174 geteuid 107 175
getgid 104 176 getegid 108 177 getgroups 115 158 getresuid 118 148 getresgid 120 150
getpgrp 111 - getpgid 121 155 getsid 124 156 getrusage 98 165 getrlimit 97 163 sysinfo 99 179
uname 63 160 clone 56 220 prlimit64 302 261 socketpair 53 199 prctl 157 167 fcntl 72 25
ioctl 16 29 open 2 - openat 257 56
"""
# These change files, and are allowed where only the scratch can be changed.
CHANGES = """
mkdir 83 - mkdirat 258 34 rmdir 84 - unlink 87 - unlinkat 263 35 rename 82 - renameat 264 38
renameat2 316 276 link 86 - linkat 265 37 symlink 88 - symlinkat 266 36 truncate 76 45
ftruncate 77 46 fallocate 285 47 chmod 90 - fchmod 91 52 fchmodat 268 53 utimensat 280 88
fsync 74 82 fdatasync 75 83 flock 73 32 sendfile 40 71 copy_file_range 326 285 creat 85 -
"""
# Call: what its arguments must be, each (number, mask, the values allowed under the mask).
ANY = 0xFFFFFFFF
ARGUMENTS = {
    "clone": [(0, 0x7E030000, [0x10000])],  # CLONE_THREAD and no new namespace
    "prlimit64": [(0, ANY, [0])],  # its own limits, not another process's
    # asyncio's loop wakes itself through a pair of AF_UNIX stream sockets. A datagram socket
    # could also send to the sockets of others, by their names.
    "socketpair": [(0, ANY, [1]), (1, 0xF, [1])],
    "prctl": [(0, ANY, [15, 16])],  # a thread's name
    "fcntl": [(1, ANY, [0, 1, 2, 3, 4, 5, 6, 7, 1030])],  # dup, flags and locks; no owner
    "ioctl": [(1, ANY, [0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451])],  # isatty, cloexec, …
}
READ_ONLY = 0o1103  # the flags of open() that write, create or truncate
OPENING = {"open": [(1, READ_ONLY, [0])], "openat": [(2, READ_ONLY, [0])]}


def call_filter(may_open: bool, may_write: bool, may_thread: bool) -> bytes | None:
    """The seccomp filter as classic BPF, None on other machines than the two in the tables.

    Calls that are not allowed fail as if the kernel lacked them (ENOSYS), so that glibc falls back
    from clone3 to clone; an open that is not allowed, as if permissions forbade it (EACCES), so
    that a failing import is an ImportError. Another architecture's calls kill: they are numbered
    differently.
    """
    machine = {"x86_64": (0xC000003E, 1), "aarch64": (0xC00000B7, 2)}.get(os.uname().machine)
    if machine is None or sys.maxsize < 1 << 32:
        return None
    audit, column = machine
    kill, allow, fail = 0x80000000, 0x7FFF0000, 0x00050000
    load, equal, at_least, mask, end = 0x20, 0x15, 0x35, 0x54, 0x06
    words = (CALLS + (CHANGES if may_write else "")).split()
    rules = ARGUMENTS | ({} if may_write else OPENING)
    denied = (set() if may_open else set(OPENING)) | (set() if may_thread else {"clone"})
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (end, 0, 0, kill), (load, 0, 0, 0)]
    code += [(at_least, 0, 1, 1 << 30), (end, 0, 0, kill)]  # x32's numbers begin there
    for name, *numbers in zip(words[::3], words[1::3], words[2::3]):
        if numbers[column - 1] == "-":
            continue
        refuse = (end, 0, 0, fail | (errno.EACCES if name in OPENING else errno.ENOSYS))
        body = []
        for argument, bits, values in rules.get(name, []):
            body += [(load, 0, 0, 16 + 8 * argument), (mask, 0, 0, bits)]
            body += [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
            body += [refuse]
        body += [refuse if name in denied else (end, 0, 0, allow)]
        code += [(equal, 0, len(body), int(numbers[column - 1])), *body]
    code += [(end, 0, 0, fail | errno.ENOSYS)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def forbid_calls(code: bytes | None) -> None:
    """Installs the filter, for this process and for good."""
    if code is None:  # only where the caller allowed an unsafe sandbox
        return
    libc_call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    libc_call("prctl", 22, 2, program, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def landlock_rules(paths: "Paths", scratch: str | None) -> int:
    """A Landlock ruleset (an open file): read what is readable, change the scratch alone.

    Landlock can only add rights below a path, so a folder that holds a hidden one is taken apart.
    """
    readable, listable = set(paths.libraries), {os.path.dirname(path) for path in paths.libraries}
    hidden = {os.path.realpath(path) for path in paths.hidden}
    queue = [os.path.realpath(path) for path in paths.readable]
    while queue:
        path = queue.pop()
        if any(folder.startswith(f"{path}/") for folder in hidden):
            listable.add(path)  # Python looks for modules by listing
            queue += [os.path.realpath(entry.path) for entry in os.scandir(path)]
        elif path not in hidden and os.path.exists(path):
            readable.add(path)
    abi = libc_call("syscall", 444, None, 0, 1)  # landlock_create_ruleset: its version
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    no_tcp = 3 if abi >= 4 else 0
    no_signals_or_abstract_sockets = 3 if abi >= 6 else 0
    handled = struct.pack("=QQQ", everything, no_tcp, no_signals_or_abstract_sockets)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = libc_call("syscall", 444, handled, size, 0)
    execute, write, read, listing, truncate = 1, 2, 4, 8, 1 << 14
    rights = [(path, execute | read | listing) for path in readable]
    rights += [(path, listing) for path in listable]
    rights += [("/dev/null", write | truncate)] + ([(scratch, everything)] if scratch else [])
    for path, allowed in rights:
        if not os.path.isdir(path):
            allowed &= execute | write | read | truncate
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed & everything, fd)
        libc_call("syscall", 445, ruleset, 1, rule, 0)  # landlock_add_rule, path beneath
        os.close(fd)
    return ruleset


def restrict_files(ruleset: int) -> None:
    libc_call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    libc_call("syscall", 446, ruleset, 0)  # landlock_restrict_self


MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 1 << 14, 1 << 18
LOCKED = MS_NOSUID | MS_NODEV | MS_NOEXEC  # a mount's flags that a user namespace may not drop


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    words = [word and word.encode() for word in (source, target, kind)]
    libc_call("mount", *words, ctypes.c_ulong(flags), options.encode())


def show(path: str, root: str) -> None:
    """Puts a file or folder, read-only, in the same place under another root."""
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        open(root + path, "x").close()
    mount(path, root + path, None, MS_BIND | MS_REC)
    flags = os.statvfs(path).f_flag & LOCKED
    mount(None, root + path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | flags)


def enter_namespaces() -> None:
    """Network, mount, IPC and host name; who is not root needs a user namespace to do this, and
    stays the same user in it."""
    uid, gid = os.getuid(), os.getgid()
    new_user = 0x10000000 if uid else 0
    libc_call("unshare", new_user | 0x40000000 | 0x00020000 | 0x08000000 | 0x04000000)
    if new_user:
        maps = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def enter_private_root(paths: "Paths") -> None:
    """Namespaces, and in them a root directory with those paths and the scratch alone.

    It is built over /proc, which is on every system and holds none of the paths to bind.
    """
    enter_namespaces()
    root = "/proc"
    plain = MS_NOSUID | MS_NODEV
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", plain, "size=1m,mode=755")
    for path in paths.readable:
        show(path, root)
    for path in paths.hidden:
        mount("tmpfs", root + path, "tmpfs", plain, "size=1m,mode=755")
    for path in paths.libraries:
        show(path, root)
    os.mkdir(root + SCRATCH)
    mount("tmpfs", root + SCRATCH, "tmpfs", plain | MS_NOEXEC, SCRATCH_LIMITS)
    os.chdir(root)
    libc_call("syscall", {"x86_64": 155, "aarch64": 41}[os.uname().machine], b".", b".")
    libc_call("umount2", b".", 2)  # the old root, stacked there by pivot_root; MNT_DETACH
    for path in ("/", *paths.hidden):
        mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | plain)
    os.chdir("/")


# The worker W


def attempt(step, *args) -> bool:
    """Whether a step works, tried in a child so that a failure leaves nothing half done."""

    def child() -> None:
        step(*args)
        os._exit(0)

    return os.waitpid(spawn(child), 0)[1] == 0


def spawn(life, *args) -> int:
    """A fork that does nothing else, however it ends."""
    pid = os.fork()
    if pid:
        return pid
    try:
        life(*args)
    finally:
        os._exit(1)


class Paths(NamedTuple):
    """What a program may read, beyond its scratch."""

    readable: list[str]  # Python and the shared libraries that its modules load
    hidden: list[str]  # but no folder of installed packages: some hold a benchmark's answers
    libraries: list[str]  # except these packages


def python_paths(libraries: list[str]) -> Paths:
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    paths += [f"{sys.base_prefix}/lib", "/lib", "/lib64", "/usr/lib", "/usr/lib64"]
    paths += ["/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom"]
    kept = []
    for path in sorted({os.path.abspath(path) for path in paths if os.path.exists(path)}):
        if not any(path.startswith(f"{parent}/") for parent in kept):
            kept.append(path)
    folders = [f"{path}/{below}" for path in kept for below in ("", "python3*/")]
    hidden = sum((glob.glob(f"{folder}*-packages") for folder in folders), [])
    return Paths(kept, hidden, libraries)


def tasks_of(uid: int) -> int:
    """How many threads a user has now: RLIMIT_NPROC counts them all."""
    count = 0
    for folder in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{folder}").st_uid == uid:
                count += len(os.listdir(f"/proc/{folder}/task"))
        except OSError:
            continue  # it ended meanwhile, or is hidden
    return count


def build_box(libraries: list[str]) -> tuple[Box, list[str], list[str]]:
    """Tries each protection, enters those that hold for W, too, and names what is on and off."""
    on, off = [], []

    def try_out(name: str, step, *args) -> bool:
        works = sys.platform == "linux" and attempt(step, *args)
        (on if works else off).append(name)
        return works

    paths = python_paths(libraries)
    threads = THREADS + (tasks_of(os.getuid()) if os.getuid() and os.path.isdir("/proc") else 0)
    rooted = try_out("private root, namespaces (net, mount, ipc, uts)", enter_private_root, paths)
    if rooted:
        enter_private_root(paths)
    scratch = SCRATCH if rooted else None
    ruleset = None
    if try_out("Landlock", lambda: restrict_files(landlock_rules(paths, scratch))):
        ruleset = landlock_rules(paths, scratch)
        on[-1] += f" (ABI {libc_call('syscall', 444, None, 0, 1)})"
    uid, capabilities = None, 0
    if os.getuid() == 0:
        own = 30000 + os.getpid() % 30000  # nobody else's, and inside a container's 65,536
        override = 2  # CAP_DAC_OVERRIDE
        for kept in (0, override) if rooted or ruleset is not None else (0,):
            if attempt(lambda kept=kept: (drop_rights(own, kept), open(os.__file__).close())):
                uid, capabilities = own, kept
                break
        else:
            uid = own if attempt(drop_rights, own, 0) else None
        (off if uid is None else on).append("user id")
    may_open = rooted or ruleset is not None
    if sys.platform == "linux":
        libc_call("prctl", 4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: W and T cannot be traced by an equal
    code = call_filter(may_open, rooted, may_thread=os.getuid() != 0 or uid is not None)
    if not try_out("seccomp", fork_is_denied, code):
        code = None
    return Box(code, ruleset, uid, capabilities, scratch or "/", threads), on, off


def fork_is_denied(code: bytes | None) -> None:
    """Raises unless the filter works."""
    forbid_calls(code)
    try:
        pid = os.fork()
    except OSError:
        return
    if pid == 0:
        os._exit(0)
    raise RuntimeError("fork is not denied")


def worker(options: dict) -> None:
    """W's life: a clean process that forks a U and a T for each task, and outlives both.

    It holds no task itself. Its standard input is the trainer's: T reads the task from there, and
    when the trainer has gone the pipe hangs up and everything ends.
    """
    task_fd, verdict_fd = detach()
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    sys.path += [os.path.dirname(path) for path in options["libraries"][:1]]
    sys.argv[1:] = []
    for name in COMMON:
        importlib.import_module(name)
    box, on, off = build_box(options["libraries"])
    refused = box.filter is None and not options["unsafe"]
    os.write(verdict_fd, pack({"on": on, "off": off, "refused": refused}))
    if refused:
        return
    for name in RARE if box.ruleset is None and box.scratch == "/" else ():
        importlib.import_module(name)
    for name, value in LIMITS.items():
        limit(name, value)
    gc.collect()
    gc.freeze()  # children then write to fewer of the pages that they share
    while (verdict := run_one(box, task_fd)) is not None:
        empty(box.scratch)
        os.write(verdict_fd, pack(verdict))


def detach() -> tuple[int, int]:
    """Sets aside the pipes from and to the trainer, and what else the trainer's state decided."""
    for name in (signal.SIGALRM, signal.SIGCHLD):  # an ignored signal is inherited through exec
        signal.signal(name, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    pipes = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    if sys.platform == "linux":
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # where memory runs out, let the kernel end this before the trainer
    return pipes


def run_one(box: Box, task_fd: int) -> list[str] | None:
    """One task's U and T, started before it comes → [the task's name, how it ended]; None when the
    trainer has gone, or T before it said which task it took: that one's bytes are lost."""
    parent = os.getpid()
    (calls, to_runner), (from_runner, results) = os.pipe(), os.pipe()
    processes = [spawn(runner, calls, results, box, parent)]
    verdicts, verdict = os.pipe()

    def life() -> None:
        die_with(parent)
        for fd in (calls, results, verdicts):
            os.close(fd)
        tester(task_fd, from_runner, to_runner, verdict)

    processes.append(spawn(life))
    for fd in (calls, to_runner, from_runner, results, verdict):
        os.close(fd)
    said = hear(verdicts, task_fd)
    os.close(verdicts)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    status = [os.waitpid(pid, 0)[1] for pid in processes][1]
    name, _, reason = said.partition(" ")
    alarmed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
    return [name, reason or ("timeout" if alarmed else "error")] if name else None


def hear(verdicts: int, task_fd: int) -> str:
    """All that T says until it ends; nothing if the trainer goes first."""
    poll = select.poll()
    poll.register(verdicts, select.POLLIN)
    poll.register(task_fd, 0)  # tells of a hang-up only
    said = b""
    while task_fd not in dict(poll.poll()):
        data = os.read(verdicts, 64)
        if not data:
            return said.decode()
        said += data
    return ""


def empty(folder: str) -> None:
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


# The trainer's side


class SandboxError(RuntimeError):
    """Programs cannot be run safely here; one line says why."""


class Worker:
    """A W seen from the trainer, whose calls never block for longer than a start takes."""

    def __init__(self, unsafe: bool):
        if not (sys.platform == "linux" or unsafe and hasattr(os, "fork")):
            raise SandboxError(f"programs are run on Linux only, not on {sys.platform}")
        options = json.dumps({"libraries": numpy_folders(), "unsafe": unsafe})
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-s", "-S", os.path.abspath(__file__), options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            start_new_session=True,  # a terminal's ^C is the trainer's to handle
            # One hash seed, so that a program's verdict does not hang on the order of its sets.
            env={"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        self.inbox, self.outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
        os.set_blocking(self.inbox, False)
        os.set_blocking(self.outbox, False)
        self.begin(-1, "", b"", 20.0)
        while (status := self.step()) is None and time.monotonic() < self.deadline:
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

    def step(self):
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


def pack_task(
    name: str, program: str, test: str, entry_point: str, timeout: float = TIMEOUT, prompt: str = ""
) -> tuple[bytes, float]:
    """The task as T reads it, and its limit; TypeError if a text is something else."""
    if not 0 < timeout <= 3600:
        raise ValueError(f"a timeout of {timeout} s is not between 0 and an hour")
    if not all(isinstance(text, str) for text in (program, test, entry_point, prompt)):
        raise TypeError("not text")
    task = {"program": program, "test": test, "entry_point": entry_point, "prompt": prompt}
    return pack(task | {"name": name, "timeout": timeout}), timeout


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
    workers = workers or os.cpu_count() or 1
    verdicts: list[Verdict | None] = [None] * len(items)
    waiting, busy, retried = list(range(len(items)))[::-1], [], set()
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                start(items, waiting.pop(), busy, verdicts)
            wait_for(busy)
            for worker in list(busy):
                answer, now = worker.step(), time.monotonic()
                if answer is None and now < worker.deadline:
                    continue
                busy.remove(worker)
                if isinstance(answer, list) and answer[0] == worker.name:
                    reason = answer[1]
                    POOL.idle.append(worker)
                else:
                    reason = None if answer is None else "died"
                    worker.stop()
                if reason == "died" and worker.index not in retried:
                    retried.add(worker.index)  # by another's hand: once more, on a fresh worker
                    waiting.append(worker.index)
                    continue
                reason = {None: "timeout", "died": "error"}.get(reason, reason)
                verdicts[worker.index] = Verdict(reason == "passed", reason, now - worker.started)
    finally:
        for worker in busy:  # interrupted
            worker.stop()
    return verdicts


def start(items: list[tuple], index: int, busy: list[Worker], verdicts: list) -> None:
    """Gives item index to a worker, or a verdict at once if it cannot be run."""
    try:
        name = os.urandom(8).hex()
        task, timeout = pack_task(name, *items[index])
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


def mbpp_test(test_list: list[str], setup: str = "") -> tuple[str, str]:
    """MBPP's asserts as a check(candidate), and the name of the function that they call.

    The name is bound inside check, for some records call theirs check or sum. It is the one that
    every assert calls, and not a builtin (set(f(x)) == …) unless there is no other. Some asserts
    use math or sys without importing it, for MBPP runs them where the program has. Raises
    ValueError, in one line, where there is no such function or a test is not Python.
    """
    asserts, called = [], []
    for text in test_list:
        try:
            asserts.append(ast.parse(text))
        except (SyntaxError, TypeError, ValueError):
            raise ValueError(f"the test {text!r} is not Python") from None
        calls = [node.func for node in ast.walk(asserts[-1]) if isinstance(node, ast.Call)]
        called.append([function.id for function in calls if isinstance(function, ast.Name)])
    if not called:
        raise ValueError("there is no test")
    shared = [name for name in called[0] if all(name in names for names in called)]
    if not shared:
        raise ValueError("the tests call no function in common")
    entry_point = min(shared, key=lambda name: hasattr(builtins, name))
    lines = [f"{entry_point} = candidate", *map(ast.unparse, asserts)]  # one line an assert
    body = textwrap.indent("\n".join(lines), "    ")
    return f"import math\nimport sys\n{setup}\n\n\ndef check(candidate):\n{body}\n", entry_point


if __name__ == "__main__":
    worker(json.loads(sys.argv[1]))
