"""Pretrained models from the command line: both stages, warm-up, export, bad flags."""

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import data
import score
import train
from data import Problem
from model import GPT
from pretrained.tokenizer import load_tokenizer
from test_score import odd_start, plain_scores
from tests.helpers import (
    CHAT_TEMPLATES,
    same,
    same_weights,
    source,
    tiny_checkpoint,
    weights,
    without_bytes,
    write_math,
    write_programs,
)
from training import settings


def test_the_paper_s_settings_are_the_defaults():
    known = {"data": "math", "init": "model"}
    for stage in train.STAGES[1:]:
        run, cfg = settings.resolve(stage, known)
        assert (run.lr, run.steps) == (5e-6, 1500)
        assert (cfg.beta1, cfg.beta2, cfg.alpha) == (0.01, 0.1, 10)
    run, cfg = settings.resolve(train.STAGES[1], known | {"data": "humaneval"})
    assert (run.lr, run.steps, cfg.beta1, cfg.beta2) == (1e-5, 750, 0.01, 0.25)
    assert settings.resolve(train.STAGES[2], {})[1].beta1 == 0.02


OPEN_FLAGS = "--steps 2 --problems 2 --samples 2 --revisions 2 --max-new-tokens 8 --device cpu"


@pytest.mark.parametrize("template", ["chatml", None])
@pytest.mark.parametrize("name", data.TEXT_TASKS)
def test_both_stages_run_on_an_open_model(name, template, tmp_path, capsys, monkeypatch):
    """From a tiny random checkpoint through both stages, evaluation and export, offline. A random
    model is never right, so half of all answers are called so, or nothing would be learnt."""
    monkeypatch.setattr(score, "grade", odd_start)
    init = tmp_path / "init"
    init.mkdir()
    tiny_checkpoint(init, template)
    folder = tmp_path / "data"
    write_math(folder) if name == "math" else write_programs(folder)
    out = tmp_path / "out"

    def command(*args: object, flags: str = OPEN_FLAGS) -> int:
        return train.main([str(arg) for arg in args] + flags.split())

    source_flags = ["--data", name, "--init", init, "--data-dir", folder, "--out", out]
    for stage in (1, 2):
        assert command("--stage", stage, *source_flags, "--eval-problems", 4, "--micro", 1) == 0
    printed = capsys.readouterr().out
    assert f"base: using {init}" in printed and "Stage I: using" in printed
    for number, stage in enumerate(("base", "stage1", "stage2")):
        results = json.loads((out / name / stage / "results.json").read_text())
        assert results["stage"] == number and results["skipped"] == 0
        assert results["data"] == results["task"] == name and results["n"] == 4
        assert 0 <= results["truncated"] <= 1
        samples = sorted((out / name / stage).glob("samples_t*.jsonl"))
        assert len(samples) == (2 if name == "humaneval" else 0)
        assert all(len(path.read_text().splitlines()) == 4 for path in samples)
    assert not (out / name / "base" / "model.pt").exists()
    # the stage's folder alone says what it was trained on
    assert command("--eval", out / name / "stage2", flags="--eval-problems 3 --device cpu") == 0
    assert command("--eval", out / name / "base", flags="--eval-problems 3 --device cpu") == 0
    assert command("--stage", 2, *source_flags, flags=OPEN_FLAGS + " --limit 3") == 2
    assert "stage1 was made with limit None" in capsys.readouterr().err
    assert command("--export", out / name / "stage2", flags="") == 0
    exported = GPT.from_pretrained(out / name / "stage2" / "pretrained")
    tokens = torch.tensor([[1, 2, 3]])
    trained = train.checkpoints.load_model(
        out / name / "stage2", data.load(name, source=source(init, folder)), torch.device("cpu")
    )
    assert torch.equal(exported(tokens), trained(tokens))
    assert not torch.equal(exported(tokens), GPT.from_pretrained(init)(tokens))
    ends = json.loads((out / name / "stage2" / "pretrained" / "config.json").read_text())
    assert ends["eos_token_id"] == 7
    assert load_tokenizer(out / name / "stage2" / "pretrained").chat == (
        CHAT_TEMPLATES[template] if template else ""
    )


