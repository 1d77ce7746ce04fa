"""The benchmarks: what they compare, that each of them runs, that SPEED.md has their figures."""

import json
import math

import bench
import pytest
import tables
import torch


@pytest.fixture
def here(monkeypatch):
    """Every measurement in this process, without the rates of the limit, which take seconds."""
    rates = {"gemm": 1e9, "head": 1e9, "memory": 1e9, "weight_bytes": 4, "head_bytes": 4}

    def measure_peaks(best, device, dtype, threads):
        return best.setdefault(f"{dtype}, {threads} thread(s)", rates)

    monkeypatch.setattr(bench, "measure_peaks", measure_peaks)
    monkeypatch.setattr(bench, "elsewhere", lambda call, args, turn: call(*args))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(command: str, path) -> list[dict]:
    """What a small run of it keeps."""
    bench.main(f"{command} --quick --repeats 1 --keep part/name --file {path}".split())
    return json.loads(path.read_text())["part/name"]["results"]


def test_rollouts_are_measured_for_what_was_asked(here, tmp_path, capsys):
    pytest.importorskip("transformers", reason="the peer is transformers")
    command = "rollouts --rows 4 --peers eager --dtypes float32 bfloat16 --lengths equal ragged"
    rows = run(command, tmp_path / "kept.json")
    assert [row["way"] for row in rows] == ["ours", "eager"] * 4
    equal = [row for row in rows if row["lengths"] == "equal"]
    assert [row["tokens_per_second"] * row["seconds"] for row in equal] == pytest.approx([16] * 4)
    assert all(row["tokens_per_second"] > 0 and row["share_of_limit"] > 0 for row in rows)
    errors = [row["error_max"] for row in rows if "error_max" in row]
    assert len(errors) == 2 and max(errors) < 0.05
    mine, eager = rows[:2]
    times = mine["tokens_per_second"] / eager["tokens_per_second"]
    assert mine["ours_faster"] == 1 and eager["ours_faster"] == pytest.approx(times)
    assert capsys.readouterr().out.count("| tiny |") == len(rows)


def test_updates_are_measured_by_their_parts(here, tmp_path):
    rows = run("updates", tmp_path / "kept.json")
    assert [(row["part"], row["way"]) for row in rows] == [
        ("head and loss", "ours"),
        ("head and loss", "naive"),
        ("whole update", "ours"),
    ]
    assert all(row["seconds"] > 0 for row in rows) and rows[2]["MiB"] > 0


def test_growth_is_measured_with_what_bounds_a_step(here, tmp_path):
    rows = run("growth", tmp_path / "kept.json")
    assert [row["quantity"] for row in rows] == [
        quantity for quantity in ("rows", "context", "parameters") for _ in range(2)
    ]
    for row in rows:
        assert row["products"] + row["weights"] > 0 and row["cache"] > 0 and row["seconds"] > 0
    assert [math.isfinite(row.get("slope", math.inf)) for row in rows] == [False, True] * 3


def test_steps_beside_trl_have_as_many_completions(monkeypatch, here, tmp_path):
    pytest.importorskip("trl", reason="the peer is TRL")
    graded = []
    monkeypatch.setattr(
        bench.Random, "reward", lambda task, problem, text: graded.append(text.split()) or 0.0
    )
    for way in (bench.our_step, bench.trl_step):
        graded.clear()
        assert way(bench.Namespace(**bench.QUICK))["seconds"] > 0
        assert len(graded) == 24 and max(map(len, graded)) == 4  # TRL's texts lack special tokens


def test_what_fails_is_left_out_and_named():
    def fail(turn: int) -> dict:
        raise RuntimeError("no memory\nat all")

    ways = {"ours": lambda turn: {"seconds": 1.0 + turn}, "other": fail}
    rows = list(bench.in_turn(ways, 3, warm_ups=2, size="tiny"))
    assert rows[0] == {"size": "tiny", "way": "ours", "seconds": 2.0, "ours_faster": 1.0}
    assert rows[1] == {"size": "tiny", "way": "other", "failed": "no memory"}


def test_a_way_is_measured_in_a_process_of_its_own():
    head = bench.elsewhere(bench.measure_head, ("naive", "tiny", "float32", "cpu", 2048), 0)
    # Two tables of logits and what is made of them: 2,048 × 128 numbers are 1 MiB.
    assert head["seconds"] > 0 and 2 < head["MiB"] < 100


