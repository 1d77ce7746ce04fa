"""The comparison of methods: budgets, what is imitated, and that its tables are its runs'."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import types

import baseline
import compare
import copying
import methods
import numpy as np
import on_gpu
import pytest
import runs
import tables
import torch
import transcripts

import data
import model as model_module
import score
import test_score
import train
from data.task import text_hash
from model import GPT
from test_score import RAGGED, Picky, Toy, odd_start, ragged_gpt, toy_problems
from tests.helpers import ROOT, same_weights, source, without_times, write_math
from training import checkpoints, settings


def test_transcripts_show_what_the_evaluation_counts(trained, tmp_path, monkeypatch, capsys):
    folder, to = trained / "stage1", tmp_path / "page.html"
    command = ["transcripts.py", str(folder), "--problems", "20", "--to", str(to)]
    monkeypatch.setattr(sys, "argv", command + ["--device", "cpu"])
    transcripts.main()
    content = re.search(r"const content = (.*);", to.read_text())[1]
    shown = json.loads(content)["shown"]
    task, gpt = data.load("puzzle", 2), checkpoints.load_model(folder, None, torch.device("cpu"))
    result = score.evaluate(gpt, task, task.held_out("test", 20))
    assert [x["problem"] for x in shown] == [x.prompt for x in result.problems]
    assert [x["right"] for x in shown] == (result.rewards.T == 1).tolist()
    for x, *said in zip(shown, *result.responses):
        rows = zip(*(column["rows"] for column in x["columns"]))
        assert ["".join(text for part in row for text, _ in part) for row in rows] == said
        assert all(column["new"] or len({t for [[t, _]] in column["rows"]}) == 1
                   for column in x["columns"])  # fmt: skip
    first = score.respond(gpt, task, result.problems[:1], [task.prompt(result.problems[0])], [0],
                          1, 0.0, 0)  # fmt: skip
    logprobs = [p for column in shown[0]["columns"] for _, p in column["rows"][0]]
    assert logprobs == pytest.approx(first.logprobs[0, : len(logprobs)].tolist(), abs=1e-5)
    load_job = train.load_job  # here for an evaluation of more problems than the split has

    def load_more(*args) -> settings.Job:
        job = load_job(*args)
        return dataclasses.replace(job, run=dataclasses.replace(job.run, eval_problems=500))

    monkeypatch.setattr(train, "load_job", load_more)
    monkeypatch.setattr(sys, "argv", [*command[:2], "--split", "val", "--to", str(to)])
    transcripts.main()
    shown = json.loads(re.search(r"const content = (.*);", to.read_text())[1])["shown"]
    assert [x["problem"] for x in shown] == [x.prompt for x in task.held_out("val", None)]
    monkeypatch.setattr(sys, "argv", ["transcripts.py", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        transcripts.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"transcripts.py: no such file: {tmp_path}/model.pt\n"
    monkeypatch.setattr(sys, "argv", command[:2] + ["--problems", "-3"])
    with pytest.raises(SystemExit, match="2"):
        transcripts.main()
    assert "--problems must be at least 1: -3" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command)

    def interrupted(*asked):
        raise KeyboardInterrupt

    monkeypatch.setattr(transcripts, "look", interrupted)
    with pytest.raises(SystemExit, match="130"):
        transcripts.main()
    assert capsys.readouterr().err == "transcripts.py: interrupted\n"


def test_pieces_of_a_page_are_whole_characters(chatty, tmp_path):
    task = data.load("math", source=source(chatty, write_math(tmp_path)))
    ids = task.encoding.encode_ordinary("é🙂x") + [task.eos]
    tokens = torch.tensor([ids, ids[:2] + [task.eos] + [0] * (len(ids) - 3)])
    mask = torch.tensor([[True] * len(ids), [True] * 3 + [False] * (len(ids) - 3)])
    attempt = model_module.Generation(tokens, mask, -0.25 * mask.float(), torch.ones(2).bool())
    row, short = transcripts.pieces(task, attempt)
    assert "".join(text for text, _ in row) == "é🙂x"
    assert sum(logprob for _, logprob in row) == -0.25 * (len(ids) - 1)
    assert all("\ufffd" not in text for text, _ in row) and len(short) <= 2


SHOWN = [
    {"problem": "<b>1</b></script>", "right": [False, True], "columns": [
        {"new": False, "rows": [[["a\n", -0.1]], [["a\n", -0.2]]]},
        {"new": True, "rows": [[], [["<i>", -3.0]]]}]},
    {"problem": "2", "right": [True, True], "columns": [
        {"new": False, "rows": [[["c", -0.1]], [["c", -0.2]]]}]},
]  # fmt: skip


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
@pytest.mark.parametrize(
    "keys, kinds", [("f", ["fixed"]), ("bu", ["kept"]), ("faj", ["fixed", "kept"])]
)
def test_the_page_works_in_a_browser(keys, kinds, tmp_path):
    """Its counts, its filters by key, the place that j goes to, and text that stays text."""
    press = "".join(f'document.onkeydown({{key: "{key}"}});' for key in keys)
    page = transcripts.page("two", SHOWN).replace('show("all");\n', f'show("all");{press}\n')
    (tmp_path / "page.html").write_text(page)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'browser'}", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    for count in ("all 2", "fixed 1", "kept 1", "broken 0", "unchanged 1"):
        assert f">{count}</button>" in dom
    articles = re.findall(r'<article class="(.*?)"', dom)
    assert [name.split()[0] for name in articles] == kinds
    current = [number for number, name in enumerate(articles) if "current" in name]
    assert current == ([1] if keys.endswith("j") else [0] if kinds else [])
    if "fixed" in kinds:
        assert "&lt;b&gt;1&lt;/b&gt;&lt;/script&gt;" in dom and "&lt;i&gt;</span>" in dom
        assert 'title="log π = -3.000"' in dom and ">a↵</span>" in dom


def test_tables_are_what_the_comparison_printed():
    readme, results = (ROOT / "README.md").read_text(), tables.RESULTS.read_text()
    files = (tables.FIGURES, tables.TUNING, tables.CURVES)
    parts = tables.tables(*(json.loads(file.read_text()) for file in files))
    assert tables.marked("main", parts["main"]) in readme
    assert all(tables.marked(name, text) in results for name, text in parts.items())


def test_tables_have_a_place_for_what_is_missing():
    """No right answer was broken, so that f/b is nothing; a run is missing; Δ never rose."""
    rows = json.loads(tables.FIGURES.read_text())
    [flat] = [row for row in rows if (row["arm"], row["seed"]) == ("flat/base", 0)]
    flat["diagnosis"] |= {"b": 0.0, "ratio": None}
    assert "| 0.000 | – | " in tables.bases_table(rows)
    rows = [row for row in rows if (row["arm"], row["seed"]) != ("star_once", 100)]
    found = tables.reuse_table([row for row in rows if row["seed"] >= runs.TUNING_SEED])
    assert "| STaR, D+, each pair once |  | 36.8 / 45.1 |" in found
    never, nan = math.inf, math.nan
    assert tables.span([75.0, never]) == tables.span([never, 75.0]) == "75 to never"
    assert tables.span([nan, 21.0]) == tables.span([21.0, nan]) == "21"
    assert tables.span([never]) == tables.span([nan]) == "never"


def test_a_method_may_have_an_x_in_its_name(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "both_xent", methods.METHODS["both"])
    assert tables.title("both_xent") == "both rewarded"
    assert tables.title("both_xent_x3") == "both rewarded, 3 × the budget"


def test_figures_of_other_runs_are_not_overwritten(tmp_path, monkeypatch):
    """As `--parts main --write` in a fresh clone would."""
    monkeypatch.setattr(compare, "perform_all", lambda *args, **options: None)
    monkeypatch.setattr(compare, "tables", lambda *args: {})
    monkeypatch.setattr(compare, "write_pages", lambda parts: None)
    for name in ("FIGURES", "TUNING", "CURVES"):
        path = tmp_path / f"{name}.json"
        path.write_text('[{"arm": "star", "seed": 0}]')
        monkeypatch.setattr(compare, name, path)
    command = ["compare.py", "--out", str(tmp_path), "--parts", "main", "--write"]
    monkeypatch.setattr(sys, "argv", command)
    with undone_handlers(), pytest.raises(SystemExit, match="1 runs of FIGURES.json are not in"):
        compare.main()
    assert json.loads((tmp_path / "FIGURES.json").read_text()) == [{"arm": "star", "seed": 0}]
    for name in ("gather", "curves"):
        monkeypatch.setattr(compare, name, lambda *args: [{"arm": "star", "seed": 0, "new": 1}])
    with undone_handlers():
        compare.main()
    kept = json.loads((tmp_path / "CURVES.json").read_text())
    assert kept == [{"arm": "star", "seed": 0, "new": 1}]


def test_every_tuning_run_that_would_be_lost_is_counted(tmp_path):
    """A method has several learning rates for one seed."""
    path, rows = tmp_path / "tuning.json", [{"arm": "star", "seed": 100, "lr": n} for n in range(3)]
    path.write_text(json.dumps(rows))
    assert tables.lost_rows(path, rows[:1]).total() == 2
    assert not tables.lost_rows(path, [row | {"lr": 9} for row in rows])


@contextlib.contextmanager
def undone_handlers():
    """What the block does on signals ends with it."""
    old = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)


@pytest.mark.parametrize("which", [signal.SIGTERM, signal.SIGHUP])
def test_a_comparison_that_is_ended_takes_its_runs_along(which, tmp_path, monkeypatch):
    code = "import signal, sys, time; "
    code += "signal.signal(signal.SIGINT, lambda *args: sys.exit(open('ended', 'w').close())); "
    code += "open('begun', 'w'); time.sleep(20)"
    monkeypatch.setattr(compare, "launch", fake_launch(code))
    command = ["compare.py", "--out", str(tmp_path), "--parts", "main", "--workers", "2"]
    monkeypatch.setattr(sys, "argv", command)
    sleep = compare.time.sleep

    def stop(seconds: float) -> None:
        # Both: a background job's children ignore SIGINT until they handle it.
        while len(list(tmp_path.rglob("begun"))) < 2:
            sleep(0.01)
        os.kill(os.getpid(), which)

    monkeypatch.setattr(compare.time, "sleep", stop)
    with undone_handlers(), pytest.raises(SystemExit, match="the same command goes on"):
        compare.main()
    assert len(list(tmp_path.rglob("ended"))) == len(list(tmp_path.rglob("begun"))) == 2


def test_trl_sees_a_change_in_the_text_not_in_its_tokens(monkeypatch):
    """As score.py does: a model may write the same text in other tokens."""
    trl_score = pytest.importorskip("trl_score", exc_type=SystemExit)
    task, written = Toy(), iter([[[3, 0], [4, 0]], [[1, 2, 0], [4, 4, 0]]])
    monkeypatch.setattr(task, "decode", lambda tokens: {1: "3", 3: "3"}.get(tokens[0], str(tokens)))
    monkeypatch.setattr(trl_score, "answer", lambda *asked: [(y, True) for y in next(written)])
    cfg = score.Config(samples=2, revisions=1)
    trainer = types.SimpleNamespace(task=task, cfg=cfg, problems=toy_problems([[5]]))
    assert trl_score.two_attempts(["0", "0"], trainer)["changed"] == [False, True]


@pytest.mark.parametrize("stage", [1, 2])
def test_trl_takes_the_same_step(stage, chatty, tmp_path, monkeypatch):
    """Of what TRL has drawn: masks, advantages, loss and its gradient are score.py's. The policy is
    not the reference, attempts differ in length, and a step has one part or two."""
    trl_score = pytest.importorskip("trl_score", exc_type=SystemExit)
    monkeypatch.setattr(trl_score, "rewards", lambda task, problems, attempts: [
        float(text_hash(task.decode(y)) % 2) for y, _ in attempts
    ])  # fmt: skip
    if stage == 2:
        written = shutil.copytree(chatty, tmp_path / "trl" / "addition" / "stage1")
        start = GPT.from_pretrained(chatty)
        with torch.no_grad():
            start.norm.weight.mul_(1.5)  # Stage I has moved, and the reference has not
        start.save_pretrained(written)
        shutil.copy(chatty / "config.json", written)  # with its token ids
    given = {"task": "addition", "difficulty": 2, "init": str(chatty), "shots": 1, "steps": 1}
    given |= {"max_new_tokens": 7, "problems": 4, "samples": 2, "revisions": 2, "beta1": 0.3}
    given |= {
        "beta2": 0.7,
        "temperature": 0.7,
        "device": "cpu",
        "out": str(tmp_path),
        "micro": 2 * stage,
    }
    plain = {"optim": "sgd", "learning_rate": 1.0, "warmup_steps": 0, "max_grad_norm": 1e9}
    without_kl = given | {"beta1": 0.0, "beta2": 0.0}
    own = given | {"lr": 0.25, "warmup": 3, "clip": 0.5, "seed": 9}
    args = trl_score.make_trainer(train.STAGES[stage], own, {}).args
    made = args.learning_rate, args.warmup_steps, args.max_grad_norm, args.seed, args.temperature
    assert made == (0.25, 3, 0.5, 9, 0.7)
    assert trl_score.make_trainer(train.STAGES[stage], without_kl, plain).ref_model is not None
    trainer = trl_score.make_trainer(train.STAGES[stage], given, plain)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
        trainer.model.get_output_embeddings().weight[trainer.task.eos] *= 10  # some attempts end
    trainer.model.save_pretrained(tmp_path / "policy")
    policy, ref = GPT.from_pretrained(tmp_path / "policy"), GPT.from_pretrained(chatty)
    batches, losses = [], []
    for name, kept in (("_generate_and_score_completions", batches), ("_compute_loss", losses)):
        monkeypatch.setattr(trainer, name, keeping(getattr(trainer, name), kept))
    trainer.train()
    [batch], parts = batches, losses

    task, cfg, M = trainer.task, trainer.cfg, trainer.cfg.revisions
    problems = trainer.problems[:4]
    first, second = (drawn(batch, name, task.eos) for name in ("first", "second"))
    first = first.take(slice(None, None, M))
    assert 0 < first.ended.sum() < 8 and len(second.mask.sum(1).unique()) > 2
    second_prompts = score.try_again(task, [task.prompt(x) for x in problems], score.answers(first))
    rows = [
        ids[ok.bool()].tolist()
        for ids, ok in zip(batch["completion_ids"], batch["completion_mask"])
    ]
    xs = [task.prompt(x) for x in score.repeat(problems, 4)]
    assert [x + row for x, row in zip(xs, rows)] == [
        x + y for x, y in zip(score.repeat(second_prompts, M), score.answers(second))
    ]
    assert torch.equal(
        batch["first"] | batch["second"],
        batch["tool_mask"].bool() & batch["completion_mask"].bool(),
    )
    r1, r2 = (
        torch.tensor([float(text_hash(task.decode(y)) % 2) for y in score.answers(attempt)])
        for attempt in (first, second)
    )
    assert 0 < r1.sum() < 8 and 0 < r2.sum() < 16
    packed = score.pack([task.prompt(x) for x in problems], first, second_prompts, second)
    rolled = score.Rollout(first, second, r1, r2, r2 > 0, True, packed)
    said = [score.texts(task, attempt) for attempt in (first, second)]
    changed = torch.tensor([a != b for a, b in zip(score.repeat(said[0], M), said[1])])
    for name, values in score.outcomes(r1.repeat_interleave(M), r2, changed).items():
        assert trainer.state.log_history[0][name] == pytest.approx(values.mean().item()), name
    returns = train.STAGES[stage].returns
    logprobs, kls = score.attempt_scores(policy, ref, rolled, cfg.temperature)
    values = score.advantages(r1, r2, *(score.later(kl.detach()) for kl in kls), returns, cfg)
    theirs = batch["advantages1"][::M][batch["first"][::M]], batch["advantages2"][batch["second"]]
    for ours, of_trl, attempt in zip(values, theirs, (first, second)):
        assert torch.allclose(ours[attempt.mask], of_trl, atol=1e-5) and of_trl.abs().max() > 1e-3
    each = score.policy_loss(logprobs, kls, rolled, returns, cfg)
    ours, size = (sum(part.mean() for part in x) for x in (each, map(torch.abs, each)))
    assert abs(sum(parts) - ours) < 1e-6 * size  # terms of both signs, which nearly cancel
    ours.backward()
    trainer.model.save_pretrained(tmp_path / "after")
    for weight, after in zip(
        policy.parameters(), GPT.from_pretrained(tmp_path / "after").parameters()
    ):
        scale = weight.grad.abs().max()
        assert (weight - weight.grad - after).abs().max() < 1e-5 * scale < 1e-2


def test_what_trl_writes_is_a_pretrained_model(chatty, tmp_path, monkeypatch, capsys):
    """Its folder is loaded by --init: with the weights, prompts and end token of what was trained.
    --trl may stand anywhere, and Stage II needs Stage I's folder."""
    trl_score = pytest.importorskip("trl_score", exc_type=SystemExit)
    flags = f"--data math --data-dir {write_math(tmp_path / 'math')} --device cpu"
    flags += " --max-new-tokens 4 --init"
    to_train = f"{flags} {chatty} --out {tmp_path} --problems 2 --samples 2 --revisions 2 --steps 1"
    trl = ["--trl", "learning_rate=0.5", "optim=sgd", "--trl", "warmup_steps=0"]

    def command(stage: int, *more: str) -> int:
        argv = ["trl_score.py", *trl, "--stage", str(stage), *to_train.split(), *more]
        monkeypatch.setattr(sys, "argv", argv)
        return trl_score.main()

    assert command(2) == 2
    assert f"Stage II starts from {tmp_path}/trl/math/stage1, which" in capsys.readouterr().err
    assert command(1, "--recompute") == 2
    assert "--recompute is not a setting of trl_score.py" in capsys.readouterr().err
    made = []
    monkeypatch.setattr(trl_score, "make_trainer", keeping(trl_score.make_trainer, made))
    assert command(1) == 0
    [trainer], written = made, tmp_path / "trl" / "math" / "stage1"
    assert command(1) == 2
    assert f"{written} holds a trained model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="nowhere"):
        command(1, "--out", str(tmp_path / "new"), "--trl", "resume_from_checkpoint=nowhere")
    chosen = {name: getattr(trainer.args, name) for name in ("learning_rate", "optim")}
    assert chosen == {"learning_rate": 0.5, "optim": "sgd"} and trainer.args.warmup_steps == 0
    ours, ids = GPT.from_pretrained(written).eval(), torch.arange(20)[None]
    with torch.no_grad():
        theirs = trainer.model.eval()(input_ids=ids).logits
        assert torch.allclose(ours.logits(ours.hidden(ids)), theirs, atol=1e-4)
    before, after = (data.load("math", source=source(init, tmp_path / "math"))
                     for init in (chatty, written))  # fmt: skip
    problem = before.held_out("test", 1)[0]
    assert before.prompt(problem) == after.prompt(problem)
    assert (before.revise, before.eos) == (after.revise, after.eos)
    new, flags = str(tmp_path / "evaluated"), [*flags.split(), str(written)]
    assert train.main(["--eval", new, "--eval-problems", "2", *flags]) == 0
    assert train.main(["--ask", "What is 2 + 2?", *flags]) == 0
    assert capsys.readouterr().out.count("not graded") == 2


