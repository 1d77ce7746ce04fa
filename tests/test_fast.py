"""The same numbers in less time or memory: slices of the head, CUDA graphs, other linear layers."""

import gc
import math
import weakref

import pytest
import torch

import model as model_module
import score
from fast import linear
from fast.attention import attend_one
from fast.graphs import GraphCache
from fast.head import HeadScores
from model import GPT, GPTConfig, generate
from score import answers
from test_score import DEVICE, RAGGED, Toy, needs_cuda, plain_scores, ragged_gpt, toy_problems


def naive_scores(hidden, weight, ref_hidden, ref_weight, tokens, temperature):
    logprobs, ref = (
        (x @ rows.T / temperature).log_softmax(1)
        for x, rows in ((hidden, weight), (ref_hidden, ref_weight))
    )
    kl = (logprobs.exp() * (logprobs - ref)).sum(1)
    return logprobs.gather(1, tokens[:, None])[:, 0], kl


@pytest.mark.parametrize("chunk", [1, 3990, 1 << 24])
def test_head_scores_and_their_gradient_are_the_naive_ones(chunk, monkeypatch):
    """For arbitrary weights on log-probabilities and KLs, in three slices, in two, and in one."""
    monkeypatch.setattr(HeadScores, "CHUNK", chunk)
    g = torch.Generator().manual_seed(0)
    heads = [4 * torch.randn(n, 8, generator=g, dtype=torch.float64) for n in (10, 600, 10, 600)]
    tokens = torch.randint(600, (10,), generator=g)
    tokens[:4] = torch.tensor([0, 255, 256, 599])
    weights = torch.randn(2, 10, generator=g, dtype=torch.float64)
    results = []
    for scores in (HeadScores.apply, naive_scores):
        leaves = [head.clone().requires_grad_() for head in heads[:2]]
        values = scores(*leaves, *heads[2:], tokens, 0.7)
        grads = torch.autograd.grad((weights * torch.stack(values)).sum(), leaves)
        results.append([*(value.detach() for value in values), *grads])
    for ours, theirs in zip(*results):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("apart", [0.0, 0.05])
def test_kl_is_exact_in_float32(apart):
    """Of logits near −100, as GPT-2's are: 0 between equals, positive between others."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(50, 64, generator=g), torch.randn(300, 64, generator=g) / 8
    other = weight + apart * torch.randn(300, 64, generator=g)
    hidden[:, 0], weight[:, 0], other[:, 0] = 16, -6, -6
    heads, tokens = (hidden, weight, hidden, other), torch.zeros(50, dtype=torch.int64)
    _, kl = HeadScores.apply(*heads, tokens, 1.0)
    _, exact = naive_scores(*(x.double() for x in heads), tokens, 1.0)
    assert (kl - exact).abs().max() < 5e-5
    assert kl.min() > 0.01 if apart else kl.abs().max() < 5e-5


def test_bfloat16_does_not_round_logits():
    """GPT-2's are near −100, where neighbours in bfloat16 are 1/2 apart. With autocast, or weights
    that are bfloat16, of whose products float32 loses nothing."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(30, 64), torch.randn(50, 64) / 8
    hidden[:, 0], weight[:, 0] = 16, -6
    tokens = torch.randint(50, (30,))
    hidden, weight = (each.bfloat16().float() for each in (hidden, weight))
    logits = hidden.double() @ weight.double().T
    assert logits.mean() < -90
    exact = logits.log_softmax(1).gather(1, tokens[:, None])[:, 0]
    head = model_module.Head(64, 50, bias=False)
    head.weight.data = weight
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (head(hidden) - logits).abs().max() < 1e-4
        auto, _ = HeadScores.apply(*(hidden, weight) * 2, tokens, 1.0)
    heads = [x.bfloat16() for x in (hidden, weight)] * 2
    low, _ = HeadScores.apply(*heads, tokens, 1.0)
    assert (auto - exact).abs().max() < 1e-4 and (low - exact).abs().max() < 1e-4


@pytest.fixture
def graph_steps(monkeypatch):
    """Decoding as on CUDA: static storage, in buckets of rows and slots."""
    monkeypatch.setattr(model_module, "uses_graphs", lambda device: True)


