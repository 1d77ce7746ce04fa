"""Synthetic arithmetic: problems drawn at random, from several families and difficulties.

**puzzle** (difficulty: the number of digits). Give the digits signs so that they add up to the
target: `3125=05`. An attempt writes each digit's sign and what then remains to the target,
`+02+01+-01+-06`. Each step is easy. Choosing the signs is hard: the first must be chosen
before the last is seen. A wrong attempt ends with its error d, and flipping the sign of a digit
|d|/2 may fix it: the first attempt shows the second what to change.

**addition**, **multiplication** (difficulty: digits per number). `417+85=` → `502`.

A base model is trained on transcripts of two attempts, whose second attempts do not help, and whose
first attempts often show a *habit*, a mistake that reward can remove (in numbers, forgetting the
carry of the units: `492`): see `Corpus`.
"""

import re
from dataclasses import dataclass
from operator import mul

import numpy as np
import tiktoken

from data.draws import Draws
from data.task import Problem, Task, text_hash
from rewards import number_reward, parse_puzzle, puzzle_reward, puzzle_step, signed

STEP = re.compile(r"([+-])-?\d\d")  # one step of a puzzle's attempt; the group is the digit's sign
END, RETRY = "<|end|>", "<|There might be an error. Try again.|>"


@dataclass(frozen=True)
class Corpus:
    """How transcripts of two attempts are drawn, and what a base model learns from them.

    A first attempt at an *easy* problem is right with probability `right`; otherwise it has one
    *slip*: a random sign of a puzzle is flipped, or one digit of a number changed. On *hard*
    problems (44 % of the puzzle's) right attempts are rarer, and most wrong ones show the *habit*:
    the sign of the largest digit is flipped, or the carry of the units is forgotten. A second
    attempt copies the first, right or wrong, with probability `copy`. Otherwise it is drawn afresh
    by the same rule; of several right answers it then takes the one nearest to the first attempt.
    So second attempts are no more accurate than first ones (unless `right_again` makes them so),
    and late in training nearly all are copies. But corrections occur, as they do in the texts that
    language models are trained on.

    Two kinds of mistake make this base resemble a pretrained model. *The habit* is a preference:
    the prompt shows which digit is largest, and a model that flips its sign knows a right answer.
    Reward can unlearn it in the first attempt, just as reinforcement improves a pretrained model
    without any self-correction. *Slips* are harder to avoid: whether the signs hit the target is
    seen only at the last one, too late for the first. A puzzle's slip can be repaired afterwards,
    when the error is known, but a base that copies hardly ever tries. So plain reward on both
    attempts can remove the habit and go on copying, as it mostly does.
    """

    right: float = 0.5  # probability that an attempt at an easy problem is right
    right_hard: float = 0.25  # the same for hard problems
    habit: float = 0.9  # share of the habit among wrong attempts at hard problems; the rest slip
    copy: float = 0.3  # probability that a second attempt copies the first
    copy_late: float = 0.995  # the same in the last three tenths of training
    right_again: float | None = None  # `right` of fresh second attempts, None for the same

    def mistake(self, hard: bool, rng: Draws, again: bool = False) -> str | None:
        """The mistake of a first or a fresh second attempt; None if it is right."""
        right = self.right_hard if hard else self.right
        if again and self.right_again is not None:
            right = self.right_again
        if rng.random() < right:
            return None
        return "habit" if hard and rng.random() < self.habit else "slip"