def keeping(function, kept: list):
    """The function, which leaves what it returns in a list."""

    def kept_as_well(*args, **options):
        kept.append(function(*args, **options))
        return kept[-1]

    return kept_as_well


def drawn(batch: dict, name: str, eos: int) -> model_module.Generation:
    """One of the two attempts of TRL's rows."""
    rows = [ids[ok].tolist() for ids, ok in zip(batch["completion_ids"], batch[name])]
    T = max(map(len, rows))
    mask = torch.arange(T) < torch.tensor([len(row) for row in rows])[:, None]
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows])
    ended = torch.tensor([row[-1] == eos for row in rows])
    return model_module.Generation(tokens, mask, torch.zeros(tokens.shape), ended)


def test_parts_on_a_gpu_are_stopped_in_time(tmp_path, capsys):
    """One that fails and one that takes too long leave their logs; what has no time is named. All
    that even if the script was started in the background, where SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parts = on_gpu.Parts(tmp_path, 4.0)
    assert parts.run("good", "-c", "print('done')")
    assert not parts.run("bad", "-c", "raise SystemExit(3)")
    assert not parts.run("long", "-c", "import time; print('begun', flush=True); time.sleep(60)")
    assert not parts.run("late", "-c", "print('never')")
    out = capsys.readouterr().out
    assert "== good: exit code 0" in out and "== bad: exit code 3" in out
    assert "== long: stopped" in out and "== late: no time left" in out and "never\n" not in out
    assert (tmp_path / "long.log").read_text().startswith("begun")
    (tmp_path / "log").write_text('{"seconds": 9.0}\n{"seconds": 2.0}\n')
    assert on_gpu.steps_that_fit(tmp_path / "log", 100) == 50
    assert on_gpu.steps_that_fit(tmp_path / "log", 1) == 1


def test_parts_on_a_gpu_are_of_one_dtype_and_evaluate_what_was_trained(tmp_path, monkeypatch):
    """However the flag is written; here there is no time for Stage II."""
    parts = {}

    def run(self, name, *command) -> bool:
        parts[name] = [*map(str, command)]
        return name != "stage2"

    monkeypatch.setattr(on_gpu.Parts, "run", run)
    monkeypatch.setattr(on_gpu, "steps_that_fit", lambda log, seconds: 1)
    places = ["--init", str(tmp_path), "--data-dir", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["on_gpu.py", *places, "--dtype=bfloat16"])
    assert on_gpu.main() == 0
    ours = {name: flags for name, flags in parts.items() if "humaneval" in flags}
    trained = ["probe", "stage1", "stage2", "eval-base", "eval-stage1", "naive", "eval-naive"]
    assert list(ours) == trained
    assert all(flags[flags.index("--dtype") + 1] == "bfloat16" for flags in ours.values())


def test_baselines_of_an_open_model_lie_beside_its_stages(chatty, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "STAGES", train.STAGES)
    flags = ["--task", "addition", "--difficulty", "2", "--max-new-tokens", "6", "--device", "cpu"]
    flags += ["--eval-problems", "4", "--out", str(tmp_path), "--init", str(chatty)]
    warm_up = ["--stage", "0", *flags]
    flags += ["--problems", "2", "--samples", "2", "--steps"]
    for stage in ("1", "2"):
        assert train.main(["--stage", stage, *flags, "2"]) == 0
    seen = []
    watched = dataclasses.replace(
        methods.METHODS["naive"],
        learns=lambda *args: seen.append(1) or methods.naive_returns(*args),
    )
    monkeypatch.setitem(methods.METHODS, "naive", watched)
    assert baseline.main(["naive", *flags, "4"]) == 0 and len(seen) >= 4
    said = json.loads((tmp_path / "addition" / "naive" / "results.json").read_text())
    assert said["steps"] == 4 and len(checkpoints.read_log(tmp_path / "addition" / "naive")) == 4
    assert settings.read_progress(tmp_path / "addition" / "stage1")[1] == 2  # is left as it was
    capsys.readouterr()
    monkeypatch.setattr(train.Trainer, "save", lambda trainer: os.kill(os.getpid(), signal.SIGINT))
    argv = ["both", *flags, "2"]
    monkeypatch.setattr(sys, "argv", ["experiments/baseline.py", *argv])
    assert baseline.main(argv) == 130
    assert "continue with: python experiments/baseline.py both --task" in capsys.readouterr().err
    assert train.STAGES[1].defaults("math")["steps"] == 3000  # of both stages
    for stage in ("stage1", "stage2", "both"):
        shutil.rmtree(tmp_path / "addition" / stage)
    monkeypatch.undo()
    assert train.main(warm_up) == 2  # naive did not start from a warm-up
    assert "addition/naive did not start from the base" in capsys.readouterr().err
    assert baseline.main([]) == 2 and baseline.main(["base"]) == 2
    assert baseline.main(["naive", "--stage", "2", *flags]) == 2
    monkeypatch.setattr(train, "main", None)
    assert baseline.main(["naive", "--task", "addition"]) == 2
    assert "--init is missing" in capsys.readouterr().err


def test_the_smallest_policy_that_copies_follows_the_exact_gradient():
    """Of what each attempt's own choice changes; attempt 2's is 1 + α times that of Stage I."""
    torch.manual_seed(0)
    policy = [x.requires_grad_() for x in torch.randn(3, 1, 1, dtype=torch.float64)]
    probability = torch.stack(copying.outcomes(*policy)).prod(0)
    assert probability.sum().item() == pytest.approx(1.0)
    exact = torch.autograd.grad((probability * copying.SECOND).sum(), policy[1:])
    [p] = torch.autograd.grad(copying.TOP * policy[0].sigmoid().sum(), policy[:1])
    alpha = torch.full((1, 1), 3.0, dtype=torch.float64)
    one = copying.gradient(policy, score.stage1_returns, alpha)
    two = copying.gradient(policy, score.stage2_returns, alpha)
    assert one[0].item() == 0 and two[0].item() == pytest.approx(p.item())
    for ours, theirs, wanted in zip(one[1:], two[1:], exact):
        assert ours.item() == pytest.approx(wanted.item())
        assert theirs.item() == pytest.approx(4 * wanted.item())


@pytest.mark.parametrize("equal", [True, False])
def test_stage_1_helps_the_smallest_policy_if_steps_are_equally_long(equal):
    """Where edits are rare, at α = 1. By gradient ascent it helps at α = 0 alone."""
    edits, alpha = torch.tensor([[0.002], [0.03]]), torch.tensor([[0.0, 1.0, 10.0]])
    trained = [copying.train(stages, edits, alpha, equal) for stages in copying.WAYS.values()]
    alone, both = (100 * (t2 - t1) for t1, t2 in trained)
    assert (both - alone)[1, 1:].abs().max() < 5 and both[1, 2] > 25 and alone[1, 2] > 25
    if equal:
        assert alone[0, 1] < 5 and both[0, 1] > 25
    else:
        assert alone[1, 0] < both[1, 0] - 5 and (both - alone)[:, 1:].max() < 5


TINY = {"difficulty": 3, "layers": 1, "width": 16, "transcripts": 16, "eval_problems": 20}


@pytest.fixture(scope="module")
def small_base(tmp_path_factory) -> pathlib.Path:
    """A base model for every method to start from."""
    out = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        runs.Run("base", 0).perform(out)
    return out


def shrink(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(runs, "LOOK", 2)
    patch.setattr(score, "grade", odd_start)
    for name, method in methods.METHODS.items():
        own = {"problems": 8, "steps": 7}  # no whole number of rounds
        patch.setitem(
            methods.METHODS, name, dataclasses.replace(method, own=method.own | TINY | own)
        )


@pytest.fixture
def few_updates(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture
def compared(small_base, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(small_base, tmp_path / "out"))


METHODS = [name for name in methods.METHODS if name not in ("base", "stage1")]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_leaves_what_the_tables_need(name, compared, few_updates):
    for run in compare.planned_with_starts([runs.Run(name, 0)]):
        if not run.finished(compared):
            run.perform(compared)
    folder = runs.Run(name, 0).folder(compared)
    found = json.loads((folder / "details.json").read_text())
    assert sum(found["edits"]) == 20 and 0 <= found["edit_ratio"] <= 1
    assert len(found["attempts"]) == 10 and found["votes"]["samples"][-1] == 32
    [curve] = tables.curves([runs.Run(name, 0)], compared)
    assert [point[0] for point in curve["val"]] == [2, 4, 6]
    log = checkpoints.read_log(folder)
    seen = [[row["val"][x] for x in ("acc_t1", "acc_t2", "changed")] for row in log if "val" in row]
    assert [point[1:] for point in curve["val"]] == [pytest.approx(x, abs=1e-4) for x in seen]
    assert curve["clipped"] == pytest.approx(sum(x["grad_norm"] > 1 for x in log) / 7, abs=1e-4)
    samples = json.loads((folder / "results.json").read_text())["samples"]
    assert samples == pytest.approx(7 * samples_a_step(name), rel=0.04)  # 5 offline problems of 4.8


def test_the_comparison_s_score_is_the_command_line_s(compared, few_updates, monkeypatch):
    """Both stages by compare.py are those of `python train.py`, weight for weight."""
    stages = [
        dataclasses.replace(stage, own={"arithmetic": methods.METHODS[stage.folder].own})
        for stage in train.STAGES
    ]
    monkeypatch.setattr(train, "STAGES", tuple(stages))
    again = compared / "again"
    shutil.copytree(runs.Run("base", 0).folder(compared), again / "puzzle" / "base")
    for number, name in enumerate(("stage1", "stage2"), 1):
        run = runs.Run(name, 0)
        run.perform(compared)
        assert train.main(["--stage", str(number), "--out", str(again), "--device", "cpu"]) == 0
        ours = again / "puzzle" / name / "model.pt"
        assert same_weights(run.folder(compared) / "model.pt", ours)
        base = runs.Run("base", 0).folder(compared) / "model.pt"
        assert not same_weights(base, ours)


def test_imitated_answers_belong_to_their_problems():
    """All that a rollout has, each with its reward and its problem's."""
    gpt, task, problems = ragged_gpt(), Picky(), toy_problems(RAGGED)
    cfg = score.Config(samples=3, revisions=2)
    rolled = score.rollout(gpt, task, problems, cfg, seed=1)
    ended = [dict(zip(score.texts(task, x), x.ended)) for x in (rolled.first, rolled.second)]
    seen = [[], []]
    for problem, both in zip(problems, runs.answers_by_problem(task, rolled, problems, cfg)):
        for said, ends, kept in zip(both, ended, seen):
            assert [r for _, r in said] == [task.reward(problem, y) * ends[y] for y, _ in said]
            kept += [y for y, _ in said]
    assert seen == [score.texts(task, x) for x in (rolled.first, rolled.second)]