@pytest.mark.parametrize("shape", [{}, {"rope": 100.0, "tied": False}])
def test_graph_steps_draw_the_same_tokens(shape, graph_steps, monkeypatch):
    """Both attempts, with rows dropped; again on the same storage."""
    gpt = ragged_gpt(context=128, **shape)
    task, cfg = Toy(), score.Config(samples=8, revisions=2)
    task.max_new_tokens = 48
    keep, kept = GraphCache.keep, []
    spy = lambda steps, rows: (kept.append(len(rows)), keep(steps, rows))  # noqa: E731
    monkeypatch.setattr(GraphCache, "keep", spy)
    rolls = [score.rollout(gpt, task, toy_problems(RAGGED), cfg, seed=s) for s in (4, 5)]
    assert kept and {R for R, _, _ in gpt.graph_cache.graphs} >= {64, 128}
    assert {S for _, S, _ in gpt.graph_cache.graphs} == {64, 128}
    assert (gpt.graph_cache.rows, gpt.graph_cache.slots) == (128, 256)
    monkeypatch.undo()
    for seed, rolled in zip((4, 5), rolls):
        plain = score.rollout(gpt, task, toy_problems(RAGGED), cfg, seed=seed)
        for ours, theirs in ((rolled.first, plain.first), (rolled.second, plain.second)):
            assert answers(ours) == answers(theirs) and torch.equal(ours.ended, theirs.ended)
            assert torch.allclose(ours.logprobs[ours.mask], theirs.logprobs[theirs.mask], atol=1e-5)


def test_graph_steps_grow_and_follow_the_weights(graph_steps):
    """Slots beyond a bucket, and storage beyond what there was; weights at another address."""
    gpt = ragged_gpt(context=600)
    for size, rows, slots in ((40, 8, 256), (300, 8, 512), (10, 8, 512)):
        made = generate(gpt, RAGGED, size, eos=None, seed=1)
        assert (gpt.graph_cache.rows, gpt.graph_cache.slots) == (rows, slots)
    assert {S for _, S, _ in gpt.graph_cache.graphs} == {64, 128, 256, 512}
    kept = gpt.graph_cache
    generate(gpt, RAGGED, 10, temperature=0.0)
    assert gpt.graph_cache is kept
    gpt.to(torch.float64).to(torch.float32)
    again = generate(gpt, RAGGED, 10, eos=None, seed=1)
    assert gpt.graph_cache is not kept and torch.equal(made.tokens, again.tokens)


def test_what_stood_in_a_slot_before_does_not_matter(graph_steps):
    """Storage that once held NaN, from weights that have been mended since, in place."""
    gpt = ragged_gpt(context=128)
    whole = generate(gpt, RAGGED, 12, samples=2, eos=0)
    weights = [weight.clone() for weight in gpt.parameters()]
    with torch.no_grad():
        gpt.blocks[0].attention.qkv.weight.fill_(math.nan)
    generate(gpt, RAGGED, 12, samples=4, eos=0)
    with torch.no_grad():
        for weight, old in zip(gpt.parameters(), weights):
            weight.copy_(old)
    assert torch.equal(generate(gpt, RAGGED, 12, samples=2, eos=0).tokens, whole.tokens)


def test_dropped_rows_are_freed(monkeypatch):
    """The cache that is decoded on is the only one: rows that have ended leave it for good."""
    gpt, caches = ragged_gpt(), weakref.WeakSet()
    made = model_module.Cache.__init__

    def counted(cache, *args) -> None:
        made(cache, *args)
        caches.add(cache)

    alive, keep = [], model_module.Cache.keep

    def kept(cache, rows: torch.Tensor) -> None:
        keep(cache, rows)
        alive.append((len(rows), {len(each.ok) for each in caches}))

    monkeypatch.setattr(model_module.Cache, "__init__", counted)
    monkeypatch.setattr(model_module.Cache, "keep", kept)
    generate(gpt, RAGGED, 20, samples=8, eos=0)
    assert len(alive) > 1 and all(sizes == {rows} for rows, sizes in alive)


def test_other_linear_layers_are_left_alone():
    """One that does more than multiply by its weights, as adapters do, samples what it scores."""

    class Adapted(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + x.sum(-1, keepdim=True) / 100

    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=300, context=40, layers=1, heads=4, width=256))
    gpt.blocks[0].attention.qkv.__class__ = Adapted
    made = generate(gpt, [[1, 2, 3]], 20, samples=4)
    rows = torch.cat([torch.tensor([[1, 2, 3]]).expand(4, -1), made.tokens], 1)
    scored = gpt(rows)[:, 2:-1].log_softmax(-1).gather(2, made.tokens[:, :, None])[:, :, 0]
    assert (scored - made.logprobs).abs().max() < 1e-5


def test_a_model_that_has_decoded_is_freed_without_the_garbage_collector(graph_steps):
    gpt = ragged_gpt()
    generate(gpt, RAGGED, 8)
    alive = weakref.ref(gpt)
    gc.disable()
    del gpt
    gc.enable()
    assert alive() is None