def test_an_open_model_killed_and_resumed_equals_uninterrupted(chatty, tmp_path, monkeypatch):
    """Also with gradients of more problems at a time, and when evaluated on more attempts."""
    monkeypatch.setattr(score, "grade", odd_start)
    folder, advance = write_math(tmp_path / "data"), train.Trainer.advance

    def command(out: str, *more: str) -> int:
        flags = f"--stage 1 --data math --init {chatty} --data-dir {folder} --out {tmp_path / out}"
        settings = "--problems 2 --samples 2 --revisions 2 --max-new-tokens 8 --device cpu"
        return train.main([*flags.split(), *settings.split(), "--steps", "4", *more])

    def interrupted(trainer: train.Trainer) -> dict:
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(trainer)

    assert command("whole", "--micro", "1") == 0
    monkeypatch.setattr(train.Trainer, "advance", interrupted)
    assert command("halves", "--micro", "1") == 130
    monkeypatch.setattr(train.Trainer, "advance", advance)
    assert command("halves", "--micro", "1", "--resume", "--attempts", "3") == 0
    one, other = (tmp_path / out / "math" / "stage1" / "model.pt" for out in ("whole", "halves"))
    assert same_weights(one, other)
    assert not same(weights(one), GPT.from_pretrained(chatty).state_dict())


def test_arithmetic_is_learned_by_an_open_model(chatty, tmp_path, capsys):
    """Both stages, from the command line; the second knows the model and the examples."""
    flags = ["--data", "arithmetic", "--task", "addition", "--difficulty", "2", "--steps", "1"]
    flags += ["--problems", "2", "--samples", "2", "--revisions", "2", "--eval-problems", "4"]
    flags += ["--max-new-tokens", "6", "--device", "cpu", "--out", str(tmp_path)]
    assert train.main(["--stage", "1", "--init", str(chatty), "--shots", "1", *flags]) == 0
    assert train.main(["--stage", "2", *flags]) == 0
    results = json.loads((tmp_path / "addition" / "stage2" / "results.json").read_text())
    assert (results["config"]["shots"], results["config"]["lr"]) == (1, 5e-6)
    assert results["config"]["init"] == str(chatty) and results["n"] == 4
    capsys.readouterr()
    assert train.main(["--stage", "2", "--shots", "3", *flags]) == 2
    assert "made with shots 1, not 3" in capsys.readouterr().err


def test_an_open_model_is_warmed_up(chatty, tmp_path, capsys):
    """Stage 0 trains it on transcripts; it is then the base and the reference of the stages."""
    flags = ["--task", "addition", "--difficulty", "2", "--max-new-tokens", "6", "--device", "cpu"]
    flags += ["--eval-problems", "4", "--out", str(tmp_path), "--init", str(chatty)]
    stage1 = ["--stage", "1", "--steps", "1", "--problems", "2", "--samples", "2", *flags]
    folder = tmp_path / "addition"
    stage0 = ["--stage", "0", "--steps", "3", "--transcripts", "4", *flags]
    assert train.main(stage1) == 0
    assert not (folder / "base" / "model.pt").exists()
    assert train.main(stage0) == 2  # Stage I would go on from a base that it did not start from
    assert f"{folder}/stage1 did not start from the base model" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert train.main(stage0) == 0
    trained = weights(folder / "base" / "model.pt")
    assert not same(trained, GPT.from_pretrained(chatty).state_dict())
    capsys.readouterr()
    assert train.main(stage1) == 0
    assert "base: using" in (said := capsys.readouterr().out) and "finished after 3" in said
    [row] = map(json.loads, (folder / "stage1" / "metrics.jsonl").open())
    assert abs(row["kl_1"]) < 1e-4  # of the policy and its reference, before the first update
    assert train.main(["--stage", "0", *flags[:-2]]) == 0  # it is known whose warm-up it is
    few = ["--eval-problems", "4", "--device", "cpu"]
    assert train.main(["--eval", str(folder / "base"), *few]) == 0
    assert json.loads((folder / "base" / "results.json").read_text())["steps"] == 3


