"""Is the answer in the response the reference answer, perhaps written otherwise?

extract_answer cuts it out of the response, math_equal compares two bare answers: rewrite → tokens →
classify (list, union, relation, ratio, tuple or interval with its brackets, set, matrix, numeral
with a base, scalar, text) and recurse → compare the two readings.

A scalar reads as the values that it takes at a few fixed points (latex.py): exact ones are equal or
not, floats are equal to 1e-11, and a point without a value does not count. What cannot be read is
compared as text. Nothing evaluates, imports or executes the answer; numbers, depth and length are
capped.
"""

import itertools
import re
from collections import Counter
from collections.abc import Set
from fractions import Fraction
from typing import NamedTuple

from verifiers.latex import (
    DEEPEST,
    LETTERS,
    Unreadable,
    is_exact,
    is_number,
    tokenize,
    values_at_points,
    variable,
)

LONGEST_ANSWER = 1000  # characters; longer answers are equal only as strings
MOST_TOKENS = 400  # tokens of a reading; a longer answer is text
TOLERANCE = 1e-11  # relative difference of equal floats

# ---- tokens → a reading ----


class Reading(NamedTuple):
    r"""The parsed form of an answer: its kind, and parts that depend on the kind.

    kind                        parts                        example
    "exact", "float"            the value at each point      1/2, x + 1; \sqrt{2}
    "text"                      a string                     \text{Evelyn}
    "named"                     a name, a reading            x = 5
    ","                         members                      1, 2
    "∪", "∩"                    members                      (0, 1) \cup (2, 3)
    ":"                         members                      3:4
    "=", "∈", "≠"               two sides                    x^2 + y^2 = 9
    "<", "≤", "<≤", …           two sides or more            a < b \le c
    "()", "[]", "(]", r"\{\}"   members, or two ends         (1, 2); x \le 3 is "(]" of −∞ and 3
    "open interval"             two ends                     1 < x < 2, for (1, 2) may be a point
    "matrix", of "row"          rows, entries                \begin{pmatrix} 1 & 2 \end{pmatrix}
    "base"                      two texts: digits, base      2516_8

    Other brackets are kinds of their own, whatever opens and closes them; so are \lfloor\rfloor
    around a variable.
    """

    kind: str
    parts: tuple | str


# How each bracket changes the depth.
DEPTH_CHANGES = dict.fromkeys(("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil"), 1)
DEPTH_CHANGES |= dict.fromkeys((")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil"), -1)
RELATIONS = frozenset("=<>≤≥≠∈")
UNORDERED = frozenset((",", r"\{\}", "∪", "∩", "≠", "="))
MATRIX = re.compile(r"\\begin *\{(?:[pb]?(?:small)?matrix|array)\}")
NUMERAL = re.compile(r"\(?([0-9A-Z]*[0-9][0-9A-Z]*)\)?")  # a numeral with a base: A7, (A7)
# A name, which may stand before "=" for the value behind it: x, \theta, a_3, f(x), "area"; and
# (r, \theta) for the left side of (r, \theta) = (1, 2).
VARIABLE = r"(?:[A-Za-z]|\\[a-z]+ )(?:_\{?\w+\}?)?"
VARIABLES = rf"\({VARIABLE}(?:,{VARIABLE})*\)"
NAME = re.compile(rf'{VARIABLE}(?:{VARIABLES})?|{VARIABLES}|"\w+"')
# What else may stand there: ∠ABC, AB, P(A), f(2), |z|, [ABC], det A. But x(x-1) is a product.
ARGUMENT = "-?(?:[0-9]+|[A-Za-z])"
LABEL = re.compile(
    r"(?:m?\\angle |\\det |\\overline |\\vec )\{?[A-Za-z]{1,3}\}?|[A-Z]{2,3}|\[[A-Z]{3,}\]"
    rf"|\|[A-Za-z]\||[A-Za-z](?:\^\{{?-1\}}?)?\({ARGUMENT}(?:,{ARGUMENT})*\)"
)
NEGATIONS = ("not", "wrong", "false", "no")  # never a name
SHORT_WORDS = {"no", "yes", "odd", "one", "two", "six", "ten"}  # not products of variables
UNIT_TAIL = re.compile(  # "percent"; "square" "cm"; "cm"^2
    r'"percent"|(?:"(?!percent)[A-Za-z]+"(?:\^(?:[23]|\{[23]\}))?[/*.-]?)+'
)
# Words that change the meaning of the number before them, so they are not dropped as units.
NOT_UNITS = frozenset(
    "am pm ad bc bce mod is are be if for where when with without not no none all any only to than"
    " more less least most over under about at between even odd prime base choose times plus minus"
    " hundred thousand half third quarter root sqrt pi sin cos tan log left right up down north"
    " south east west january february march april may june july august september october november"
    " december squared cubed below above negative positive divided multiplied halves thirds"
    " quarters fourths score gross pairs bn mn mil mill kilo mega milli grand teen fewer bigger"
    " smaller excluded nope".split()
)
MAGNITUDE = re.compile(  # more of such words
    r"tens?|dozens?|googol|hundreds|thousands|(?!mill?i?onth)[a-z]+illions?"
    r"|[a-z]*(?<!mo)(?:n|f|x|h|d)ths?"
    r"|[a-z]+ty|twice|double|triple|factorials?|powers?|binary|hex|repeating|recurring|noon|midnight"
    r"|wrong|false|incorrect|never|n?either|inverse|reciprocal|conjugate|modulo|theta|alpha|beta|phi"
    r"|lakhs?|crores?|myriads?|(?:per|pro)?mille|basis|bps?|pp[mb]|octal|ternary|hexadecimal|[a-z]+fold"
    r"|(?:doubl|tripl|quadrupl|halv|negat|invert|revers|increas|decreas|rais)ed|opposite|complement"
)


