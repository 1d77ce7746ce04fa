"""Random numbers, one at a time."""

from collections.abc import Iterator

import numpy as np


class Draws:
    """The numbers that numpy's `default_rng(seed)` draws, where each is asked for by itself.

    numpy is made for arrays: one number costs it microseconds, and a step of base training takes
    8,000. So the raw words of its bit generator are fetched many at a time, and made into numbers
    here in the same way.
    """

    def __init__(self, seed: list[int]):
        self.words = raw_words(seed)  # of 64 bits
        self.halves = (half for word in self.words for half in (word % 2**32, word >> 32))

    def random(self) -> float:
        """In [0, 1), a multiple of 2⁻⁵³."""
        return (next(self.words) >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """0 to n − 1, each as likely, for n below 2³² (Lemire, arXiv 1805.10941)."""
        if n == 1:
            return 0  # for which numpy takes no bits
        product = next(self.halves) * n
        while product % 2**32 < 2**32 % n:  # n does not divide 2³²: some have a half too many
            product = next(self.halves) * n
        return product >> 32


def raw_words(seed: list[int]) -> Iterator[int]:
    bits = np.random.default_rng(seed).bit_generator
    while True:
        yield from bits.random_raw(1024).tolist()
