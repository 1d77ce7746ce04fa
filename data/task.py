"""The interface between a task and the algorithm."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import tiktoken


@dataclass(frozen=True)
class Problem:
    """One (x, y*) of the data set D. `gold` is what the verifier compares a response with."""

    prompt: str  # x
    gold: str | None = ""  # y*; empty if the verifier needs only the prompt, None if unknown
    id: str = ""  # such as HumanEval/3 or test/algebra/12.json; empty if it has none

    @property
    def key(self) -> int:
        """A 63-bit hash of the prompt, the same in every process, which keys the sampler."""
        return text_hash(self.prompt)


def text_hash(text: str) -> int:
    """63 bits of BLAKE2b, the same in every process (Python's own hash is not)."""
    raw = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") >> 1


class Task(ABC):
    """Problems, their text as tokens, and their verifier."""

    name: str
    encoding: tiktoken.Encoding
    eos: int  # the token that ends an attempt; sampled and trained like any other
    close: list[int] = []  # tokens put before p if the attempt has no eos
    instruction: str  # p, the request for another attempt; never tells whether the last was right
    revise: list[int]  # token ids of p between two attempts
    max_new_tokens: int  # token limit of one attempt, eos included
    runs_on: bool = False  # whether the model may write on after its answer, to be cut by `over`
    notes: list[str] = []  # lines for the user on how the data was read
    skipped: dict[str, int] = {}  # by split, number of problems too long for the context

    def room(self, attempts: int) -> int:
        """The largest number of tokens after a prompt, for this many attempts."""
        each = self.max_new_tokens + len(self.close) + len(self.revise)
        return attempts * each - len(self.close) - len(self.revise)

    @abstractmethod
    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        """Training problems of one step; the same arguments give the same problems."""

    @abstractmethod
    def held_out(self, split: str, count: int | None) -> list[Problem]:
        """The first `count` distinct problems of "val" or "test", the same for every seed; None for
        the task's usual number, or all if there are fewer. Raises ValueError for a larger count."""

    def problem(self, text: str) -> Problem:
        """The problem that a user typed. Raises ValueError if it is not one of this task."""
        raise ValueError(f"{self.name} takes no problems from outside: {text!r}")

    @abstractmethod
    def reward(self, problem: Problem, response: str) -> float:
        """r(y, y*): 1.0 or 0.0 for any string at all."""

    def rewards(self, problems: list[Problem], responses: list[str]) -> list[float]:
        """One reward per response; 0 where y* is unknown, as of a question that a user asks."""
        pairs = zip(problems, responses, strict=True)
        return [0.0 if x.gold is None else self.reward(x, response) for x, response in pairs]

    def over(self, problem: Problem, response: str) -> bool:
        """Whether the answer is complete, whatever follows; used only if the task `runs_on`."""
        return False

    def samples(self, problems: list[Problem], responses: list[str]) -> list[dict]:
        """Lines for a public benchmark's reference evaluator; none if there is no such."""
        return []

    @abstractmethod
    def prompt(self, problem: Problem) -> list[int]:
        """[x]: the token ids of the problem as the policy reads it."""

    def decode(self, tokens: list[int]) -> str:
        """The text of any token ids of the vocabulary."""
        return self.encoding.decode(tokens)
