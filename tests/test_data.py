"""Problems and their rewards: arithmetic, MATH, MBPP and HumanEval."""

import contextlib
import gzip
import itertools
import json
import shutil
import statistics
import time
import tracemalloc

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

import data
import rewards
import score
from data import Problem, programs
from data.arithmetic import SPLITS, STEP, Corpus
from data.hendrycks import REVISE, SOLVE
from model import GPT, GPTConfig
from rewards import number_reward, puzzle_reward
from tests.helpers import (
    anything,
    shared,
    source,
    tiny_checkpoint,
    with_damage,
    write_math,
    write_programs,
)
from training import results, settings

PUZZLE = "3725=13"  # 3 + 7 − 2 + 5 = 13; what remains after each: 10, 3, 5, 0


@pytest.mark.parametrize("prompt, response", [("3725=13", "+10+03-05+00"), ("11=00", "+-01-00")])
def test_puzzle_accepts(prompt, response):
    assert puzzle_reward(prompt, response) == 1.0


@pytest.mark.parametrize(
    "name, response",
    [
        ("a wrong step, the right end", "+10+04-05+00"),
        ("the right signs, no sums", "++-+"),
        ("only the end", "+00"),
        ("a step left out", "+10+03+00"),
        ("a step more", "+10+03-05+00+00"),
        ("steps reordered", "+03+10-05+00"),
        ("another target", "3725=00"),
        ("right modulo 100", "+10+03-05+100"),
        ("negative zero", "+10+03-05+-00"),
        ("one digit a number", "+10+3-5+0"),
        ("leading zeros", "+010+003-005+000"),
        ("blanks", "+10 +03 -05 +00"),
        ("a line end", "+10+03-05+00\n"),
        ("a blank before", " +10+03-05+00"),
        ("digits of another script", "+１0+03-05+00"),
        ("a minus of another script", "+10+03−05+00"),
        ("two answers", "+10+03-05+00+10+03-05+00"),
        ("a wrong answer, then a right one", "-16+09-11+06+10+03-05+00"),
        ("a control token's text", "+10+03-05+00<|end|>"),
        ("the problem restated", "3725=13+10+03-05+00"),
        ("the wrong way", "-16-23+21-26"),
        ("computed well, missed", "+10+03+01-06"),
        ("nothing", ""),
        ("a null byte", "+10+03-05+00\0"),
        ("a surrogate", "\ud800"),
    ],
)
def test_puzzle_refuses(name, response):
    assert puzzle_reward(PUZZLE, response) == 0.0


@pytest.mark.parametrize(
    "response",
    ["0502", "+502", "502.0", "5_02", " 502", "502 ", "５02", "502=", "5.02e2", "417+85=502",
     "501502", "", "<|end|>", "502\n"],
)  # fmt: skip
def test_number_refuses(response):
    assert number_reward("417+85=", response) == 0.0


def test_number_accepts():
    assert number_reward("417+85=", "502") == 1.0
    assert number_reward("12*12=", "144") == 1.0
    assert number_reward("0+0=", "0") == 1.0


@pytest.mark.parametrize("name", data.FAMILIES)
def test_verifiers_are_total(name):
    """Any tokens at all, control tokens among them, get a verdict."""
    task = data.load(name)
    torch.manual_seed(0)
    problem = task.batch(0, 0, 1)[0]
    for row in torch.randint(task.encoding.n_vocab, (500, 8)).tolist():
        assert task.reward(problem, task.decode(row)) in (0.0, 1.0)


def test_every_spelling_of_a_small_puzzle():
    """Of all texts with three steps of two-digit numbers that the alphabet allows, only the right
    ones pass: checked against plain arithmetic."""
    digits, target = [1, 2, 3], 4
    right = set()
    for signs in itertools.product((1, -1), repeat=3):
        remains, text = target, ""
        for sign, digit in zip(signs, digits):
            remains -= sign * digit
            text += (
                ("+" if sign > 0 else "-") + ("-" if remains < 0 else "") + f"{abs(remains):02d}"
            )
        if remains == 0:
            right.add(text)
    steps = [f"{s}{m}{n:02d}" for s in "+-" for m in ("", "-") for n in range(12)]
    accepted = {
        "".join(text)
        for text in itertools.product(steps, repeat=3)
        if puzzle_reward("123=04", "".join(text))
    }
    assert accepted == right and right


@pytest.mark.parametrize("name", data.FAMILIES)
def test_splits_are_disjoint(name):
    """No problem, in any order of its numbers, is in two splits; batches come from train alone."""
    task = data.load(name)
    canon = {split: set() for split in SPLITS}
    for step in range(20):
        for problem in task.batch(0, step, 50):
            canon["train"].add(task.family.canonical(problem.prompt))
        for prompt, *_ in task.transcripts(0, step, 50, 0.0):
            canon["train"].add(task.family.canonical(prompt))
    for split in ("val", "test"):
        problems = task.held_out(split, 300)
        assert len({problem.prompt for problem in problems}) == 300
        canon[split] = {task.family.canonical(problem.prompt) for problem in problems}
    assert not canon["train"] & canon["val"]
    assert not canon["train"] & canon["test"]
    assert not canon["val"] & canon["test"]
    buckets = sorted(bucket for buckets in SPLITS.values() for bucket in buckets)
    assert buckets == list(range(20))


def test_held_out_is_finite_and_says_so():
    with pytest.raises(ValueError, match="the test split of addition, difficulty 2, has about"):
        data.load("addition", 2).held_out("test", 5000)
    assert 900 < len(data.load("addition", 2).held_out("test", None)) < 1100


