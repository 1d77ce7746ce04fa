"""Tasks for open models: problems as text in a model's own layout, most of them from files."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.task import Problem, Task
from pretrained.chat import pick_layout
from pretrained.tokenizer import load_tokenizer
from pretrained.weights import read_shape


@dataclass(frozen=True)
class Source:
    """Where an open task's problems and tokens come from."""

    folder: Path  # of the data, where it comes from files
    init: Path  # of the model
    layout: str = "auto"  # of prompts: chatml, llama3, plain; auto goes by the model's tokenizer
    context: int | None = None  # most tokens of a problem and its attempts. None: as the model's
    max_new_tokens: int | None = None  # of an attempt. None: the task's own
    attempts: int = 2  # of an evaluation, that must fit the context
    limit: int | None = None  # most problems of a split
    levels: frozenset[int] | None = None  # of MATH. None: all
    subjects: frozenset[str] | None = None  # of MATH. None: all
    shots: int = 0  # of arithmetic: solved examples before each problem


class TextTask(Task):
    """Problems laid out for a model. A subclass sets `system`, `instruction` (a chat model's user
    turn), `plain_revise` and `max_new_tokens`, and says how a problem reads to a chat model
    (`user`) and to a base model (`plain`)."""

    system: str  # the system turn
    plain_revise: str  # p, as a base model's running text
    runs_on = True
    examples: list[tuple[str, str]] = []  # of user and assistant: turns before a chat model's first

    def __init__(self, source: Source):
        self.layout = pick_layout(load_tokenizer(source.init), source.layout)
        self.encoding, self.eos = self.layout.tokenizer.encoding, self.layout.eos
        longest = read_shape(source.init)["context"]
        self.context = min(source.context or longest, longest)
        self.is_chat = self.layout.style != "plain"
        self.close = [self.eos] if self.is_chat else []
        self.revise = self.layout.revise(self.instruction, self.plain_revise)
        if source.max_new_tokens is not None:
            self.max_new_tokens = source.max_new_tokens
        self.notes = [f"layout: {self.layout.style}"]
        self._pieces = token_bytes(self.encoding)

    def user(self, problem: Problem) -> str:
        """The user turn that poses a problem."""
        raise NotImplementedError

    def plain(self, problem: Problem) -> str:
        """The text that poses a problem to a base model."""
        raise NotImplementedError

    def prompt(self, problem: Problem) -> list[int]:
        return self.layout.prompt(
            self.system, self.user(problem), self.plain(problem), self.examples
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of an attempt."""
        return self.encoding.encode_ordinary(text)

    def decode(self, tokens: list[int]) -> str:
        # Models have rows in their vocabulary that their tokenizer does not name.
        unknown = "\ufffd".encode()
        return b"".join(self._pieces.get(t, unknown) for t in tokens).decode(errors="replace")


class FileTask(TextTask):
    """Problems by split, in an order that has nothing to do with the files'."""

    def __init__(self, source: Source, splits: dict[str, list[Problem]], notes: list[str]):
        super().__init__(source)
        self.notes = notes + self.notes
        self.splits, self.skipped = {}, {}
        for name, problems in splits.items():
            # An evaluation of more attempts must not change what is trained on.
            attempts = 2 if name == "train" else source.attempts
            room = self.context - self.room(attempts)
            fit = [x for x in problems if self._length(x) <= room]
            self.skipped[name] = len(problems) - len(fit)
            if self.skipped[name]:
                self.notes.append(
                    f"{self.skipped[name]} of {len(problems)} {name} problems are skipped: prompt "
                    f"and {attempts} attempts exceed the context of {self.context}"
                )
            if problems and not fit:
                raise ValueError(f"{self.name}: {self.notes[-1]}")
            self.splits[name] = sorted(fit, key=lambda x: x.key)[: source.limit]
        sizes = ", ".join(f"{len(x)} {name}" for name, x in self.splits.items() if x)
        self.notes.append(f"{self.name}: {sizes or 'no'} problems from {source.folder}")

    def _length(self, problem: Problem) -> int:
        """Of its prompt. Raises ValueError, naming it, where the tokenizer cannot spell it."""
        try:
            return len(self.prompt(problem))
        except ValueError as error:
            name = problem.id or repr(problem.prompt[:60])
            raise ValueError(f"{self.name}, problem {name}: {error}") from None

    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        """Each training problem at most once an epoch, in an order drawn for the epoch; a rest that
        fills no batch waits for another. Raises ValueError where there are fewer than `count`."""
        problems = self.splits.get("train", [])
        if count > len(problems):
            raise ValueError(f"{self.name} has {len(problems)} training problems, not {count}")
        epoch, place = divmod(step - 1, len(problems) // count)
        order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        return [problems[n] for n in order[place * count : (place + 1) * count]]

    def held_out(self, split: str, count: int | None) -> list[Problem]:
        problems = self.splits.get(split, [])
        if not problems:
            raise ValueError(f"{self.name} has no {split} problems of the kind asked for")
        if count is not None and count > len(problems):
            raise ValueError(f"the {split} split of {self.name} has {len(problems)}, not {count}")
        return problems[:count]

    def problem(self, text: str) -> Problem:
        """The problem of that id."""
        every = {x.id: x for problems in self.splits.values() for x in problems if x.id}
        if text not in every:
            known = f"; one of its ids is {next(iter(every))}" if every else ", for none has an id"
            raise ValueError(f"{self.name} has no problem {text!r}{known}")
        return every[text]


def token_bytes(encoding) -> dict[int, bytes]:
    """Every token id of an encoding and its bytes, special tokens included."""
    pieces = {}
    for token in range(encoding.n_vocab):
        try:
            pieces[token] = encoding.decode_single_token_bytes(token)
        except KeyError:
            continue
    return pieces


# ---------------------------------------------------------------------------------------------
# Files


def read_lines(path: Path, opened) -> Iterator[tuple[str, dict]]:
    """(where, record) of each line of an open JSONL file; `where` is file and line, for errors."""
    try:
        for number, line in enumerate(opened, 1):
            where = f"{path}, line {number}"
            if line.strip():
                yield where, parse_record(line, where)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error})") from None


def parse_record(text: str, where: str) -> dict:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object")
    return record


def require(record: dict, where: str, **kinds: type) -> list:
    """The named fields of a record. Raises ValueError where one is missing or of another type."""
    for name, kind in kinds.items():
        if name not in record:
            raise ValueError(f"{where}: no field {name!r}")
        if not isinstance(record[name], kind):
            raise ValueError(f"{where}: {name!r} is not of type {kind.__name__}")
    return [record[name] for name in kinds]


def refuse_duplicates(seen: dict[str, str], name: str, where: str) -> None:
    """Raises ValueError where an id was seen before; `seen` keeps where each was."""
    if name in seen:
        raise ValueError(f"{where}: {name} is there twice, first in {seen[name]}")
    seen[name] = where