class Puzzle:
    """Give k digits signs so that they add up to the target."""

    name, default, difficulties = "puzzle", 6, range(2, 9)
    reward = staticmethod(puzzle_reward)
    top = 15  # largest target: small, so that many choices of signs come near it and few hit it
    alphabet = "0123456789+-="
    pattern = r"=\d\d|[+-]-?\d\d|[\d+=-]"

    def __init__(self, difficulty: int):
        self.difficulty = difficulty
        self.max_new_tokens = difficulty + 1
        bits = np.arange(2**difficulty)[:, None] >> np.arange(difficulty)
        self.choices = 1 - 2 * (bits & 1)  # (2^k, k): every way to sign k digits
        self.ways = self.choices.tolist()  # the same as lists, which are faster for one way
        # One token per target and per step, so an attempt has as many tokens as digits.
        steps = range(-9 * difficulty, self.top + 9 * difficulty + 1)
        targets = [f"={target:02d}" for target in range(self.top + 1)]
        self.form = f"[1-9]{{{difficulty}}}({'|'.join(targets)})"  # pattern of a prompt
        self.words = targets + [sign + signed(remains) for sign in "+-" for remains in steps]

    def draw(self, rng: Draws) -> str:
        """A solvable prompt: digits and signs are drawn, the target is what they make."""
        while True:
            digits = [1 + rng.below(9) for _ in range(self.difficulty)]
            signs = self.ways[rng.below(len(self.ways))]
            target = sum(map(mul, signs, digits))
            if 0 <= target <= self.top:
                return "".join(map(str, digits)) + f"={target:02d}"

    def canonical(self, prompt: str) -> str:
        """The same for every order of the digits, so that all of them fall into one split."""
        digits, target = prompt.split("=")
        return "".join(sorted(digits)) + "=" + target

    def spell(self, prompt: str, signs: list[int]) -> str:
        digits, remains = parse_puzzle(prompt)
        steps = []
        for digit, sign in zip(digits, signs):
            text, remains = puzzle_step("+" if sign > 0 else "-", remains, digit)
            steps.append(text)
        return "".join(steps)

    def solutions(self, prompt: str) -> list[list[int]]:
        """Every way to sign the digits that makes the target."""
        digits, target = parse_puzzle(prompt)
        hits = np.flatnonzero(self.choices @ digits == target).tolist()
        return [self.ways[n] for n in hits]

    def hard(self, prompt: str) -> bool:
        """Whether transcripts show the habit: the first digit is larger than the last."""
        return prompt[0] > prompt[self.difficulty - 1]

    def attempt(self, prompt: str, mistake: str | None, previous: str | None, rng: Draws) -> str:
        """Signs that make the target, the nearest to the previous attempt's if there is one (ties
        at random). A mistake flips one of them: "slip" any, "habit" the largest digit's.
        Every step is computed without a mistake."""
        solutions = self.solutions(prompt)
        closeness = [rng.random() for _ in solutions]
        if previous is not None:
            before = [-1 if sign == "-" else 1 for sign in STEP.findall(previous)]
            for n, signs in enumerate(solutions):
                closeness[n] += sum(map(mul, signs, before))  # two apart for every sign that agrees
        signs = solutions[closeness.index(max(closeness))].copy()
        if mistake == "habit":
            signs[prompt.index(max(prompt[: self.difficulty]))] *= -1
        elif mistake == "slip":
            signs[rng.below(len(signs))] *= -1
        return self.spell(prompt, signs)


class Numbers:
    """The sum or product of two numbers of at most n digits."""

    pattern = r"[\d+*=]"
    words: list[str] = []
    alphabet = "0123456789+*="
    reward = staticmethod(number_reward)

    def __init__(self, difficulty: int):
        self.difficulty = difficulty
        number = rf"(0|[1-9][0-9]{{0,{difficulty - 1}}})"
        self.form = rf"{number}\{self.operator}{number}="  # of a prompt
        self.max_new_tokens = 2 * difficulty + 1

    def draw(self, rng: Draws) -> str:
        left, right = (rng.below(10**self.difficulty) for _ in range(2))
        return f"{left}{self.operator}{right}="

    def canonical(self, prompt: str) -> str:
        """The same for a+b and b+a."""
        return self.operator.join(sorted(prompt.removesuffix("=").split(self.operator)))

    def numbers(self, prompt: str) -> list[int]:
        return [int(number) for number in prompt.removesuffix("=").split(self.operator)]

    def value(self, left: int, right: int) -> int:
        return left + right if self.operator == "+" else left * right

    def carried(self, prompt: str) -> int:
        """The carry from the units to the tens."""
        return self.value(*(number % 10 for number in self.numbers(prompt))) // 10

    def hard(self, prompt: str) -> bool:
        """Whether transcripts show the habit: the units have a carry."""
        return self.carried(prompt) > 0

    def attempt(self, prompt: str, mistake: str | None, previous: str | None, rng: Draws) -> str:
        """The answer. A mistake is a "slip", one digit changed, or the "habit", the units' carry
        forgotten."""
        forgotten = 10 * self.carried(prompt) if mistake == "habit" else 0
        answer = str(self.value(*self.numbers(prompt)) - forgotten)
        if mistake != "slip":
            return answer
        place = rng.below(len(answer))
        digit = (int(answer[place]) + 1 + rng.below(9)) % 10
        return str(int(answer[:place] + str(digit) + answer[place + 1 :]))


class Addition(Numbers):
    name, operator, default, difficulties = "addition", "+", 3, range(2, 10)


class Multiplication(Numbers):
    name, operator, default, difficulties = "multiplication", "*", 3, range(2, 6)


FAMILIES = {family.name: family for family in (Puzzle, Addition, Multiplication)}