def join(tokens: list[str]) -> str:
    return "".join(token + " " * (token[0] == "\\" and token[-1].isalpha()) for token in tokens)


def depth_change(token: str) -> int:
    """How a token changes the depth of brackets, of which any may close any: (1, 2]."""
    return DEPTH_CHANGES.get(token) or token.startswith(r"\begin") - token.startswith(r"\end")


def split_at(tokens: list[str], separators: Set[str]) -> tuple[list[list[str]], list[str]]:
    """The parts between separators outside of brackets, and these separators."""
    if separators.isdisjoint(tokens):
        return [tokens], []
    parts, found, depth = [[]], [], 0
    for token in tokens:
        depth += depth_change(token)
        if depth == 0 and token in separators:
            found.append(token)
            parts.append([])
        else:
            parts[-1].append(token)
    return parts, found


def is_enclosed(tokens: list[str]) -> bool:
    """Whether the last token closes the bracket that the first one opens."""
    depths = list(itertools.accumulate(map(depth_change, tokens)))
    return depths[-1] == 0 < min(depths[:-1], default=0)


def trim(tokens: list[str]) -> list[str]:
    """The tokens without an outer TeX group, a full stop at the end, and units after a number."""
    if tokens[-1:] == ["."] != tokens[-2:-1]:  # but not the dots of 0.333...
        tokens = tokens[:-1]
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
    is_letter = len(tokens) == 1 and len(tokens[0]) == 3  # "A", once \text{A}
    return [tokens[0][1]] if is_letter else tokens


def read_answer(text: str) -> Reading | None:
    """The reading of an answer. One that is unbalanced, too large or unreadable is text, one that
    is empty None."""
    tokens = tokenize(text)
    depths = list(itertools.accumulate(map(depth_change, tokens), initial=0))
    if len(tokens) > MOST_TOKENS or min(depths) < 0 or max(depths) > DEEPEST or depths[-1]:
        return as_text(tokens)
    try:
        return classify(tokens) if trim(tokens) else None
    except Unreadable:
        return as_text(tokens)


