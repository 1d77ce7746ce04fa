"""The command line, checkpoints, logs and processes of train.py."""

import argparse
import contextlib
import dataclasses
import errno
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import data
import fast.processes
import rewards
import score
import train
from fast.linear import freeze
from model import GPT, GPTConfig, generate
from test_score import RAGGED, Toy, ragged_gpt, sampled_logprobs, tiny_gpt, toy_problems
from tests.helpers import (
    BASE,
    LOOK,
    PEAK,
    PLAIN_JSON,
    ROOT,
    SMALL,
    anything,
    kill_after,
    run,
    same,
    same_weights,
    six_steps,
    small_settings,
    weights,
    with_damage,
    without_times,
)
from training import checkpoints, flags, memory, processes, report, settings


@pytest.fixture(scope="module")
def unfinished(trained, tmp_path_factory) -> pathlib.Path:
    """Stage I as a run leaves it that is killed after step 3 of 6; its best model is of step 2."""
    out = tmp_path_factory.mktemp("unfinished")
    shutil.copytree(trained / "base", out / "puzzle" / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "STAGES", six_steps())
        patch.setattr(train, "SAVE_EVERY", 0.0)
        patch.setattr(train, "SAVE_SHARE", math.inf)
        patch.setattr(checkpoints.Best, "WINDOW", 2)
        patch.setattr(checkpoints.Best, "EVERY", 2)
        kill_after(3, patch)
        with pytest.raises(MemoryError):
            run("--stage", 1, "--out", out)
    return out / "puzzle"


def test_stages_leave_what_the_contract_says(trained):
    for number, name in enumerate(("base", "stage1", "stage2")):
        model = torch.load(trained / name / "model.pt", weights_only=True)
        assert set(model) == {"config", "model"}
        GPT(GPTConfig(**model["config"])).load_state_dict(model["model"])
        rows = [json.loads(row) for row in (trained / name / "metrics.jsonl").open()]
        assert [row["step"] for row in rows] == list(range(1, 7))
        expected = {"step", "stage", "seconds", "loss", "grad_norm", "tokens_per_second"}
        if number > 0:
            named = "reward acc_t1 acc_t2 delta fixed broken kl_1 kl_2 changed truncated entropy"
            expected |= set(named.split())
        assert expected <= rows[0].keys()
        results = json.loads((trained / name / "results.json").read_text())
        named = "data task stage n seed temperature acc_t1 acc_t2 delta fixed broken changed"
        named += " truncated acc se seconds steps samples config command diagnosis"
        assert set(named.split()) <= results.keys()
        assert results["stage"] == number and results["n"] == 20 and results["steps"] == 6
        assert results["samples"] == (6 * 4 * (2 + 2 * 2) if number else 0)
        assert results["delta"] == pytest.approx(results["fixed"] - results["broken"])
        assert results["diagnosis"].keys() == {"p", "f", "b", "ratio", "odds", "n"}
    ref = json.loads((trained / "stage1" / "metrics.jsonl").open().readline())
    assert abs(ref["kl_1"]) < 1e-5  # the first step's policy is the reference


def test_finished_stages_are_reused_and_named(trained, few_steps, capsys):
    before = (trained / "stage2" / "model.pt").stat().st_mtime_ns
    assert run("--stage", 2, "--out", trained.parent) == 0
    said = capsys.readouterr().out
    assert f"base: using {trained / 'base'}" in said
    assert f"Stage II: using {trained / 'stage2'}, finished after 6 steps" in said
    assert (trained / "stage2" / "model.pt").stat().st_mtime_ns == before


def test_bfloat16_and_offline_first_attempts_run(tmp_path, few_steps):
    """Weights stay in float32, and the sampler's log-probabilities stay the scorer's to 8 bits."""
    flags = ["--out", tmp_path, "--dtype", "bfloat16", "--offline", 0.5]
    assert run("--stage", 1, *flags) == 0
    assert all(
        w.dtype == torch.float32 for w in weights(tmp_path / "puzzle/stage1/model.pt").values()
    )
    results = json.loads((tmp_path / "puzzle/stage1/results.json").read_text())
    assert results["samples"] == 6 * (4 + 2) * (2 + 2 * 2)  # four problems, two of them offline too
    gpt = ragged_gpt()
    with torch.autocast("cpu", torch.bfloat16):
        rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED), score.Config(), seed=9)
        packed = sampled_logprobs(gpt, rolled, 1.0)
    assert (packed[1] - rolled.second.logprobs).abs().max() < 0.1
    assert (packed[1] - rolled.second.logprobs).abs().mean() < 3e-3


def test_bfloat16_forwards_follow_the_weights():
    """Autocast keeps copies of the weights while its context lasts, unless it is told not to."""
    gpt, tokens = ragged_gpt(), torch.tensor([RAGGED[2]])
    bfloat16 = settings.Run(dtype="bfloat16")
    with processes.precision(bfloat16.dtype, gpt.device):
        before = gpt(tokens)
        with torch.no_grad():
            for weight in gpt.parameters():
                weight.mul_(-1.5)
        inside = gpt(tokens)
    with processes.precision(bfloat16.dtype, gpt.device):
        assert torch.equal(inside, gpt(tokens)) and not torch.equal(inside, before)