def test_a_right_answer_fits_whatever_the_tokenizer_merges(tmp_path):
    """GPT-2 writes 999 in one token, and other numbers of three digits in two."""
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(shared(f"gpt2/{name}"), tmp_path)
    GPT(GPTConfig(vocab_size=50257, context=256, layers=1, heads=1, width=2)).save_pretrained(
        tmp_path
    )
    task = data.load("addition", 9, source(tmp_path, tmp_path))
    lengths = [len(task.encode(task.solved(x))) for x in task.batch(1, 1, 500)]
    assert max(lengths) < task.max_new_tokens


@pytest.mark.parametrize("name", data.FAMILIES)
def test_tokenizer_round_trips_and_names_what_it_cannot_read(name):
    task = data.load(name)
    for prompt, first, second in task.transcripts(0, 0, 200, 0.0):
        for text in (prompt, first, second):
            assert task.decode(task.encode(text)) == text
        assert len(task.encode(first)) < task.max_new_tokens  # and the end token
    for text, position in (("12x3", 2), ("é", 0), ("1 2", 1), ("<|end|>", 0)):
        with pytest.raises(ValueError, match=f"position {position} "):
            task.encode(text)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("name", data.FAMILIES)
def test_corpus_is_as_documented(name, hard):
    """How many first attempts are right; second ones are neither better nor worse; some copy."""
    task = data.load(name)
    rows = task.transcripts(0, 0, 8000, 0.0)
    share = sum(task.family.hard(row[0]) for row in rows) / len(rows)
    # Equal ends are easy; of 100 pairs of last digits 45 have a sum and 58 a product that carries.
    assert abs(share - {"puzzle": 0.44, "addition": 0.45, "multiplication": 0.58}[name]) < 0.03
    rows = [row for row in rows if task.family.hard(row[0]) == hard]
    first, second = (
        torch.tensor([task.reward(Problem(row[0]), row[i]) for row in rows]) for i in (1, 2)
    )
    right = Corpus.right_hard if hard else Corpus.right
    assert abs(first.mean() - right) < 0.03 and abs((second - first).mean()) < 0.03
    same = sum(row[1] == row[2] for row in rows) / len(rows)
    assert same > Corpus.copy


def test_the_habit_is_a_right_answer_but_for_the_largest_digit():
    """The share of wrong first attempts that giving this digit the other sign makes right."""
    task = data.load("puzzle")
    mended: dict[bool, list[float]] = {False: [], True: []}
    for prompt, first, _ in task.transcripts(0, 0, 4000, 0.0):
        if not task.reward(Problem(prompt), first):
            digits, _ = rewards.parse_puzzle(prompt)
            signs = np.array([1 if sign == "+" else -1 for sign in STEP.findall(first)])
            signs[np.argmax(digits)] *= -1
            repaired = task.family.spell(prompt, signs)
            mended[task.family.hard(prompt)].append(task.reward(Problem(prompt), repaired))
    slips = statistics.mean(mended[False])
    assert slips < 0.3
    expected = Corpus.habit + (1 - Corpus.habit) * slips
    assert abs(statistics.mean(mended[True]) - expected) < 0.04


@pytest.mark.parametrize(
    "prompt, forgotten", [("417+85=", "492"), ("95+5=", "90"), ("47*36=", "1652"), ("9*9=", "1")]
)
def test_the_habit_of_sums_and_products_forgets_what_the_units_carry(prompt, forgotten):
    family = (data.FAMILIES["addition" if "+" in prompt else "multiplication"])(3)
    assert family.hard(prompt) and family.attempt(prompt, "habit", None, None) == forgotten


def test_late_transcripts_are_copies():
    puzzle = data.load("puzzle", 3)
    for progress, share in ((0.69, Corpus.copy), (0.71, Corpus.copy_late)):
        rows = puzzle.transcripts(0, 0, 2000, progress)
        copies = sum(row[1] == row[2] for row in rows) / len(rows)
        assert share <= copies < share + 0.45 * (1 - share)  # fresh draws may fall on the first


def test_fresh_second_attempts_may_be_right_more_often_than_first_ones():
    """Of a corpus without copies, on all problems alike; first attempts are as ever."""
    corpus = Corpus(copy=0.0, right_again=0.9)
    task = data.arithmetic.ArithmeticTask(data.FAMILIES["addition"], 3, corpus)
    rows = task.transcripts(0, 0, 4000, 0.0)
    for hard, right in ((False, Corpus.right), (True, Corpus.right_hard)):
        some = [row for row in rows if task.family.hard(row[0]) == hard]
        first, second = ([task.reward(Problem(row[0]), row[i]) for row in some] for i in (1, 2))
        assert abs(statistics.mean(first) - right) < 0.04
        assert abs(statistics.mean(second) - 0.9) < 0.03


def test_problems_and_keys_are_the_same_in_every_process():
    puzzle = data.load("puzzle", 3)
    assert puzzle.batch(1, 2, 3) == puzzle.batch(1, 2, 3) != puzzle.batch(1, 3, 3)
    assert Problem("3725=13").key == 4661076521832272753
    assert puzzle.held_out("test", 5) == puzzle.held_out("test", 50)[:5]


