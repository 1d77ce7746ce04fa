"""MBPP (Austin et al. 2021) to train on and HumanEval (Chen et al. 2021) to evaluate on.

    DIR/HumanEval.jsonl or .jsonl.gz            github.com/openai/human-eval, data/
    DIR/mbpp.jsonl or DIR/sanitized-mbpp.json   github.com/google-research/google-research, mbpp/

If both MBPP files exist, the full one is used. All of MBPP is for training, also its test problems,
since HumanEval is the test here. Two parts are kept out: the three problems that are shown solved
to a plain model, and MBPP's validation problems, for --split val. With HumanEval alone, 100 of its
164 problems are for training and the rest are the test. A chat model sees no solved problems.
"""

import ast
import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

from data.task import Problem, text_hash
from data.text import FileTask, Source, read_lines, refuse_duplicates, require
from rewards import TIMEOUT, SandboxError, mbpp_test, run_many

# The paper's instruction, word for word.
REVISE = (
    "There might be an error in the code above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution. Only output the final correct "
    "Python program!"
)
SHOTS = (2, 3, 4)  # Austin et al.'s prompt problems, shown solved to a plain model
VALIDATION = range(511, 601)
# The ends of a function's body in a plain model's text (Chen et al. 2021).
STOPS = re.compile(r"\n(?=class|def|#|if|print)")
# A line's first fence, the text before it, which may hold inline code, and the text after it.
FENCE = re.compile(r"^((?:[^`~\n]|`(?!``)|~(?!~~))*)(```+|~~~+(?!~))([^`\n]*)$", re.MULTILINE)
LIST_MARKER = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+")
BEGIN, DONE = (re.compile(rf"^\[{word}\]", re.MULTILINE) for word in ("BEGIN", "DONE"))
# What may precede an answer: a byte order mark, and a thought, which may be cut.
PREFACE = re.compile(r"\ufeff?(?:\s*<think>.*?(?:</think>|\Z))?", re.DOTALL)


@dataclass(frozen=True)
class Program(Problem):
    """`prompt` is the question to the model, `gold` a reference solution."""

    test: str = ""  # code that defines check(candidate)
    entry_point: str = ""  # name of the function to write
    head: str = ""  # HumanEval's code that the answer completes; trusted


class ProgramTask(FileTask):
    """Raises ValueError for malformed files, in one line that names file and line."""

    name = "humaneval"
    system = "You are an expert Python programmer."
    instruction = REVISE
    plain_revise = f"\n\n{REVISE}\n[BEGIN]\n"
    max_new_tokens = 768
    shots = ""  # MBPP's worked examples, shown before a plain model's problem

    def __init__(self, source: Source):
        test = read_humaneval(source.folder)
        mbpp = read_mbpp(source.folder)
        if mbpp is None:
            order = sorted(test, key=lambda x: text_hash(x.id))
            part = 100 * len(order) // 164
            splits = {"train": order[:part], "test": order[part:]}
            notes = ["no MBPP file: a fixed part of HumanEval trains and the rest is the test"]
        else:
            splits, self.shots, notes = mbpp
            splits["test"] = test
        super().__init__(source, splits, notes)

    def plain(self, problem: Program) -> str:
        if problem.head:
            return problem.prompt
        return f"{self.shots}{problem.prompt}\n[BEGIN]\n"

    def over(self, problem: Program, response: str) -> bool:
        return len(self.answer(problem, response)) < len(response)

    def answer(self, problem: Program, response: str) -> str:
        """A response up to the end of its answer: up to [DONE], and up to where the function is
        complete, which a chat model shows by closing a block and a plain model by going on.

        So the program of a chat model is the first closed block after its thought that defines the
        function, or all of the response if there is none. Prose is not read, even if it calls the
        block wrong, and what follows the block does not count, be it commented out or not.
        """
        start = PREFACE.match(response).end()
        preface, response = response[:start], response[start:]
        done = DONE.search(response)
        response = response[: done.start()] if done else response
        if self.is_chat:
            response = to_fence(response, problem.entry_point)
        elif problem.head:
            response = to_stop(response, problem.entry_point)
        return preface + response

    def completion(self, problem: Program, response: str) -> str:
        """The code to run, after the problem's head if it has one."""
        code = extract_code(self.answer(problem, response), problem.entry_point)
        is_body = not definition(code, problem.entry_point) if self.is_chat else is_indented(code)
        # A whole program follows the head, too: the head ends in a docstring, so it is valid by
        # itself, and its imports stay in force.
        return code if not problem.head or is_body else "\n\n" + code

    def problem(self, text: str) -> Program:
        if (found := super().problem(text)).gold is None:
            raise ValueError(f"no problem {text!r}, and a new one would need tests: give an id")
        return found

    def reward(self, problem: Program, response: str) -> float:
        return self.rewards([problem], [response])[0]

    def rewards(self, problems: list[Program], responses: list[str]) -> list[float]:
        items = []
        for x, response in zip(problems, responses, strict=True):
            program = x.head + self.completion(x, response)
            items.append((program, x.test, x.entry_point, TIMEOUT, x.head))
        different = list(dict.fromkeys(items))  # a trained policy often repeats itself
        verdicts = dict(zip(different, run_many(different)))
        if any(verdict.reason == "refused" for verdict in verdicts.values()):
            raise SandboxError("programs can no longer be run here")  # rather than reward 0
        return [float(verdicts[item].passed) for item in items]

    def samples(self, problems: list[Program], responses: list[str]) -> list[dict]:
        return [
            {"task_id": x.id, "completion": self.completion(x, response)}
            for x, response in zip(problems, responses, strict=True)
            if x.head
        ]