@pytest.mark.parametrize("has", [{}, {"avx512_f": True}, {"avx512_bf16": True}, {"bf16": True}])
def test_bfloat16_without_instructions_is_warned_of(trained, capsys, monkeypatch, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    ask = "--device", "cpu", "--ask", trained / "stage2", "29=11"
    assert run(*ask) == 0 and "bfloat16" not in capsys.readouterr().out
    assert run("--dtype", "bfloat16", *ask) == 0
    warned = "no instructions for bfloat16" in capsys.readouterr().out
    assert warned == (not any("bf16" in name for name in has))


def test_a_half_trained_model_is_not_a_base(tmp_path, few_steps, monkeypatch):
    """Killed between its first two files: the next run trains that stage anew."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "read_state", lambda *args, **options: None)
        assert run("--stage", 0, "--out", tmp_path, "--steps", 3) == 0
    for name in ("state.pt", "results.json"):
        (tmp_path / "puzzle" / "base" / name).unlink()
    assert run("--stage", 1, "--out", tmp_path) == 0
    results = json.loads((tmp_path / "puzzle" / "base" / "results.json").read_text())
    assert results["steps"] == 6


def test_results_may_be_without_a_number_of_steps(trained, tmp_path):
    """As somebody may have written them: then the model beside them is taken for a finished one."""
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    (folder / "state.pt").unlink()
    results = json.loads((folder / "results.json").read_text())
    results["config"]["steps"] = None
    (folder / "results.json").write_text(json.dumps(results))
    assert settings.without_state(folder) is not None


def test_a_full_disk_is_one_line_and_keeps_what_was_there(trained, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    before = (folder / "results.json").read_bytes()

    def full(path, text):
        path.open("w").write(text[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_text", full)
    assert run("--eval", folder, "--temperature", 0.3) == 2
    monkeypatch.undo()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "No space left" in lines[0] and "MiB are free" in lines[0]
    assert (folder / "results.json").read_bytes() == before
    assert not list(folder.rglob("*.partial"))


def test_two_processes_may_write_the_same_file(tmp_path, monkeypatch):
    """As two evaluations do that get the same answers: the later one's is whole."""
    path, process = tmp_path / "file", iter([1, 2])
    monkeypatch.setattr(os, "getpid", lambda: next(process))

    def slowly(partial: pathlib.Path) -> None:
        with partial.open("w") as file:
            checkpoints.write_atomically(path, lambda p: p.write_text("of process 2"))
            file.write("of process 1")

    checkpoints.write_atomically(path, slowly)
    assert path.read_text() == "of process 1" and list(tmp_path.iterdir()) == [path]


def test_a_stage_leaves_what_an_evaluation_is_writing(tmp_path):
    """And removes what a killed run of its own has left, which may be gigabytes."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "state.pt.1.partial").touch()

    def slowly(partial: pathlib.Path) -> None:
        partial.touch()
        with checkpoints.locked(tmp_path):
            pass

    checkpoints.write_atomically(folder / "results.json", slowly)
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_a_link_in_a_shared_folder_is_not_written_through(tmp_path, few_steps, capsys):
    """Somebody else may have put it where this program writes."""
    victim, folder = tmp_path / "victim", tmp_path / "puzzle" / "base"
    victim.write_text("precious")
    folder.mkdir(parents=True)
    (tmp_path / "puzzle" / ".lock").symlink_to(victim)
    assert run("--stage", 0, "--out", tmp_path) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path / 'puzzle' / '.lock'} is a link; remove it" in line
    (tmp_path / "puzzle" / ".lock").unlink()
    names = ["model.pt", "state.pt", "metrics.jsonl", "results.json"]
    partial = [f"{name}.{os.getpid()}.partial" for name in names]
    for name in [*partial, "model.pt.1.partial", ".writable"]:
        (folder / name).symlink_to(victim if name.endswith("l") else tmp_path / f"new {name}")
    for name in ("metrics.jsonl", "results.json"):
        (folder / name).symlink_to(victim)
    assert run("--stage", 0, "--out", tmp_path) == 0
    assert all((folder / name).is_file() and not (folder / name).is_symlink() for name in names)
    assert victim.read_text() == "precious" and not list(tmp_path.glob("new *"))
    assert not list(folder.glob("*.partial"))
    monkey = pathlib.Path.is_symlink  # a link that is put there just after the look at it
    (tmp_path / "puzzle" / ".lock").unlink()
    (tmp_path / "puzzle" / ".lock").symlink_to(victim)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pathlib.Path, "is_symlink", lambda path: path.name != ".lock" and monkey(path)
        )
        with pytest.raises(OSError, match="symbolic links"), checkpoints.locked(folder.parent):
            pass
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["results.json", "metrics.jsonl", "state.pt"])
@pytest.mark.parametrize("command", ["--stage", "--eval"])
def test_a_pipe_in_a_stage_s_folder_is_one_line(name, command, trained, tmp_path, capsys):
    """To read it would be to wait for ever."""
    shutil.copytree(trained, tmp_path / "puzzle")
    path = tmp_path / "puzzle" / "stage1" / name
    path.unlink()
    os.mkfifo(path)
    args = ["--stage", 1, "--out", tmp_path] if command == "--stage" else ["--eval", path.parent]
    assert run(*args) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{path} is no file to read from" in line


def test_a_name_that_is_not_utf_8_is_refused_at_the_start(tmp_path, capsys):
    out = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    for args in (["--stage", 0, "--out", out], ["--stage", 0, f"--out={out}"], ["--eval", out]):
        assert run(*args) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "has bytes that are not UTF-8" in line and "/\\udcff" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "end, reason",
    [
        ('{"step": 7, "rew', "not JSON"),
        ('{"step": 6}', "not the log of step 7"),
        ('{"step": 7, "reward": "1"}', "not the log of step 7"),
        ('{"step": 7, "reward": null}', "not the log of step 7"),
        ('{"step": 7, "val": {"acc_t1": []}}', "not the log of step 7"),
        ('{"step": 7, "val": 3}', "not the log of step 7"),
        ("7", "not a JSON object"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_stray_line_in_a_log_is_named(end, reason, trained, tmp_path, capsys):
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + os.fsencode(end))
    assert run("--eval", folder) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert str(path) in line and reason in line
    assert "line 7" in line or reason == "cannot be read"


def test_a_disk_that_fills_up_under_the_log_keeps_the_last_state(unfinished, tmp_path, capsys):
    """The log is named, and once there is room the run goes on."""
    out = tmp_path / "out"
    shutil.copytree(unfinished, out / "puzzle")
    folder = out / "puzzle" / "stage1"
    before = (folder / "state.pt").read_bytes()
    size = (folder / "metrics.jsonl").stat().st_size + 100  # room for a part of the next line
    args = ["--stage", 1, "--steps", 6, "--resume", "--out", out]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        assert run(*args) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"cannot write {folder / 'metrics.jsonl'}: [Errno 27] File too large" in line
    assert (folder / "state.pt").read_bytes() == before
    assert run(*args) == 0 and len(checkpoints.read_log(folder)) == 6


def test_a_finished_model_is_used_though_its_state_is_gone(trained, tmp_path, few_steps, capsys):
    """A state.pt is large, and people delete it; the model and its log must not be trained over."""
    shutil.copytree(trained, tmp_path / "puzzle")
    folder = tmp_path / "puzzle" / "stage1"
    (folder / "state.pt").unlink()
    before = (folder / "model.pt").read_bytes(), (folder / "metrics.jsonl").read_bytes()
    assert run("--stage", 2, "--out", tmp_path) == 0
    assert f"Stage I: using {folder}/model.pt" in capsys.readouterr().out
    assert before == ((folder / "model.pt").read_bytes(), (folder / "metrics.jsonl").read_bytes())
    for _ in range(2):  # what it is stays known, however often it is evaluated
        assert run("--eval", folder) == 0
        results = json.loads((folder / "results.json").read_text())
        assert results["stage"] == results["config"]["stage"] == 1
        assert capsys.readouterr().out.splitlines()[3].startswith("stage1 ")


def test_a_later_stage_does_not_change_what_is_known_of_a_stage_without_its_state(
    trained, tmp_path, few_steps, capsys
):
    """With the later stage's number of steps it was unfinished, and was trained again."""
    folder = shutil.copytree(trained, tmp_path / "puzzle") / "stage1"
    shutil.rmtree(tmp_path / "puzzle" / "stage2")
    for stage in ("base", "stage1"):
        (tmp_path / "puzzle" / stage / "state.pt").unlink()
    before = (folder / "model.pt").read_bytes()
    for _ in range(2):
        assert run("--stage", 2, "--steps", 8, "--out", tmp_path) == 0
        assert f"Stage I: using {folder}/model.pt" in capsys.readouterr().out
        assert json.loads((folder / "results.json").read_text())["config"]["steps"] == 6
    assert (folder / "model.pt").read_bytes() == before
    assert run("--stage", 2, "--steps", 8, "--seed", 1, "--out", tmp_path) == 2
    assert "base was made with seed 0, not 1" in capsys.readouterr().err
    assert run("--stage", 1, "--lr", 0.5, "--out", tmp_path) == 2
    assert "stage1 was made with lr" in capsys.readouterr().err


def test_a_stage_is_not_trained_below_one_that_started_from_another(
    trained, tmp_path, few_steps, capsys
):
    shutil.copytree(trained, tmp_path / "puzzle")
    shutil.rmtree(tmp_path / "puzzle" / "stage1")
    assert run("--stage", 2, "--out", tmp_path) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/puzzle/stage2 did not start from the Stage I model" in line
    assert not (tmp_path / "puzzle" / "stage1").exists()


def test_a_model_evaluated_before_its_first_save_is_not_finished(
    unfinished, tmp_path, few_steps, capsys
):
    """A run that was killed then leaves its first model and a log, but no state.pt."""
    folder = shutil.copytree(unfinished, tmp_path / "puzzle") / "stage1"
    (folder / "state.pt").unlink()
    (folder / "state.before.pt").unlink(missing_ok=True)
    assert run("--eval", folder) == 0
    assert run("--stage", 1, "--out", tmp_path) == 0
    assert "Stage I: using" not in capsys.readouterr().out
    assert len(checkpoints.read_log(folder)) == 6


def test_a_finished_stage_keeps_its_model_and_its_settings(trained):
    """No second copy of the weights, no moments, no state before."""
    for name in ("base", "stage1", "stage2"):
        files = {path.name for path in (trained / name).iterdir()} - {"answers"}
        assert files == {"model.pt", "state.pt", "metrics.jsonl", "results.json", "samples.jsonl"}
        state = torch.load(trained / name / "state.pt", weights_only=True)
        assert set(state) == {"settings", "step", "samples", "seconds"}


def test_a_reference_in_bfloat16_changes_no_figure():
    """Its linear layers are rounded once and not at every step; the rest stays in float32."""
    tokens = torch.tensor([[1, 2, 3, 4, 5]])
    for shape in ({}, {"rms_norm": True, "gated": True, "rope": 100.0, "qk_norm": True}):
        whole, low = ragged_gpt(**shape), freeze(ragged_gpt(**shape), torch.bfloat16)
        kinds = {weight.dtype for weight in low.parameters()}
        assert kinds == {torch.float32, torch.bfloat16}
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            assert torch.equal(whole(tokens), low(tokens))
            assert generate(low, RAGGED, 8, eos=0, seed=1).logprobs.isfinite().all()


def test_a_stage_in_another_s_folder_is_refused(trained, tmp_path, few_steps, capsys):
    shutil.copytree(trained, tmp_path / "puzzle")
    shutil.copy(trained / "stage2" / "state.pt", tmp_path / "puzzle" / "stage1" / "state.pt")
    assert run("--stage", 2, "--out", tmp_path) == 2
    assert "stage1 was made with stage 2, not 1" in capsys.readouterr().err


@pytest.mark.parametrize("name, value", [("data", [1]), ("task", [1]), ("lr", "a"), ("seed", -1)])
def test_impossible_settings_of_a_folder_name_its_file(name, value, trained, tmp_path, capsys):
    shutil.copytree(trained / "stage1", tmp_path / "stage1")
    path = tmp_path / "stage1" / "state.pt"
    edit(path, lambda state: state["settings"].update({name: value}))
    assert run("--eval", tmp_path / "stage1") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(path) in lines[0]


def test_free_settings_come_from_the_command_line_alone(trained, tmp_path):
    """A folder from elsewhere must not lift the sandbox, nor choose a device or a folder."""
    folder = shutil.copytree(trained, tmp_path / "puzzle") / "stage1"
    free = {"unsafe_sandbox": True, "recompute": True, "device": "cuda:9", "attempts": 9}
    free |= {"split": "val", "eval_problems": 7, "eval_batch": 1, "micro": 7, "out": "elsewhere"}
    free |= {"history": "last", "eval_every": 9}
    assert free.keys() == settings.FREE
    edit(folder / "state.pt", lambda state: state["settings"].update(free))
    jobs = [settings.load_job(train.STAGES, folder, {})]
    jobs += settings.jobs_up_to(train.STAGES, {"out": str(tmp_path)}, 1)
    shutil.copy(trained / "stage1" / "results.json", folder)
    (folder / "state.pt").unlink()
    results = json.loads((folder / "results.json").read_text())
    results["config"] |= free
    (folder / "results.json").write_text(json.dumps(results))
    jobs.append(settings.load_job(train.STAGES, folder, {}))
    for job in jobs:
        known = dataclasses.asdict(job.run) | dataclasses.asdict(job.cfg)
        assert not [name for name in free if known[name] == free[name]]
    assert settings.load_job(train.STAGES, folder, {"unsafe_sandbox": True}).run.unsafe_sandbox


def test_a_smoke_run_is_of_all_stages_in_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    """No other run goes on from its models."""
    monkeypatch.chdir(tmp_path)
    assert train.main(["--quick", *SMALL]) == 0
    folder = tmp_path / "out" / "quick" / "puzzle"
    for stage in ("base", "stage1", "stage2"):
        results = json.loads((folder / stage / "results.json").read_text())
        assert results["steps"] == train.QUICK["steps"] and results["n"] == 20
    assert "say nothing about the method" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["quick"]
    assert train.main(["--quick", "--eval", "x"]) == 2


def test_divergence_is_one_line(tmp_path, capsys):
    assert run("--stage", 0, "--steps", 30, "--lr", "1e12", "--warmup", 0, "--out", tmp_path) == 2
    assert "diverged at step" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pt"))


def test_a_defect_in_a_step_is_no_bad_input(tmp_path, monkeypatch):
    """A ValueError out of the training loop is not the user's doing, and its traceback is kept."""

    def broken(*args, **options):
        raise ValueError("a defect")

    monkeypatch.setattr(train, "supervised_step", broken)
    with pytest.raises(RuntimeError, match="base failed at step 1") as error:
        run("--stage", 0, "--steps", 3, "--out", tmp_path)
    assert str(error.value.__cause__) == "a defect"


@pytest.mark.parametrize("task", data.FAMILIES)
def test_every_family_can_be_evaluated_with_the_defaults(task):
    run, _ = settings.resolve(train.STAGES[0], {"task": task})
    train.check_evaluation(run, train.load_task(run))


def test_what_cannot_be_evaluated_is_refused_before_training(tmp_path, capsys):
    few = "--task addition --difficulty 2 --eval-problems 2000".split()
    for more in (few, ["--attempts", "40"]):
        assert train.main(["--stage", "0", "--steps", "1", "--out", str(tmp_path), *more]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": []},
        {"settings": {}},
        {"step": "6"},
        {"best": {}},
        {"model": {}},
        {"optimizer": {}},
        {"seconds": None},
    ],
)
def test_bad_state_is_one_line(change, unfinished, tmp_path, few_steps, capsys):
    shutil.copytree(unfinished, tmp_path / "puzzle")
    path = tmp_path / "puzzle" / "stage1" / "state.pt"
    edit(path, lambda state: state.update(change))
    before = path.read_bytes()
    assert run("--stage", 1, "--resume", "--out", tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "stage1" in lines[0]
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, lambda path: path.write_bytes(b"PK")])
def test_the_best_model_so_far_must_be_there(damage, unfinished, tmp_path, few_steps, capsys):
    """Else the rest of the stage would be trained and the best of it thrown away."""
    shutil.copytree(unfinished, tmp_path / "puzzle")
    damage(tmp_path / "puzzle" / "stage1" / "model.pt")
    assert run("--stage", 1, "--resume", "--out", tmp_path) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "stage1/model.pt" in lines[0]