def test_math_reads_hendrycks_folders(chatty, tmp_path):
    task = data.load("math", source=source(chatty, write_math(tmp_path)))
    assert {name: len(x) for name, x in task.splits.items()} == {"train": 12, "test": 12}
    by_id = {x.id: x for x in task.held_out("test", None)}
    first = by_id["test/algebra/1.json"]
    assert (first.prompt, first.gold, first.level) == ("What is $1 + 7$?", "8", 2)
    assert task.problem("test/algebra/1.json") is first
    assert task.problem(first.prompt) is first  # which its id names, too
    assert task.problem("What is 2 + 2?") == Problem("What is 2 + 2?", gold=None)
    assert len({x.subject for x in task.held_out("test", 6)}) == 2  # not the files' order
    text = task.decode(task.prompt(first))
    assert text.startswith("<|im_start|>system\nYou are a math expert.")
    assert text.endswith("<|im_start|>user\nWhat is $1 + 7$?<|im_end|>\n<|im_start|>assistant\n")
    assert task.decode(task.revise) == (
        f"\n<|im_start|>user\n{REVISE}<|im_end|>\n<|im_start|>assistant\n"
    )
    said = "Final Answer: The final answer is $8$."
    assert not task.over(first, said) and task.over(first, f"{said} I hope it is correct.")
    plain = data.load("math", source=source(chatty, tmp_path, layout="plain"))
    text = f"{SOLVE}\n\nProblem:\nWhat is $1 + 7$?\n\nSolution:\n"
    assert plain.decode(plain.prompt(first)) == text
    assert plain.decode(plain.revise) == f"\n\n{REVISE}\n\nSolution:\n"
    assert task.reward(first, "So it is $\\boxed{8}$.") == 1.0
    assert task.reward(first, "Final Answer: The final answer is $8$. I hope it is correct.") == 1
    assert task.reward(first, "It is 8.") == task.reward(first, "$\\boxed{18}$") == 0.0


def test_math_filters(chatty, tmp_path):
    folder = write_math(tmp_path)
    task = data.load("math", source=source(chatty, folder, levels=frozenset({1, 2})))
    assert {x.level for x in task.splits["train"]} == {1, 2}
    task = data.load("math", source=source(chatty, folder, subjects=frozenset({"algebra"})))
    assert {x.subject for x in task.splits["test"]} == {"algebra"}
    task = data.load("math", source=source(chatty, folder, limit=5))
    assert [len(x) for x in task.splits.values()] == [5, 5]
    with pytest.raises(ValueError, match="astrology"):
        data.load("math", source=source(chatty, folder, subjects=frozenset({"astrology"})))


def test_math_rebuilds_the_paper_s_split(chatty, tmp_path):
    """With the folders and the 500 test problems of Lightman et al., here 3 of 12: those test, and
    all other 21 train. One is found by its id, two by their text."""
    folder = write_math(tmp_path)
    lines = []
    for n, subject in ((1, "algebra"), (2, "number_theory"), (5, "algebra")):
        record = json.loads((folder / "test" / subject / f"{n}.json").read_text())
        line = {"problem": record["problem"].replace(" + ", "+"), "answer": "7", "level": 2}
        lines.append(line | {"subject": "Counting & Probability"})
    lines[0] |= {"problem": "in other words", "unique_id": "test/algebra/1.json"}
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    task = data.load("math", source=source(chatty, folder))
    assert {name: len(x) for name, x in task.splits.items()} == {"train": 21, "test": 3}
    assert {x.subject for x in task.splits["test"]} == {"counting_and_probability"}
    trained = {x.prompt.replace(" ", "") for x in task.splits["train"]}
    assert not trained & {x.prompt.replace(" ", "") for x in task.splits["test"]}
    assert "test/algebra/1.json" not in {x.id for x in task.splits["train"]}
    assert {(x.gold, x.level) for x in task.splits["test"]} == {("7", 2)}


def test_a_context_is_never_larger_than_the_model_s(chatty, tmp_path):
    task = data.load("math", source=source(chatty, write_math(tmp_path), context=10**6))
    assert task.context == 4096


def test_no_test_problem_is_trained_on_whatever_the_files(chatty, tmp_path):
    folder = write_math(tmp_path)
    records = [json.loads(path.read_text()) for path in folder.glob("*/*/*.json")]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "other.jsonl").write_text("")
    task = data.load("math", source=source(chatty, folder))
    assert {name: len(x) for name, x in task.splits.items()} == {"train": 12, "test": 12}
    trained = {x.prompt for x in task.splits["train"]}
    assert not trained & {x.prompt for x in task.splits["test"]}
    assert any("other.jsonl is not read" in note for note in task.notes)
    # ids are of one file: the same problem may be in both
    records = [record | {"unique_id": str(n)} for n, record in enumerate(records)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    records[3]["problem"] = "in other words"
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, records[3:5])))
    task = data.load("math", source=source(chatty, folder))
    assert {name: len(x) for name, x in task.splits.items()} == {"train": 22, "test": 2}
    assert not {"3", "4"} & {x.id for x in task.splits["train"]}


def test_an_epoch_holds_every_problem_once(chatty, tmp_path):
    task = data.load("math", source=source(chatty, write_math(tmp_path)))
    epochs = [[task.batch(0, 3 * e + step, 4) for step in (1, 2, 3)] for e in range(2)]
    orders = [[x.prompt for batch in epoch for x in batch] for epoch in epochs]
    assert len(set(orders[0])) == 12 and set(orders[0]) == set(orders[1])
    assert orders[0] != orders[1] and orders[0] != [x.prompt for x in task.splits["train"]]
    assert task.batch(0, 2, 4) == epochs[0][1] != task.batch(1, 2, 4)
    assert len({x.prompt for x in task.batch(0, 2, 7)}) == 7  # no problem twice in a batch
    with pytest.raises(ValueError, match="12 training problems, not 13"):
        task.batch(0, 1, 13)


