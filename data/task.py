"""What a task is to the algorithm."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass

import tiktoken


@dataclass(frozen=True)
class Problem:
    """One (x, y*) of the data set D. `gold` is whatever the task's verifier compares with."""

    prompt: str  # x
    gold: str = ""  # y*; empty where the verifier needs the prompt alone
    id: str = ""  # such as HumanEval/3 or test/algebra/12.json, if it has one

    @property
    def key(self) -> int:
        """A 63-bit hash of the prompt, the same in every process; the sampler is keyed by it."""
        return text_hash(self.prompt)


def text_hash(text: str) -> int:
    """63 bits of BLAKE2b, the same in every process (Python's own hash is not)."""
    raw = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(raw, "little") >> 1


class Task(ABC):
    """Problems, their text as tokens, and their verifier."""

    name: str
    encoding: tiktoken.Encoding
    eos: int  # ends an attempt; an action like any other
    close: list[int] = []  # stands in for eos before p where an attempt has none
    instruction: str  # p: asks for another attempt; never says whether the last was right
    revise: list[int]  # p as it stands between the attempts
    max_new_tokens: int  # of one attempt, eos included
    runs_on: bool = False  # the model may write on after its answer, to be cut by `over`
    notes: list[str] = []  # what a user should know of how the data was read
    skipped: dict[str, int] = {}  # by split, problems left out since the context is too short

    def room(self, attempts: int) -> int:
        """The most tokens that come after a prompt."""
        each = self.max_new_tokens + len(self.close) + len(self.revise)
        return attempts * each - len(self.close) - len(self.revise)

    @abstractmethod
    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        """Training problems of one step; the same arguments give the same problems."""

    @abstractmethod
    def held_out(self, split: str, count: int | None) -> list[Problem]:
        """The first `count` problems of "val" or "test": different ones, the same for every seed.
        None: as many as are usual. Raises ValueError where the split holds fewer."""

    def problem(self, text: str) -> Problem:
        """The problem that a person means by this. Raises ValueError where it is none of the
        task's."""
        raise ValueError(f"{self.name} takes no problems from outside: {text!r}")

    @abstractmethod
    def reward(self, problem: Problem, response: str) -> float:
        """r(y, y*): 1.0 or 0.0 for any string at all."""

    def rewards(self, problems: list[Problem], responses: list[str]) -> list[float]:
        """One reward a response."""
        return [self.reward(*pair) for pair in zip(problems, responses, strict=True)]

    def over(self, problem: Problem, response: str) -> bool:
        """The answer is complete, whatever follows; asked only where the task `runs_on`."""
        return False

    def samples(self, problems: list[Problem], responses: list[str]) -> list[dict]:
        """Lines for the reference evaluator of a public benchmark; none where there is no such."""
        return []

    @abstractmethod
    def prompt(self, problem: Problem) -> list[int]:
        """[x]: the token ids that pose a problem to the policy."""

    def decode(self, tokens: list[int]) -> str:
        """The text of any token ids of the vocabulary."""
        return self.encoding.decode(tokens)