def classify(tokens: list[str]) -> Reading:
    """The reading, and those of its parts by recursion."""
    tokens = trim(tokens)
    if not tokens:
        raise Unreadable
    for separator in (",", "∪", "∩"):
        parts, found = split_at(tokens, {separator})
        if found:
            return Reading(separator, members(parts))
    parts, found = split_at(tokens, RELATIONS)
    if found:
        return classify_relation(parts, found)
    if tokens.count("±") == 1 and tokens[0] != r"\{":
        upper = [{"±": "+", "∓": "-"}.get(token, token) for token in tokens]
        lower = [{"±": "-", "∓": "+"}.get(token, token) for token in tokens]
        return Reading(",", (classify(upper), classify(lower)))
    parts, found = split_at(tokens, {":"})
    # Two digits after the colon may be minutes, which are not a ratio: 1:20 is not 2:40.
    may_be_time = len(parts[-1]) == 1 and re.fullmatch("[0-9]{2}", parts[-1][0])
    if found and not may_be_time:
        return Reading(":", members(parts))
    if depth_change(tokens[0]) == 1 and is_enclosed(tokens):
        return classify_bracket(tokens)
    return classify_scalar(tokens)


def members(parts: list[list[str]]) -> tuple[Reading, ...]:
    """The readings of the parts. A part that is itself a list comes from ± and is merged."""
    readings = []
    for part in parts:
        reading = classify(part)
        readings += reading.parts if reading.kind == "," else [reading]
    return tuple(readings)


def is_name(side: list[str]) -> bool:
    """Whether it is a variable, a function of variables, a word or a label; not \\sim or "not"."""
    text = join(side)
    command = side[0] if side and side[0][:1] == "\\" else None
    if command and command not in LETTERS and not LABEL.fullmatch(text):
        return False
    if text.strip('"').lower() in NEGATIONS:
        return False
    return bool(NAME.fullmatch(text) or LABEL.fullmatch(text))


def is_constant(reading: Reading) -> bool:
    return reading.kind in ("exact", "float") and len({*reading.parts}) == 1


def classify_relation(sides: list[list[str]], signs: list[str]) -> Reading:
    """The reading of a relation. An equation solved for a name, x = 5, is "named"; so is an
    inequality, as an interval."""
    names = [join(side) if is_name(side) else None for side in sides]
    if signs != ["="] or all(names):  # |x| < 3 is no interval of x, and f(x) = |x| has one name
        names = [None if name and name[0] == "|" else name for name in names]
    if names[0] and len(sides) > 2 and all(sign == "=" for sign in signs):
        values = [classify(side) for side in sides[1:]]  # x = 6/8 = 3/4, worked out
        if all(is_constant(value) and same(values[0], value) for value in values):
            return Reading("named", (names[0], values[-1]))
    if len(signs) == 1 and signs[0] in "=∈≠":
        if signs == ["="] and names[1] and not names[0]:  # 5 = x
            sides, names = sides[::-1], names[::-1]
        if names[0] and (signs == ["∈"] or signs == ["="] and not names[1]):
            return Reading("named", (names[0], classify(sides[1])))
        return Reading(signs[0], (classify(sides[0]), classify(sides[1])))
    if all(sign in ">≥" for sign in signs):
        sides, names = sides[::-1], names[::-1]
        signs = [{">": "<", "≥": "≤"}[sign] for sign in reversed(signs)]
    if not all(sign in "<≤" for sign in signs):
        raise Unreadable
    named = [k for k, name in enumerate(names) if name]
    if (len(sides), *named) not in ((2, 0), (2, 1), (3, 1)):
        return Reading("".join(signs), tuple(classify(side) for side in sides))
    return Reading("named", (names[named[0]], interval(sides, signs, named[0])))


def interval(sides: list[list[str]], signs: list[str], name: int) -> Reading:
    """The interval that an inequality with < and ≤ gives for the side that is a name."""
    low, _, high = [["-", "∞"], *sides, ["∞"]][name : name + 3]
    opening, closing = ["<", *signs, "<"][name : name + 2]
    kind = ("[" if opening == "≤" else "(") + ("]" if closing == "≤" else ")")
    if kind == "()" and "∞" not in low + high:
        kind = "open interval"
    return Reading(kind, (classify(low), classify(high)))