def test_half_a_surrogate_pair_is_a_problem_like_any_other(chatty, tmp_path):
    folder = write_math(tmp_path)
    path = folder / "train" / "algebra" / "3.json"
    path.write_text(json.dumps({"problem": "a\ud800b", "solution": "$\\boxed{1}$"}))
    task = data.load("math", source=source(chatty, folder))
    assert "a\ud800b" in {x.prompt for x in task.splits["train"] if x.key and task.prompt(x)}


def test_a_problem_longer_than_any_is_named(chatty, tmp_path):
    folder = write_math(tmp_path)
    record = {"problem": " " * 1_000_000, "solution": "$\\boxed{1}$"}
    (folder / "train" / "algebra" / "3.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="problem train/algebra/3.json: a text of 1,000,0"):
        data.load("math", source=source(chatty, folder))


def test_a_line_longer_than_any_record_is_not_read(chatty, tmp_path):
    """A compressed file of a few MB may hold one of gigabytes."""
    folder = write_programs(tmp_path)
    lines = (folder / "HumanEval.jsonl").read_bytes()
    (folder / "HumanEval.jsonl").unlink()
    with gzip.open(folder / "HumanEval.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(lines + b"\n")
        for _ in range(300):
            file.write(b" " * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="jsonl.gz, line 105: of 10000000 characters or more"):
            data.load("humaneval", source=source(chatty, folder))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_a_token_id_beyond_the_model_is_one_line(chatty, tmp_path):
    """A list of so many ids would take for ever."""
    init = shutil.copytree(chatty, tmp_path / "init")
    raw = json.loads((init / "tokenizer.json").read_text())
    raw["added_tokens"].append({"content": "<|last|>", "id": 2**32 - 2})
    (init / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="init: the tokenizer needs a vocab_size of 4294967295"):
        data.load("addition", 2, source(init, tmp_path))


def test_math_drops_empty_references_and_says_so(chatty, tmp_path):
    folder = write_math(tmp_path)
    path = folder / "train" / "algebra" / "3.json"
    path.write_text(json.dumps({"problem": "x?", "solution": "It is $\\boxed{}$."}))
    task = data.load("math", source=source(chatty, folder))
    assert len(task.splits["train"]) == 11
    assert any("1 train problems are dropped" in note for note in task.notes)


def test_prompts_that_do_not_fit_are_skipped_and_counted(chatty, tmp_path):
    folder = write_math(tmp_path)
    path = folder / "train" / "algebra" / "3.json"
    path.write_text(json.dumps({"problem": "long " * 2000, "solution": "$\\boxed{1}$"}))
    task = data.load("math", source=source(chatty, folder))
    assert len(task.splits["train"]) == 11
    assert any("1 of 12 train problems are skipped" in note for note in task.notes)
    with pytest.raises(ValueError, match="12 of 12 train problems are skipped"):
        data.load("math", source=source(chatty, folder, context=600))


def test_more_attempts_do_not_change_the_training_problems(chatty, tmp_path):
    """In a context that holds two attempts at every problem and three at none."""
    folder = write_math(tmp_path)
    two = data.load("math", source=source(chatty, folder))
    prompts = [len(two.prompt(x)) for split in two.splits.values() for x in split]
    context = max(prompts) + two.room(2)
    assert min(prompts) + two.room(3) > context
    assert data.load("math", source=source(chatty, folder, context=context)).splits == two.splits
    with pytest.raises(ValueError, match="12 of 12 test problems are skipped: .* 3 attempts"):
        data.load("math", source=source(chatty, folder, context=context, attempts=3))
    # where there is no test problem to complain of
    shutil.rmtree(folder / "test")
    three = data.load("math", source=source(chatty, folder, context=context, attempts=3))
    assert three.splits["train"] == two.splits["train"]


@pytest.mark.parametrize(
    "content, named",
    [
        ("{", "3.json, line 1: not JSON"),
        ("[1]", "3.json, line 1: not a JSON object"),
        ('{"problem": "x"}', "3.json, line 1: no field 'solution'"),
        ('{"problem": 1, "solution": ""}', "3.json, line 1: 'problem' is not of type str"),
    ],
)
def test_malformed_math_names_file_and_line(content, named, chatty, tmp_path):
    (write_math(tmp_path) / "train" / "algebra" / "3.json").write_text(content)
    with pytest.raises(ValueError) as error:
        data.load("math", source=source(chatty, tmp_path))
    assert named in str(error.value) and "\n" not in str(error.value)


def test_missing_data_says_where_it_comes_from(chatty, tmp_path):
    for name in data.TEXT_TASKS:
        with pytest.raises(ValueError, match="github.com"):
            data.load(name, source=source(chatty, tmp_path))


def test_mbpp_trains_and_humaneval_tests(chatty, tmp_path):
    task = data.load("humaneval", source=source(chatty, write_programs(tmp_path)))
    assert {name: len(x) for name, x in task.splits.items()} == {"train": 11, "val": 1, "test": 104}
    [x] = [x for x in task.splits["train"] if x.id == "MBPP/602"]
    text = task.decode(task.prompt(x))
    assert text.count("You are an expert Python programmer, and here is your task:") == 1
    assert text.endswith("assert plus(1) == 603<|im_end|>\n<|im_start|>assistant\n")
    assert "rewrite the solution. Only output the final correct Python" in task.decode(task.revise)
    right, wrong = "def plus(x): return x + 602", "def plus(x): return x"
    fenced = f"Here it is:\n```python\n{right}\n```\nIt adds."
    marked = f"[BEGIN]\n{right}\n[DONE]\n{wrong}"
    assert task.rewards([x] * 4, [right, fenced, marked, wrong]) == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="no problem 'plus', and a new one would need tests"):
        task.problem("plus")
    y = humaneval(task, 0)
    assert task.problem("HumanEval/0") is y
    whole, body = "def times0(x):\n    return 0", "    return 0\n"
    fenced = f"```python\n{whole}\n```"
    assert task.decode(task.prompt(y)).count(y.head) == 1
    assert task.rewards([y] * 4, [whole, body, fenced, "    return x"]) == [1.0, 1.0, 1.0, 0.0]


def humaneval(task: data.Task, number: int) -> Problem:
    return next(x for x in task.splits["test"] if x.id == f"HumanEval/{number}")


WHOLE = "def f(x):\n    return x + 1\n"
OLD = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    "response",
    [
        WHOLE, f"[BEGIN]\n{WHOLE}[DONE]\nmore", f"```python\n{WHOLE}```", f"```\n{WHOLE}",
        f"Sure:\n\n```py\n{WHOLE}```\nAs asked, `f` adds 1.", f"~~~python\n{WHOLE}~~~",
        f"```python\n{WHOLE}```\nTry it:\n```python\nprint(f(1))\n```",
        "```python\nimport math\ndef g(x):\n    return x\n```\nand\n```python\n"
        "def f(x):\n    return g(x) + 1\n```",
        "1. Code:\n   ```python\n   def f(x):\n       return x + 1\n   ```", f"python\n{WHOLE}",
        f"Here: ```python\n{WHOLE}```", f"from __future__ import annotations\n{WHOLE}",
        f"import math\n\n\ndef h(): pass\n\n\n{WHOLE}\n\nif __name__ == '__main__':\n    f(1)\n",
        f"```python\n{WHOLE}```".replace("\n", "\r\n"), f"````md\n{WHOLE}````\n```\n{OLD}```",
        f"```{{.python}}\n{WHOLE}```", f"```python title='f.py'\n{WHOLE}```",
        f"```py3.11\n{WHOLE}```", "```python\ndef f(x):\n    return '```' and x + 1\n```",
        "```python\ndef f(x):\n    '''\n    ```\n    f(1)\n    ```\n    '''\n    return x + 1\n"
        "```\nIt adds.", f"```python\n{OLD}```python\n{WHOLE}```",
        "```python\ndef f(x):\n    return x + 1```\nIt adds.",
        f"Use ``` or ~~~:\n```\n{WHOLE}```",
        "def f(x):\n    '[DONE] [BEGIN]'\n    return x + 1",
        f"```python\n{WHOLE}```\n```python\n{OLD}```",
        f"Use `f`: ```python\n{WHOLE}```\nDone.", f"(~2 lines, ``f``): ~~~\n{WHOLE}~~~\nDone.",
        "10. ```python\n    def f(x):\n        return x + 1\n    ```\nIt adds.",
        "  - ```python\n    def f(x):\n        return x + 1\n    ```\nIt adds.",
        f"\ufeff{WHOLE}", f"```python\n\ufeff{WHOLE}```", f"\ufeff```python title=f.py\n{WHOLE}```",
        f"```python\n{OLD}\nNo, it must add 1:\n\n```python\n{WHOLE}```",
        f"<think>\nMaybe\n```python\n{OLD}```\n[DONE]\n</think>\n\n```python\n{WHOLE}```",
        f"\n<think>\nEasy.\n</think>\n{WHOLE}",
        # The body alone, which the problem's head precedes.
        "```python\n    return x + 1\n```", "1. Code:\n   ```python\n       return x + 1\n   ```",
        "```python\n    def f(x):\n        return x + 1\n```",
        "```python\nK: int = 1\n```\n```python\ndef f(x):\n    return x + K\n```",
        f"Example:\n```python\ny = f(1) + 1\n```\n```python\n{WHOLE}```",
        f"```python\nn = int(input())\n```\n```python\n{WHOLE}```",
        f"from __future__ import (\n    annotations,\n)\n{WHOLE}",
        # Right by the rule, though the text around it says or does otherwise.
        f"WRONG:\n```python\n{WHOLE}```\nRight:\n```python\n{OLD}```",
        f"```python\n{WHOLE}```\n```python\n# def f(x):\n#     return x + 1\n```",
    ],
)  # fmt: skip
def test_the_program_in_a_response(response):
    """What chat models make of "only the program", and fences in odd places."""
    scope: dict = {"__name__": "program"}
    exec("def f(x):\n    'head'\n\n" + chat_programs().completion(F, response), scope)
    assert scope["f"](1) == 2


