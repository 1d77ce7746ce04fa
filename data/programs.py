"""MBPP (Austin et al. 2021) to train on and HumanEval (Chen et al. 2021) to evaluate on.

    DIR/HumanEval.jsonl or .jsonl.gz            github.com/openai/human-eval, data/
    DIR/mbpp.jsonl or DIR/sanitized-mbpp.json   github.com/google-research/google-research, mbpp/

With both MBPP files the full one is used. All of MBPP trains but for the three problems of the
prompt and, kept for --split val, its own validation problems; its own test problems train too,
since HumanEval is what is evaluated. With HumanEval alone, 100 of its problems train and 64 others
are the test.
"""

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path

from data.task import Problem, text_hash
from data.text import Source, TextTask, read_lines, refuse_duplicates, require
from rewards import mbpp_test, run_many

# The paper's instruction, word for word.
REVISE = (
    "There might be an error in the code above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution. Only output the final correct "
    "Python program!"
)
SHOTS = (2, 3, 4)  # Austin et al.'s prompt problems
VALIDATION = range(511, 601)
# What ends the body of a function that a base model goes on writing (Chen et al. 2021).
STOPS = re.compile(r"\n(?=class|def|#|if|print)")


@dataclass(frozen=True)
class Program(Problem):
    """`prompt` is what the model is asked, `gold` a reference solution."""

    id: str = ""
    test: str = ""  # defines check(candidate)
    entry_point: str = ""
    head: str = ""  # HumanEval: the code that the answer completes; trusted


class ProgramTask(TextTask):
    """Raises ValueError for malformed files, in one line with file and line."""

    name = "humaneval"
    system = "You are an expert Python programmer."
    instruction = REVISE
    plain_revise = f"\n\n{REVISE}\n[BEGIN]\n"
    max_new_tokens = 384
    timeout = 3.0  # seconds a program may take

    def __init__(self, source: Source):
        test = read_humaneval(source.folder)
        mbpp = read_mbpp(source.folder)
        if mbpp is None:
            order = sorted(test, key=lambda x: text_hash(x.id))
            splits = {"train": order[:100], "test": order[100:]}
            notes = ["no MBPP file: a fixed part of HumanEval trains and the rest is the test"]
        else:
            splits, notes = mbpp
            splits["test"] = test
        super().__init__(source, splits, notes)

    def user(self, problem: Program) -> str:
        return problem.prompt.removesuffix("\n[BEGIN]\n") if not problem.head else problem.prompt

    def plain(self, problem: Program) -> str:
        return problem.prompt

    def over(self, problem: Program, response: str) -> bool:
        body = completes(problem, response) and STOPS.search(response) is not None
        return body or "[DONE]" in response

    def completion(self, problem: Program, response: str) -> str:
        """What is put after the problem's code, if it has any, and run."""
        code = extract_code(response, problem.entry_point)
        if not problem.head:
            return code
        if completes(problem, code):
            return STOPS.split(code)[0] if self.runs_on else code
        # A whole program: the head ends in a docstring, so it is complete by itself, and what it
        # imports stays imported.
        return "\n\n" + code

    def reward(self, problem: Program, response: str) -> float:
        return self.rewards([problem], [response])[0]

    def rewards(self, problems: list[Program], responses: list[str]) -> list[float]:
        items = []
        for x, response in zip(problems, responses, strict=True):
            program = x.head + self.completion(x, response)
            items.append((program, x.test, x.entry_point, self.timeout, x.head))
        different = list(dict.fromkeys(items))  # a trained policy often repeats itself
        passed = {item: verdict.passed for item, verdict in zip(different, run_many(different))}
        return [float(passed[item]) for item in items]

    def samples(self, problems: list[Program], responses: list[str]) -> list[dict]:
        return [
            {"task_id": x.id, "completion": self.completion(x, response)}
            for x, response in zip(problems, responses, strict=True)
            if x.head
        ]


def completes(problem: Program, code: str) -> bool:
    """The text goes on where the problem's code ends, in place of defining the function anew."""
    return bool(problem.head) and not defines(code, problem.entry_point)


def defines(code: str, name: str) -> bool:
    return bool(re.search(rf"^(async\s+)?(def|class)\s+{re.escape(name)}\b", code, re.MULTILINE))


def extract_code(response: str, entry_point: str) -> str:
    """The program in a response: what stands between [BEGIN] and [DONE], or in the first fenced
    block that defines the function (else the first block), or else all of it."""
    response = response.partition("[DONE]")[0].rpartition("[BEGIN]")[2]
    blocks = re.findall(r"^```[^\n]*\n(.*?)(?:^```|\Z)", response, re.MULTILINE | re.DOTALL)
    chosen = [block for block in blocks if defines(block, entry_point)] or blocks
    return chosen[0] if chosen else response


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
    with opener(path, "rt", encoding="utf-8") as opened:
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
            problems.append(
                Program(
                    prompt, gold=solution, id=name, test=test, entry_point=entry_point, head=prompt
                )
            )
    return problems


def read_mbpp(folder: Path) -> tuple[dict[str, list[Program]], list[str]] | None:
    """Training and validation problems, and notes; None where there is no file of MBPP's."""
    full, sanitized = folder / "mbpp.jsonl", folder / "sanitized-mbpp.json"
    if full.exists():
        path = full
        with path.open(encoding="utf-8") as opened:
            records = list(read_lines(path, opened))
    elif sanitized.exists():
        path = sanitized
        try:
            content = json.loads(path.read_bytes())
        except ValueError as error:
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
        setup = "\n".join([record.get("test_setup_code", ""), *record.get("test_imports", [])])
        try:
            test, entry_point = mbpp_test(tests, setup)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        by_id[number] = (text, code, tests, test, entry_point)
    shots = "".join(shot(*by_id[n][:3]) for n in SHOTS if n in by_id)
    splits: dict[str, list[Program]] = {"train": [], "val": []}
    for number, (text, code, tests, test, entry_point) in sorted(by_id.items()):
        if number not in SHOTS:
            prompt = f"{shots}{question(text, tests)}\n[BEGIN]\n"
            program = Program(prompt, code, f"MBPP/{number}", test, entry_point)
            splits["val" if number in VALIDATION else "train"].append(program)
    found = sum(n in by_id for n in SHOTS)
    return splits, [f"training on {path.name}, its prompt with {found} worked examples"]


def question(text: str, tests: list[str]) -> str:
    """One problem as Austin et al. put it."""
    return (
        f"You are an expert Python programmer, and here is your task: {text} Your code should pass "
        "these tests:\n\n" + "\n".join(tests)
    )


def shot(text: str, code: str, tests: list[str]) -> str:
    code = code.replace("\r\n", "\n").strip()
    return f"{question(text, tests)}\n[BEGIN]\n{code}\n[DONE]\n\n"