@needs_cuda
def test_cuda_gradient_under_autocast_is_near_the_exact_one():
    torch.manual_seed(0)
    hidden, weight = torch.randn(50, 64), torch.randn(600, 64) / 8
    tokens, weights = torch.randint(600, (50,)), torch.randn(50)
    grads = []
    for device in ("cpu", DEVICE):
        leaves = [x.to(device).requires_grad_() for x in (hidden, weight)]
        with torch.autocast("cuda", torch.bfloat16):
            others = (x.to(device).flip(0) for x in (hidden, weight))
            values = HeadScores.apply(*leaves, *others, tokens.to(device), 1.0)
        loss = (weights.to(device) * torch.stack(values)).sum()
        grads.append(torch.autograd.grad(loss, leaves))
    for exact, ours in zip(*grads):
        assert (exact - ours.cpu()).norm() < 0.02 * exact.norm()


def test_scores_of_a_bfloat16_cache_are_not_rounded():
    """Near 40 neighbours in bfloat16 are 1/4 apart; what is left is the rounding of the weights."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(6, 4, n, 16, generator=g).bfloat16() for n in (1, 20, 20))
    q = 10 * q
    y = attend_one(q, k, v, torch.zeros(24, 1, 20), 1.0)
    exact = (q.double() @ k.double().mT).softmax(-1) @ v.double()  # (6, 4, 1, 16)
    assert (y.double() - exact.view(6, 1, 64)).abs().max() < 0.02


@pytest.mark.parametrize(
    "shape", [{}, {"activation": "gelu_tanh"}, {"activation": "silu", "gated": True}]
)
def test_packed_weights_sample_the_same_tokens(shape, monkeypatch):
    """oneDNN's product against F.linear, whose log-probabilities differ by rounding only; under
    bfloat16 by what SPEED.md says; and no packed weight outlives the call."""
    if not linear.has_onednn(torch.float32):
        pytest.skip("this torch has no oneDNN product")
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=300, context=40, layers=2, heads=4, width=256, **shape))
    layers = list(gpt.modules())
    with linear.decoding(gpt):
        assert not any(isinstance(layer, torch.nn.Linear) for layer in gpt.modules())
    prompts = [[1, 2, 3], [4], [5, 6]]
    packed = model_module.generate(gpt, prompts, 20, samples=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model_module.generate(gpt, prompts, 20, samples=8)
    assert list(gpt.modules()) == layers
    monkeypatch.setattr(linear, "has_onednn", lambda dtype: False)
    plain = model_module.generate(gpt, prompts, 20, samples=8)
    assert torch.equal(packed.tokens, plain.tokens)
    assert torch.allclose(packed.logprobs, plain.logprobs, atol=1e-5)
    rows = torch.tensor([[0] * (3 - len(p)) + p for p in prompts]).repeat_interleave(8, 0)
    ok = torch.tensor([[False] * (3 - len(p)) + [True] * len(p) for p in prompts])
    ok = torch.cat([ok.repeat_interleave(8, 0), low.mask], 1)
    logits = gpt(torch.cat([rows, low.tokens], 1), ok)[:, 2:-1]
    scored = logits.log_softmax(-1).gather(2, low.tokens[:, :, None])[:, :, 0]
    assert (scored - low.logprobs).abs().mean() < 3e-3


def test_low_copies_sample_what_is_scored_and_follow_the_weights(monkeypatch):
    """What stands in for linear layers on CUDA, tried on a CPU: copies in bfloat16 that stay where
    they are from call to call and are filled anew, with logits that are not rounded."""
    monkeypatch.setattr(linear, "onednn_layers", linear.low_copies)
    gpt, places = ragged_gpt(qkv_bias=False), []
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = generate(gpt, RAGGED, 12, samples=4, eos=0)
            greedy = generate(gpt, RAGGED, 4, temperature=0.0)
        places.append([copy.weight.data_ptr() for copy in gpt.low_copies.values()])
        scores, best = [], []
        for n, y in enumerate(answers(made)):
            x = RAGGED[n // 4]
            scores.append(plain_scores(gpt, x, y))
            best.append(gpt(torch.tensor([x]))[0, -1].argmax().item())
        error = (made.logprobs[made.mask] - torch.cat(scores)).abs()
        assert 0 < error.mean() < 0.01 and error.max() < 0.1
        assert greedy.tokens[:, 0].tolist() == best[::4]
        with torch.no_grad():
            for weight in gpt.parameters():
                weight.mul_(1.1)
    assert places[0] == places[1] and len(places[0]) == 4 * 2 + 1
    assert {copy.weight.dtype for copy in gpt.low_copies.values()} == {torch.bfloat16}
