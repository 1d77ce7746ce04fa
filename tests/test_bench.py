"""The benchmarks: what they compare samples what it scores."""

import json
import math
import subprocess
import sys

import bench_rollout
import bench_trl
import pytest
import speed
import torch

import score
from tests.helpers import ROOT


def test_benchmarks_run(tmp_path, monkeypatch, capsys):
    """On sizes that measure nothing: every way gives its figures, for what was asked."""
    for rate in ("gemm_rate", "memory_rate"):  # which take seconds
        monkeypatch.setattr(bench_rollout, rate, lambda *args: 1e9)
    path, threads = tmp_path / "out.json", torch.get_num_threads()
    command = f"bench --repeats 1 --write {path} --rows 4 --prompt 5 --new 4 --peers nocache concat"
    command += " --dtypes float32 bfloat16 --lengths equal ragged"
    monkeypatch.setattr(sys, "argv", command.split())
    bench_rollout.main()
    torch.set_num_threads(threads)
    results = json.loads(path.read_text())["results"]
    assert [result["way"] for result in results] == ["ours", "nocache", "concat"] * 4
    assert {result["mean_length"] for result in results if result["lengths"] == "equal"} == {4}
    assert all(result["tokens_per_second"] > 0 for result in results)
    errors = [result["logprob_error"]["max"] for result in results if "logprob_error" in result]
    assert len(errors) == 2 and max(errors) < 0.05
    assert capsys.readouterr().out.count("| tiny |") == len(results)

    script = str(ROOT / "experiments" / "bench_update.py")
    command = f"{script} --repeats 1 --write {path} --rows 8 --width 4 --vocabulary 30"
    options = [*command.split(), "--peers", "slices", "naive"]
    subprocess.run([sys.executable, *options], check=True, capture_output=True)
    assert json.loads(path.read_text())["results"].keys() == {"slices", "naive"}


def test_steps_beside_trl_have_as_many_completions(monkeypatch):
    pytest.importorskip("trl", reason="the peer is TRL")
    for name, small in {
        "NEW": 4, "STEPS": 2, "CFG": score.Config(problems=2, samples=2, revisions=2),
        "COMPLETIONS": 12, "VOCABULARY": 32,
    }.items():  # fmt: skip
        monkeypatch.setattr(bench_trl, name, small)
    monkeypatch.setattr(bench_trl.Random, "eos", 32)
    monkeypatch.setattr(bench_trl.Random, "max_new_tokens", 4)
    graded = []
    monkeypatch.setattr(bench_trl, "reward", lambda text: graded.append(text.split()) or 0.0)
    for way in (bench_trl.ours, bench_trl.rloo):
        graded.clear()
        assert len(times := way()) == 2 and min(times) > 0
        assert len(graded) == 24 and max(map(len, graded)) == 4  # TRL's texts lack special tokens


@pytest.mark.parametrize("way", ["ours", "eager", "nocache", "concat"])
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_what_the_benchmark_compares_samples_what_it_scores(way, lengths, tmp_path):
    """Log-probabilities are a teacher-forced forward's; `compiled` shares the code of `eager`."""
    if way == "eager":
        pytest.importorskip("transformers", reason="the peer is transformers")
    model, library = bench_rollout.build(bench_rollout.named("tiny", 24), "cpu"), None
    eos = bench_rollout.add_eos(model) if lengths == "ragged" else None
    if way == "eager":
        model.save_pretrained(tmp_path)
        library = bench_rollout.load_library(tmp_path, "float32", "cpu")
    prompts = bench_rollout.draw_prompts(model, 8, 8)
    ways = bench_rollout.make_ways(model, library, "float32", bench_rollout.PEERS, prompts)
    answers = ways[way](16, eos, 0)
    assert answers[0].shape == answers[1].shape == (8, 16)
    assert bench_rollout.logprob_error(model, prompts, answers, eos)["max"] < 1e-4


def test_the_benchmark_s_peers_draw_from_the_softmax():
    logits, N = torch.tensor([[2.0, -math.inf, 0.0, 1.0, -3.0]]), 100_000
    torch.manual_seed(0)
    token, logprob = bench_rollout.plain_draw(logits.expand(N, -1))
    p = logits[0].softmax(-1)
    assert torch.allclose(logprob, p.log()[token], atol=1e-6)
    counts = torch.bincount(token[:, 0], minlength=5)
    assert (counts - N * p).abs().le(4 * (N * p * (1 - p)).sqrt()).all()


def test_the_page_of_speed_is_what_the_benchmarks_printed():
    assert speed.FILE.read_text() == speed.page()
