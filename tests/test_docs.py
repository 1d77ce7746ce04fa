"""What README.md and docs/ show is there and works: the example task, code, commands, links."""

import ast
import inspect
import itertools
import json
import pathlib
import re
import shlex
import sys

import pytest
import torch
import transcripts

import data
import score
import train
from tests.helpers import ROOT
from training import settings
from training.flags import parse

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


WORDS = str(ROOT / "docs" / "words.py")


@pytest.fixture
def words(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder with files for docs/words.py, which is forgotten after the test."""
    monkeypatch.setattr(data, "TEXT_TASKS", dict(data.TEXT_TASKS))
    lines = [json.dumps({"question": f"Capital of {n}?", "answer": f"City{n}"}) for n in range(8)]
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:4]))
    (tmp_path / "test.jsonl").write_text("\n".join(lines[4:]))
    return tmp_path


def test_the_example_task_is_known_to_every_program(chatty, words, monkeypatch, capsys):
    """docs/words.py, given as a file: trained, evaluated, asked, exported, and shown on a page."""
    flags = ["--data", WORDS, "--data-dir", words, "--init", chatty, "--out", words]
    flags += "--device cpu --problems 2 --samples 2 --revisions 2 --steps 1".split()
    assert train.main(["--stage", "1", *map(str, flags)]) == 0
    folder = words / "words" / "stage1"
    results = json.loads((folder / "results.json").read_text())
    found = [results["n"], *(results["config"][name] for name in ("lr", "beta2", "data"))]
    assert found == [4, 5e-6, 2.0, "words"]
    capsys.readouterr()
    questions = ["Capital of 5?", "What is the capital of Greece?"]
    on_cpu = ["--data", WORDS, "--device", "cpu"]
    assert train.main(["--ask", str(folder), *questions, *on_cpu]) == 0
    known, new = capsys.readouterr().out.split(questions[1])
    assert known.count("wrong") == 2 and "graded" not in known
    assert new.count("not graded") == 2 and "wrong" not in new
    assert train.main(["--export", str(folder), "--data", WORDS]) == 0
    page = ["transcripts.py", str(folder), "--problems", "4", *on_cpu]
    monkeypatch.setattr(sys, "argv", page)
    transcripts.main()
    assert "Capital of 5?" in (folder / "transcripts.html").read_text()


def test_quick_is_quick_with_a_task_of_one_s_own(words):
    """Which has defaults of its own."""
    name = data.kind(WORDS)
    assert train.STAGES[1].defaults(name)["steps"] == data.TEXT_TASKS[name].defaults["steps"]
    assert [stage.defaults(name)["steps"] for stage in train.QUICK_STAGES] == [20] * 3


def test_the_sandbox_is_asked_before_any_programs_run(chatty, words, monkeypatch):
    """Also for a task of one's own whose answers are programs."""
    asked = []
    monkeypatch.setattr(train.rewards, "sandbox_status", lambda unsafe: asked.append(unsafe) or "")
    monkeypatch.setattr(data.ProgramTask, "__init__", lambda task, source: None)
    monkeypatch.setattr(data.ProgramTask, "notes", [], raising=False)
    (words / "own.py").write_text(
        "from data import ProgramTask\n\n\nclass Own(ProgramTask):\n    name = 'own'\n"
    )
    name = data.kind(str(words / "own.py"))
    train.load_task(
        settings.Run(data=name, init=str(chatty), data_dir=str(words), unsafe_sandbox=True)
    )
    assert asked == [True]


def test_a_task_of_one_s_own_is_run_only_where_its_file_is_given(chatty, words, capsys):
    """Not what a checkpoint's settings name, be it a task or a file."""
    flags = ["--data", WORDS, "--data-dir", words, "--init", chatty, "--out", words]
    flags += "--device cpu --problems 2 --samples 2 --revisions 2 --steps 1".split()
    assert train.main(["--stage", "1", *map(str, flags)]) == 0
    folder, trap = words / "words" / "stage1", words / "trap.py"
    trap.write_text(f"import pathlib; pathlib.Path({str(words / 'sprung')!r}).touch()")
    del data.TEXT_TASKS["words"]
    state = torch.load(folder / "state.pt", weights_only=True)
    for named in ("words", str(trap)):
        state["settings"]["data"] = named
        torch.save(state, folder / "state.pt")
        capsys.readouterr()
        assert train.main(["--eval", str(folder)]) == 2
        assert "a task of your own needs --data FILE.py" in capsys.readouterr().err
    assert not (words / "sprung").exists()
    with pytest.raises(ValueError, match="must define a task"):
        data.kind(str(trap))
    assert (words / "sprung").exists()


def test_the_example_s_verifier_is_strict_and_its_files_are_checked(chatty, words):
    assert data.kind(WORDS) == "words"
    task = data.load("words", source=data.Source(words, chatty))
    problem = task.problem("Capital of 5?")
    right, wrong = ["City5", " city5.\n"], ["", "City", "City5 or City6", "It is City5", "City5!"]
    assert [task.reward(problem, text) for text in right + wrong] == [1, 1, 0, 0, 0, 0, 0]
    new = task.problem("")
    assert (new.gold, task.rewards([problem, new], ["City5", "City5"])) == (None, [1, 0])
    (words / "test.jsonl").write_text('{"question": "Capital of 8?"}')
    with pytest.raises(ValueError, match=r"test\.jsonl, line 1: no field 'answer'"):
        data.load("words", source=data.Source(words, chatty))


def test_test_problems_that_are_trained_on_are_counted(chatty, words):
    data.kind(WORDS)
    assert "train problems, too" not in str(
        data.load("words", source=data.Source(words, chatty)).notes
    )
    with (words / "test.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"question": "Capital of 0?", "answer": "City0"}))
    task = data.load("words", source=data.Source(words, chatty))
    assert "1 test problems are train problems, too" in task.notes


def test_a_task_may_import_what_lies_beside_it(words, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (words / "beside_it.py").write_text("NAME = 'mine'")
    text = pathlib.Path(WORDS).read_text().replace('name = "words"', "name = beside_it.NAME")
    (words / "mine.py").write_text(
        text.replace("from data import", "import beside_it\nfrom data import")
    )
    assert data.kind(str(words / "mine.py")) == "mine"


@pytest.mark.parametrize("name", ["math", "puzzle", "../words", ""])
def test_names_of_tasks_are_new_and_those_of_folders(name, words):
    file = words / "mine.py"
    file.write_text(pathlib.Path(WORDS).read_text().replace('name = "words"', f"name = {name!r}"))
    with pytest.raises(ValueError, match=r"mine\.py must define a task: .* with a new name"):
        data.kind(str(file))


def test_defaults_of_a_task_are_in_help_and_spelt_right(words, capsys):
    with pytest.raises(SystemExit):
        train.main(["--data", WORDS, "--help"])
    assert "humaneval 750; words 100]" in " ".join(capsys.readouterr().out.split())
    assert parse(["--stage", "2", "--data", WORDS], train.STAGES, "")[1] == {"data": "words"}
    run, cfg = settings.resolve(train.STAGES[2], {"data": "words"})
    assert (run.steps, cfg.beta2, run.lr, run.context) == (100, 2.0, 5e-6, 3072)
    data.TEXT_TASKS["words"].defaults = {"step": 100}
    with pytest.raises(ValueError, match="words has a default for step, which is no setting"):
        settings.resolve(train.STAGES[2], {"data": "words"})


def test_missing_files_of_a_task_are_named(chatty, words, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = ["--eval", str(words / "base"), "--data", WORDS, "--init", str(chatty), "--data-dir"]
    for folder, named in (
        ("nowhere", "--data-dir nowhere: no such folder"),
        ("docs", "docs/train"),
    ):
        assert train.main([*command, str(folder)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert named in line
    assert train.main([*command[:3], "nowhere.py", *command[4:], "docs"]) == 2
    assert "nowhere.py" in capsys.readouterr().err


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
            if word.endswith(".py") and words[n - 1] != "--data":
                found.append(list(itertools.takewhile(lambda word: word != "&&", words[n:])))
    return found


def test_commands_are_those_that_a_reader_sees():
    found = commands(PAGES[0])
    for text in (
        "train.py --stage 1",
        "train.py --ask out/puzzle/stage2 612217=01",
        "train.py --stage 0 --task addition --difficulty 2 --init SmolLM2-135M-Instruct",
        "experiments/compare.py --quick",
    ):
        assert text.split() in found


@every_page
def test_commands_are_accepted(page, monkeypatch):
    """Every flag of train.py; other programs exist."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(data, "TEXT_TASKS", dict(data.TEXT_TASKS))
    for program, *flags in commands(page):
        if program != "train.py":
            assert (ROOT / program).is_file(), program
        elif "--help" not in flags:
            parse(flags, train.STAGES, train.__doc__)