def to_stop(text: str, entry_point: str) -> str:
    """A plain model's text up to the end of the function, be it the body alone or the whole."""
    if is_indented(text):
        return STOPS.split(text)[0]
    start = definition(text, entry_point)
    end = start and re.search(r"\n(?=[^\s)\]}#])", text[start.end() :])
    return text[: start.end() + end.start()] if end else text


def to_fence(text: str, entry_point: str) -> str:
    """A chat model's text up to the fence that closes the first block which defines the function.
    So a second attempt that begins by quoting the faulty function has given its answer."""
    ends = (end for code, end in fenced(text) if end and definition(dedent(code), entry_point))
    return text[: next(ends, None)]


def fenced(text: str) -> list[tuple[str, int | None]]:
    """The code blocks of a Markdown text, without the indentation of their fences, each with the
    end of its closing fence; None if the end of the text or the next block's opening closes it
    instead. A fence belongs to the code if it is indented deeper than the block, shorter than the
    opening fence, or of another kind."""
    blocks: list[tuple[str, int | None]] = []
    opening, indent = None, 0

    def add(last: int, end: int | None) -> None:
        code = text[opening.end() + 1 : last].rstrip(" \t").lstrip("\ufeff")
        blocks.append((re.sub(rf"^[ \t]{{0,{indent}}}", "", code, flags=re.MULTILINE), end))

    for line in FENCE.finditer(text):
        before, fence, language = line[1], line[2], line[3].strip()
        alone = not before.strip()
        if opening is None:
            if alone or re.fullmatch(r"[\w+.-]*", language):
                opening = line
                indent = len(before) if alone or LIST_MARKER.fullmatch(before) else 0
            continue
        if not fence.startswith(opening[2]) or (alone and len(before) > indent + 3):
            continue
        if not language:
            add(line.start(2), line.end())
            opening = None
        elif alone:
            add(line.start(), None)
            opening, indent = line, len(before)
    if opening is not None:
        add(len(text), None)
    return blocks


def is_indented(code: str) -> bool:
    """Whether the code continues the head's function instead of defining it again."""
    return re.match(r"\s*^[ \t]+\S", code, re.MULTILINE) is not None


def definition(code: str, name: str) -> re.Match | None:
    return re.search(rf"^(async\s+)?(def|class)\s+{re.escape(name)}\b", code, re.MULTILINE)


def extract_code(response: str, entry_point: str) -> str:
    """The program in an answer: behind its preface, the text after [BEGIN], or the fenced blocks,
    or else all of it. If several blocks define the function the last counts, since those before it
    were never closed. Blocks before it that only define other things are kept."""
    response = BEGIN.split(PREFACE.sub("", response, count=1))[-1]
    whole = [block for block, _ in fenced(response)]
    blocks = [dedent(block) for block in whole]
    places = [n for n, block in enumerate(blocks) if definition(block, entry_point)]
    if places:
        helpers = [block for block in blocks[: places[-1]] if only_defines(block, entry_point)]
        response = "\n".join([*helpers, blocks[places[-1]]])
    elif blocks:
        response = whole[0]  # as it is indented: it may be the function's body alone
    response = re.sub(r"\A\s*python\s*\n", "", response)
    # Such an import must come first in a file, but the problem's head comes before it.
    return re.sub(r"^from __future__ import (\([^)]*\)|.*)\n", "", response, flags=re.MULTILINE)


