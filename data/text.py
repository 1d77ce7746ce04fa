"""Tasks for pretrained models: problems as text in the model's own layout, mostly from files."""

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
    """Where a pretrained model's task gets its problems and tokens."""

    folder: Path  # folder of the data, if it comes from files
    init: Path  # folder of the model
    layout: str = "auto"  # prompt layout: chatml, llama3 or plain; auto asks the tokenizer
    context: int | None = None  # token limit of a problem and its attempts, None for the model's
    max_new_tokens: int | None = None  # token limit of an attempt, None for the task's own
    attempts: int = 2  # attempts per evaluation; the prompt and all of them must fit the context
    limit: int | None = None  # largest number of problems per split, None for all
    levels: frozenset[int] | None = None  # MATH levels, None for all
    subjects: frozenset[str] | None = None  # MATH subjects, None for all
    shots: int = 0  # solved examples before each problem of arithmetic


class TextTask(Task):
    """Problems laid out for a pretrained model. A subclass sets `system`, `instruction` (the user
    turn between two attempts), `plain_revise` and `max_new_tokens`, and defines the text of a
    problem for a chat model (`user`) and for a plain model (`plain`)."""

    system: str  # system turn of a chat model
    plain_revise: str  # p for a plain model, in plain text
    runs_on = True
    examples: list[tuple[str, str]] = []  # (user, assistant) turns before a chat model's problem

    def __init__(self, source: Source):
        self.layout = pick_layout(load_tokenizer(source.init), source.layout)
        self.encoding, self.eos = self.layout.tokenizer.encoding, self.layout.eos
        shape = read_shape(source.init)
        if (needs := self.encoding.n_vocab) > shape["vocab_size"]:
            raise ValueError(f"{source.init}: the tokenizer needs a vocab_size of {needs} or more")
        self.context = min(source.context or shape["context"], shape["context"])
        self.is_chat = self.layout.style != "plain"
        self.close = [self.eos] if self.is_chat else []
        self.revise = self.layout.revise(self.instruction, self.plain_revise)
        if source.max_new_tokens is not None:
            self.max_new_tokens = source.max_new_tokens
        self.notes = [f"layout: {self.layout.style}"]

    def user(self, problem: Problem) -> str:
        """The user turn with the problem."""
        return problem.prompt

    def plain(self, problem: Problem) -> str:
        """The problem's text for a plain model."""
        raise NotImplementedError

    def prompt(self, problem: Problem) -> list[int]:
        return self.layout.prompt(
            self.system, self.user(problem), self.plain(problem), self.examples
        )

    def encode(self, text: str) -> list[int]:
        """The token ids of an attempt."""
        return self.encoding.encode_ordinary(text)

    def decode(self, tokens: list[int]) -> str:
        return b"".join(token_bytes(self.encoding, t) for t in tokens).decode(errors="replace")


class FileTask(TextTask):
    """Problems by split, ordered by hash, so that the files' order does not matter."""

    def __init__(self, source: Source, splits: dict[str, list[Problem]], notes: list[str]):
        super().__init__(source)
        self.notes = notes + self.notes
        self.splits, self.skipped = {}, {}
        for name, problems in splits.items():
            # More attempts in an evaluation must not change the training problems.
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
            shared = {x.prompt for x in fit} & {x.prompt for x in splits.get("train", [])}
            if shared and name != "train":
                self.notes.append(f"{len(shared)} {name} problems are train problems, too")
        sizes = ", ".join(f"{len(x)} {name}" for name, x in self.splits.items() if x)
        self.notes.append(f"{self.name}: {sizes or 'no'} problems from {source.folder}")

    def _length(self, problem: Problem) -> int:
        """The prompt's length. Raises ValueError, naming the problem, if it cannot be tokenized."""
        try:
            return len(self.prompt(problem))
        except ValueError as error:
            name = problem.id or repr(problem.prompt[:60])
            raise ValueError(f"{self.name}, problem {name}: {error}") from None

    def batch(self, seed: int, step: int, count: int) -> list[Problem]:
        """Each training problem at most once per epoch, in an order drawn for the epoch; those left
        over at its end are not used in it. Raises ValueError if there are fewer than `count`."""
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
        """The problem with that id or prompt, else a new problem, whose answer is unknown."""
        known = (x for problems in self.splits.values() for x in problems)
        return next((x for x in known if text in (x.id or None, x.prompt)), Problem(text, None))


def token_bytes(encoding, token: int) -> bytes:
    """A token's bytes. A model's vocabulary may have ids that its tokenizer does not know."""
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:
        return "\ufffd".encode()


# ---------------------------------------------------------------------------------------------
# Files

LONGEST_LINE = 10**7  # characters; what is longer is no problem, and may not fit the memory


def read_lines(path: Path, opened) -> Iterator[tuple[str, dict]]:
    """(where, record) of each line of an open JSONL file; `where` is file and line, for errors."""
    try:
        for number, line in enumerate(iter(lambda: opened.readline(LONGEST_LINE), ""), 1):
            where = f"{path}, line {number}"
            if len(line) == LONGEST_LINE:
                raise ValueError(f"{where}: of {LONGEST_LINE} characters or more")
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
    """The named fields of a record. Raises ValueError if one is missing or of another type."""
    for name, kind in kinds.items():
        if name not in record:
            raise ValueError(f"{where}: no field {name!r}")
        if not isinstance(record[name], kind):
            raise ValueError(f"{where}: {name!r} is not of type {kind.__name__}")
    return [record[name] for name in kinds]


def refuse_duplicates(seen: dict[str, str], name: str, where: str) -> None:
    """Raises ValueError if an id was seen before; `seen` maps each id to its place."""
    if name in seen:
        raise ValueError(f"{where}: {name} is there twice, first in {seen[name]}")
    seen[name] = where