# Hash buckets, out of 20; the bucket depends on the problem alone.
SPLITS = {"train": range(3, 20), "val": range(0, 1), "test": range(1, 3)}


class ArithmeticTask(Task):
    """One family at one difficulty. Raises ValueError for a difficulty outside its range."""

    def __init__(self, family: type, difficulty: int | None = None, corpus: Corpus = Corpus()):
        difficulty = family.default if difficulty is None else difficulty
        if difficulty not in family.difficulties:
            low, high = family.difficulties[0], family.difficulties[-1]
            raise ValueError(
                f"difficulty {difficulty} of {family.name} is not between {low} and {high}"
            )
        self.family, self.corpus = family(difficulty), corpus
        self.name = family.name
        self.encoding = arithmetic_encoding(self.family)
        self.eos, retry = (self.encoding.encode_single_token(text) for text in (END, RETRY))
        self.instruction, self.revise = RETRY.strip("<|>"), [retry]
        self.max_new_tokens = self.family.max_new_tokens

    def split(self, prompt: str) -> str:
        """The split of a prompt, by a hash of its canonical form."""
        bucket = text_hash(self.family.canonical(prompt)) % 20
        return next(name for name, buckets in SPLITS.items() if bucket in buckets)

    def _draw(self, split: str, rng: Draws) -> str:
        while True:
            prompt = self.family.draw(rng)
            if self.split(prompt) == split:
                return prompt

    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        rng = Draws([seed, step, text_hash("batch")])
        return [Problem(self._draw("train", rng)) for _ in range(count)]

    def held_out(self, split: str, count: int | None) -> list[Problem]:
        wanted = 2000 if count is None else count
        rng = Draws([text_hash(split)])
        prompts: dict[str, None] = {}
        repeats = 0
        while len(prompts) < wanted and repeats <= 1000:
            prompt = self._draw(split, rng)
            repeats = repeats + 1 if prompt in prompts else 0
            prompts[prompt] = None
        if count is not None and len(prompts) < count:
            raise ValueError(
                f"the {split} split of {self.name}, difficulty {self.family.difficulty}, has "
                f"about {len(prompts)} problems, not {count}"
            )
        return [Problem(prompt) for prompt in prompts]

    def transcripts(
        self, seed: int, step: int, count: int, progress: float
    ) -> list[tuple[str, str, str]]:
        """(prompt, first attempt, second attempt) of `count` training problems; `progress` is the
        share of base training that is done, 0 to 1."""
        rng = Draws([seed, step, text_hash("corpus")])
        corpus = self.corpus
        copy = corpus.copy if progress < 0.7 else corpus.copy_late
        rows = []
        for _ in range(count):
            prompt = self._draw("train", rng)
            hard = self.family.hard(prompt)
            first = self.family.attempt(prompt, corpus.mistake(hard, rng), None, rng)
            second = first
            if rng.random() >= copy:
                mistake = corpus.mistake(hard, rng, again=True)
                second = self.family.attempt(prompt, mistake, first, rng)
            rows.append((prompt, first, second))
        return rows

    def problem(self, text: str) -> Problem:
        if not re.fullmatch(self.family.form, text):
            example = self.held_out("test", 1)[0].prompt
            raise ValueError(f"{text!r} is no problem of this {self.name}; one is {example}")
        return Problem(text)

    def reward(self, problem: Problem, response: str) -> float:
        return self.family.reward(problem.prompt, response)

    def prompt(self, problem: Problem) -> list[int]:
        return self.encode(problem.prompt)

    def encode(self, text: str) -> list[int]:
        """The token ids of a prompt or an attempt. Raises ValueError for a character that has no
        token, and names it."""
        rest = text.lstrip(self.family.alphabet)  # from the first foreign character
        if rest:
            raise ValueError(
                f"{rest[0]!r} at position {len(text) - len(rest)} is not in {self.name}'s "
                f"alphabet {self.family.alphabet!r}"
            )
        return self.encoding.encode_ordinary(text)


def arithmetic_encoding(family: Puzzle | Numbers) -> tiktoken.Encoding:
    """A tokenizer from a family's alphabet and words. The pattern cuts text into pieces, each of
    which is a character or a word and has one token, so no merges are needed."""
    pieces = list(family.alphabet) + family.words
    ranks = {piece.encode(): rank for rank, piece in enumerate(pieces)}
    special = {END: len(ranks), RETRY: len(ranks) + 1}
    return tiktoken.Encoding(
        f"score-{family.name}",
        pat_str=family.pattern,
        mergeable_ranks=ranks,
        special_tokens=special,
        explicit_n_vocab=len(ranks) + len(special),
    )