def classify_bracket(tokens: list[str]) -> Reading:
    """The reading of what stands in brackets. (a) is a; otherwise the brackets are the kind: () is
    a tuple or an interval, (] … All kinds of matrix are equal, except the determinant."""
    kind, inside = tokens[0] + tokens[-1], tokens[1:-1]
    if MATRIX.match(kind):
        rows = split_at(inside, {r"\cr"})[0]
        rows = rows if rows[-1] else rows[:-1]
        entries = [members(split_at(row, {"&"})[0]) for row in rows]
        return Reading("matrix", tuple(Reading("row", row) for row in entries))
    if kind == r"\{\}" and not inside:
        return classify(["∅"])
    if kind in (r"\lfloor\rfloor", r"\lceil\rceil"):
        scalar = classify_scalar(tokens)
        if scalar.kind != "text":
            return scalar
    inner = members(split_at(inside, {","})[0])
    if len(inner) == 1 and (kind == "()" or inner[0].kind == "matrix"):
        return inner[0]
    return Reading(kind, inner)


def classify_scalar(tokens: list[str]) -> Reading:
    if "_" in tokens:
        place = tokens.index("_")
        numeral = NUMERAL.fullmatch(join(tokens[:place]))
        if numeral:
            digits = Reading("text", numeral[1])
            return Reading("base", (digits, as_text(trim(tokens[place + 1 :]))))
    word = "".join(tokens)
    is_word = len(word) > 3 or word.lower() in SHORT_WORDS or word != word.lower()
    if len(word) > 1 and word.isalpha() and is_word:
        return as_text(tokens)
    if not {"∞", "∅"}.isdisjoint(tokens) and len(tokens) > 1 + (tokens[0] in ("+", "-")):
        return as_text(tokens)
    try:
        values = values_at_points(tokens)
    except Unreadable:
        return as_text(tokens)
    return Reading("exact" if is_exact(*values) else "float", values)


def as_text(tokens: list[str]) -> Reading:
    """The tokens as text, regardless of case unless it is a symbol: one or two letters, three
    capitals, or a formula."""
    text = re.sub(r"\{(\w)\}", r"\1", join(tokens).replace('"', ""))  # \pmod{5} is \pmod 5
    is_formula = re.search(r"[\\!^_+*/=]", text)
    is_symbol = is_formula or len(text) < 3 or len(text) == 3 and text.isupper()
    keeps_case = is_symbol and text.lower() not in SHORT_WORDS
    return Reading("text", text if keeps_case else text.casefold())


# ---- units ----

UNIT_NAMES = (  # the names of one unit in each line, without a plural s
    "$ dollar",
    "cent",
    "percent",
    "° degree deg",
    "radian rad",
    "mm millimeter millimetre",
    "cm centimeter centimetre",
    "m meter metre",
    "km kilometer kilometre",
    "in inch inche",
    "ft foot feet",
    "yd yard",
    "mi mile",
    "g gram",
    "kg kilogram",
    "lb pound",
    "oz ounce",
    "l liter litre",
    "ml milliliter millilitre",
    "gal gallon",
    "s second sec",
    "min minute",
    "h hour hr",
    "day",
    "wk week",
    "month",
    "yr year",
)
UNITS = {name: {names.split()[0]} for names in UNIT_NAMES for name in names.split()}
UNITS |= {"mph": {"mi", "h"}, "kph": {"km", "h"}}
POWERS = {"square": "2", "sq": "2", "cubic": "3", "cu": "3"}


def units_of(text: str) -> set[str]:
    """The known units in an answer, and their powers; other nouns may differ."""
    tokens = tokenize(text)
    found = {"$"} if re.search(r"\\\$", text) else set()
    for place, token in enumerate(tokens):
        name = token.strip('"').lower()
        name = name if name in UNITS else name.removesuffix("s")
        if token == "°" or token[0] == '"' and name in UNITS:
            found |= UNITS[name]
            power = re.match(r"\^\{?([23])", "".join(tokens[place + 1 : place + 4]))
            found |= {power[1]} if power else set()
        elif token[0] == '"' and name in POWERS:
            found.add(POWERS[name])
    return found