def test_a_warm_up_that_was_killed_at_once_is_not_forgotten(chatty, tmp_path):
    """A log is all that is left: Stage I does not start from the pretrained model."""
    given = {"task": "addition", "init": str(chatty), "out": str(tmp_path)}
    assert settings.jobs_up_to(train.STAGES, given, 1)[0].is_init
    folder = tmp_path / "addition" / "base"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").touch()
    assert not settings.jobs_up_to(train.STAGES, given, 1)[0].is_init


def test_a_half_trained_warm_up_starts_anew_from_the_pretrained_model(chatty, tmp_path):
    """Killed between its first model.pt and state.pt."""
    command = "--stage 0 --steps 3 --task addition --difficulty 2 --max-new-tokens 6 --device cpu"
    command += f" --transcripts 4 --eval-problems 4 --init {chatty} --out"
    folders = [tmp_path / name / "addition" / "base" for name in ("whole", "killed")]
    for name in ("whole", "killed"):
        assert train.main([*command.split(), str(tmp_path / name)]) == 0
    for name in ("state.pt", "results.json"):
        (folders[1] / name).unlink()
    assert train.main([*command.split(), str(tmp_path / "killed")]) == 0
    assert same_weights(*(folder / "model.pt" for folder in folders))


def test_an_untouched_model_is_evaluated_and_asked(chatty, tmp_path, monkeypatch, capsys):
    """By --init without a stage, though a stage 0 is trained from it; what is evaluated is the
    model itself."""
    flags = ["--task", "addition", "--difficulty", "2", "--max-new-tokens", "6", "--device", "cpu"]
    flags += ["--init", str(chatty)]
    few = ["--eval-problems", "4", "--out", str(tmp_path)]
    assert train.main(["--stage", "0", "--steps", "1", "--transcripts", "4", *flags, *few]) == 0
    asked, evaluate = [], score.evaluate
    monkeypatch.setattr(score, "evaluate", lambda model, *args, **options: (
        asked.append(model), evaluate(model, *args, **options))[1])  # fmt: skip
    files = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert train.main(["--eval", *flags, *few]) == 0
    folder = tmp_path / "addition" / f"init-{chatty.name}"
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - files
    written -= set(folder.glob("answers/*"))
    assert written == {folder / "results.json", folder / "samples.jsonl"}
    assert capsys.readouterr().out.count("\nuntouched ") == 2
    namesake = shutil.copytree(chatty, tmp_path / "other" / chatty.name)
    assert train.main(["--eval", *flags, "--init", str(namesake), *few]) == 2
    assert f"was made with init {chatty}, not {namesake}" in capsys.readouterr().err
    assert train.main(["--eval", str(tmp_path / "stag2"), *flags, *few[:2]]) == 0
    assert capsys.readouterr().out.count("\nuntouched ") == 2  # not the name of a stage
    assert train.main(["--eval", *flags, "--init", f"{chatty}/", *few]) == 0  # the same folder
    assert train.main(["--eval", *flags, "--difficulty", "3", *few]) == 0
    kept = folder / "results-difficulty=2,max_new_tokens=6,eval_problems=4.json"
    assert json.loads(kept.read_text())["evaluation"]["difficulty"] == 2
    assert capsys.readouterr().out.count("\nuntouched ") == 4
    assert train.main(["--eval", *flags, *few, "--width", "3"]) == 2
    assert train.main(["--eval", *flags, *few, "--levels", "3"]) == 2
    capsys.readouterr()
    assert train.main(["--ask", "12+34=", "--attempts", "3", *flags]) == 0
    assert "problem    12+34=\nattempt 1" in capsys.readouterr().out
    untouched = GPT.from_pretrained(chatty).state_dict()
    assert len(asked) == 9 and all(same(model.state_dict(), untouched) for model in asked)