def only_defines(code: str, entry_point: str) -> bool:
    """A block of imports, functions, classes and constants, none of them the entry point. An
    example, which assigns what the entry point returns or what is typed in, is none."""
    nodes, values = statements(code), (ast.Assign, ast.AnnAssign)
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, *values)
    if nodes is None or not all(isinstance(node, kinds) for node in nodes):
        return False
    constants = [node for node in nodes if isinstance(node, values)]
    used = {x.id for node in constants for x in ast.walk(node) if isinstance(x, ast.Name)}
    return used.isdisjoint({entry_point, "input"}) and not definition(code, entry_point)


def statements(code: str) -> list[ast.stmt] | None:
    """The statements of a module; None if it is not Python."""
    try:
        return ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


# ---------------------------------------------------------------------------------------------
# Files


def read_humaneval(folder: Path) -> list[Program]:
    for path in (folder / "HumanEval.jsonl", folder / "HumanEval.jsonl.gz"):
        if path.exists():
            break
    else:
        raise ValueError(
            f"no HumanEval.jsonl or HumanEval.jsonl.gz in {folder}: it comes from "
            "github.com/openai/human-eval, and mbpp.jsonl beside it from "
            "github.com/google-research/google-research/tree/master/mbpp"
        )
    problems, seen = [], {}
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as opened:
        for where, record in read_lines(path, opened):
            name, prompt, test, entry_point, solution = require(
                record,
                where,
                task_id=str,
                prompt=str,
                test=str,
                entry_point=str,
                canonical_solution=str,
            )
            refuse_duplicates(seen, name, where)
            if not entry_point.isidentifier() or not defines_check(test):
                raise ValueError(
                    f"{where}: no program can pass: entry_point is not a name, or test "
                    "does not define check"
                )
            problems.append(Program(prompt, solution, name, test, entry_point, head=prompt))
    return problems


def defines_check(test: str) -> bool:
    nodes = statements(test) or []
    return any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in nodes)


def read_mbpp(folder: Path) -> tuple[dict[str, list[Program]], str, list[str]] | None:
    """Training and validation problems, the worked examples, and notes; None if there is no MBPP
    file."""
    full, sanitized = folder / "mbpp.jsonl", folder / "sanitized-mbpp.json"
    if full.exists():
        path = full
        with path.open(encoding="utf-8-sig") as opened:
            records = list(read_lines(path, opened))
    elif sanitized.exists():
        path = sanitized
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from None
        if not isinstance(content, list) or not all(isinstance(x, dict) for x in content):
            raise ValueError(f"{path} is not a list of JSON objects")
        records = [(f"{path}, record {number}", x) for number, x in enumerate(content, 1)]
    else:
        return None
    seen: dict[str, str] = {}
    by_id = {}
    for where, record in records:
        number, code, tests = require(record, where, task_id=int, code=str, test_list=list)
        [text] = require(record, where, **{"text" if "text" in record else "prompt": str})
        refuse_duplicates(seen, f"task_id {number}", where)
        record = {"test_setup_code": "", "test_imports": []} | record
        before, imports = require(record, where, test_setup_code=str, test_imports=list)
        if not all(isinstance(line, str) for line in [*tests, *imports]):
            raise ValueError(f"{where}: a test or import is not text")
        setup = "\n".join([before, *imports])
        try:
            test, entry_point = mbpp_test(tests, setup)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        prompt = question(text, tests)
        by_id[number] = Program(prompt, code, f"MBPP/{number}", test, entry_point)
    shots = "".join(shot(by_id[n]) for n in SHOTS if n in by_id)
    splits: dict[str, list[Program]] = {"train": [], "val": []}
    for number, program in sorted(by_id.items()):
        if number not in SHOTS:
            splits["val" if number in VALIDATION else "train"].append(program)
    found = sum(n in by_id for n in SHOTS)
    return splits, shots, [f"training on {path.name}; a plain model sees {found} worked examples"]


def question(text: str, tests: list[str]) -> str:
    """The prompt of one problem, in Austin et al.'s words."""
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass "
        "these tests:\n\n" + "\n".join(tests)
    )


def shot(solved: Program) -> str:
    code = solved.gold.replace("\r\n", "\n").strip()
    return f"{solved.prompt}\n[BEGIN]\n{code}\n[DONE]\n\n"