@pytest.mark.parametrize("log", [b"", b"\xff\xfe", b"{}\n" * 3, b'{"step": 2}\n' * 3])
def test_bad_log_is_one_line(log, unfinished, tmp_path, few_steps, capsys):
    shutil.copytree(unfinished, tmp_path / "puzzle")
    (tmp_path / "puzzle" / "stage1" / "metrics.jsonl").write_bytes(log)
    assert run("--stage", 1, "--resume", "--out", tmp_path) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "metrics.jsonl" in line and ("not the log of" in line or "utf-8" in line)


def test_evaluation_is_repeatable(trained, tmp_path):
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    results = folder / "results.json"
    assert run("--eval", folder) == 0
    first = json.loads(results.read_text())
    shutil.rmtree(folder / "answers")
    assert run("--eval", folder) == 0
    assert json.loads(results.read_text()) == first
    assert run("--eval", folder, "--attempts", 4) == 0
    assert len(json.loads(results.read_text())["acc"]) == 4
    for temperature in (0.0, 0.7):
        assert run("--eval", folder, "--temperature", temperature) == 0
        assert json.loads(results.read_text())["temperature"] == temperature
    # results.json is of the latest; those of other settings are kept, named by what is unusual
    assert run("--eval", folder, "--dtype", "bfloat16", "--temperature", 0.7) == 0
    kept = {"attempts=4,eval_problems=20": (4, 0.0), "eval_problems=20": (2, 0.0)}
    kept |= {"eval_problems=20,temperature=0.7": (2, 0.7)}
    assert len(list(folder.glob("*-*"))) == 2 * len(kept)
    for name, wanted in kept.items():
        name = f"difficulty=2,{name}"
        old = json.loads((folder / f"results-{name}.json").read_text())
        assert (len(old["acc"]), old["temperature"]) == wanted
        lines = (folder / f"samples-{name}.jsonl").read_text().splitlines()
        assert {len(json.loads(line)["attempts"]) for line in lines} == {wanted[0]}


def test_an_evaluation_is_what_its_flags_ask_for(trained, tmp_path, monkeypatch):
    """So is an answer. The diagnosis has a temperature and two attempts of its own."""
    asked, evaluate = [], score.evaluate

    def watched(model, task, problems, **how):
        options = [how.get(name) for name in ("temperature", "attempts", "last_only", "seed")]
        low = torch.is_autocast_enabled("cpu")
        asked.append([[x.prompt for x in problems], *options, low])
        return evaluate(model, task, problems, **how)

    monkeypatch.setattr(score, "evaluate", watched)
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    flags = "--split val --eval-problems 1 --device cpu --attempts 3 --history last --seed 5"
    flags = [*flags.split(), "--dtype", "bfloat16", "--temperature", "0.7"]
    assert train.main(["--eval", str(folder), *flags]) == 0
    assert train.main([*flags[4:], "--ask", str(folder), "29=11"]) == 0
    held_out = [x.prompt for x in data.load("puzzle", 2).held_out("val", 1)]
    assert asked == [
        [held_out, 0.7, 3, True, 5, True],
        [held_out, 1.0, None, None, 5, True],
        [["29=11"], 0.7, 3, True, 5, True],
    ]


def test_results_of_every_kind_are_kept(trained, tmp_path):
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    few = ["--eval", str(folder), "--device", "cpu", "--eval-problems", "1"]
    for more in (["--split", "val"], ["--history", "last"], ["--seed", "5"], []):
        assert train.main([*few, *more]) == 0
    ends = ["eval_problems=20", "split=val,eval_problems=1"]
    ends += ["history=last,eval_problems=1", "seed=5,eval_problems=1"]
    kept = {frozenset(path.stem.split("-", 1)[1].split(",")) for path in folder.glob("results-*")}
    assert kept == {frozenset(["difficulty=2", *end.split(",")]) for end in ends}


def test_other_results_are_kept_under_a_plain_name(trained, tmp_path):
    """Whatever a results.json says, and not through a link that somebody put there."""
    folder = shutil.copytree(trained / "stage1", tmp_path / "stage1")
    victim = tmp_path / "victim"
    victim.write_text("whole")
    (folder / "results-subjects=.._.._x.json").symlink_to(victim)
    for subjects in ("../../x", "数" * 90, "y" * 1000):
        old = json.loads((folder / "results.json").read_text())
        old["evaluation"] = dict.fromkeys(settings.EVALUATION) | {"subjects": subjects}
        old["evaluation"] |= {"attempts": 2, "history": "all", "split": "test", "seed": 0}
        old["evaluation"]["difficulty"] = 6
        old["evaluation"] |= {"shots": 2, "layout": "auto", "dtype": "float32", "temperature": 0.0}
        (folder / "results.json").write_text(json.dumps(old))
        assert run("--eval", folder) == 0
    assert victim.read_text() == "whole"
    assert not (folder / "results-subjects=.._.._x.json").is_symlink()
    kept = [path.name for path in folder.glob("results-*")]
    old["evaluation"]["subjects"] += "z"
    (folder / "results.json").write_text(json.dumps(old))
    assert run("--eval", folder) == 0
    assert len(list(folder.glob("results-*"))) == len(kept) + 1  # a name that is cut is no other's
    assert all(len(path.name) < 130 for path in folder.iterdir())


def shortened(task: data.Task) -> data.Task:
    task.max_new_tokens -= 1
    return task


def other_end(task: data.Task) -> data.Task:
    task.eos = task.encode("0")[0]
    return task


@pytest.mark.parametrize("changed, calls_again", [
    ("nothing", 5), ("a file", 6), ("another evaluation", 4 + 5),
    ("the model", 12), ("the task", 12), ("the end token", 12), ("the dtype", 12),
    ("the code", 12),
])  # fmt: skip
def test_no_answer_is_asked_for_twice(changed, calls_again, trained, tmp_path, monkeypatch):
    """An evaluation makes 12 calls: greedy and sampled, of three batches, two attempts. What a
    stopped one got from its first seven is used where nothing has changed, and gives the same
    results. The same evaluation again makes none; the answers of other models are removed."""
    folder, calls, respond = tmp_path / "stage1", [], score.respond
    command = ["--eval", folder, "--eval-problems", 20, "--eval-batch", 8]

    def counted(*asked):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(asked)
        return respond(*asked)

    monkeypatch.setattr(score, "respond", counted)
    shutil.copytree(trained / "stage1", folder, ignore=shutil.ignore_patterns("answers"))
    (folder / "results.json").unlink()
    stop_after = 7
    assert run(*command) == 130 and not (folder / "results.json").exists()
    stop_after = math.inf
    if changed == "the model":
        edit(folder / "model.pt", lambda content: next(iter(content["model"].values())).mul_(0.5))
    elif changed == "the dtype":
        command += ["--dtype", "bfloat16"]
    elif changed == "the code":
        monkeypatch.setattr(checkpoints.inspect, "getfile", lambda code: __file__)
    elif changed in ("the task", "the end token"):
        load, alter = train.load_task, shortened if changed == "the task" else other_end
        monkeypatch.setattr(train, "load_task", lambda run: alter(load(run)))
    elif changed == "a file":
        next(folder.glob("answers/*.pt")).write_bytes(b"")
        (folder / "answers" / "folder").mkdir()  # as a file browser may leave one
    elif changed == "another evaluation":
        assert run(*command[:2], "--eval-problems", 4) == 0
    assert run(*command) == 0 and len(calls) == 7 + calls_again
    left = len(list(folder.glob("answers/*.pt")))
    assert left == (12 + 4 if changed == "another evaluation" else 12)

    def results() -> list:
        found = json.loads((folder / "results.json").read_text())
        return [found | {"command": None}, (folder / "samples.jsonl").read_text()]

    continued = results()
    assert run(*command) == 0 and results() == continued and len(calls) == 7 + calls_again
    shutil.rmtree(folder / "answers")
    assert run(*command) == 0 and results() == continued and len(calls) == 7 + calls_again + 12


