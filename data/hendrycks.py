"""MATH (Hendrycks et al. 2021), from a folder of the user's: its text is not ours to ship.

    DIR/{train,test}/SUBJECT/N.json   the original; github.com/hendrycks/math
    DIR/train.jsonl, DIR/test.jsonl   one problem a line, as in Lightman et al. 2023 ("MATH-500");
                                      github.com/openai/prm800k, prm800k/math_splits

The folders together with MATH-500's test.jsonl give the paper's split: those 500 problems are the
test, all others are for training. Whatever the files, no test problem is trained on.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.task import Problem
from data.text import FileTask, Source, parse_record, read_lines, refuse_duplicates, require
from rewards import extract_answer, math_reward

# The paper's prompts, word for word.
SOLVE = (
    "You are a math expert. When you respond, respond only with the Solution of the final Problem, "
    "thinking step by step. At the end of the Solution, when you give your final answer, write it "
    'in the form "Final Answer: The final answer is $answer$. I hope it is correct."'
)
REVISE = (
    "There might be an error in the solution above because of lack of understanding of the "
    "question. Please correct the error, if any, and rewrite the solution. Only output the final "
    "solution! At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)
LAST_WORDS = "I hope it is correct."


@dataclass(frozen=True)
class MathProblem(Problem):
    """`prompt` is the problem's text, `gold` its reference answer."""

    level: int = 0  # level 1 to 5; 0 if unknown
    subject: str = ""  # subject, such as counting_and_probability


class MathTask(FileTask):
    """Raises ValueError for malformed files, in one line that names file and line."""

    name = "math"
    system, instruction = SOLVE, REVISE
    plain_revise = f"\n\n{REVISE}\n\nSolution:\n"
    max_new_tokens = 1024

    def __init__(self, source: Source):
        splits, notes = read_math(source.folder)
        for name, problems in splits.items():
            empty = sum(not x.gold.strip() for x in problems)
            if empty:
                notes.append(f"{empty} {name} problems are dropped: their reference is empty")
            splits[name] = [
                x
                for x in problems
                if x.gold.strip()
                and (source.levels is None or x.level in source.levels)
                and (source.subjects is None or x.subject in source.subjects)
            ]
        known = {x.subject for problems in splits.values() for x in problems}
        if source.subjects is not None and not source.subjects <= known:
            unknown = ", ".join(sorted(source.subjects - known))
            raise ValueError(f"{source.folder} has no problems of the subject {unknown}")
        super().__init__(source, splits, notes)

    def plain(self, problem: Problem) -> str:
        return f"{SOLVE}\n\nProblem:\n{problem.prompt}\n\nSolution:\n"

    def over(self, problem: Problem, response: str) -> bool:
        return LAST_WORDS in response

    def reward(self, problem: Problem, response: str) -> float:
        return math_reward(response, problem.gold)


def read_math(folder: Path) -> tuple[dict[str, list[MathProblem]], list[str]]:
    """Problems by split, and notes for the user on how the split was made."""
    folders = {name: read_folder(folder, name) for name in ("train", "test")}
    train, test = (read_jsonl(folder / f"{name}.jsonl") for name in ("train", "test"))
    if not any((*folders.values(), train, test)):
        raise ValueError(
            f"no MATH problems in {folder}: bring train/SUBJECT/N.json and test/SUBJECT/N.json "
            "(github.com/hendrycks/math), or train.jsonl and test.jsonl (github.com/openai/prm800k)"
        )
    pool = train or folders["train"] + (folders["test"] if test else [])
    test = test or folders["test"]
    held = {squeezed(x.prompt) for x in test}
    ids = {x.id for x in test} - {""}
    kept = [x for x in pool if squeezed(x.prompt) not in held and x.id not in ids]
    others = {path.name for path in folder.glob("*.jsonl")} - {"train.jsonl", "test.jsonl"}
    notes = [f"{name} is not read: name it train.jsonl or test.jsonl" for name in sorted(others)]
    if len(kept) < len(pool):
        count = len(pool) - len(kept)
        notes.append(f"{count} of {len(pool)} problems are test problems, not trained on")
    return {"train": kept, "test": test}, notes


def squeezed(text: str) -> str:
    """The text without white space, so that copies which differ only in that are equal."""
    return re.sub(r"\s+", "", text)


def read_folder(folder: Path, split: str) -> list[MathProblem]:
    """The problems of DIR/SPLIT/SUBJECT/N.json."""
    problems = []
    for path in sorted((folder / split).glob("*/[!.]*.json")):  # some copies have ._N.json, too
        where = f"{path}, line 1"
        try:
            record = parse_record(path.read_text(encoding="utf-8-sig"), where)
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read ({error})") from None
        text, solution = require(record, where, problem=str, solution=str)
        answer, subject = extract_answer(solution) or "", path.parent.name
        name, level = f"{split}/{subject}/{path.name}", level_of(record.get("level"))
        problems.append(MathProblem(text, answer, name, level, subject))
    return problems


def read_jsonl(path: Path) -> list[MathProblem]:
    """One problem per line, or none without the file. The answer is the field `answer`, or else the
    solution's last box."""
    problems: list[MathProblem] = []
    seen: dict[str, str] = {}  # each id's place
    if not path.exists():
        return problems
    with path.open(encoding="utf-8-sig") as opened:
        for where, record in read_lines(path, opened):
            [text] = require(record, where, problem=str)
            if "answer" in record:
                [answer] = require(record, where, answer=str)
            else:
                answer = extract_answer(*require(record, where, solution=str)) or ""
            [name] = require({"unique_id": ""} | record, where, unique_id=str)
            if name:
                refuse_duplicates(seen, name, where)
            level = level_of(record.get("level"))
            subject = subject_of(record.get("subject", record.get("type", "")))
            problems.append(MathProblem(text, answer, name, level, subject))
    return problems


def level_of(level: object) -> int:
    """5 or "Level 5" → 5; "Level ?" and nothing → 0."""
    digits = re.search(r"[1-5]", str(level))
    return int(digits.group()) if digits else 0


def subject_of(name: object) -> str:
    """ "Counting & Probability" → counting_and_probability, as the folders are called."""
    return re.sub(r"\W+", "_", str(name).replace("&", "and").lower())