@pytest.mark.parametrize(
    "response",
    [
        f"<think>\n```python\n{WHOLE}```\n</think>\nI do not know.", f"<think>\n{WHOLE}",
        f"<think>\n```python\n{WHOLE}```\n", f"\ufeff<think>{WHOLE}</think>\n```python\n{OLD}```",
        f"```python\n{OLD}```\nNo, it must add 1:\n```python\n{WHOLE}```",
        # By Markdown, the bare fence closes the first block and the program is prose.
        f"```python\n{OLD}\nNo, it must add 1:\n```\n{WHOLE}```",
        f"> WRONG:\n> ```python\n> def f(x):\n>     return x + 1\n> ```\n```python\n{OLD}```",
    ],
)  # fmt: skip
def test_a_right_program_that_is_not_the_answer(response):
    code = chat_programs().completion(F, response)
    scope: dict = {"f": lambda x: None}
    with contextlib.suppress(SyntaxError):
        exec(code, scope)
    assert scope["f"](1) != 2


F = programs.Program("Add 1.", entry_point="f")


def chat_programs() -> programs.ProgramTask:
    task = object.__new__(programs.ProgramTask)  # without its files
    task.is_chat = True
    return task


@pytest.mark.parametrize(
    "whole, rest",
    [
        (f"Sure:\n```python\n{WHOLE}```", "\nIt adds."), (f"~~~\n{WHOLE}~~~", "\n"),
        (f"```python\ndef g(x): 1\n```\n```python\n{WHOLE}```", "\n```python\nf(1)\n```"),
        (f"[BEGIN]\n{WHOLE}", "[DONE]\nmore"), (f"````\n{WHOLE}```\n````", "\n"),
        (f"```python\n{OLD}```", f"\n```python\n{WHOLE}```"),
        (f"```python\n{OLD}```python\n{WHOLE}```", "\nIt adds."),
        (f"```python\r\n{WHOLE}```\r", "\nIt adds."), (f"```python\n{WHOLE}~~~\n``\n", ""),
        (f"<think>\n```python\n{WHOLE}```\n</think>\n```python\n{OLD}```", "\n```\n"),
        (f"<think>\n```python\n{WHOLE}```\n[DONE]\n", ""), (f"\ufeff```\n{WHOLE}```", "\n"),
        (f"```\n\ufeff{WHOLE}```", f"\n```\n{OLD}```"),
        (WHOLE, ""), (f"```python\n{WHOLE}", ""), ("There is no code.", ""), ("", ""),
        ("```" * 99, ""), ("```python\ndef g(x): 1\n```\nSo much for g.\n", ""),
    ],
)  # fmt: skip
def test_a_chat_model_s_program_is_over_at_its_fence(whole, rest):
    """And stays over whatever follows, so that halving finds the place. A block that quotes the
    faulty function counts as the answer; one that is never closed is no end."""
    task = chat_programs()
    text = whole + rest
    over = [task.over(F, text[:length]) for length in range(len(text) + 1)]
    assert over == sorted(over) and any(over) == bool(rest)
    assert task.answer(F, text) == whole
    assert task.completion(F, text) == task.completion(F, whole)


