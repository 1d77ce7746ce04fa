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

    @property
    def key(self) -> int:
        """A 63-bit hash of the prompt, the same in every process; the sampler is keyed by it."""
        return text_hash(self.prompt)


def text_hash(text: str) -> int:
    """63 bits of BLAKE2b, the same in every process (Python's own hash is not)."""
    raw = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(raw, "little") >> 1


class Task(ABC):
    """Problems, their text as tokens, and their verifier."""

    name: str
    difficulty: int
    encoding: tiktoken.Encoding
    eos: int  # ends an attempt; an action like any other
    revise: list[int]  # p: the instruction after attempt 1; never says whether that was right
    max_new_tokens: int  # of one attempt, eos included

    @abstractmethod
    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        """Training problems of one step; the same arguments give the same problems."""

    @abstractmethod
    def held_out(self, split: str, count: int) -> list[Problem]:
        """The first `count` problems of "val" or "test": different ones, the same for every seed.
        Raises ValueError where the split holds fewer."""

    @abstractmethod
    def reward(self, problem: Problem, response: str) -> float:
        """r(y, y*): 1.0 or 0.0 for any string at all."""

    def rewards(self, problems: list[Problem], responses: list[str]) -> list[float]:
        """One reward a response."""
        return [self.reward(*pair) for pair in zip(problems, responses, strict=True)]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Token ids. Raises ValueError for text that the vocabulary has no tokens for."""

    def decode(self, tokens: list[int]) -> str:
        """The text of any token ids of the vocabulary."""
        return self.encoding.decode(tokens)