def test_a_vote_is_for_the_most_frequent_answer(monkeypatch):
    """Of the first K answers, or of the second ones to K/2 of them, to each problem."""
    said, asked = iter(["abbbaabc", "baaabbaa"]), []  # four answers to each of two problems

    def respond(model, task, problems, prompts, keys, samples, temperature, seed):
        asked.append((prompts, samples, temperature))
        return list(next(said))

    monkeypatch.setattr(score, "respond", respond)
    monkeypatch.setattr(score, "try_again", lambda task, prompts, attempts: "again")
    monkeypatch.setattr(score, "answers", lambda attempt: None)
    monkeypatch.setattr(score, "texts", lambda task, attempt: attempt)
    monkeypatch.setattr(Toy, "rewards", lambda task, problems, texts: [y == "b" for y in texts])
    found = runs.votes(None, Toy(), toy_problems([[1], [2]]), most=4)
    assert found == {"samples": [1, 2, 4], "parallel": [0, 0, 0.5], "corrected": [None, 1, 1]}
    assert asked == [([[1], [2]], 4, 0.7), ("again", 1, 0.7)]


@pytest.mark.parametrize("seed, split", [(0, "test"), (runs.TUNING_SEED, "val")])
def test_rates_are_chosen_on_validation_problems(seed, split, tmp_path):
    assert runs.Run("naive", seed).job(tmp_path).run.split == split