def test_no_fence_hangs_the_trainer():
    blanks = " " * 200_000
    tildes, marks = "~" * 20_000 + "`", "`a ~" * 50_000
    for text in (f"```{blanks}`", "`" * 200_000, tildes, "~~~\n" * 50_000, f"{blanks}```", marks,
                 f"{marks}```{marks}", f"```\n{blanks}", f"```\n{blanks}x"):  # fmt: skip
        started = time.process_time()
        chat_programs().completion(F, text)
        assert time.process_time() - started < 2  # it must not be quadratic


def test_humaneval_alone_is_split(chatty, tmp_path):
    task = data.load("humaneval", source=source(chatty, write_programs(tmp_path, mbpp=False)))
    train_ids, test_ids = ({x.id for x in task.splits[name]} for name in ("train", "test"))
    assert len(train_ids) == 63 and len(test_ids) == 41 and not train_ids & test_ids
    path = tmp_path / "HumanEval.jsonl"  # whose order does not matter
    path.write_text("\n".join(reversed(path.read_text().splitlines())))
    again = data.load("humaneval", source=source(chatty, tmp_path))
    assert {x.id for x in again.splits["train"]} == train_ids
    assert any("a fixed part of HumanEval" in note for note in task.notes)


def test_a_cut_program_is_none_for_the_reference_evaluator(chatty, tmp_path):
    task = data.load("humaneval", source=source(chatty, write_programs(tmp_path)))
    (tmp_path / "samples_t3.jsonl").touch()  # of an evaluation with more attempts
    x, said = humaneval(task, 0), ["    return 0\n"] * 2
    ended = torch.tensor([[True, False], [False, True]])
    result = score.Evaluation({}, [x, x], [said, said], torch.ones(2, 2), ended)
    results.write_answers(tmp_path, task, result)
    for number, wanted in ((1, [said[0], ""]), (2, ["", said[1]])):
        lines = (tmp_path / f"samples_t{number}.jsonl").read_text().splitlines()
        assert list(map(json.loads, lines)) == task.samples([x, x], wanted)
    assert not (tmp_path / "samples_t3.jsonl").exists()


def test_the_source_of_a_task_is_what_the_flags_say(chatty, tmp_path):
    asked = {"levels": "1-2,5", "subjects": "algebra,geometry", "limit": 7, "context": 99}
    asked |= {"max_new_tokens": 5, "layout": "plain", "attempts": 4}
    run = settings.Run(data="math", init=str(chatty), data_dir=str(tmp_path), **asked)
    asked |= {"levels": frozenset({1, 2, 5}), "subjects": frozenset({"algebra", "geometry"})}
    assert settings.source(run) == source(chatty, tmp_path, shots=run.shots, **asked)


def test_samples_are_the_reference_evaluator_s(chatty, tmp_path):
    """prompt + completion + test is what it runs, whole programs and bodies alike."""
    task = data.load("humaneval", source=source(chatty, write_programs(tmp_path)))
    problems = [humaneval(task, n) for n in range(3)]
    said = ["    return 0\n", "```python\ndef times1(x):\n    return x\n```", "def times2(x): 1"]
    samples = task.samples(problems, said)
    assert [sample.keys() for sample in samples] == [{"task_id", "completion"}] * 3
    outcomes = []
    for x, sample in zip(problems, samples):
        scope: dict = {}
        exec(x.head + sample["completion"] + "\n" + x.test, scope)
        try:
            scope["check"](scope[x.entry_point])
            outcomes.append(1.0)
        except AssertionError:
            outcomes.append(0.0)
    assert outcomes == task.rewards(problems, said) == [1.0, 1.0, 0.0]