def test_the_limit_is_that_of_the_slower_of_products_and_reading():
    """By hand, of one layer of width 2 and 4 tokens: 4 · 2² + 2 · 2 · 8 = 48 weights, head 8."""
    config = bench.plain(1, 2, 1, 4, 8)
    assert bench.weight_counts(config) == (48, 8)
    peaks = {"gemm": 1.0, "head": 2.0, "memory": 4.0, "weight_bytes": 1, "head_bytes": 2}
    seconds = bench.limit(config, [2, 1], 3, peaks)
    # Step 0 reads 2 prompts of 3 tokens and draws 2; step 1 reads and draws 1, and reads 4 slots.
    products = (2 * 48 * 6 / 1 + 2 * 8 * 2 / 2) + (2 * 48 / 1 + 2 * 8 / 2)
    assert seconds == {"products": products, "weights": 0, "cache": 4 * (2 * 2 * 2) / 4}
    slow = bench.limit(config, [2, 1], 3, peaks | {"memory": 0.01}, first=1)
    assert slow["weights"] == (48 * 1 + 8 * 2) / 0.01 and slow["products"] == 0


def test_the_limit_s_rates_are_measured():
    best = {}
    peaks = bench.measure_peaks(best, "cpu", "float32", 1, tries=1)
    assert list(best.values()) == [peaks] and peaks["weight_bytes"] == peaks["head_bytes"] == 4
    assert all(1e7 < peaks[name] < 1e14 for name in ("gemm", "head", "memory"))


@pytest.mark.parametrize("way", ["ours", "eager"])
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_what_the_benchmark_compares_samples_what_it_scores(way, lengths):
    """Log-probabilities are a teacher-forced forward's; `compiled` shares the code of `eager`."""
    model = bench.build(bench.SIZES["tiny"])
    eos = bench.add_eos(model) if lengths == "ragged" else None
    prompts = bench.draw_prompts(model, 8, 8)
    if way == "ours":
        answers = bench.ours(model, prompts, "float32", 16, eos, 0)
    else:
        pytest.importorskip("transformers", reason="the peer is transformers")
        library = bench.load_library(model, "float32")
        answers = bench.from_library(False, lambda: library, prompts, 16, eos, 0)
    assert answers[0].shape == answers[1].shape == (8, 16)
    assert bench.logprob_error(model, prompts, answers, eos)["error_max"] < 1e-4


def test_the_heads_that_are_compared_have_the_same_values():
    policy, ref = (bench.build(bench.SIZES["tiny"]) for _ in range(2))
    torch.manual_seed(0)
    ref.head.weight.normal_(std=0.1)
    hidden, ref_hidden = torch.randn(2, 5, 192)
    heads = policy, hidden, torch.arange(5), ref, ref_hidden, 0.7
    for ours, naive in zip(bench.GPT.scores(*heads), bench.naive_scores(*heads)):
        assert torch.allclose(ours, naive, atol=1e-4)


def test_the_benchmark_s_peers_draw_from_the_softmax():
    logits, N = torch.tensor([[2.0, -math.inf, 0.0, 1.0, -3.0]]), 100_000
    torch.manual_seed(0)
    token, logprob = bench.plain_draw(logits.expand(N, -1))
    p = logits[0].softmax(-1)
    assert torch.allclose(logprob, p.log()[token], atol=1e-6)
    counts = torch.bincount(token[:, 0], minlength=5)
    assert (counts - N * p).abs().le(4 * (N * p * (1 - p)).sqrt()).all()


def test_a_part_has_all_its_runs_wherever_they_were_kept():
    info = {"machine": "A", "cores": 2, "date": "2026-11-25", "command": "one"}
    first, second = (info | {"results": [{"size": size}]} for size in ("tiny", "gpt2"))
    later = second | {"date": "2026-11-30", "command": "two"}
    made = bench.parts({"h200/a": first, "trl": first, "h200/b": later})
    assert made.keys() == {"h200", "trl"}
    assert made["h200"].startswith("A, 2 cores, 2026-11-25; A, 2 cores, 2026-11-30:")
    assert "one\ntwo" in made["h200"] and "| tiny |\n| gpt2 |" in made["h200"]


def test_a_stopped_measurement_does_not_replace_a_whole_one(tmp_path, monkeypatch):
    def measure(args, peaks):
        yield {"size": "tiny"}
        if stopped:
            raise KeyboardInterrupt

    monkeypatch.setitem(bench.COMMANDS, "growth", (measure, []))
    file, stopped = tmp_path / "kept.json", False
    command = f"growth --quick --file {file} --keep".split()
    bench.main([*command, "whole"])
    whole, stopped = json.loads(file.read_text())["whole"], True
    for name in ("whole", "part"):
        with pytest.raises(KeyboardInterrupt):
            bench.main([*command, name])
    kept = json.loads(file.read_text())
    assert kept["whole"] == whole and kept["part"]["results"] == [{"size": "tiny"}]


def test_speed_md_has_the_figures_that_are_kept():
    page, parts = bench.PAGE.read_text(), bench.parts(json.loads(bench.FILE.read_text()))
    assert page.count("<!-- /") == len(parts)
    assert all(tables.marked(name, text) in page for name, text in parts.items())