def test_a_pair_that_is_imitated_once_is_in_one_update(compared, few_updates, monkeypatch):
    """And all are, in a whole round; the last of these seven updates is not one."""
    batches, rounds, step = [], [], train.supervised_step

    def watched(model, optimizer, task, rows, *rest):
        batches.append(rows)
        return step(model, optimizer, task, rows, *rest)

    monkeypatch.setattr(train, "supervised_step", watched)
    monkeypatch.setattr(runs.Trainer, "collect", keeping(runs.Trainer.collect, rounds))
    runs.Run("star_once", 0).perform(compared)
    assert len(rounds) == 3
    for number, collected in enumerate(rounds[:2]):
        imitated = [tuple(row) for rows in batches[3 * number : 3 * number + 3] for row in rows]
        assert len(imitated) == len(set(imitated)) > 3
        assert set(imitated) == set(collected["pairs"])


@pytest.mark.parametrize("name", ["star_plus", "star_once", "offline_only"])
def test_a_stopped_method_goes_on_as_if_it_had_not(name, compared, few_updates, monkeypatch):
    monkeypatch.setattr(train, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(train, "SAVE_SHARE", math.inf)
    for run in compare.planned_with_starts([runs.Run(name, 0)]):
        if not run.finished(compared):
            run.perform(compared)
    whole = run.folder(compared)
    kept = whole.rename(whole.with_name("whole"))
    advance = runs.Trainer.advance

    def stop(*args):
        raise KeyboardInterrupt

    def stop_after_three(trainer):
        return stop() if trainer.step == 3 else advance(trainer)

    monkeypatch.setattr(runs.Trainer, "advance", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run.perform(compared)
    monkeypatch.setattr(runs.Trainer, "advance", advance)
    evaluate = train.evaluate
    monkeypatch.setattr(train, "evaluate", stop)
    with pytest.raises(KeyboardInterrupt):  # after its training
        run.perform(compared)
    monkeypatch.setattr(train, "evaluate", evaluate)
    run.perform(compared)
    assert same_weights(whole / "model.pt", kept / "model.pt")
    assert without_times(whole / "metrics.jsonl") == without_times(kept / "metrics.jsonl")
    counts = [json.loads((each / "results.json").read_text())["samples"] for each in (whole, kept)]
    assert counts[0] == counts[1]


def samples_a_step(name: str) -> float:
    run, cfg = settings.resolve(train.STAGES[1], methods.METHODS[name].own)
    return cfg.problems * (1 + cfg.offline) * cfg.samples * (1 + cfg.revisions)


def test_offline_first_attempts_are_the_base_s(compared, few_updates, monkeypatch):
    authors, rollout = [], score.rollout

    def watched(policy, *args, first_by=None):
        authors.append((policy, first_by))
        return rollout(policy, *args, first_by=first_by)

    monkeypatch.setattr(score, "rollout", watched)
    base = checkpoints.load_model(runs.Run("base", 0).folder(compared), None, torch.device("cpu"))
    for run in compare.planned_with_starts([runs.Run("offline_only", 0)])[1:]:
        authors.clear()
        run.perform(compared)
    assert len(authors) == 7
    for policy, author in authors:
        assert author is not policy and torch.equal(author.norm.weight, base.norm.weight)


@pytest.mark.parametrize("name", ["star", "star_plus", "star_online", "pair_sft", "pair_sft_plus"])
def test_a_method_imitates_what_it_says(name, compared, few_updates, monkeypatch):
    learns, step = methods.METHODS[name].learns, train.supervised_step
    rounds, mixed, asked = [], [], []
    monkeypatch.setattr(runs.Trainer, "collect", keeping(runs.Trainer.collect, rounds))
    monkeypatch.setattr(runs, "mixed_pairs", keeping(runs.mixed_pairs, mixed))

    def watched(model, optimizer, task, rows, clip, both):
        asked.append((len(rows), both))
        return step(model, optimizer, task, rows, clip, both)

    monkeypatch.setattr(train, "supervised_step", watched)
    runs.Run(name, 0).perform(compared)
    task = data.load("puzzle", 3)

    def reward(text: str) -> float:  # as odd_start grades
        return task.encode(text)[0] % 2

    pairs = [pair for collected in rounds for pair in collected["pairs"]]
    assert pairs and all(learns.keep(reward(y1), reward(y2)) for _, y1, y2 in pairs)
    assert bool(mixed) == learns.paired and len(rounds) == min(7, learns.rounds)
    assert len(asked) == 7 and all(n <= 16 and both is learns.both for n, both in asked)


def test_a_run_is_of_its_own_seed_base_and_budget(small_base, few_updates, tmp_path):
    run = runs.Run("stage2", 3, "flat", times=3)
    assert run.start == runs.Run("stage1", 3, "flat", times=3)
    assert run.start.start == runs.Run("base", 3, "flat")
    chain = (run, run.start, run.start.start)
    assert [each.settings["steps"] for each in chain] == [21, 21, 7]
    for name, seed in (("base", 0), ("base", 1), ("naive", 1)):
        runs.Run(name, seed, "flat").perform(tmp_path)  # no other base is there
    flat, habit = tmp_path / "flat", small_base / "habit"
    bases = flat / "seed0", flat / "seed1", habit / "seed0"
    for one, other in itertools.combinations(bases, 2):
        assert not same_weights(one / "base" / "model.pt", other / "base" / "model.pt")


def test_curves_are_of_test_seeds(monkeypatch):
    """What the figures and some tables show; rates are tuned on others."""
    seen = []
    for name in ("perform_all", "gather"):
        monkeypatch.setattr(compare, name, lambda *args, **options: [])
    monkeypatch.setattr(compare, "tables", lambda *args: {})
    monkeypatch.setattr(compare, "curves", lambda some, out: seen.extend(some))
    monkeypatch.setattr(runs.Run, "finished", lambda run, out: True)
    monkeypatch.setattr(sys, "argv", ["compare.py"])
    compare.main()
    assert len(seen) > 50 and all(x.seed < runs.TUNING_SEED and x.lr is None for x in seen)


@pytest.mark.parametrize("flag", ["--workers", "--seeds"])
def test_zero_workers_or_seeds_are_refused(flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["compare.py", flag, "0"])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert f"{flag} must be at least 1: 0" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--write", "--seeds 2", "--parts main"])
def test_a_quick_comparison_ignores_no_flag(flags, monkeypatch, capsys):
    monkeypatch.setattr(compare, "perform_all", None)
    monkeypatch.setattr(sys, "argv", ["compare.py", "--quick", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        compare.main()
    assert f"--quick has no {flags.split()[0]}" in capsys.readouterr().err


def test_ablations_have_the_alpha_of_their_titles():
    found = {
        name: settings.resolve(train.STAGES[2], methods.METHODS[name].own)[1].alpha
        for name in ("no_bonus", "alpha1", "alpha1_alone", "no_stage1", "stage2")
    }
    assert found == {"no_bonus": 0, "alpha1": 1, "alpha1_alone": 1, "no_stage1": 10, "stage2": 10}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "rloo_stage1"])
def test_budgets_are_equal(name):
    """As many updates as SCoRe's two stages, and as many samples but for 5 per cent."""
    chain = compare.planned_with_starts([runs.Run(name, 0)])[1:]  # without the base
    steps = [run.settings["steps"] for run in chain]
    assert sum(steps) == methods.STEPS
    samples = sum(n * samples_a_step(run.method) for n, run in zip(steps, chain))
    assert abs(samples / (sum(steps) * samples_a_step("stage2")) - 1) < 0.051


def test_learning_rates_are_the_best_on_validation_problems():
    """And three are tried around each; tuning.json says nothing yet of methods not run."""
    assert all(len(compare.tried(arm)) == 3 for arm in ("stage1", "stage2", *methods.MAIN))
    tuning = json.loads(tables.TUNING.read_text())
    for arm in {row["arm"] for row in tuning}:
        found = {row["lr"]: row["acc_t2"] for row in tuning if row["arm"] == arm}
        assert found.keys() == set(compare.tried(arm)), arm
        assert methods.METHODS[arm].own["lr"] == max(found, key=found.get), arm


def test_returns_of_the_baselines_by_hand():
    """r1, r2, KL1, KL2 and β1 as numbers: (y1's return, y2's)."""
    numbers = [torch.tensor([value]) for value in (1.0, 0.5, 3.0, 4.0)]
    cfg = score.Config(beta1=0.1)
    for returns, wanted in (
        (methods.naive_returns, (0.0, 0.1)),
        (methods.both_returns, (0.7, 0.1)),
        (methods.trajectory_returns, (1.2, 0.1)),
        (methods.single_returns, (0.7, 0.0)),
    ):
        assert [float(part) for part in returns(*numbers, cfg)] == pytest.approx(wanted)


def test_what_is_imitated():
    """Answers are (text, reward). Own pairs follow each other; mixed ones end in a right answer,
    another one than they begin with."""
    firsts, seconds = [("a", 0.0), ("b", 1.0)], [("c", 1.0), ("d", 0.0), ("e", 0.0), ("f", 1.0)]
    own = runs.own_pairs(firsts, seconds, None)
    kept = {
        keep: ["".join(text for text, _ in pair) for pair in own if keep(pair[0][1], pair[1][1])]
        for keep in (methods.wrong_to_right, methods.ends_right)
    }
    assert kept == {methods.wrong_to_right: ["ac"], methods.ends_right: ["ac", "bf"]}
    mixed = runs.mixed_pairs(firsts, seconds, np.random.default_rng(0))
    assert [pair[0] for pair in mixed] == firsts + seconds
    assert all(y2[1] == 1 and y2 != y1 for y1, y2 in mixed)
    assert runs.mixed_pairs([("a", 0.0)], [("b", 1.0)], np.random.default_rng(0)) == [
        (("a", 0.0), ("b", 1.0))
    ]


@pytest.mark.parametrize(
    ("first", "second", "ratio"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "", 1), ("abcd", "axd", 2 / 7), ("ab", "ba", 2 / 4)],
)
def test_edit_ratio_by_hand(first, second, ratio):
    assert runs.edit_ratio(first, second) == pytest.approx(ratio)


def fake_launch(code: str):
    """In place of a run: a process that runs `code` in the run's folder."""

    def launch(run: runs.Run, out: pathlib.Path, threads: int) -> subprocess.Popen:
        run.folder(out).mkdir(parents=True, exist_ok=True)
        return subprocess.Popen([sys.executable, "-c", code], cwd=run.folder(out))

    return launch


def test_runs_wait_for_what_they_start_from(tmp_path, monkeypatch, capsys):
    done = "import time; open('details.json', 'w').write(str(time.time()))"
    monkeypatch.setattr(compare, "launch", fake_launch(done))
    runs = compare.planned(["quick"], 1)
    compare.perform_all(runs, tmp_path, workers=2)
    ended = {run: float((run.folder(tmp_path) / "details.json").read_text()) for run in runs}
    assert all(ended[run.start] < ended[run] for run in runs if run.start)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(runs) and lines[-1].endswith("about 0 minutes left")
    compare.perform_all(runs, tmp_path, workers=2)  # nothing is left
    assert not capsys.readouterr().out


def test_a_failed_run_ends_the_comparison_and_names_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "launch", fake_launch("raise SystemExit(3)"))
    with pytest.raises(SystemExit, match=r"base failed: see .*base\.log"):
        compare.perform_all(compare.planned(["quick"], 1), tmp_path, workers=2)


