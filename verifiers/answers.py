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

from verifiers.latex import (
    DEEPEST,
    LETTERS,
    Unreadable,
    evaluate,
    exact,
    is_number,
    tokenize,
    variable,
)

LONGEST_ANSWER = 1000  # characters; longer answers are equal only as strings
MOST_TOKENS = 400  # of a reading; beyond, an answer is text
TOLERANCE = 1e-11  # relative, between floats

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