# ---- comparison ----


def same(a: Reading, b: Reading) -> bool:
    """Whether two readings mean the same answer."""
    if a == b:
        return True
    if a.kind == b.kind == "named":
        (name, value), (other_name, other_value) = a.parts, b.parts
        return name == other_name and same(value, other_value)
    if "named" in (a.kind, b.kind):
        named, other = (a, b) if a.kind == "named" else (b, a)
        return is_rearranged(named, other) if other.kind == "=" else same(named.parts[1], other)
    kinds = {a.kind, b.kind}
    if kinds <= {"exact", "float"}:
        return same_values(a.parts, b.parts)
    comparable = len(kinds) == 1 or kinds == {",", r"\{\}"}
    if not comparable or a.kind == "text" or len(a.parts) != len(b.parts):
        return False
    if a.kind in UNORDERED and has_names(a) == has_names(b):
        return same_members(a.parts, b.parts) or a.kind == "=" and in_proportion(a, b)
    return all(map(same, a.parts, b.parts)) or a.kind == ":" and in_proportion(a, b)


def has_names(reading: Reading) -> bool:
    """Whether members have different names, as in "x = 2, y = 1", which is "2, 1" in this order."""
    return len({part.parts[0] for part in reading.parts if part.kind == "named"}) > 1


def same_values(a: tuple, b: tuple) -> bool:
    """Whether two scalars are equal at all points where both have a value, at least three."""
    pairs = [(x, y) for x, y in zip(a, b) if x is not None and y is not None]
    if not all(same_value(x, y) for x, y in pairs) or len(pairs) < 3:
        return False
    # A fraction this close to an irrational constant is equal to it only if its numbers are small.
    rational = [Fraction(x) for x in pairs[0] if is_exact(x)]
    if len(rational) == 1 and len({*a}) == len({*b}) == 1:
        return max(abs(rational[0].numerator), rational[0].denominator) < 100_000
    return True


def same_value(x, y) -> bool:
    if is_exact(x, y):
        return x == y
    try:
        return abs(x - y) <= TOLERANCE * max(abs(x), abs(y))
    except OverflowError:  # an exact value beyond all floats
        return False


def same_members(a: tuple, b: tuple) -> bool:
    """Whether two lists are equal as multisets. Exact members cancel by hash, so that few pairs are
    left to try."""
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


def is_rearranged(solved: Reading, equation: Reading) -> bool:
    """2x − y + 3 = 0 is y = 2x + 3, all terms on one side; 4x − 2y + 6 = 0 is not quite. One that
    gives a number, x = 5, has to be solved."""
    name, value = solved.parts
    if len(name) > 1 or value.kind != "exact" or is_constant(value):
        return False
    sides = (Reading("exact", tuple(variable(name))), value)
    return {abs(each) for each in quotients(Reading("=", sides), equation)} == {1}


def in_proportion(a: Reading, b: Reading) -> bool:
    """2:4 is 1:2; 4x + 6y − 10 = 0 is 2x + 3y = 5."""
    return len(quotients(a, b)) == 1


def quotients(a: Reading, b: Reading) -> set:
    """The quotients of two ratios' members, or of two equations with all terms on the left, at each
    point; empty where one is missing."""
    if any(part.kind != "exact" for part in (*a.parts, *b.parts)):
        return set()
    first, second = to_divide(a), to_divide(b)
    no_variable = a.kind == "=" and len({*first}) == 1  # 1 = 2
    if no_variable or not (all(first) and all(second)):
        return set()
    return {Fraction(x) / y for x, y in zip(first, second)}


def to_divide(reading: Reading) -> list:
    if reading.kind == ":":
        return [value for member in reading.parts for value in member.parts]
    left, right = reading.parts
    return [x - y for x, y in zip(left.parts, right.parts)]