def test_a_run_that_another_process_makes_is_left_to_it(compared, few_updates):
    run = runs.Run("base", 0)
    with (
        checkpoints.locked(run.folder(compared)),
        pytest.raises(ValueError, match="is training in"),
    ):
        run.perform(compared)


def test_comparison_refuses_runs_with_other_settings(compared, few_updates, monkeypatch):
    monkeypatch.setattr(tables, "EVALUATED", {"n": 20, "temperature": 0.0})
    [row] = tables.gather([runs.Run("base", 0)], compared)
    own, folder = methods.METHODS["base"].own, runs.Run("base", 0).folder(compared)
    assert (row["arm"], row["seed"], row["n"], row["lr"]) == ("base", 0, 20, own["lr"])
    results, found = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("results", "details")
    )
    percent = {name: results[name] for name in tables.COLUMNS}
    percent |= {"edit_ratio": found["edit_ratio"]}
    assert {name: row[name] for name in percent} == pytest.approx(
        {name: 100 * share for name, share in percent.items()}, abs=0.01
    )
    assert row["diagnosis"] == results["diagnosis"]
    for name, other in {"n": 19, "split": "val", "temperature": 0.7}.items():
        (folder / "results.json").write_text(json.dumps(results | {name: other}))
        with pytest.raises(SystemExit, match=f"was made with {name}"):
            tables.gather([runs.Run("base", 0)], compared)
    (folder / "results.json").write_text(json.dumps(results))
    monkeypatch.setitem(own, "lr", own["lr"] / 2)
    with pytest.raises(SystemExit, match="was made with lr"):
        tables.gather([runs.Run("base", 0)], compared)