def test_where_answers_cannot_be_kept_none_is_asked_for(trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "stage1"
    shutil.copytree(trained / "stage1", folder, ignore=shutil.ignore_patterns("answers"))
    (folder / "answers").touch()
    monkeypatch.setattr(score, "generate", None)
    assert run("--eval", folder) == 2
    assert f"cannot write to {folder}/answers: File exists" in capsys.readouterr().err


def test_an_evaluation_while_training_takes_all_problems_of_files():
    assert settings.Run().watched == 500 and settings.Run(data="math", init="x").watched is None
    assert settings.Run(data="math", init="x", eval_problems=7).watched == 7


def test_every_attempt_and_answer_is_kept_and_shown(trained, tmp_path, monkeypatch, capsys):
    """The share cut too, and an example that stays wrong."""
    folder = shutil.copytree(trained / "base", tmp_path / "base")
    # A model of six steps is never right.
    monkeypatch.setattr(score, "grade", lambda task, xs, attempt: attempt.tokens[:, 0] % 2.0)
    assert run("--eval", folder, "--attempts", 3, "--history", "last") == 0
    out = capsys.readouterr().out
    results = json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 20 and rows[0].keys() == {
        "id", "problem", "attempts", "rewards", "ended"
    }  # fmt: skip
    for name, shares in (
        ("right", [sum(row["rewards"][n] for row in rows) / 20 for n in range(3)]),
        ("cut", [sum(not row["ended"][n] for row in rows) / 20 for n in range(3)]),
    ):
        assert results["acc" if name == "right" else name] == pytest.approx(shares, abs=1e-6)
        assert f"{name:10}" + "".join(f"{100 * share:8.1f}" for share in shares) in out
    assert "greedy, each attempt after the last one alone" in out
    wrong = next(row for row in rows if row["rewards"][:2] == [0, 0])
    names = "acc_t1 acc_t2 delta fixed broken changed".split()
    assert re.findall(r"-?[\d.]+ ± [\d.]+", out.splitlines()[3]) == [
        f"{100 * results[name]:.1f} ± {100 * results['se'][name]:.1f}" for name in names
    ]
    assert f"wrong   {wrong['problem']}  {wrong['attempts'][0]}<|" in out
    cut = sum(shares) / 3
    assert out.splitlines()[3].endswith(f"{100 * cut:8.1f}")
    assert (max(shares[2:]) > 0.1) == ("are cut after attempt 2" in out)


@pytest.mark.parametrize("last_only", [False, True])
def test_an_attempt_reads_all_before_it_or_the_last_alone(last_only):
    gpt, problems = ragged_gpt(), toy_problems(RAGGED)
    prompts, keys = [Toy().prompt(x) for x in problems], [x.key for x in problems]
    said = score.conversation(gpt, Toy(), problems, 3, last_only=last_only)
    first, second, third = said
    before = prompts if last_only else score.try_again(Toy(), prompts, score.answers(first))
    after = score.try_again(Toy(), before, score.answers(second))
    again = score.respond(gpt, Toy(), problems, after, keys, 1, 0.0, 0)
    assert score.answers(third) == score.answers(again)
    result = score.evaluate(gpt, Toy(), problems, attempts=3, last_only=last_only)
    assert result.responses[2] == score.texts(Toy(), third)
    run = settings.Run(attempts=9, history="last" if last_only else "all")
    assert run.in_context == (2 if last_only else 9)


def test_sampled_attempts_of_an_evaluation_draw_independently():
    keys = []

    def respond(*args):
        keys.extend(torch.as_tensor(args[4]).tolist())
        return score.respond(*args)

    list(score.conversation(ragged_gpt(), Toy(), toy_problems(RAGGED), 3, 1.0, respond=respond))
    assert len(set(keys)) == 3 * len(RAGGED)


def test_the_bar_of_an_evaluation_counts_answers_and_right_ones(monkeypatch, capsys):
    seen, problems = [], toy_problems(RAGGED)
    monkeypatch.setattr(score, "grade", lambda task, xs, _: torch.arange(len(xs)) % 2.0)
    with report.AnswersBar(total=2 * len(problems), mininterval=0) as bar:
        how = {"batch": 2, "on_graded": lambda rewards: (seen.append(rewards), bar.add(rewards))}
        score.evaluate(ragged_gpt(), Toy(), problems, **how)
    right, total = int(torch.cat(seen).sum()), 2 * len(problems)
    assert len(torch.cat(seen)) == total and 0 < right < total
    said = capsys.readouterr().err
    assert f"{total}/{total} " in said and f"{right} right" in said


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("stage", [0, 1])
def test_killed_and_resumed_equals_uninterrupted(
    stage, damaged, tmp_path, few_steps, monkeypatch, capsys
):
    """Bit for bit: weights, optimizer, best checkpoint and log of a run killed between saves."""
    save = train.Trainer.save

    def some_steps(trainer):
        if trainer.step in (2, 4, 8, trainer.job.run.steps):
            save(trainer)
        if trainer.step == 8:  # what a finished stage no longer keeps
            shutil.copy(trainer.job.folder / "state.pt", trainer.job.folder / "state.8.pt")

    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train, "SAVE_SHARE", math.inf)
    monkeypatch.setattr(train.Trainer, "save", some_steps)
    monkeypatch.setattr(checkpoints.Best, "WINDOW", 3)
    monkeypatch.setattr(checkpoints.Best, "EVERY", 2)
    for out in ("whole", "killed"):
        assert run("--stage", 0, "--out", tmp_path / out) == 0 if stage else True
    assert run("--stage", stage, "--out", tmp_path / "whole", "--steps", 11) == 0
    with monkeypatch.context() as patch:
        kill_after(6, patch)
        with pytest.raises(MemoryError):
            run("--stage", stage, "--out", tmp_path / "killed", "--steps", 11)
    assert run("--stage", stage, "--out", tmp_path / "killed", "--steps", 11) == 2  # unfinished
    folder = train.STAGES[stage].folder
    whole, killed = (tmp_path / out / "puzzle" / folder for out in ("whole", "killed"))
    if damaged:
        flip_a_weight(killed / "state.pt")
        capsys.readouterr()
    assert run("--stage", stage, "--out", tmp_path / "killed", "--steps", 11, "--resume") == 0
    said = capsys.readouterr().out
    assert f"resuming after step {2 if damaged else 4} of 11" in said
    assert ("going back to" in said) == damaged
    assert same_weights(whole / "model.pt", killed / "model.pt")
    assert without_times(whole / "metrics.jsonl") == without_times(killed / "metrics.jsonl")
    a, b = (torch.load(f / "state.8.pt", weights_only=True) for f in (whole, killed))
    assert same(a | {"seconds": 0}, b | {"seconds": 0})
    assert len(a["best"]["recent"]) == (3 if stage else 0)


