"""What README.md and docs/ show is there and works: the example task, code, commands, links."""

import ast
import inspect
import itertools
import json
import pathlib
import re
import runpy
import shlex
import sys

import pytest

import data
import score
import train
from training.flags import parse

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_example_task_trains_and_evaluates_as_a_program(chatty, tmp_path, monkeypatch):
    """docs/words.py, run as its page says; and its verifier is strict."""
    monkeypatch.setattr(data, "OPEN", dict(data.OPEN))
    lines = [json.dumps({"question": f"Capital of {n}?", "answer": f"City{n}"}) for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:4]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[4:]))
    flags = f"--data words --data-dir {tmp_path} --init {chatty} --out {tmp_path} --device cpu"
    flags += " --problems 2 --samples 2 --revisions 2 --steps 1"
    monkeypatch.setattr(sys, "argv", ["words.py", "--stage", "1", *flags.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "words.py"), run_name="__main__")
    assert ended.value.code == 0
    results = json.loads((tmp_path / "words" / "stage1" / "results.json").read_text())
    assert (results["n"], results["config"]["lr"]) == (4, 5e-6)
    task = data.OPEN["words"](data.Source(tmp_path, chatty))
    [problem] = [x for x in task.held_out("test", None) if x.gold == "City5"]
    right, wrong = ["City5", " city5.\n"], ["", "City", "City5 or City6", "It is City5", "City5!"]
    assert [task.reward(problem, text) for text in right + wrong] == [1, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="no problem 'x', for none has an id"):
        task.problem("x")
    (tmp_path / "test.jsonl").write_text('{"question": "Capital of 8?"}')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: no field 'answer'"):
        data.OPEN["words"](data.Source(tmp_path, chatty))


def test_the_readme_s_code_is_that_of_the_algorithm():
    """Word for word, but for type annotations and the docstring."""
    [code] = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.DOTALL)
    [shown], [real] = ast.parse(code).body, ast.parse(inspect.getsource(score.stage2_returns)).body
    assert ast.get_docstring(real) is not None
    real.body = real.body[1:]
    for argument in real.args.args:
        argument.annotation = None
    assert ast.unparse(shown) == ast.unparse(real)


@every_page
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inside = [target for target in targets if "://" not in target]
    assert inside
    for file, _, part in (target.partition("#") for target in inside):
        target = page.parent / file if file else page
        assert target.exists(), target
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE) if part else []
        assert not part or part in [
            re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings
        ]


def commands(page: pathlib.Path) -> list[list[str]]:
    """Every command on a page that runs one of our programs: the program and its flags."""
    text = page.read_text()
    fences = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    lines = [line for fence in fences for line in fence.splitlines()]
    lines += re.findall(r"`((?:python|torchrun) [^`]+)`", text)
    found = []
    for words in (shlex.split(line, comments=True) for line in lines):
        for n, word in enumerate(words):
            if word.endswith(".py") and words[0] != "cp":
                found.append(list(itertools.takewhile(lambda word: word != "&&", words[n:])))
    return found


def test_commands_are_those_that_a_reader_sees():
    found = commands(PAGES[0])
    for text in (
        "train.py --stage 1",
        "train.py --ask out/puzzle/stage2 191591=08",
        "train.py --stage 0 --task addition --difficulty 2 --init SmolLM2-135M-Instruct "
        "--dtype bfloat16",
        "experiments/compare.py --quick",
    ):
        assert text.split() in found


@every_page
def test_commands_are_accepted(page):
    """Of train.py, which the example task is too, every flag; other programs exist."""
    for program, *flags in commands(page):
        if program not in ("train.py", "words.py"):
            assert (ROOT / program).is_file(), program
        elif flags != ["--help"]:
            parse(flags, train.STAGES, train.__doc__)