def test_figures_are_drawn_from_what_was_kept(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import figures

    monkeypatch.setattr(figures, "FOLDER", tmp_path)
    figures.main()
    assert {path.stem for path in tmp_path.glob("*.png")} == figures.DRAWINGS.keys()
    assert all(f"(figures/{name}.png)" in tables.RESULTS.read_text() for name in figures.DRAWINGS)


def test_what_goes_wrong_is_one_change_each():
    """The page's cases still apply to the source, still compile, and have their figures."""
    pytest.importorskip("matplotlib")
    import wrong

    page = (ROOT / "experiments" / "WRONG.md").read_text()
    for case in wrong.CASES.values():
        compile(wrong.changed(case, (ROOT / case.file).read_text()), case.file, "exec")
    for name in wrong.CASES | wrong.RUNS:
        assert f"(figures/wrong_{name}.png)" in page
        assert (ROOT / "experiments" / "figures" / f"wrong_{name}.png").exists()
    caught = re.findall(r"`(test_\w+)(?:\[(.*?)\])?`", page)
    assert len(caught) == 4
    for test, mutant in caught:
        assert hasattr(test_score, test) and (not mutant or mutant in test_score.MUTANTS)


def test_a_run_that_goes_wrong_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    import wrong

    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **how: commands.append(command))
    before = tmp_path / "habit" / "seed0" / "base"
    before.mkdir(parents=True)
    (before / "model.pt").touch()
    wrong.train(wrong.CASES["no_kl1"], "no_kl1", tmp_path)
    stopped = tmp_path / "wrong" / "no_kl1" / "puzzle" / "stage1"
    stopped.mkdir()
    (stopped / "state.pt").touch()
    wrong.train(wrong.CASES["no_kl1"], "no_kl1", tmp_path)
    assert [command[-1] for command in commands] == ["500", "--resume"]