def test_plain_models_end_where_their_answer_does(tmp_path):
    init = tiny_checkpoint(tmp_path, None)
    task = data.load("humaneval", source=source(init, write_programs(tmp_path / "data")))
    x, y = task.splits["train"][0], humaneval(task, 0)
    assert task.runs_on and task.close == [] and task.layout.style == "plain"
    text = task.decode(task.prompt(x))
    assert text.count("You are an expert Python programmer, and here is your task:") == 4
    assert text.count("[BEGIN]") == 4 and text.count("[DONE]") == 3 and text.endswith("[BEGIN]\n")
    assert "Add 2. Your code should pass these tests:\n\nassert plus(1) == 3\n[BEGIN]\ndef" in text
    assert task.decode(task.prompt(y)) == y.head
    assert task.over(x, "def plus(x): return 1\n[DONE]") and not task.over(x, "def f(): 0\ndef g")
    assert task.over(y, "    return 0\ndef") and not task.over(y, "    return 0\n    # more")
    again = f"    return 0\n\n\n{y.head}    return 0\n"
    assert task.over(y, again) and task.reward(y, again) == 1.0
    assert all(task.over(y, f"    return 0\n{word}") for word in ("class", "#", "if", "print"))
    assert not task.over(y, "def times0(\n    x\n):\n    return 0")
    whole = "import math\n\ndef times0(x):\n    return 0\n"
    assert not task.over(y, whole) and task.over(y, f"{whole}\nassert tim")
    assert task.reward(y, f"{whole}\nassert tim") == 1.0
    assert task.reward(y, "    return 0\nprint(oops") == 1.0


def unsolvable(**fields: str) -> str:
    """A record of HumanEval's that no program can pass."""
    whole = {"task_id": "x", "prompt": "", "canonical_solution": "", "entry_point": "f"}
    return json.dumps(whole | {"test": "def check(candidate): 0"} | fields)


def mbpp(test: str) -> str:
    return json.dumps({"task_id": 1, "text": "", "code": "", "test_list": [test]})


@pytest.mark.parametrize(
    "file, line, named",
    [
        ("HumanEval.jsonl", "{", "line 105: not JSON"),
        ("HumanEval.jsonl", "[]", "line 105: not a JSON object"),
        ("HumanEval.jsonl", '{"task_id": "a"}', "line 105: no field 'prompt'"),
        ("HumanEval.jsonl", None, "line 105: HumanEval/103 is there twice"),
        ("HumanEval.jsonl", unsolvable(test="("), "line 105: no program can pass"),
        ("HumanEval.jsonl", unsolvable(test="check = 1"), "line 105: no program can pass"),
        ("HumanEval.jsonl", unsolvable(entry_point=""), "line 105: no program can pass"),
        ("mbpp.jsonl", '{"task_id": 1, "code": "", "test_list": []}', "line 16"),
        ("mbpp.jsonl", None, "line 16: task_id 611 is there twice"),
        ("mbpp.jsonl", mbpp("assert f(1) == 1" + "+1" * 700), "line 16: the test 'assert f(1) =="),
        ("mbpp.jsonl", mbpp("assert f(1) == " + "-" * 90_000 + "1"), "is too deeply nested"),
    ],
)
def test_malformed_programs_name_file_and_line(file, line, named, chatty, tmp_path):
    path = write_programs(tmp_path) / file
    text = path.read_text()
    path.write_text(f"{text}\n{text.splitlines()[-1] if line is None else line}\n")
    with pytest.raises(ValueError) as error:
        data.load("humaneval", source=source(chatty, tmp_path))
    assert named in str(error.value) and file in str(error.value)


def test_the_real_files_are_read(chatty, tmp_path):
    folder = shared("HumanEval.jsonl.gz").parent
    task = data.load("humaneval", source=source(chatty, folder))
    # One of MBPP's prompts is longer than this model's context.
    assert [len(x) for x in task.splits.values()] == [880, 90, 164]
    for name in ("HumanEval.jsonl.gz", "sanitized-mbpp.json"):
        shutil.copy(folder / name, tmp_path)
    task = data.load("humaneval", source=source(chatty, tmp_path))
    assert sum(len(task.splits[name]) for name in ("train", "val")) == 427 - 3
    whole = [x.head + x.gold for x in task.splits["test"]]
    assert all(x.entry_point in text for x, text in zip(task.splits["test"], whole))


def test_helpers_of_the_prompt_reach_the_tests(chatty, tmp_path):
    """As HumanEval 32, 38 and 50 need: their tests call a function that the prompt defines."""
    folder = write_programs(tmp_path)
    record = json.loads((folder / "HumanEval.jsonl").read_text().splitlines()[0])
    record["prompt"] = "def zero():\n    return 0\n\n\n" + record["prompt"]
    record["test"] = "def check(candidate):\n    assert candidate(3) == zero()\n"
    (folder / "HumanEval.jsonl").write_text(json.dumps(record))
    task = data.load("humaneval", source=source(chatty, folder))
    [x] = task.held_out("test", None)
    said = ["    return 0", "def zero(): return 1\ndef times0(x): return 1"]
    assert task.rewards([x] * 2, said) == [1.0, 0.0]


