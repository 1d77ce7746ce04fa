"""LaTeX → tokens → the values that a scalar takes at a few fixed points, by recursive descent.

They are exact fractions as long as the operations stay rational, so 9999 is not 10000, 1/3 is not
0.333333333333 and polynomials are compared without a tolerance. Behind a root, a logarithm, π, e
or i they are complex floats, and a point at which floats cannot tell (a pole, an overflow, a
cancellation, a term that vanishes beside another) has no value. Nothing evaluates, imports or
executes the text; numbers and depth are capped.
"""

import cmath
import functools
import math
import random
import re
from fractions import Fraction

DEEPEST = 30  # depth of nested brackets, so that recursion stays far from Python's limit
MOST_BITS = 12_000  # bits of an exact value, so that towers of powers are not computed
POINTS = 8  # points at which an expression is evaluated; at least three must have a value

# ---- text → tokens ----

PLAIN_FUNCTIONS = "arcsin arccos arctan sin cos tan cot sec csc log ln".split()
TOKEN_NAMES = {  # a token → its other names; those of "" are dropped
    "": r"\left \right \big \Big \bigg \Bigg \bigl \bigr \Bigl \Bigr \biggl \biggr \Biggl \Biggr"
    r" \displaystyle \textstyle \limits \boxed \fbox \text \mbox \rm \bf \( \) \[ \]",
    r"\frac": r"\dfrac \tfrac \cfrac \nicefrac \sfrac",
    r"\binom": r"\dbinom \tbinom",
    r"\sqrt": "√ sqrt",
    "*": r"\cdot \times \ast × · ⋅ ∙ ∗",
    "/": r"\div ÷",
    "-": "− –",
    "±": r"\pm",
    "∓": r"\mp",
    "<": r"\lt",
    ">": r"\gt",
    "≤": r"\le \leq \leqslant \leqq <=",
    "≥": r"\ge \geq \geqslant \geqq >=",
    "≠": r"\ne \neq",
    "∈": r"\in",
    "∪": r"\cup",
    "∩": r"\cap",
    "∅": r"\emptyset \varnothing",
    "∞": r"\infty infinity",
    ":": r"\colon",
    ",": "; ∧",
    "°": r"\degree",
    "|": r"\lvert \rvert \vert \mid",
    "[": r"\lbrack",
    "]": r"\rbrack",
    r"\{": r"\lbrace",
    r"\}": r"\rbrace",
    r"\pi": "π pi",
    r"\theta": "θ",
    '"percent"': r"\% %",
}
ALIASES = {name: token for token, names in TOKEN_NAMES.items() for name in names.split()}
ALIASES |= {name: "\\" + name for name in PLAIN_FUNCTIONS}
FONTS = (
    "text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|emph|boldsymbol|bm"
)
UNIT = (
    "(?:inch(?:es)?|(?<= )in|feet|foot|ft|yards?|yd|miles?|(?:centi|milli|kilo)?meters?|[cmk]m|kg"
    "|(?:kilo)?grams?|pounds?|lbs?|ounces?|oz|(?:milli)?liters?|ml|gallons?|seconds?|secs?|minutes?"
    "|mins?|hours?|hrs?|days?|weeks?|months?|years?|degrees?|radians?|percent|dollars?|cents?"
    "|units?|mph|kph|square|sq|cubic|cu|km/h|m/s|per|pm|am)(?![A-Za-z])"
)
UNIT_LETTERS = "mgshLJNWVCF"  # \text{m} after a number is a unit, \text{A} is a letter


def quote_words(match: re.Match) -> str:
    """Marks the words of a match's last group, so that each becomes one token and not a product of
    variables."""

    def quote(word: re.Match) -> str:
        return f'"{word[0]}"' if len(word[0]) > 1 or word[0] in UNIT_LETTERS else word[0]

    before = match[1] if match.lastindex == 2 else ""
    return f"{before} " + re.sub(r"(?<![\\A-Za-z])[A-Za-z]+", quote, match[match.lastindex]) + " "


def repeating_decimal(match: re.Match) -> str:
    """0.1\\overline{6} as an exact fraction."""
    whole, prefix, cycle = match.groups()
    top = int(whole + prefix + cycle) - int(whole + prefix or "0")
    return rf"\frac{{{top}}}{{{10 ** len(prefix) * (10 ** len(cycle) - 1)}}}"