def test_curves_are_drawn_of_any_run(trained, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    import plot

    stages = [str(trained / name) for name in ("base", "stage1", "stage2")]
    for folders in (stages, stages[:1]):
        to = tmp_path / "curves.png"
        monkeypatch.setattr(sys, "argv", ["plot.py", *folders, "--to", str(to)])
        plot.main()
        assert to.read_bytes().startswith(b"\x89PNG")
    rows = plot.read(trained / "stage1")
    figure = plot.draw({"one": rows, "two": rows}, window=3)
    seen = dict(rows[3], val={"acc_t1": 0.2, "acc_t2": 0.4, "changed": 0.3})
    marks = [axis.collections for axis in plot.draw({"one": [*rows, seen]}, window=3).axes[:2]]
    places = [mark.get_offsets().tolist() for both in marks for mark in both]
    assert places == [[[4, 0.2]], [[4, 0.4]], [[4, 0.3]]]
    lines = figure.axes[0].get_lines()
    assert len(lines) == 4 and list(lines[1].get_xdata()) == [row["step"] for row in rows]
    last = [row["acc_t2"] for row in rows[-3:]]
    assert lines[1].get_ydata()[-1] == pytest.approx(sum(last) / 3)
    capsys.readouterr()
    for content, said in (("x", "not JSON"), ("", "holds no step"), ("[1]", "not a JSON object")):
        (tmp_path / "metrics.jsonl").write_text(content)
        monkeypatch.setattr(sys, "argv", ["plot.py", str(tmp_path)])
        with pytest.raises(SystemExit) as ended:
            plot.main()
        err = capsys.readouterr().err
        assert ended.value.code == 2 and said in err and err.count("\n") == 1