def flip_a_weight(path: pathlib.Path) -> None:
    """One bit of a tensor, as a bad disk may do it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        tensor = max(file.infolist(), key=lambda part: part.file_size)
    content[tensor.header_offset + 200 + tensor.file_size // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.pt", "state.pt"])
def test_a_flipped_bit_is_refused_or_changes_nothing(name, unfinished, tmp_path):
    path = tmp_path / name
    whole = (unfinished / "stage1" / name).read_bytes()
    wanted = torch.load(unfinished / "stage1" / name, weights_only=True)
    rng, refused = random.Random(0), 0
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            read = checkpoints.read_pt(path, wanted.keys())
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert same(read, wanted)
    assert 0 < refused < 100


def test_a_damaged_state_is_not_kept_as_the_one_before(unfinished, tmp_path):
    """A disk that is full at the next save must not leave the damaged one twice."""
    good = (unfinished / "stage1" / "state.pt").read_bytes()
    for name in ("state.pt", "state.before.pt"):
        (tmp_path / name).write_bytes(good)
    flip_a_weight(tmp_path / "state.pt")
    assert checkpoints.read_state(tmp_path)["step"] == 3
    assert (tmp_path / "state.pt").read_bytes() == good


def test_adam_s_settings_are_the_run_s_own(unfinished, tmp_path, few_steps):
    shutil.copytree(unfinished, tmp_path / "puzzle")
    job = train.jobs_up_to(train.STAGES, {"out": str(tmp_path), "difficulty": 2}, 1)[1]
    task = train.load_task(job.run)
    policy = train.stage_model(job, task, torch.device("cpu"))
    trainer = train.Trainer(job, task, policy, None)
    own = [group | {"params": None} for group in trainer.optimizer.param_groups]
    path = job.folder / "state.pt"
    other = {"lr": 9.0, "betas": (0.0, 0.0), "maximize": True}
    edit(path, lambda state: state["optimizer"]["param_groups"][0].update(other))
    trainer.restore()
    assert [group | {"params": None} for group in trainer.optimizer.param_groups] == own


def test_two_runs_in_one_folder_are_refused(tmp_path, few_steps, capsys):
    (tmp_path / "puzzle").mkdir()
    with checkpoints.locked(tmp_path / "puzzle"):
        assert run("--stage", 0, "--out", tmp_path) == 2
    assert f"process {os.getpid()} is training in" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.pt"))
    (tmp_path / "puzzle" / ".lock").write_text("1")  # of a process that was killed
    assert run("--stage", 0, "--out", tmp_path) == 0


def test_a_disk_without_locks_is_one_line(tmp_path, monkeypatch, capsys):
    def refuse(*args) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(checkpoints.fcntl, "flock", refuse)
    assert run("--stage", 0, "--out", tmp_path) == 2
    lock = tmp_path / "puzzle" / ".lock"
    assert f"cannot lock {lock} (No locks available); choose an" in capsys.readouterr().err


def test_saves_go_by_time_and_take_a_small_share_of_it(tmp_path, few_steps, monkeypatch):
    """A step takes 10 s and a save 3 s: after a minute, and then every 150 s."""
    clock, saved = [0.0], []
    advance, save = train.Trainer.advance, train.Trainer.save

    def slow_step(trainer):
        clock[0] += 10
        return advance(trainer)

    def slow_save(trainer):
        clock[0] += 3
        saved.append(trainer.step)
        save(trainer)

    monkeypatch.setattr(train.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(train.Trainer, "advance", slow_step)
    monkeypatch.setattr(train.Trainer, "save", slow_save)
    assert run("--stage", 0, "--steps", 40, "--out", tmp_path) == 0
    assert saved == [6, 21, 36, 40]


@pytest.mark.parametrize("bad", [math.nan, 1e30])
def test_weights_stay_as_they_were_where_a_step_is_not_finite(bad, unfinished, tmp_path, capsys):
    """And the line says which stage and step, and which attempt if it cannot be sampled."""
    shutil.copytree(unfinished, tmp_path / "puzzle")
    path = tmp_path / "puzzle" / "stage1" / "state.pt"
    edit(path, lambda state: state["model"]["positions.weight"][4].fill_(bad))
    before = path.read_bytes()
    assert run("--stage", 1, "--steps", 6, "--resume", "--out", tmp_path) == 2
    [line] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "Stage I diverged at step 4: " in line and "try a lower --lr" in line
    assert "the logits of attempt 1 are not finite" in line or not math.isnan(bad)
    assert path.read_bytes() == before


def test_interrupt_saves_and_says_how_to_go_on(tmp_path):
    """A real process, a real SIGINT in the middle of training, and the run that continues it."""
    command = [sys.executable, "train.py", "--stage", "0", "--steps", "200", *BASE, "--out"]
    stopped = subprocess.Popen(
        command + [tmp_path / "stopped"], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    log = tmp_path / "stopped" / "puzzle" / "base" / "metrics.jsonl"
    wait_for_steps(log, 3, stopped)
    stopped.send_signal(signal.SIGINT)
    _, stderr = stopped.communicate(timeout=60)
    assert stopped.returncode == 130 and stderr.rstrip().endswith("--resume"), stderr
    assert "\nstopping after this step; again: at once, without saving\n" in stderr
    assert run("--stage", 0, "--steps", 200, "--out", tmp_path / "stopped", "--resume") == 0
    assert run("--stage", 0, "--steps", 200, "--out", tmp_path / "whole") == 0
    folders = [tmp_path / out / "puzzle" / "base" for out in ("whole", "stopped")]
    assert same_weights(*(folder / "model.pt" for folder in folders))
    assert without_times(log) == without_times(folders[0] / "metrics.jsonl")


def test_no_step_is_lost_where_the_reader_of_the_output_ends(tmp_path, few_steps, monkeypatch):
    """Ctrl-C ends `tee`, too, and then the bar cannot be drawn."""
    add = train.Report.add

    def broken(report, metrics: dict) -> None:
        add(report, metrics)
        if metrics["step"] == 3:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(train.Report, "add", broken)
    assert run("--stage", 0, "--out", tmp_path) == 1
    assert settings.read_progress(tmp_path / "puzzle" / "base")[1] == 3


def edit(path: pathlib.Path, change) -> None:
    """Changes what a file of torch holds."""
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def text_config(content: dict) -> None:
    content["config"] = {name: str(value) for name, value in content["config"].items()}


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not a checkpoint"),
    "pickle": lambda path: torch.save({"config": pathlib.Path("x"), "model": {}}, path),
    "foreign": lambda path: torch.save({"weights": torch.zeros(3)}, path),
    "list": lambda path: torch.save([1, 2], path),
    "other shape": lambda path: edit(path, lambda c: c["config"].update(width=32)),
    "other config": lambda path: edit(path, lambda c: c.update(config={"n_layer": 3})),
    "config of text": lambda path: edit(path, text_config),
    "not finite": lambda path: edit(path, lambda c: c["model"]["norm.weight"][:1].fill_(math.nan)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_bad_checkpoint_is_one_line(how, trained, tmp_path, capsys):
    folder = tmp_path / "stage1"
    folder.mkdir()
    (folder / "model.pt").write_bytes((trained / "stage1" / "model.pt").read_bytes())
    DAMAGE[how](folder / "model.pt")
    before = sorted(path.name for path in folder.iterdir())
    assert run("--eval", folder) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and str(folder / "model.pt") in lines[0]
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    "args, named",
    [
        (["--stage", "3"], "3"),
        (["--stage", "1", "--task", "chess"], "chess"),
        (["--stage", "1", "--lr", "fast"], "fast"),
        (["--stage", "1", "--lr", "nan"], "lr"),
        (["--stage", "1", "--steps", "0"], "steps"),
        (["--stage", "1", "--samples", "1"], "samples"),
        (["--stage", "1", "--alpha", "-1"], "alpha"),
        (["--stage", "1", "--beta2", "inf"], "beta2"),
        (["--stage", "1", "--temperature", "0"], "temperature"),
        (["--stage", "1", "--seed", "-1"], "seed"),
        (["--stage", "1", "--seed", "99999999999"], "seed"),
        (["--stage", "1", "--offline", "2"], "offline"),
        (["--eval", "out", "--temperature", "-1"], "temperature"),
        (["--stage", "1", "--device", "abacus"], "abacus"),
        (["--stage", "1", "--dtype", "float8"], "float8"),
        (["--stage", "1", "--difficulty", "99"], "99"),
        (["--stage", "1", "--no-such-flag"], "--no-such-flag"),
        (["--stage", "1", "--revision", "2"], "--revision; is --revisions meant?"),
        (["--stage", "1", "--beta3=0.1"], "--beta3=0.1; is --beta"),
        (["--stage", "0", "--alpha", "3"], "--alpha is not a setting of stage 0"),
        (["--stage", "0", "--data", "math"], "stage 0 of --data math is the model of --init"),
        (["--eval", "out", "--lr", "1"], "--lr is not a setting of --eval"),
        (["--eval", "out", "--resume"], "--resume is of no use to --eval"),
        (["--ask", "out", "--eval-problems", "5"], "--eval-problems is not a setting of --ask"),
        (["--export", "out", "--seed", "1"], "--seed is not a setting of --export"),
        (["--stage", "0", "--heads", "3"], "heads"),
        (["--data", "arithmetic"], "--stage"),
        (["--eval", "/nowhere"], "/nowhere"),
        (["--eval", ""], "--eval needs the folder of a stage, or --init DIR"),
        (["--ask"], "--ask needs the folder of a stage, or --init DIR"),
        (["--eval", "out", "--out", "x"], "--out is not a setting of --eval"),
        (["--ask", "--init", "x", "--out", "x"], "--out is not a setting of --ask"),
        (["--stge", "1"], "--stge; is --stage meant?"),
        (["--stage", "1", "--beta", "1"], "--beta; is --beta1 or --beta2 meant?"),
        (["--task", "addition"], "one of --stage, --quick,"),
        (["--stage", "1", "--temperature", "1e-44"], "temperature"),
        (["--stage", "1", "--device", "meta"], "meta"),
        (["--stag", "1"], "--stag"),
        (["--stage", "0", "--out", "/dev/null/x"], "/dev/null/x"),
        (["--stage", "0", "--resume"], "resume"),
        (["--stage", "0", "--task", "math"], "task"),
        (["--stage", "0", "--data", "puzzle", "--task", "puzzle"], "data"),
        (["--stage", "1", "--task=--"], "--task"),
        (["--stage", "0", "--dtype=--"], "--dtype"),
        (["--stage", "1", "--lr=--"], "--lr"),
        (["--eval=--"], "--eval"),
        (["--ask", "/nowhere"], "/nowhere"),
        (["--ask=--"], "--ask"),
        (["--stage", "0", "--width", "4294967296"], "width"),
        (["--stage", "0", "--layers", "100000"], "layers"),
        (["--stage", "1", "--problems", "9999999999"], "problems"),
        (["--stage", "1", "--samples", "9999999999"], "samples"),
        (["--stage", "1", "--attempts", "9999999999"], "attempts"),
        (["--quick", "--plan"], "--plan needs --stage 1 or 2"),
        (["--stage", "1", "--plan", "--resume"], "--resume is of no use to --plan"),
        (["--stage", "0", "--out", ""], "--out: the value is empty"),
        (["--export", "nowhere"], "no such file: nowhere/model.pt"),
    ],
)
def test_bad_flag_is_one_line(args, named, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = small_settings(args)
    pairs = [small[i : i + 2] for i in range(0, len(small), 2) if small[i] not in args]
    assert train.main(args + [part for pair in pairs for part in pair]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and named in lines[0], lines
    assert not list(tmp_path.rglob("*.pt")) and not pathlib.Path("/nowhere").exists()


# Named, since a machine's own name may have no address.
TWO = ["--standalone", "--local-addr=127.0.0.1", "--nproc_per_node=2"]


def torchrun(*args: object) -> subprocess.Popen:
    """train.py in two processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", *TWO, "train.py"]
    command += [*map(str, args), *small_settings(list(args))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


def wait_for_steps(log: pathlib.Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def child_of(process: subprocess.Popen, rank: int) -> int:
    """The pid of torchrun's process of that number."""
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            variables = (folder / "environ").read_bytes().split(b"\0")
            if parent == str(process.pid) and f"RANK={rank}".encode() in variables:
                return int(folder.name)
    raise AssertionError(f"no process {rank}")


def apart(one: pathlib.Path, other: pathlib.Path) -> float:
    """The largest difference between two models' weights."""
    pairs = zip(weights(one).values(), weights(other).values())
    return max((a - b).abs().max().item() for a, b in pairs)


# Its steps of gradient descent add up gradients: of transcripts and of rollouts, one of which
# trains offline first attempts, too. Weights are those of the module's tests. Last, it must hold
# no group of processes: its threads would outlive the interpreter and abort the process.
GRADIENTS = """
import sys, torch, weakref
import torch.distributed as dist
import data, score, test_score, train
from fast.processes import process

folder = sys.argv[1]
with train.processes.process_group(torch.device("cpu")):
    group = weakref.ref(dist.group.WORLD) if dist.is_initialized() else lambda: None
    rank, processes = process()
    task = data.load("puzzle", 3)
    gpt, ref = test_score.tiny_gpt(task), test_score.tiny_gpt(task, seed=1)
    optimizer = torch.optim.SGD(gpt.parameters(), lr=1e-2)
    rows = task.transcripts(0, 1, 16, 0.0)[rank::processes]
    train.supervised_step(gpt, optimizer, task, rows, clip=1e9)
    for stage, returns in enumerate((score.stage1_returns, score.stage2_returns)):
        cfg = score.Config(samples=4, revisions=2, offline=0.5 * stage, clip=1e9)
        problems = task.batch(0, stage, 8)[rank::processes]
        score.train_step(gpt, ref, optimizer, task, problems, returns, cfg, seed=stage)
    if rank == 0:
        torch.save({"model": gpt.state_dict()}, f"{folder}/{processes}.pt")
assert group() is None, "something holds the group of processes"
"""


def test_gradients_of_two_processes_are_those_of_one(tmp_path, monkeypatch):
    script = tmp_path / "gradients.py"
    script.write_text(GRADIENTS)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", *TWO, script, tmp_path]
    pipes = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run(command, env=environment, cwd=ROOT, **pipes)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    exec(GRADIENTS, {})  # one process: this one
    assert apart(tmp_path / "1.pt", tmp_path / "2.pt") < 1e-7  # of steps of 1e-2
    before = tiny_gpt(data.load("puzzle", 3)).state_dict()
    moved = [(w - before[name]).abs().max() for name, w in weights(tmp_path / "1.pt").items()]
    assert max(moved) > 1e-3


def test_two_processes_do_what_one_does(tmp_path):
    """Of Stage I: the same problems, tokens and log. (Adam makes much of rounding where a gradient
    is nearly 0, so weights are less alike.)"""
    assert run("--stage", 0, "--steps", 8, "--out", tmp_path / "one") == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    flags = ["--stage", "1", "--steps", "8"]
    two = torchrun(*flags, "--out", tmp_path / "two")
    assert run(*flags, "--out", tmp_path / "one") == 0
    out, err = two.communicate(timeout=120)
    assert two.returncode == 0, err
    assert out.count("20 test problems, greedy") == 1
    folders = [tmp_path / count / "puzzle" / "stage1" for count in ("one", "two")]
    timed = {"seconds", "rollout_seconds", "update_seconds", "tokens_per_second"}
    for ours, theirs in zip(*map(checkpoints.read_log, folders), strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours.keys() - timed - {"entropy"}:  # a mean over tokens
            assert ours[key] == pytest.approx(theirs[key], rel=1e-3, abs=1e-4), key
    assert apart(*(folder / "model.pt" for folder in folders)) < 1e-3
    results = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert results[0]["samples"] == results[1]["samples"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_processes_stop_together_and_another_number_goes_on(tmp_path):
    """A SIGINT to two processes is honoured at one step; kill -9 of one ends the other in one line
    and leaves the state; one process alone then ends what they began, with the same weights."""
    assert run("--stage", 0, "--steps", 8, "--out", tmp_path / "one") == 0
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    flags = ["--stage", "1", "--steps", "60"]
    assert run(*flags, "--out", tmp_path / "one") == 0
    folder = tmp_path / "two" / "puzzle" / "stage1"
    stopped = torchrun(*flags, "--out", tmp_path / "two")
    wait_for_steps(folder / "metrics.jsonl", 3, stopped)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate(timeout=120)
    assert err.count("train.py: interrupted; continue with: torchrun … ") == 1, err
    assert err.count("stopping after this step") == 1, err
    step = settings.read_progress(folder)[1]
    assert 3 <= step < 60
    killed = torchrun(*flags, "--resume", "--out", tmp_path / "two")
    wait_for_steps(folder / "metrics.jsonl", step + 2, killed)
    os.kill(child_of(killed, 1), signal.SIGKILL)
    _, err = killed.communicate(timeout=120)
    assert killed.returncode == 1
    lines = [line for line in err.splitlines() if line.startswith("train.py: ")]
    assert len(lines) == 1 and "another process is gone" in lines[0], err
    assert settings.read_progress(folder)[1] == step
    assert run(*flags, "--resume", "--out", tmp_path / "two") == 0
    assert apart(folder / "model.pt", tmp_path / "one" / "puzzle" / "stage1" / "model.pt") < 1e-3


def test_a_lost_process_is_named_though_torchrun_stops_the_others(tmp_path, monkeypatch, capsys):
    """Its signal may come while the error is on its way out."""

    def lost(trainer: train.Trainer) -> dict:
        raise ConnectionError("another process is gone")

    handlers = {which: signal.getsignal(which) for which in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(train.Trainer, "advance", lost)
    monkeypatch.setattr(train.Report, "close", lambda shown: os.kill(os.getpid(), signal.SIGTERM))
    try:
        assert run("--stage", 0, "--steps", 3, "--out", tmp_path) == 1
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)
    assert capsys.readouterr().err.count("another process is gone") == 1


@pytest.mark.parametrize(
    "kind, lines", [(processes.OwnError, 1), (rewards.SandboxError, 0), (ValueError, 0)]
)
def test_what_one_process_may_have_met_alone_it_says_itself(kind, lines, monkeypatch, capsys):
    """What all have met, the first of them says."""

    def failed(*args) -> None:
        raise kind("a reason")

    for name, value in (TORCHRUN | {"RANK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(train, "train_command", failed)
    assert train.main(["--stage", "1"]) == 2
    err = capsys.readouterr().err
    assert err.count(": a reason\n") == len(err.splitlines()) == lines


def test_a_device_may_be_missing_for_one_process_alone():
    with pytest.raises(processes.OwnError, match="device cuda:99: "):
        processes.pick_device("cuda:99")


def test_processes_wait_for_one_another_on_gpus_too(monkeypatch):
    """There a sum over processes has only been asked for when the call returns."""
    waited = []

    class Asked:
        def item(self) -> float:
            waited.append(True)

    monkeypatch.setattr(processes, "averaged", lambda values: Asked())
    processes.wait_for_others(torch.device("cpu"))
    assert waited


def test_an_error_of_a_gpu_is_not_taken_for_a_lost_process(monkeypatch):
    def failed(values: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(fast.processes, "process", lambda: (0, 2))
    monkeypatch.setattr(fast.processes.dist, "all_reduce", failed)
    for backend, kind in (("nccl", RuntimeError), ("gloo", ConnectionError)):
        monkeypatch.setattr(fast.processes.dist, "get_backend", lambda named=backend: named)
        with pytest.raises(kind, match="out of memory"):
            fast.processes.averaged(torch.zeros(1))


def test_one_process_s_metrics_stay_off_the_device():
    """A Mac's has no float64, in which several processes take their means."""
    metrics = {"reward": 0.1, "tokens": 3}
    assert processes.average_metrics(metrics, torch.device("meta")) == metrics


TORCHRUN = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    "change",
    [
        {name: None for name in TORCHRUN.keys() - {"WORLD_SIZE"}},
        {"MASTER_ADDR": None},
        {"MASTER_PORT": ""},
        {"RANK": "3"},
        {"RANK": "1", "LOCAL_RANK": "x"},
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "0"},
    ],
)
def test_a_world_that_torchrun_did_not_make_is_one_line(
    change, trained, monkeypatch, tmp_path, capsys
):
    """Such variables may be left over from some cluster."""
    told = {name: text for name, text in (TORCHRUN | change).items() if text is not None}
    for name, text in told.items():
        monkeypatch.setenv(name, text)
    for args in (["--stage", 0, "--out", tmp_path], ["--ask", trained / "stage1", "53=02"]):
        assert run(*args) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert f"WORLD_SIZE is {told['WORLD_SIZE']!r}, not by torchrun" in line
    assert not list(tmp_path.iterdir())


def test_processes_need_equal_shares(monkeypatch, tmp_path, capsys):
    for name, text in TORCHRUN.items():
        monkeypatch.setenv(name, text)
    assert run("--stage", 1, "--out", tmp_path) == 2
    assert "3 processes cannot share 8 transcripts evenly" in capsys.readouterr().err
    assert run("--eval", tmp_path) == 2
    assert "only --stage runs in several processes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    base = {"out": str(tmp_path), "transcripts": 9}
    for given, said in (({"problems": 8}, "8 problems"), ({"offline": 0.5}, "4 offline problems")):
        jobs = settings.jobs_up_to(train.STAGES, base | {"problems": 9} | given, 1)
        with pytest.raises(ValueError, match=f"cannot share {said}"):
            settings.check_shares(jobs)
    # Of what is not trained nothing is shared.
    given = {"data": "math", "init": str(tmp_path), "problems": 9, "out": str(tmp_path)}
    settings.check_shares(settings.jobs_up_to(train.STAGES, given, 1))


# Plans a step, makes two, and prints what was planned and what they took, in bytes.
PLANNED = """
import json, torch, train, score
from fast.linear import freeze
from training import memory, settings

torch.set_num_threads(1)
run, cfg = settings.resolve(train.STAGES[1], {"width": 256, "problems": 32, "layers": 4})
task = train.load_task(run)
config = train.new_config(run, task)
plan, before = memory.plan_step(config, task, run, cfg), peak()
policy, ref = train.GPT(config), freeze(train.GPT(config))
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-5, fused=True)
for step in (1, 2):
    problems = task.batch(0, step, cfg.problems)
    score.train_step(policy, ref, optimizer, task, problems, score.stage1_returns, cfg, step)
print(json.dumps([plan.kept + plan.update + plan.rollout, peak() - before]))
"""


def test_products_of_float32_are_exact_in_containers_that_choose_tf32():
    """The sampler's kernel and the scores of its tokens would differ."""
    code = "import torch, train; print(torch.get_float32_matmul_precision())"
    for_tf32 = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | for_tf32, capture_output=True
    )
    assert done.stdout == b"highest\n", done


def test_closed_streams_end_in_no_traceback(trained):
    """An input that is closed has no more problems, and what cannot be printed is not."""
    command = f"exec '{sys.executable}' train.py --ask '{trained / 'base'}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], cwd=ROOT).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_step_takes_the_memory_that_was_planned():
    command = [sys.executable, "-c", PEAK + PLANNED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    planned, taken = json.loads(done.stdout)
    assert planned == pytest.approx(taken, rel=0.15)


def test_a_plan_counts_and_allocates_nothing(tmp_path, chatty, monkeypatch, capsys):
    """Of a pretrained model only the shape is read; a backward pass of fewer problems takes less
    memory; a reference whose products are in bfloat16 is kept in it, but for embeddings and norms.
    """
    run_settings, cfg = settings.resolve(train.STAGES[2], {"width": 128, "problems": 4})
    task = train.load_task(run_settings)
    config = train.new_config(run_settings, task)
    plan = memory.plan_step(config, task, run_settings, cfg)
    gpt = GPT(config)
    assert plan.parameters == sum(weight.numel() for weight in gpt.parameters())
    assert plan.kept == 5 * 4 * plan.parameters
    parts, more = (
        memory.plan_step(config, task, run_settings, dataclasses.replace(cfg, micro=micro))
        for micro in (1, 400)
    )
    assert parts.update < 0.5 * plan.update and more == plan
    low = dataclasses.replace(run_settings, dtype="bfloat16")
    linear = sum(part.nbytes for block in gpt.blocks for name, part in block.named_parameters()
                 if "norm" not in name)  # fmt: skip
    assert memory.plan_step(config, task, low, cfg).kept == plan.kept - linear // 2
    assert gpt(torch.tensor([[1, 2]])).shape == (1, 2, config.vocab_size)  # of real tensors
    monkeypatch.chdir(tmp_path)
    flags = f"--task addition --difficulty 2 --init {chatty} --shots 0".split()
    assert train.main(["--stage", "1", "--plan", *flags]) == 0
    out = capsys.readouterr().out
    number = sum(weight.numel() for weight in GPT.from_pretrained(chatty).parameters())
    assert "Stage I: 8 problems a step" in out and f"{number:,} parameters\n" in out
    assert not list(tmp_path.iterdir())
    assert train.main(["--stage", "0", "--plan"]) == 2
    assert train.main(["--eval", "out", "--plan"]) == 2
    cut = plan.kept + plan.rollout + plan.update // 2  # room for half of the four problems
    monkeypatch.setattr(processes, "memory_of", lambda device: cut)
    assert train.main("--stage 2 --plan --width 128 --problems 4".split()) == 0
    found = [memory.plan_step(config, task, run_settings, dataclasses.replace(cfg, micro=micro))
             for micro in (1, 2)]  # fmt: skip
    micro = 2 if found[1].peak <= cut else 1
    said, refused = capsys.readouterr()
    assert "--plan is of no use to --eval" in refused
    takes = f"--micro {micro} takes {found[micro - 1].peak / 2**20:,.0f} MiB"
    assert f"MiB of this machine; {takes}" in said
    monkeypatch.setattr(processes, "memory_of", lambda device: plan.kept)
    assert train.main("--stage 2 --plan --width 128 --problems 4".split()) == 0
    assert "MiB of this machine, whatever --micro is" in capsys.readouterr().out


def test_help_shows_every_flag_in_its_group_with_its_defaults(capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")  # newer Pythons colour it
    with pytest.raises(SystemExit):
        train.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    groups = [
        "command",
        "data",
        "model",
        "stage",
        "evaluation",
        "output",
        "algorithm (score.Config)",
    ]
    places = [text.index(f" {group}: --") for group in groups]
    assert places == sorted(places)
    for name in settings.names(settings.Run) | settings.names(score.Config):
        assert text.count(f"{settings.flag(name)} ") >= 1
    assert places[3] < text.rindex(" --steps STEPS training steps of the last stage [") < places[4]
    steps = "arithmetic with --init 100, 30, 40 by stage; math 1500; humaneval 750"
    assert f"[3000, 200, 600 by stage; {steps}]" in text
    assert "[0.3; arithmetic with --init 2.0; math 0.1; humaneval 0.25]" in text
    assert (
        "transcripts per step of stage 0, the base model [256; arithmetic with --init 32]" in text
    )
    assert "--width WIDTH width of the built-in model [32]" in text


def test_a_stop_in_an_evaluation_prints_what_goes_on(
    trained, few_steps, tmp_path, monkeypatch, capsys
):
    def stopped(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    flags = ["--stage", 2, "--out", trained.parent]
    with monkeypatch.context() as patch:
        patch.setattr(score, "evaluate", stopped)
        patch.setattr(sys, "argv", ["train.py", "--eval", "FOLDER"])
        assert run("--eval", trained / "stage1") == 130
        assert capsys.readouterr().err.endswith("; continue with: python train.py --eval FOLDER\n")
        patch.setattr(sys, "argv", ["train.py", "--stage", "2"])
        assert run(*flags) == 130
        assert capsys.readouterr().err.endswith(" --stage 2\n")
        patch.setattr(sys, "argv", ["train.py", "--quick"])
        assert train.main(["--quick", "--out", str(tmp_path)]) == 130
        assert capsys.readouterr().err.endswith(" --quick\n")
    assert run(*flags) == 0


GOOD = {"changed": 0.2, "truncated": 0.0, "no_signal": 0.5, "kl_1": 0.1, "kl_2": 2.0}


@pytest.mark.parametrize(
    "bad, printed",
    [
        ({"changed": 0.004}, "second attempts change 0.4% of answers"),
        ({"truncated": 0.25}, "the length limit cuts 25% of attempts"),
        (
            {"no_signal": 0.992},
            "99% of the groups of second attempts have equal rewards and give no gradient",
        ),
        ({"kl_1": 30.0}, "kl_1 has risen to 30.0 nats per attempt"),
        ({"kl_2": 30.0}, "kl_2 has risen to 30.0 nats per attempt"),
        ({"reward": 0.3}, "the reward is 0.300, +0.000 since the start"),
    ],
)
def test_warnings_come_once(bad, printed):
    """After a window of steps, with the number; a stage that learns has none, be it noisy."""
    good = [{"reward": 0.3 + step / 1000} | GOOD for step in range(400)]
    for row in good[:50]:
        row["no_signal"] = 0.965  # as the default Stage I begins
    assert report.warnings(good, 400) == {}
    noisy = [row | {"reward": row["reward"] + (-1) ** step / 5} for step, row in enumerate(good)]
    assert report.warnings(noisy[:40], 40) == {}
    rows, step = [row | bad for row in good], 200 if "reward" in bad else 50
    assert report.warnings(rows[: step - 1], 400) == {}
    wanted = {next(iter(bad)): f"warning, steps {step - 49} to {step}: {printed}"}
    assert report.warnings(rows[:step], 400) == report.warnings(rows, 400) == wanted
    assert report.warnings(rows, 400, since=step) == wanted
    step = 20 if "reward" in bad else 10  # a quarter of a short stage's steps
    assert not report.warnings(rows[1:step], 40) and report.warnings(rows[1 : step + 1], 40)


def test_evaluations_while_training_leave_no_cache_for_their_rows(tmp_path, few_steps, monkeypatch):
    """On a GPU a model keeps its decoding cache, for the most rows that it has had."""
    models, evaluate = [], score.evaluate

    def evaluated(model, *args, **options):
        models.append(model)
        model.graph_cache = object()
        return evaluate(model, *args, **options)

    monkeypatch.setattr(score, "evaluate", evaluated)
    flags = ["--stage", "0", *BASE, "--difficulty", "3", "--steps", "2", "--eval-every", "1"]
    assert train.main([*flags, "--out", str(tmp_path)]) == 0
    assert models[0] is models[1] and models[0].graph_cache is None


def test_evaluations_while_training_change_nothing_else(tmp_path, few_steps, capsys):
    """Every second step's row has the accuracies on the validation problems."""
    flags = ["--stage", "1", *SMALL, "--difficulty", "3", "--out"]
    assert train.main([*flags, str(tmp_path / "plain")]) == 0
    assert train.main([*flags, str(tmp_path), "--eval-every", "2"]) == 0
    folder, plain = (out / "puzzle" / "stage1" for out in (tmp_path, tmp_path / "plain"))
    rows = without_times(folder / "metrics.jsonl")
    seen = {row["step"]: row.pop("val") for row in rows if "val" in row}
    assert rows == without_times(plain / "metrics.jsonl")
    assert same_weights(folder / "model.pt", plain / "model.pt")
    assert sorted(seen) == [2, 4, 6]
    task = data.load("puzzle", 3)
    gpt = checkpoints.load_model(folder, task, torch.device("cpu"))  # that of the last step
    found = score.evaluate(gpt, task, task.held_out("val", 20)).metrics
    assert seen[6] == {name: found[name] for name in ("acc_t1", "acc_t2", "changed")}
    capsys.readouterr()
    assert run("--stage", 1, "--out", tmp_path / "few", "--eval-every", 2) == 2
    assert "the val split of puzzle, difficulty 2, has about 1" in capsys.readouterr().err


def test_a_stop_in_the_last_save_is_honoured(tmp_path, few_steps, monkeypatch, capsys):
    """Nothing is evaluated or trained after it, and a variable of some cluster changes nothing."""
    monkeypatch.setenv("RANK", "3")
    save = train.Trainer.save

    def interrupted(trainer: train.Trainer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        save(trainer)

    monkeypatch.setattr(train.Trainer, "save", interrupted)
    assert run("--stage", 1, "--out", tmp_path) == 130
    assert "interrupted; continue with: python" in capsys.readouterr().err
    assert (tmp_path / "puzzle" / "base" / "model.pt").exists()
    assert not list((tmp_path / "puzzle" / "stage1").iterdir())


@pytest.mark.parametrize("made", [[], "--", ["--"]])
def test_a_value_of_two_dashes_is_refused_as_any_python_reads_it(made, monkeypatch):
    read = argparse.Namespace(ask=made, stage=None, quick=False, eval=None, export=None, data=None)
    monkeypatch.setattr(flags.Parser, "parse_known_args", lambda *args: (read, []))
    with pytest.raises(ValueError, match="--ask: -- is no value" if made else "--ask needs"):
        flags.parse([], train.STAGES, "")


def test_warnings_come_again_in_the_report(tmp_path, few_steps, monkeypatch, capsys):
    """And are not printed anew where a run goes on."""
    always = ("loss", lambda mean: True, "as always")
    monkeypatch.setattr(report, "LIMITS", (always,))
    monkeypatch.setattr(report, "LEAST_ROWS", 1)
    advance = train.Trainer.advance

    def interrupted(trainer: train.Trainer) -> dict:
        if trainer.job.stage.number == 1 and trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(trainer)

    monkeypatch.setattr(train.Trainer, "advance", interrupted)
    assert run("--stage", 1, "--out", tmp_path) == 130
    assert capsys.readouterr().err.count("warning, steps 1 to 1: as always") == 1
    monkeypatch.setattr(train.Trainer, "advance", advance)
    assert run("--stage", 1, "--out", tmp_path, "--resume") == 0
    out, err = capsys.readouterr()
    assert "as always" not in err
    assert "\nStage I: warning, steps 1 to 1: as always\n" in out


def test_a_problem_can_be_asked(trained, monkeypatch, capsys):
    """Each attempt has its verdict, and what changed is marked; nothing is written."""
    files = sorted(trained.rglob("*"))
    attempts = [["+02+04"], ["+02-06"], ["\x1b[31m+02"]]
    monkeypatch.setattr(score, "evaluate", lambda model, task, problems, **options: (
        score.Evaluation({}, problems, attempts[: options["attempts"]],
                         torch.tensor([[0.0], [1.0], [0.0]]),
                         torch.tensor([[True], [True], [False]]))))  # fmt: skip
    ask = ["--ask", str(trained / "stage1"), "53=02", "--device", "cpu", "--attempts", "3"]
    assert train.main(ask) == 0
    assert capsys.readouterr().out.splitlines() == [
        "problem    53=02",
        "attempt 1  +02+04",
        "           wrong",
        "           There might be an error. Try again.",
        "attempt 2  +02-06",
        "              ^^^",
        "           right",
        "           There might be an error. Try again.",
        "attempt 3  \ufffd[31m+02",
        "           ^^^^^   ",
        "           wrong, cut by the length limit",
    ]
    assert sorted(trained.rglob("*")) == files
    assert report.underlined("a 12 b", "a 13\nb") == "a 13\n  ^^\nb"
    assert report.underlined("", "") == ""


def test_changes_of_long_attempts_are_marked_in_little_time():
    """difflib alone takes 14 s for the dashes, and 8 s for 500 words of which none is kept."""
    words = [" ".join(f"{letter}{n}" for n in range(1000)) for letter in "vw"]
    long = [f"{'a ' * 2000}{middle} end" for middle in ("1 2", "3")]
    started = time.process_time()
    for before, after in (["-" * 8000, "-" * 7999], [words[0], words[1][:-6]], long):
        marked = report.underlined(before, after)
    assert time.process_time() - started < 2
    assert marked == f"{long[1]}\n{' ' * 4000}^    "


def test_problems_can_be_asked_one_after_the_other(trained, monkeypatch, capsys):
    """By the model itself, until the input ends; a slip is said and does no harm."""
    lines = iter(["53=02", "53=2", "53=0٣", "03=02", "53=16", " 53=02 "])

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    assert train.main(["--ask", str(trained / "stage2"), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.count("is no problem of this puzzle; one is") == 4
    first, *_, last = out.split("problem    53=02\n")[1:]
    assert first.startswith("attempt 1") and "\nattempt 2" in last
    assert train.main(["--ask", str(trained / "stage2"), "417+85="]) == 2
    assert "'417+85=' is no problem" in capsys.readouterr().err


def test_settings_of_a_folder_need_not_be_said_again(tmp_path, few_steps, capsys):
    """Later stages take the seed, problems and shape of those before; a stage that goes on, all of
    its own. Another value is refused, and steps are those of the last stage alone."""
    small = [*LOOK[2:], *SMALL[len(BASE) :]]  # without the difficulty and the shape
    assert run("--stage", 0, "--seed", 3, "--out", tmp_path) == 0
    out = ["--out", str(tmp_path)]
    assert train.main(["--stage", "1", "--beta2", "0.7", "--steps", "4", *out, *small]) == 0
    results = json.loads((tmp_path / "puzzle" / "stage1" / "results.json").read_text())
    settings = [results["config"][name] for name in ("seed", "difficulty", "beta2", "steps")]
    assert settings == [3, 2, 0.7, 4] and results["seed"] == 3
    assert train.main(["--stage", "1", *out, *small]) == 0
    assert "Stage I: using" in capsys.readouterr().out
    before = (tmp_path / "puzzle" / "stage1" / "model.pt").read_bytes()
    for name, had, given in (("beta2", 0.7, 0.3), ("width", 16, 32)):
        assert train.main(["--stage", "1", f"--{name}", str(given), *out, *small]) == 2
        assert f"was made with {name} {had}, not {given}" in capsys.readouterr().err
    assert (tmp_path / "puzzle" / "stage1" / "model.pt").read_bytes() == before
    assert train.main(["--stage", "2", "--beta2", "0.3", *out, *small]) == 0
    new = {"out": str(tmp_path / "new"), "steps": 7, "lr": 0.5}
    jobs = train.jobs_up_to(six_steps(), new, 2)
    assert [job.run.steps for job in jobs] == [6, 6, 7]
    assert [job.run.lr for job in jobs] == [4e-3, 2e-3, 0.5]
    assert train.main(["--stage", "2", "--seed", "0", *out, *small]) == 2
    assert "base was made with seed 3, not 0" in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_on_what_it_was_trained_on(trained, tmp_path, capsys):
    """Its state says which task; a folder without one is told by its vocabulary."""
    few, folder = ["--eval-problems", "20"], tmp_path / "stage1"
    shutil.copytree(trained / "stage1", folder)
    assert train.main(["--eval", str(folder), *few]) == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["config"]["difficulty"] == 2 and results["seed"] == 0
    assert train.main(["--eval", str(folder), "--task", "addition", *few]) == 2
    assert "made with task puzzle" in capsys.readouterr().err
    assert train.main(["--eval", str(folder), "--difficulty", "3", *few]) == 2
    assert "made with difficulty 2" in capsys.readouterr().err
    assert train.main(["--eval", str(folder), "--shots", "7", *few]) == 2
    assert "--shots is not a setting of --data arithmetic" in capsys.readouterr().err
    assert train.main(["--eval", str(folder), "--attempts", "100", *few]) == 2
    assert "100 attempts take" in capsys.readouterr().err
    shutil.copy(folder / "model.pt", tmp_path)
    assert train.main(["--eval", str(tmp_path), "--task", "addition", *few]) == 2
    assert "vocabulary" in capsys.readouterr().err


def test_best_checkpoint_is_the_one_with_the_highest_mean_reward():
    """Rewards rise until step 100 and fall as fast: the mean of the last 50 is highest near step
    124, and 120 is the nearest step that is looked at, whatever one lucky step says."""
    best = checkpoints.Best()
    rewards = [min(step, 200 - step) / 100 for step in range(1, 201)]
    rewards[30] += 0.5
    steps = [step for step, reward in enumerate(rewards, start=1) if best.add(step, 200, reward)]
    assert steps == [50, 60, 70, 80, 90, 100, 110, 120]


def test_a_stage_steps_at_its_rates_and_keeps_its_best_weights(trained, tmp_path, monkeypatch):
    """Its mean reward is highest at step 3 of 6. All seeds are different: of steps, stages, runs.
    Stage II goes on from Stage I's best weights, and its reference is the base model. --recompute
    reaches the model."""
    monkeypatch.setattr(checkpoints.Best, "WINDOW", 1)
    monkeypatch.setattr(checkpoints.Best, "EVERY", 1)
    monkeypatch.setattr(train, "STAGES", six_steps())
    seeds, rates, models, after = [], [], [], []
    train_step = score.train_step

    def step(policy, ref, optimizer, task, problems, returns, cfg, seed):
        seeds.append(seed)
        rates.append(optimizer.param_groups[0]["lr"])
        models.append([gpt.norm.weight.detach().clone() for gpt in (policy, ref)])
        assert policy.recompute == (len(after) < 6)
        metrics = train_step(policy, ref, optimizer, task, problems, returns, cfg, seed)
        with torch.no_grad():
            policy.norm.weight += 0.1  # so that weights differ, whatever the rewards were
        after.append(policy.norm.weight.detach().clone())
        return metrics | {"reward": -abs(3 - len(after) % 6)}

    monkeypatch.setattr(score, "train_step", step)
    shutil.copytree(trained / "base", tmp_path / "puzzle" / "base")
    flags = "--lr", 0.5, "--warmup", 2, "--recompute"
    assert run("--stage", 1, *flags, "--out", tmp_path) == 0
    assert rates == [train.learning_rate(n, 6, 2, 0.5) for n in range(1, 7)]
    kept = weights(tmp_path / "puzzle" / "stage1" / "model.pt")["norm.weight"]
    assert torch.equal(kept, after[2]) and not torch.equal(kept, after[5])
    assert run("--stage", 2, "--out", tmp_path) == 0
    base = weights(trained / "base" / "model.pt")["norm.weight"]
    assert torch.equal(models[0][0], base) and torch.equal(models[0][1], base)
    assert torch.equal(models[6][0], kept) and torch.equal(models[6][1], base)
    shutil.rmtree(tmp_path / "puzzle")
    assert run("--stage", 1, "--seed", 1, "--out", tmp_path) == 0
    assert len(set(seeds)) == len(seeds) == 18


def test_the_base_reads_the_transcripts_of_its_progress(tmp_path, few_steps, monkeypatch):
    """Which decides how much it copies."""
    asked, transcripts = [], data.ArithmeticTask.transcripts

    def watched(task, seed, step, count, progress):
        asked.append((seed, step, progress))
        return transcripts(task, seed, step, count, progress)

    monkeypatch.setattr(data.ArithmeticTask, "transcripts", watched)
    assert run("--stage", 0, "--out", tmp_path) == 0
    seeds, steps, progress = zip(*asked)
    assert len(set(seeds)) == 1 and steps == (1, 2, 3, 4, 5, 6)
    assert list(progress) == pytest.approx([n / 6 for n in steps])


def test_learning_rate_rises_and_falls():
    rates = [train.learning_rate(step, 100, 10, 1.0) for step in range(1, 101)]
    assert rates[0] == 1 / 11 and max(rates) == 1.0 and rates[-1] == pytest.approx(1 / 90)
    assert rates[:10] == sorted(rates[:10]) and rates[11:] == sorted(rates[11:], reverse=True)


FLAGS = sorted(
    {*settings.names(settings.Run), *settings.names(score.Config)} - {"out", "unsafe_sandbox"}
)
ODD = ["", "-", "--", "nan", "-inf", "1e999", "-1", "0", "1", "2", "3", "0.5", "٣", "1_0", "9" * 25]
ODD += ["\0", "é", "None", "[]", "{}", "true", "cpu", "cuda:99", "math", "puzzle", "../..", "%s"]


@anything(200)
@hypothesis.given(
    given=st.dictionaries(st.sampled_from(FLAGS), st.sampled_from(ODD) | st.text(max_size=3)),
    stage=st.sampled_from(["0", "1", "2", "9", "x"]),
    joined=st.booleans(),
)
def test_any_flags_end_in_one_line_or_none(given, stage, joined, tmp_path_factory, capsys):
    """Up to the first step of training, which is another's test."""
    folder = tmp_path_factory.mktemp("any")
    args = ["--stage", stage, "--out", str(folder)]
    for name, value in given.items():
        flag = "--" + name.replace("_", "-")
        args += [f"{flag}={value}"] if joined else [flag, value]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("run_stage", "check_evaluation", "evaluate", "report"):
            patch.setattr(train, name, lambda *args: None)
        patch.setattr(data.ArithmeticTask, "batch", lambda *args: None)
        patch.chdir(folder)
        code = train.main(args)
    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) in ((0, 0), (2, 1)), lines


@anything(150)
@hypothesis.given(choice=st.data())
def test_any_damage_to_a_checkpoint_is_one_line(choice, unfinished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    for name in ("model.pt", "state.pt"):
        whole = (unfinished / "stage1" / name).read_bytes()
        (folder / name).write_bytes(choice.draw(with_damage(whole)))
        wanted = torch.load(unfinished / "stage1" / name, weights_only=True)
        try:
            read = checkpoints.read_pt(folder / name, wanted.keys())
        except ValueError as error:
            assert str(folder / name) in str(error) and "\n" not in str(error)
        else:
            assert same(read, wanted)
    try:
        settings.read_progress(folder)
    except ValueError as error:
        assert str(folder) in str(error)


@anything(60)
@hypothesis.given(settings=st.dictionaries(st.sampled_from([*FLAGS, "stage"]), PLAIN_JSON))
@hypothesis.example(settings={"init": []})
def test_any_settings_of_a_checkpoint_are_one_line(settings, trained, tmp_path_factory):
    """With the right sums: what somebody else's program might have written."""
    folder = tmp_path_factory.mktemp("any") / "stage1"
    folder.mkdir()
    state = torch.load(trained / "stage1" / "state.pt", weights_only=True)
    torch.save(state | {"settings": state["settings"] | settings}, folder / "state.pt")
    try:
        train.load_task(train.load_job(train.STAGES, folder, {}).run)
    except ValueError as error:
        assert "\n" not in str(error)