def math_equal(prediction: str, gold: str) -> bool:
    """Whether two bare answers, what stands inside the box, are the same. Never raises.

    Policies; where two are possible, the one that accepts less:

    accepted  list members in any order ("2, 1" for "x = 2, y = 1" in this order only); a set for a
              list; an unreduced fraction or ratio; an exact decimal; a mixed number, never as a
              product; an expression that is identical (unsimplified, too: the grader does not see
              what was asked); 10 for 10%, $10, 10 cm and 10°, which are not the same as one
              another; "x = 5" and "x ∈ [1, 2]" for the bare value; ± for both values; "x > 5" for
              (5, ∞) and "1 ≤ x < 2" for [1, 2); an equation in several variables with terms moved
              to the other side; x^10 and 2^-1 for what their authors mean
    refused   a rounded decimal; 0.1 for 10%; a member of a list, set or union missing, added or
              repeated; other brackets, (1, 2) for "1, 2", and "1 < x < 2" for (1, 2), which may be
              a point; a missing base, or a value for a numeral with one; one side of an equation;
              "x = 5" for "y = 5"; 2x = 10 for x = 5; 10 cm for 10 m; a row for a column; an
              identity of positive variables only, √(x²) = x; "1 2" for 12; anything empty
    """
    prediction, gold = prediction.strip(), gold.strip()
    if prediction == gold or max(len(prediction), len(gold)) > LONGEST_ANSWER:
        return prediction == gold and read_answer(gold[:LONGEST_ANSWER]) is not None
    # Equal except for blanks after commas: 121,242 reads as a number and "121, 242" as a list.
    if re.sub(r",\s+", ",", prediction) == re.sub(r",\s+", ",", gold):
        return True
    first, second = read_answer(prediction), read_answer(gold)
    if first is None or second is None or not same(first, second):
        return False
    units, others = units_of(prediction), units_of(gold)
    return not units or not others or units == others


# ---- the answer in a response ----

# The paper's line is "Final Answer: The final answer is $answer$. I hope it is correct."
FINAL_ANSWER = "The final answer is"
# The start of a box, an escaped character, or a brace.
BOX_OR_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,9}\{|\\.|[{}]", re.DOTALL)
BARE_BOX = re.compile(  # \boxed 5, \boxed\pi, \boxed x, and then the end of a word
    r"\\(?:boxed|fbox)"
    r"(?: {0,9}(-?[0-9][0-9,]{0,30}(?:\.[0-9]{1,30})?|\\[A-Za-z]{1,30})| {1,9}([A-Za-z]))"
    r"(?=[.,]?(?:\s|\$|\\[)\]]|$))"
)
LONGEST_BOX = 10_000  # characters within which a box must close, so that no response takes long


def extract_answer(response: str) -> str | None:
    """The content of the last \\boxed{…}, or of the paper's "Final Answer" line if it comes later.

    There is no second choice: if the last one is empty or never closes there is no answer. Of
    boxes inside each other the outermost counts, or \\boxed{7, \\boxed{2}} would have two answers.
    """
    box = max(response.rfind(r"\boxed"), response.rfind(r"\fbox"))
    line = response.rfind(FINAL_ANSWER)
    before = response[max(0, line - 24) : max(0, line)].replace("*", "")  # which may be bold
    if not before.rstrip().endswith("Final Answer:"):
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
    """The whole rest of the line up to "I hope it is correct": "$5$ or $6$" is not 5."""
    rest = response[line + len(FINAL_ANSWER) :][:LONGEST_BOX].lstrip().removeprefix(":").lstrip()
    answer, closing, _ = rest.partition("I hope it is correct")
    if not closing:
        answer = rest.split("\n")[0]
    answer = answer.strip(" \t\r\n*").removesuffix(".").strip(" \t\r\n*")
    dollars = re.findall(r"(?<!\\)\$", answer)
    if len(dollars) % 2 and not re.fullmatch(r"\$[\d,]+(\.\d+)?", answer):  # $18.90 is money
        return None
    whole = re.fullmatch(r"\$\$?((?:[^$\\]|\\.)*)\$?\$", answer, re.DOTALL)
    return whole[1] if whole else answer


def math_reward(response: str, gold: str) -> float:
    """1.0 if the response's answer is the reference answer, else 0.0."""
    answer = extract_answer(response)
    return float(answer is not None and math_equal(answer, gold))