BASES = dict(zip("two three four five six seven eight nine ten".split(), range(2, 11)))
# Applied in this order. Each pattern takes linear time on a text with single blanks.
REWRITES = [
    # \\ → \cr, and so \\[2pt]: the next row of a matrix
    (re.compile(r"\\\\(?: ?\[-?[0-9.]+(?:pt|em|ex|mm|cm)\])?"), r"\\cr "),
    # $5$ → 5, \$5 → 5; a backslash that nothing follows goes, too
    (re.compile(r"\\?\$|\\$"), " "),
    # {1 \over 2} → \frac{1}{2}
    (re.compile(r"\{([^{}]*)\\over(?![A-Za-z])([^{}]*)\}"), r"\\frac{\1}{\2}"),
    # {10 \choose 5} → \binom{10}{5}
    (re.compile(r"\{([^{}]*)\\choose(?![A-Za-z])([^{}]*)\}"), r"\\binom{\1}{\2}"),
    # 1{,}234 → 1234, and so 1,\!234, 1,\! 234 and 1\,234
    (re.compile(r"(?<=[0-9])(?:\{,\}|\\!,|,\\! ?|\\,)(?=[0-9]{3}(?![0-9]))"), ""),
    # a\,b → a b; \left. → a blank
    (re.compile(r"\\(?:left|right) ?\.|\\[,;:!> ]|\\q?quad(?![A-Za-z])|~"), " "),
    # 36^\circ → 36°, and so 36^{\circ} C
    (re.compile(r"\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))(?: ?[CF](?![A-Za-z]))?"), "°"),
    # 0.1\overline{6} → \frac{15}{90}
    (
        re.compile(
            r"(?<![0-9])([0-9]*)\.([0-9]*)\\(?:overline|bar|dot) ?"
            r"\{?((?<=\{)[0-9]+(?=\})|[0-9])\}?"
        ),
        repeating_decimal,
    ),
    # \not= → \ne, and so \not\in
    (re.compile(r"\\not ?=|\\not ?\\in(?![A-Za-z])"), r"\\ne "),
    # 1–5 → 1\to 5, a range; elsewhere it is a minus
    (re.compile(r"(?<=[0-9}])–"), r"\\to "),
    # x**2 → x^2
    (re.compile(r"\*\*"), "^"),
    # 6.72e-5 → 6.72\cdot 10^{-5}
    (re.compile(r"(?<=\.)([0-9]+)[eE]([-+]?[0-9]+)(?![0-9A-Za-z.])"), r"\1\\cdot 10^{\2}"),
    # √65 → \sqrt{65}, and so sqrt 65
    (re.compile(r"(?:√|(?<![\\A-Za-z])sqrt) ?([0-9]+)"), r"\\sqrt{\1}"),
    # \operatorname{cot} → \cot
    (re.compile(rf"\\(?:operatorname\*?|mathrm) ?\{{({'|'.join(PLAIN_FUNCTIONS)})\}}"), r"\\\1 "),
    # 1101_{(2)} → 1101_{2}
    (re.compile(r"_ ?\{ ?\(([0-9]+)\) ?\}"), r"_{\1}"),
    # 1101_{\text{two}} → 1101_{2}
    (
        re.compile(rf"_ ?(?:\{{ ?)?\\text ?\{{({'|'.join(BASES)})\}}(?: ?\}})?"),
        lambda match: f"_{{{BASES[match[1]]}}}",
    ),
    # \mathbb{R} → (-\infty,\infty)
    (re.compile(r"\\mathbb ?(?:R|\{R\})"), r"(-\\infty,\\infty)"),
    # \begin{array}{cc} → \begin{array}
    (re.compile(r"(\\begin ?\{array\}) ?\{[^{}]*\}"), r"\1"),
    # 6:30 p.m. → 6:30 pm
    (re.compile(r"\b([AaPp])\. ?([Mm])\b\.?"), r"\1\2"),
    # \textbf{\text{(C)}} → \text{(C)}
    (re.compile(rf"\\(?:{FONTS}) ?\{{(\\(?:{FONTS}) ?\{{[^{{}}]*\}})\}}"), r"\1"),
    # \text{navy blue} → "navy" "blue"
    (re.compile(rf"\\(?:{FONTS}) ?\{{([^{{}}]*)\}}"), quote_words),
    # 12 miles per hour → 12 "miles" "per" "hour"
    (
        re.compile(rf"(?:(?<=[0-9}})°])|(?<=\\pi)) {{0,3}}({UNIT}(?:[ /.]{UNIT})*)", re.I),
        quote_words,
    ),
    # 42 students → 42 "students": behind a number that is all there is, a noun needs no command
    (re.compile(r"^ ?(-?[0-9][0-9.,/]*) {0,2}( [a-z]{4,}(?: [a-z]{3,}){0,2})$"), quote_words),
    # 1 4/5 → 1\frac{4}{5}
    (re.compile(r"(?<=[0-9]) ([0-9]+) ?/ ?([0-9]+)"), r"\\frac{\1}{\2}"),
    # 3, 5, ∧ 7 → 3, 5∧7
    (re.compile(r",? {0,3}([∧∩∪]) {0,3},?"), r"\1"),
]
CONNECTIVE = re.compile(r"(?<![\\A-Za-z])(?:and|or)(?![A-Za-z])")  # but not in \or or order
INEQUALITY = re.compile(r"[<>≤≥]|\\[lg](?:eq?(?:slant|q)?|t)(?![A-Za-z])")
BRACKET = re.compile(r"[(\[]|\\\{")
THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")  # 1,234,567
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
RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹]+")
LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


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
    r"\sin": cmath.sin,
    r"\cos": cmath.cos,
    r"\tan": cmath.tan,
    r"\cot": lambda x: 1 / cmath.tan(x),
    r"\sec": lambda x: 1 / cmath.cos(x),
    r"\csc": lambda x: 1 / cmath.sin(x),
    r"\arcsin": cmath.asin,
    r"\arccos": cmath.acos,
    r"\arctan": cmath.atan,
    r"\ln": cmath.log,
    r"\log": cmath.log10,
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
GROUPS = {"(": ")", "[": "]", "{": "}", "|": "|", r"\lfloor": r"\rfloor", r"\lceil": r"\rceil"}
STARTS_FACTOR = LETTERS | {*CONSTANTS, *FUNCTIONS, *GROUPS, r"\frac", r"\sqrt", r"\binom"}
STARTS_OPERAND = STARTS_FACTOR - {*FUNCTIONS, *GROUPS}