@pytest.mark.parametrize("both", [True, False])
def test_the_loss_of_a_warm_up_is_that_of_unpadded_texts(both, chatty, tmp_path):
    """Of both attempts or of the second, whatever prompts share."""
    task, gpt = data.load("addition", 2, source(chatty, tmp_path)), GPT.from_pretrained(chatty)
    rows = task.transcripts(0, 1, 5, 0.0)
    losses = []
    for prompt, first, second in rows:
        y1, y2 = (task.encode(text) + [task.eos] for text in (first, second))
        x = task.prompt(Problem(prompt))
        losses += (-plain_scores(gpt, x + y1 + task.revise, y2)).tolist()
        losses += both * (-plain_scores(gpt, x, y1)).tolist()
    optimizer = torch.optim.SGD(gpt.parameters(), lr=0.0)
    metrics = train.supervised_step(gpt, optimizer, task, rows, clip=1.0, both=both)
    assert metrics["loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["tokens"] == len(losses)


@pytest.mark.parametrize(
    "flags, named",
    [
        ("--data math", "--init"),
        ("--data math --init nowhere", "nowhere"),
        ("--data math --init Qwen/Qwen3-0.6B", "hf download Qwen/Qwen3-0.6B --local-dir DIR"),
        ("--data math --init INIT", "github.com/hendrycks/math"),
        ("--data math --init INIT --data-dir DATA --levels 0-3", "levels"),
        ("--data math --init INIT --data-dir DATA --levels 3-1", "levels"),
        ("--data math --init INIT --data-dir DATA --subjects astrology", "astrology"),
        ("--data math --init INIT --data-dir DATA --levels 5-1,1", "levels"),
        ("--data math --init INIT --data-dir DATA --limit 0", "limit"),
        ("--data math --init INIT --data-dir DATA --problems 13", "12 training problems, not 13"),
        ("--data math --init INIT --data-dir DATA --layout scroll", "scroll"),
        ("--data math --init INIT --data-dir DATA --layout llama3", "llama3"),
        ("--data math --init INIT --data-dir DATA --split val", "val"),
        ("--data math --init INIT --data-dir DATA --eval-problems 99", "99"),
        ("--data math --init INIT --data-dir DATA --max-new-tokens 9999", "skipped"),
        ("--data math --init INIT --data-dir DATA --task puzzle", "--task"),
        ("--data humaneval --init INIT --levels 1", "--levels"),
        ("--data chess", "chess"),
        ("--init INIT", "puzzle cannot be put in words"),
        ("--init INIT --task addition --width 16", "--width"),
        ("--init INIT --task addition --shots 99", "99 examples and 2 attempts take"),
        ("--init INIT --task addition --shots -1", "shots"),
        ("--init INIT --task addition --limit 3", "--limit"),
        ("--shots 3", "--shots"),
        ("--layout plain", "--layout"),
        ("--data math --init INIT --data-dir DATA --shots 3", "--shots"),
        ("--limit 3", "--limit"),
        ("--data math --init DATA --data-dir DATA", "tokenizer"),
    ],
)
def test_bad_open_flag_is_one_line(flags, named, chatty, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_math(tmp_path / "data")
    if "llama3" in flags:  # a tokenizer without its control tokens
        chatty = shutil.copytree(chatty, tmp_path / "copy")
        raw = json.loads((chatty / "tokenizer.json").read_text().replace("eot_id", "eot"))
        (chatty / "tokenizer.json").write_text(json.dumps(raw))
    flags = flags.replace("INIT", str(chatty)).replace("DATA", "data")
    assert train.main(["--stage", "1", *flags.split()]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.parametrize(
    "name", ["data/train/algebra/9.json", "data/test.jsonl", "init/vocab.json"]
)
def test_a_pipe_among_the_files_is_one_line(name, chatty, tmp_path, capsys):
    """To read it would be to wait for ever."""
    shutil.copytree(chatty, tmp_path / "init")
    folder = write_math(tmp_path / "data")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    flags = ["--stage", "1", "--data", "math", "--init", tmp_path / "init", "--data-dir", folder]
    assert train.main([*map(str, flags), "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / name} is no file to read from" in line


def test_only_files_that_may_be_read_are_looked_at(chatty, tmp_path):
    """A folder of data may hold anything else, or be a whole home."""
    deep = tmp_path / "cache" / "a" / "b"
    deep.mkdir(parents=True)
    os.mkfifo(deep / "socket")
    run_settings = settings.Run(data="math", init=str(chatty), data_dir=str(tmp_path))
    assert settings.source(run_settings).folder == tmp_path


def test_a_problem_that_the_tokenizer_cannot_spell_is_one_line(chatty, tmp_path, capsys):
    init, folder = shutil.copytree(chatty, tmp_path / "init"), write_math(tmp_path / "data")
    without_bytes(init / "tokenizer.json", 4)
    (folder / "test.jsonl").write_text(json.dumps({"problem": "1 \x04 2?\n", "answer": "7"}))
    path = folder / "train" / "algebra" / "3.json"
    flags = ["--stage", "1", "--data", "math", "--init", init, "--data-dir", folder]
    flags = [*map(str, flags), "--out", str(tmp_path / "out")]
    for named in (r"'1 \x04 2?\n'", "train/algebra/3.json"):
        assert train.main(flags) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and named in lines[0] and "the byte 4" in lines[0], lines
        (folder / "test.jsonl").unlink(missing_ok=True)
        path.write_text(json.dumps({"problem": "1 \x04 2?", "solution": "$\\boxed{1}$"}))
    assert not list(tmp_path.rglob("*.pt"))


def test_nothing_from_outside_controls_the_terminal(chatty, tmp_path, capsys, monkeypatch):
    """Neither a problem, nor an answer, nor a name in a file that an error line quotes."""
    evil = "\x1b]0;\x9b2J\u202e"
    folder, init = write_math(tmp_path / "data"), shutil.copytree(chatty, tmp_path / "init")
    for path in folder.glob("test/*/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"problem": path.stem + evil}))
    (folder / f"{evil}.jsonl").touch()
    monkeypatch.setattr(
        data.TEXT_TASKS["math"], "rewards", lambda self, xs, said: [1.0 for _ in said]
    )
    monkeypatch.setattr(data.TEXT_TASKS["math"], "decode", lambda self, tokens: evil)
    flags = f"--data math --init {init} --data-dir {folder} --max-new-tokens 4 --device cpu".split()
    base = str(tmp_path / "out" / "math" / "base")
    assert train.main(["--ask", base, "test/algebra/1.json", *flags]) == 0
    assert train.main(["--eval", base, *flags]) == 0
    (init / "model.safetensors").rename(init / "x.safetensors")
    index = {"weight_map": {"a": f"{evil}.safetensors"}}
    (init / "model.safetensors.index.json").write_text(json.dumps(index))
    assert train.main(["--eval", base, *flags]) == 2
    out, err = capsys.readouterr()
    assert out.count("\ufffd") > 10 and err.count("\ufffd") == 3
    assert not set(evil) & set(out + err) - set("]0;2J")


def test_stages_find_a_model_and_data_that_have_moved(chatty, tmp_path, monkeypatch, capsys):
    """By the same path written otherwise, or by a new one where the old is gone; a model of another
    shape is refused."""
    small = "--data math --problems 2 --samples 2 --revisions 2 --eval-problems 4 --steps 1"
    small = f"{small} --max-new-tokens 6 --device cpu --out {tmp_path}".split()
    init, folder = shutil.copytree(chatty, tmp_path / "init"), write_math(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert train.main(["--stage", "1", *small, "--init", "init", "--data-dir", "data"]) == 0
    two, other = tmp_path / "math" / "stage2", shutil.copytree(chatty, tmp_path / "other")
    second = ["--stage", "2", *small, "--data-dir", str(folder)]
    assert train.main([*second, "--init", str(other)]) == 2
    assert "stage1 was made with init init, not" in capsys.readouterr().err
    init.rename(tmp_path / "new")
    folder.rename(tmp_path / "problems")
    assert train.main(["--stage", "2", *small]) == 2
    assert "--init init: no such folder (has it moved?)" in capsys.readouterr().err
    moved = ["--init", "new", "--data-dir", "problems"]
    assert train.main(["--stage", "2", *small, *moved]) == 0
    assert json.loads((two / "results.json").read_text())["config"]["init"] == "new"
    assert train.main(["--stage", "2", *small]) == 0  # its latest place is known
    GPT(replace(GPT.from_pretrained(other).config, layers=2)).save_pretrained(other)
    capsys.readouterr()
    for command in ("--eval", "--export"):
        assert train.main([command, str(two), "--init", str(other)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"{two} was not trained from the model in {other}" in line


def test_a_long_question_is_no_path(chatty, tmp_path, capsys):
    flags = f"--init {chatty} --data math --data-dir {write_math(tmp_path / 'data')}"
    flags += " --max-new-tokens 6 --device cpu"
    assert train.main(["--ask", "How many? " * 100, *flags.split()]) == 0
    assert capsys.readouterr().out.count("attempt 2") == 1
    assert train.main(["--ask", str(tmp_path), "12+34=", *flags.split()]) == 0
    assert capsys.readouterr().out.count("attempt 2") == 1  # a folder, though without a model


def test_an_export_copies_plain_files_by_name(chatty, tmp_path, capsys):
    """No link is followed, in --init or where it is written, and nothing else is taken along."""
    init, stage = shutil.copytree(chatty, tmp_path / "init"), tmp_path / "addition" / "stage1"
    flags = f"--task addition --difficulty 2 --steps 1 --init {init} --out {tmp_path}"
    flags += " --problems 2 --samples 2 --revisions 2 --eval-problems 4 --max-new-tokens 6"
    assert train.main(["--stage", "1", "--device", "cpu", *flags.split()]) == 0
    victim = tmp_path / "victim"
    victim.write_text("{}")
    (init / "tokenizer").mkdir()
    (init / "my_token").symlink_to(victim)
    capsys.readouterr()
    for path, to in (
        (init / "merges.txt", victim),
        (init / "vocab.json", tmp_path / "nothing"),
        (stage / "pretrained", tmp_path / "new"),
        (stage / "pretrained" / "config.json", victim),
    ):
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(to)
        assert train.main(["--export", str(stage)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"{path} is a link or a folder; put a plain copy there" in line
        assert not list(stage.rglob("model.safetensors")) and not (tmp_path / "new").exists()
        path.unlink()
    (stage / "pretrained" / "model.safetensors.partial").mkdir(parents=True)
    assert train.main(["--export", str(stage)]) == 2
    assert "model.safetensors.partial" in capsys.readouterr().err
    (stage / "pretrained" / "model.safetensors.partial").rmdir()
    moved = init.rename(tmp_path / "moved")
    assert train.main(["--export", str(stage)]) == 2
    assert f"{init} has no config.json" in capsys.readouterr().err
    assert not (stage / "pretrained" / "model.safetensors").exists()
    assert train.main(["--export", str(stage), "--init", str(moved)]) == 0
    capsys.readouterr()
    ask = ["--ask", str(stage), "12+34=", "--device", "cpu"]
    assert train.main([*ask, "--init", str(moved)]) == 0
    assert capsys.readouterr().out.count("problem ") == 1
    names = {path.name for path in (stage / "pretrained").iterdir()}
    assert names == {path.name for path in chatty.iterdir()} and victim.read_text() == "{}"