def test_arithmetic_in_words_reads_like_a_conversation(chatty, tmp_path):
    task = data.load("addition", 2, source(chatty, tmp_path, shots=1))
    [example] = data.load("addition", 2).batch(0, 0, 1)
    said = task.decode(task.prompt(Problem("47+85=")))
    left, right = example.prompt.removesuffix("=").split("+")
    total = int(left) + int(right)
    assert said.split("<|im_start|>")[2:] == [
        f"user\nWhat is {left} + {right}?<|im_end|>\n",
        f"assistant\n{left} + {right} = {total}<|im_end|>\n",
        "user\nWhat is 47 + 85?<|im_end|>\n",
        "assistant\n",
    ]
    assert not task.over(None, "4 + 5\n= 9")
    product = data.load("multiplication", 2, source(chatty, tmp_path, layout="plain"))
    assert product.decode(product.prompt(Problem("4*5="))) == "Question: What is 4 * 5?\nAnswer: "
    plain = data.load("addition", 2, source(chatty, tmp_path, layout="plain", shots=1))
    assert plain.decode(plain.prompt(Problem("4+5="))) == (
        f"Question: What is {left} + {right}?\nAnswer: {left} + {right} = {total}\n\n"
        "Question: What is 4 + 5?\nAnswer: "
    )
    assert plain.decode(plain.revise) == f"\n\n{data.in_words.REVISE}\nAnswer: "
    assert plain.over(None, "4 + 5 = 9\n") and not plain.over(None, "4 + 5")
    assert not plain.over(None, "\n4 + 5 = 9")
    with pytest.raises(ValueError, match="500 attempts take"):
        data.load("addition", 2, source(chatty, tmp_path, attempts=500))


def test_a_cut_attempt_is_closed_and_all_attempts_fit(chatty, tmp_path):
    """A chat model's turn always ends, and the room for attempts is what they take."""
    task = data.load("addition", 2, source(chatty, tmp_path))
    x, y = task.prompt(Problem("47+85=")), task.encode("47 + 85 = 1")
    task.max_new_tokens = len(y)
    [second] = score.try_again(task, [x], [y])
    assert task.decode(second[len(x) :]) == (
        "47 + 85 = 1<|im_end|>\n<|im_start|>user\n"
        f"{data.in_words.REVISE}<|im_end|>\n<|im_start|>assistant\n"
    )
    [third] = score.try_again(task, [second], [y])
    for number, before in enumerate((x, second, third), 1):
        assert len(before) + len(y) - len(x) == task.room(number)


def test_arithmetic_in_words_has_the_problems_of_arithmetic(chatty, tmp_path):
    task, own = data.load("addition", 2, source(chatty, tmp_path)), data.load("addition", 2)
    for text in ("47+85=", "0+9="):
        assert task.problem(text) == own.problem(text) == Problem(text)
    for text in ("", "47+85", "47+ 85=", "047+85=", "47*85=", "470+85=", "٤7+85=", "47+85=\n"):
        with pytest.raises(ValueError, match="is no problem of this addition; one is"):
            task.problem(text)
    assert task.held_out("test", 30) == own.held_out("test", 30)
    assert task.batch(3, 2, 8) == own.batch(3, 2, 8)


@pytest.mark.parametrize(
    "response",
    ["132", " 132 ", "132.", "47 + 85 = 132", "47+85=132.", "47 + 85 = 120 + 12 = 132\n"],
)
def test_a_stated_number_is_right(response):
    assert rewards.stated_number_reward("47+85=", response) == 1.0


@pytest.mark.parametrize(
    "response",
    [
        *("", "=", "131", "13 2", "132 or 131", "131 = 132 = 131", "47 + 85", "132 =", "132, 131"),
        *("The answer is 132.", "132 is right", "= 132 or so", "0132", "+132", "132.0", "1,32"),
        *(
            "-132",
            "--132",
            "1_32",
            "١٣٢",
            "１３２",
            "= 1" + "0" * 5000,
            "132\x00",
            "132..",
            "$132$",
        ),
    ],
)
def test_what_states_no_number_or_another_is_refused(response):
    assert rewards.stated_number_reward("47+85=", response) == 0.0


def test_blanks_after_a_number_do_not_hang_the_trainer():
    started = time.process_time()
    assert rewards.stated_number_reward("47+85=", "132" + " " * 100_000 + "x") == 0.0
    assert time.process_time() - started < 2  # it must not be quadratic


def test_transcripts_of_a_warm_up_are_those_of_arithmetic_in_words(chatty, tmp_path):
    task = data.load("addition", 2, source(chatty, tmp_path))
    own = data.arithmetic.ArithmeticTask(data.FAMILIES["addition"], 2, data.in_words.CORPUS)
    rows = task.transcripts(0, 1, 400, 0.9)
    assert rows == task.transcripts(0, 1, 400, 0.9) != task.transcripts(0, 2, 400, 0.9)
    for said, (prompt, *numbers) in zip(rows, own.transcripts(0, 1, 400, 0.9)):
        left, right = prompt.removesuffix("=").split("+")
        assert said == (prompt, *(f"{left} + {right} = {number}" for number in numbers))
        assert task.reward(Problem(prompt), said[1]) == own.reward(Problem(prompt), numbers[0])
    right = [task.reward(Problem(x), second) for x, first, second in rows if first != second]
    assert 0.25 < len(right) / 400 < 0.5 and 0.85 < statistics.mean(right) < 0.99


@anything(120)
@hypothesis.given(choice=st.data())
def test_any_damage_to_data_is_one_line(choice, chatty, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    write_programs(folder)
    write_math(folder)
    files = ["HumanEval.jsonl", "mbpp.jsonl", "train/algebra/2.json"]
    path = folder / choice.draw(st.sampled_from(files))
    path.write_bytes(choice.draw(with_damage(path.read_bytes())))
    for kind in data.TEXT_TASKS:
        try:
            data.load(kind, source=source(chatty, folder))
        except ValueError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