class Unreadable(Exception):
    """Raised for an expression that this grader cannot read; it is then compared as text."""


@functools.lru_cache(maxsize=512)
def variable(name: str) -> list[Fraction]:
    """A variable's value at each point. Signs and sizes vary, so that an equation which holds for
    some values only, |x − 1| = 1 − x, is not taken for an identity. All variables are positive at
    the first point and negative at the second."""
    draw = random.Random(name)
    scales = [1, -1, draw.choice((1, -1)), draw.choice((1, -1)), 16, -16, 64, -64]
    tops = draw.sample(range(151, 700, 2), POINTS)
    return [scale * Fraction(top, 256) for scale, top in zip(scales, tops)]


def is_exact(*values) -> bool:
    return all(isinstance(value, (int, Fraction)) for value in values)


def bit_length(value: int | Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def checked(value):
    """The value. Raises ArithmeticError if it has too many digits, or is a float out of range."""
    if is_exact(value):
        usable = bit_length(value) <= MOST_BITS
    else:
        usable = 1e-200 < abs(value) < 1e200
    if not usable:
        raise ArithmeticError("too many digits, an overflow, an underflow, or not a number")
    return value


def add(terms: list):
    """The sum, unless floats lose a term beside a larger one, or most digits cancel."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
        if is_exact(total):
            checked(total)
    if len(terms) > 1 and not is_exact(total):
        sizes = [abs(complex(term)) for term in terms if term]
        if min(sizes) < 1e-6 * max(sizes) or abs(total) < 1e-3 * max(sizes):
            raise ArithmeticError("lost to rounding")
    return total


def multiply(a, b):
    return checked(a * b) if a and b else 0


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
    if is_exact(base, exponent):
        base, exponent = Fraction(base), Fraction(exponent)
        if bit_length(base) * abs(exponent) > MOST_BITS:
            raise OverflowError("too many digits")
        root = base if exponent.denominator == 1 else exact_root(base, exponent.denominator)
        if root is not None:
            return root**exponent.numerator
    if not base or abs(exponent) > 1000:
        raise ArithmeticError("undefined, or rounding errors grow with the exponent")
    base = complex(base)
    if is_exact(exponent) and exponent.denominator % 2 and not base.imag and base.real < 0:
        return checked((-1) ** exponent.numerator * (-base) ** complex(exponent))
    return checked(base ** complex(exponent))


def rounded(value, opening: str) -> int:
    """A number's floor or ceiling, unless a float is too close to a whole number to tell."""
    if not is_exact(value):
        if value.imag or abs(value.real - round(value.real)) < 1e-9 * max(1, abs(value)):
            raise ArithmeticError("no floor that floats could tell")
        value = value.real
    return math.floor(value) if opening == r"\lfloor" else math.ceil(value)


def divide(a, b):
    return multiply(a, power(b, -1))


def apply(name: str, x):
    """A function's value. What should be zero is made zero: cos 90° is 6e-17 in floats."""
    if name in TRIGONOMETRIC and abs(x) > 1e5:
        raise ArithmeticError("a float this large has no phase")
    value = FUNCTIONS[name](complex(x))
    if abs(value) > 1e12:
        raise ZeroDivisionError("a pole")
    is_zero = value == 0 or abs(value) < 1e-14 and abs(x) > 1e-3
    return 0 if is_zero else checked(value)


def binomial(n, k):
    """n over k; n! is spelled binomial(n, None). With a variable n it is a polynomial."""
    if not is_exact(n, k or 0) or k and (k.denominator != 1 or k < 0):
        raise Unreadable
    if n > 1000 or (k or 0) > 1000:
        raise OverflowError("too many digits")
    if n.denominator != 1 and k is not None and k <= 20:
        value = 1
        for i in range(int(k)):
            value = checked(value * Fraction(n - i, i + 1))
        return value
    if n.denominator != 1 or n < 0:
        raise Unreadable
    return math.factorial(int(n)) if k is None else math.comb(int(n), int(k))


def is_number(token: str) -> bool:
    return token[:1] in set("0123456789") or token[:1] == "." and len(token) > 1


class Evaluator:
    """Recursive descent over a scalar's tokens, which yields its value at one point.

    sum → product → factor → atom. Products may be implicit, 2x or (a)(b), but no number stands
    right behind another factor: x2, 2{3} and \\sqrt{2}3 are refused, and so are a^b^c, 2^3!,
    \\sin(x)^2 and \\sin x/2, which TeX, or the next reader, takes differently than the author; and
    a product without a sign whose first factor is 0, since "0 is not it" would have the value 0.
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
            terms.append(self.with_signs(self.product))
        return add(terms)

    def with_signs(self, part):
        negative = False
        while self.peek() in ("+", "-"):
            negative ^= self.take() == "-"
        value = part()
        return -value if negative else value

    def product(self):
        value = self.factor()
        while True:
            if self.skip("*"):
                value = multiply(value, self.with_signs(self.factor))
            elif self.skip("/"):
                value = divide(value, self.with_signs(self.factor))
            elif self.peek() in STARTS_FACTOR and not (self.in_bars and self.peek() == "|"):
                if value == 0 or self.peek() == "{" and self.begins_in_braces():
                    raise Unreadable
                value = multiply(value, self.factor())
            elif is_number(self.peek()) and self.tokens[self.at - 1] == "!":  # 5!5!
                value = multiply(value, self.factor())
            else:
                return value

    def begins_in_braces(self) -> bool:
        """Whether a number or a sign comes first in braces: TeX shows 2{3} as 23, 2{-3} as 2-3."""
        inside = next((token for token in self.tokens[self.at :] if token != "{"), "")
        return is_number(inside) or inside in ("+", "-")

    def factor(self):
        """An atom and what is written after it: n!, x^2, 45°."""
        value = self.atom()
        if self.skip("!"):
            value = binomial(value, None)
        if self.skip("^"):
            value = power(value, self.with_signs(self.exponent))
        self.degrees |= self.skip("°")
        if self.peek() in ("!", "^"):
            raise Unreadable
        return value

    def exponent(self):
        return Fraction(self.take()) if is_number(self.peek()) else self.atom()

    def argument(self):
        """What TeX takes as an argument: a group or one token, and of a number its first digit."""
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
        value = int(token) if token.isdigit() else Fraction(token)
        fraction = self.at
        if not self.skip(r"\frac"):
            return value
        part = divide(self.argument(), self.argument())
        inside = self.tokens[fraction + 1 : self.at]
        if not all(is_number(symbol) or symbol in ("{", "}", " ") for symbol in inside):
            return multiply(value, part)
        if "." in token or not 0 < part < 1:
            raise Unreadable
        return value + part

    def group(self, opening: str):
        outside = self.in_bars, self.has_variables
        self.in_bars, self.has_variables = opening == "|", False
        value = self.sum()
        if not self.skip(GROUPS[opening]):
            raise Unreadable
        if opening in (r"\lfloor", r"\lceil"):
            if self.has_variables:  # the points are no whole numbers, where floor and ceiling meet
                raise Unreadable
            value = rounded(value, opening)
        self.in_bars = outside[0]
        self.has_variables |= outside[1]
        return abs(value) if opening == "|" else value

    def function(self, name: str):
        has_base = name == r"\log" and self.skip("_")
        base = self.argument() if has_base else 10
        exponent = self.with_signs(self.exponent) if self.skip("^") else 1
        if exponent == -1:  # for other exponents either meaning is possible
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
        """The argument of a function: a group, or factors up to the next group or function."""
        self.skip(" ")
        is_group = self.peek() in GROUPS
        value = self.atom() if is_group else self.factor()
        while not is_group and self.peek() in STARTS_OPERAND:
            value = multiply(value, self.factor())
        ambiguous = ("^", "!") if is_group else ("/",)
        if self.peek() in ambiguous:
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


def values_at_points(tokens: list[str]) -> tuple:
    """A scalar's value at each point, None where it has none. Raises Unreadable if too few do."""
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
    # Beside an irrational factor, a decimal this long can only be a rounded one: 1.41421356 π.
    has_long_number = any(is_number(token) and len(token) > 8 for token in tokens)
    if has_long_number and not is_exact(*values):
        raise Unreadable
    return tuple(values)
