"""What makes the rest believable, in order of trust: the proof of the algorithm and of the sampler.

1. The gradient: the estimator's expectation over every possible rollout of a toy policy equals
   autograd of the exact objective, and mutants of the algorithm fail that very test.
2. The sampler: it draws from the distribution that the scorer scores, whatever the batch.
3. The diagnosis: how often a base model corrects itself, and what plain reward would teach it.
4. A tiny run learns what its stage rewards.

tests/ holds the rest, a file for each part of the code.
"""

import contextlib
import dataclasses
import itertools
import math
import os
import pathlib
import statistics
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import torch

# Without a GPU Triton's kernel runs in its interpreter, chosen where the kernel is defined.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

import data
import model as model_module
import score
from data import Problem
from fast import linear
from fast.linear import freeze
from model import GPT, GPTConfig, generate, row_keys
from score import answers
from training import report

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module")
def puzzle() -> data.Task:
    return data.load("puzzle", 3)


@pytest.fixture
def tiny(puzzle) -> GPT:
    return tiny_gpt(puzzle)


def tiny_gpt(task: data.Task, seed: int = 0, **shape) -> GPT:
    """A small random model for a task, with weights large enough to prefer some tokens."""
    torch.manual_seed(seed)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32} | shape
    gpt = GPT(GPTConfig(vocab_size=task.encoding.n_vocab, **shape))
    with torch.no_grad():
        gpt.tokens.weight.normal_(std=0.3)
        gpt.positions.weight.normal_(std=0.3)
    return gpt


# ---------------------------------------------------------------------------------------------
# 1. The gradient

# A toy world of three tokens: 0 and 1 are words, 2 ends an attempt, 0 also says "try again". An
# attempt has at most two tokens, so there are seven, of lengths one and two, ended and cut.
END, PROMPT, REVISE = 2, [0, 1, 1], [0]
ATTEMPTS = [[2], [0, 2], [1, 2], [0, 0], [0, 1], [1, 0], [1, 1]]
REWARDS = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)


def toy_gpt(seed: int) -> GPT:
    """Double precision, and far enough from uniform that every term of the gradient matters."""
    torch.manual_seed(seed)
    config = GPTConfig(vocab_size=3, context=8, layers=1, heads=2, kv_heads=1, width=8, tied=False)
    gpt = GPT(config).double()
    with torch.no_grad():
        for weight in gpt.parameters():
            weight.normal_(std=0.5)
    return gpt


def padded(attempts: list[list[int]]) -> model_module.Generation:
    tokens = torch.tensor([a + [0] * (2 - len(a)) for a in attempts])
    mask = torch.tensor([[True] * len(a) + [False] * (2 - len(a)) for a in attempts])
    ended = torch.tensor([a[-1] == END for a in attempts])
    return model_module.Generation(tokens, mask, torch.zeros(tokens.shape), ended)


def plain_scores(
    gpt: GPT, before: list[int], attempt: list[int], temperature: float = 1.0
) -> torch.Tensor:
    """log π of an attempt's tokens, from a plain forward of the one sequence."""
    logits = gpt(torch.tensor([before + attempt]))[0, len(before) - 1 : -1] / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor([attempt]).T)[:, 0]


def exact_gradient(
    policy: GPT, ref: GPT, stage: int, cfg: score.Config, prompt: list[int] = PROMPT
) -> torch.Tensor:
    """Autograd of the γ = 0 objective, from unpadded forwards of one sequence each. Attempt 2's
    term does not differentiate the probability of attempt 1: that is what γ = 0 means."""

    objective = torch.zeros((), dtype=torch.float64)
    for y1, r1 in zip(ATTEMPTS, REWARDS):
        mine, other = (plain_scores(gpt, prompt, y1).sum() for gpt in (policy, ref))
        if stage == 1:
            objective = objective - mine.exp() * cfg.beta2 * (mine - other)
        else:
            objective = objective + mine.exp() * (r1 - cfg.beta1 * (mine - other))
        for y2, r2 in zip(ATTEMPTS, REWARDS):
            before = prompt + y1 + REVISE
            mine2, other2 = (plain_scores(gpt, before, y2).sum() for gpt in (policy, ref))
            gain = r2 if stage == 1 else r2 + cfg.alpha * (r2 - r1)
            value = gain - cfg.beta1 * (mine2 - other2)
            objective = objective + mine.exp().detach() * mine2.exp() * value
    grads = torch.autograd.grad(-objective, list(policy.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def expected_gradient(
    code, policy: GPT, ref: GPT, stage: int, K: int, M: int, prompt: list[int], alpha: float = 3.0
) -> torch.Tensor:
    """The gradient that the module `code` (score.py or a mutant) follows, averaged over every
    possible draw of K first attempts and M second attempts to each, weighted by its probability."""
    cfg = code.Config(alpha=alpha, beta1=0.3, beta2=0.7, samples=K, revisions=M)
    n = len(ATTEMPTS)
    # Each packed row holds one first attempt and all seven second attempts to it.
    first, second = padded(ATTEMPTS), padded(ATTEMPTS * n)
    world = types.SimpleNamespace(eos=0, close=[], revise=REVISE)
    second_prompts = code.try_again(world, [prompt], code.answers(first))
    packed = code.pack([prompt], first, second_prompts, second)
    every = code.Rollout(
        first, second, REWARDS, REWARDS.repeat(n), torch.zeros(n * n), True, packed
    )
    tables = code.attempt_scores(policy, ref, every, temperature=1.0)
    logp1, logp2 = (part.sum(1) for part in tables[0])

    seconds = torch.tensor(list(itertools.product(range(n), repeat=M)))  # (n^M, M)
    tree = [torch.arange(n), torch.arange(len(seconds))] * K
    draws = torch.cartesian_prod(*tree)  # (n^K · n^(M·K), 2·K)
    i = draws[:, 0::2]  # (draws, K): which first attempts
    j = seconds[draws[:, 1::2]]  # (draws, K, M): which second attempts
    pair = i[:, :, None] * n + j
    weight = (logp1[i].sum(1) + logp2[pair].sum((1, 2))).exp().detach()
    assert weight.sum().item() == pytest.approx(1.0, abs=1e-12) or code is not score

    i, pair = i.reshape(-1), pair.reshape(-1)
    drawn = dataclasses.replace(every, r1=REWARDS[i], r2=REWARDS[j.reshape(-1)])
    pairs = [(table[0][i], table[1][pair]) for table in tables]
    losses = code.policy_loss(*pairs, drawn, getattr(code, f"stage{stage}_returns"), cfg)
    loss = sum((weight * part.view(len(weight), -1).mean(1)).sum() for part in losses)
    grads = torch.autograd.grad(loss, list(policy.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def relative_error(code, stage: int, K: int, M: int, prompt: list[int] = PROMPT) -> float:
    policy, ref = toy_gpt(0), toy_gpt(1)
    cfg = code.Config(alpha=3.0, beta1=0.3, beta2=0.7)
    exact = exact_gradient(policy, ref, stage, cfg, prompt)
    expected = expected_gradient(code, policy, ref, stage, K, M, prompt)
    return ((expected - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("K, M", [(2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("prompt", [PROMPT, PROMPT[:1]], ids=["start", "no start"])
def test_expected_gradient_is_exact(stage, K, M, prompt):
    """Where the rows have tokens in common, read once, and where they have none."""
    assert relative_error(score, stage, K, M, prompt) < 1e-9


MUTANTS = {
    # name: (stage, K, M, in score.py, put instead)
    "alpha's sign": (2, 2, 1, "cfg.alpha * (r2 - r1)", "cfg.alpha * (r1 - r2)"),
    "beta1 for beta2": (1, 2, 1, "-cfg.beta2 * kl1", "-cfg.beta1 * kl1"),
    "beta2 for beta1": (1, 2, 1, "r2 - cfg.beta1 * kl2", "r2 - cfg.beta2 * kl2"),
    "gamma 1": (2, 2, 1, "return return1, return2", "return return1 + return2, return2"),
    "no KL on attempt 1, I": (1, 2, 1, "return1 = -cfg.beta2 * kl1", "return1 = 0 * kl1"),
    "no KL on attempt 1, II": (2, 2, 1, "return1 = r1 - cfg.beta1 * kl1", "return1 = r1"),
    "no reward on attempt 1": (2, 2, 1, "return1 = r1 - cfg", "return1 = -cfg"),
    "KL of the wrong attempt": (1, 2, 1, "-cfg.beta2 * kl1", "-cfg.beta2 * kl2"),
    "KL of the other sign": (1, 2, 1, "*(kl.sum(1) for kl", "*(-kl.sum(1) for kl"),
    "KL averaged": (1, 2, 1, "*(kl.sum(1) for kl", "*(kl.mean(1) for kl"),
    "KL where the tokens lead left out": (1, 2, 1, "later(kl.detach())", "(0 * kl.detach())"),
    "KL where the tokens lead of the other sign": (
        1, 2, 1, "later(kl.detach())", "later(-kl.detach())"
    ),
    "KL before the token": (
        1, 2, 1, "values.flip(1).cumsum(1).flip(1) - values", "values.cumsum(1) - values"
    ),
    "KL at the states left out, I": (1, 2, 1, "sum(1) - kl_return1", "sum(1)"),
    "KL at the states left out, II": (2, 2, 1, "sum(1) - kl_return2", "sum(1)"),
    "KL not detached": (1, 2, 1, "later(kl.detach())", "later(kl)"),
    "KL detached": (1, 2, 1, "*(kl.sum(1) for kl", "*(kl.sum(1).detach() for kl"),
    "KL backwards": (
        1, 2, 1, "values = policy.scores(hidden, tokens, ref, ref_hidden, temperature)",
        "values = (policy.scores(hidden, tokens, ref, ref_hidden, temperature)[0], "
        "ref.scores(ref_hidden, tokens, policy, hidden, temperature)[1])",
    ),
    "KL from the policy itself": (1, 2, 1, "attempt_states(ref, rolled)",
                                  "attempt_states(policy, rolled)"),
    "token mean": (2, 2, 1, "-(advantage2 * logprobs[1]).sum(1)",
                   "-(advantage2 * logprobs[1]).mean(1)"),
    "baseline with itself": (
        2, 2, 1, "(groups.sum(1, keepdim=True) - groups) / (samples - 1)",
        "groups.mean(1, keepdim=True)",
    ),
    "firsts of another order": (2, 2, 2, "r1[:, None, None]", "r1.flip(0)[:, None, None]"),
    "seconds of another order": (
        2, 2, 2, "return2.flatten(0, 1)", "return2.transpose(0, 1).flatten(0, 1)"
    ),
    "no mask": (2, 2, 1, "mask = attempt.mask", "mask = torch.ones_like(attempt.mask)"),
    "eos not trained": (
        2, 2, 1, "mask = attempt.mask", "mask = attempt.mask & (attempt.tokens != 2)"
    ),
    "first states one late": (2, 2, 1, "begin[:, None] - 1 +", "begin[:, None] +"),
    "start left out": (2, 2, 1, "packed.branch, packed.start", "packed.branch, packed.start[:0]"),
    "second states one early": (2, 2, 1, "(M, 1), S1 - 1", "(M, 1), S1 - 2"),
    "branches see each other": (2, 2, 2, "repeat_interleave(T2)", "repeat_interleave(T2) * 0"),
    "instruction left out": (2, 2, 1, "x + y + end + task.revise", "x + y + end"),
}  # fmt: skip


@contextlib.contextmanager
def mutant_of_score(old: str, new: str) -> Iterator[types.ModuleType]:
    source = (HERE / "score.py").read_text()
    assert old in source, "the mutant no longer applies to score.py"
    mutant = types.ModuleType("mutant")
    sys.modules["mutant"] = mutant  # dataclasses look their module up
    try:
        exec(compile(source.replace(old, new), "mutant", "exec"), mutant.__dict__)
        yield mutant
    finally:
        del sys.modules["mutant"]


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_fail_the_oracle(name):
    stage, K, M, old, new = MUTANTS[name]
    with mutant_of_score(old, new) as mutant:
        assert relative_error(mutant, stage, K, M) > 1e-3


def step_error(code, clip: float) -> float:
    """The largest relative error of one step of plain gradient descent by the module `code`: of the
    step, against the clipped gradient of the oracle's loss (a mean over the policy's own first
    attempts plus one over all second ones, some after offline firsts), and of the KLs that it
    reports, against those of the policy's own rollout."""
    policy, ref = ragged_gpt(), freeze(ragged_gpt())
    with torch.no_grad():
        ref.blocks[0].mlp.up.weight.mul_(1.5)  # so that the KL is not 0
    cfg = code.Config(samples=3, revisions=2, micro=2, offline=0.4, temperature=0.7, clip=clip)
    task, problems, returns = Toy(), toy_problems(RAGGED), score.stage2_returns
    rollouts = [score.rollout(policy, task, problems, cfg, seed=1)]
    rollouts.append(score.rollout(policy, task, problems[:2], cfg, seed=1, first_by=ref))
    scores = [score.attempt_scores(policy, ref, rolled, 0.7) for rolled in rollouts]
    firsts, seconds = zip(
        *(score.policy_loss(*s, rolled, returns, cfg) for s, rolled in zip(scores, rollouts))
    )
    (firsts[0].mean() + torch.cat(seconds).mean()).backward()
    weights = list(policy.parameters())
    wanted = torch.cat([weight.grad.flatten() for weight in weights])
    wanted *= min(1.0, clip / wanted.norm().item())
    before = torch.nn.utils.parameters_to_vector(weights).detach().clone()
    optimizer = torch.optim.SGD(weights, lr=1.0)
    optimizer.zero_grad(set_to_none=False)
    for weight in weights:
        weight.grad += 1.0  # of an earlier step
    metrics = code.train_step(policy, ref, optimizer, task, problems, returns, cfg, seed=1)
    moved = before - torch.nn.utils.parameters_to_vector(weights).detach()
    kls = [kl.sum(1).mean().item() for kl in scores[0][1]]
    off = [abs(metrics[f"kl_{n}"] - kl) / kl for n, kl in enumerate(kls, 1)]
    return max(((moved - wanted).norm() / wanted.norm()).item(), *off)


@pytest.mark.parametrize("old, new", [
    ("loss2.sum() / seconds", "loss2.sum() / firsts"),
    ("loss1.sum() / firsts + loss2.sum() / seconds", "(loss1.sum() + loss2.sum()) / firsts"),
    ("loss1.sum() / firsts + loss2.sum() / seconds", "loss1.mean() + loss2.mean()"),
    ("len(rollouts[0].r1), sum", "sum(len(rolled.r1) for rolled in rollouts), sum"),
    ("optimizer.zero_grad()", "pass"),
    ("optimizer, rollouts, returns", "optimizer, rollouts[:1], returns"),
    ("first_by=ref", "first_by=None"),
    ("if part.on_policy:", "if True:"),
    ("ref, part, cfg.temperature", "ref, part, 1.0"),
    ("policy.parameters(), clip)", "policy.parameters(), 1e9)"),
    ("policy.parameters(), clip)", "policy.parameters(), 0.1)"),
])  # fmt: skip
def test_a_step_follows_that_gradient(old, new):
    """Offline first attempts, the temperature, and the clipping included."""
    assert max(step_error(score, clip) for clip in (1e9, 0.1)) < 1e-5
    with mutant_of_score(old, new) as mutant:
        assert max(step_error(mutant, clip) for clip in (1e9, 0.1)) > 1e-2


def test_returns_by_hand():
    """The table of the paper: with α = 10, w→r 11, r→r 1, w→w 0, r→w −10."""
    r1, r2 = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0])
    kl1, kl2 = torch.tensor([0.0, 1.0, 2.0, 0.0]), torch.tensor([3.0, 0.0, 0.0, 1.0])
    no_kl = score.Config(alpha=10.0, beta1=0.0, beta2=0.0)
    first, second = score.stage2_returns(r1, r2, kl1, kl2, no_kl)
    assert first.tolist() == r1.tolist() and second.tolist() == [11.0, 1.0, 0.0, -10.0]
    cfg = score.Config(alpha=10.0, beta1=0.5, beta2=0.25)
    first, second = score.stage1_returns(r1, r2, kl1, kl2, cfg)
    assert first.tolist() == [0.0, -0.25, -0.5, 0.0]
    assert second.tolist() == [-0.5, 1.0, 0.0, -0.5]
    first, second = score.stage2_returns(r1, r2, kl1, kl2, cfg)
    assert first.tolist() == [0.0, 0.5, -1.0, 1.0]
    assert second.tolist() == [9.5, 1.0, 0.0, -10.5]


def test_leave_one_out_by_hand():
    returns = torch.tensor([1.0, 0.0, 0.0, 2.0, 2.0, 5.0])
    assert score.leave_one_out(returns, 3).tolist() == [1.0, -0.5, -0.5, -1.5, -1.5, 3.0]
    assert returns.tolist() == [1.0, 0.0, 0.0, 2.0, 2.0, 5.0]  # arguments are left alone


@pytest.mark.parametrize("alpha", [0.5, 10.0])
def test_bonus_multiplies_the_gradient_of_attempt_2(alpha):
    """Given y1, −α·r1 is a constant: against other seconds to the same first, the bonus multiplies
    attempt 2's advantage by exactly 1 + α. Against whole rollouts the term stays, and adds variance
    where, as here, both rewards are independent."""
    torch.manual_seed(0)
    K, M, problems = 4, 4, 500
    r1 = torch.randint(2, (problems * K,)).double()
    r2 = torch.randint(2, (problems * K * M,)).double()
    none = torch.zeros(1, 1, dtype=torch.float64)

    def second(alpha: float, M: int) -> torch.Tensor:
        cfg = score.Config(alpha=alpha, beta1=0.0, samples=K, revisions=M)
        chosen = r2.view(-1, 4)[:, :M].reshape(-1)
        kl1, kl2 = none.expand(len(r1), 1), none.expand(len(chosen), 1)
        return score.advantages(r1, chosen, kl1, kl2, score.stage2_returns, cfg)[1]

    assert torch.allclose(second(alpha, 4), (1 + alpha) * second(0.0, 4))
    assert second(alpha, 1).var() > (1 + alpha) ** 2 * second(0.0, 1).var() * 1.1


def test_expected_gradient_of_bonus_is_one_plus_alpha():
    """In expectation, of all draws: the bonus adds α times the gradient of attempt 2's reward."""
    models = toy_gpt(0), toy_gpt(1)
    with_bonus, without = (
        expected_gradient(score, *models, 2, 2, 1, PROMPT, alpha) for alpha in (3.0, 0.0)
    )
    reward2 = exact_gradient(*models, 1, score.Config(beta1=0.0, beta2=0.0))  # r2 alone
    assert torch.allclose(with_bonus - without, 3.0 * reward2, rtol=1e-9, atol=1e-12)


def test_offline_first_attempts_are_prompts_only(puzzle, tiny):
    """Attempts that the reference wrote train attempt 2 and never attempt 1; they are others than
    the policy's own even where the two models agree."""
    cfg = score.Config(samples=2, revisions=2, beta2=1.0)
    own = score.rollout(tiny, puzzle, puzzle.batch(0, 0, 4), cfg, 0)
    same = score.rollout(tiny, puzzle, puzzle.batch(0, 0, 4), cfg, 0, first_by=tiny)
    assert not torch.equal(own.first.tokens, same.first.tokens)
    ref = GPT(tiny.config)
    rolled = score.rollout(tiny, puzzle, puzzle.batch(0, 0, 4), cfg, 0, first_by=ref)
    logprobs, kls = score.attempt_scores(tiny, ref, rolled, 1.0)
    rolled = dataclasses.replace(rolled, r2=torch.arange(16.0) % 2)
    first, second = score.policy_loss(logprobs, kls, rolled, score.stage1_returns, cfg)
    assert first.abs().max() == 0 and second.abs().max() > 0
    wrote = sampled_logprobs(ref, rolled, 1.0)[0], logprobs[1]  # the ref y1, the policy y2
    for scored, attempt in zip(wrote, (rolled.first, rolled.second)):
        assert torch.allclose(scored, attempt.logprobs, atol=1e-5)


def sampled_logprobs(gpt: GPT, rolled: score.Rollout, temperature: float) -> score.Pair:
    """log π of both attempts' tokens."""
    return score.attempt_scores(gpt, gpt, rolled, temperature)[0]


# ---------------------------------------------------------------------------------------------
# 2. The model and the sampler


def ragged_gpt(**shape) -> GPT:
    """A vocabulary of 12 and an end token that is drawn often, so that lengths vary."""
    torch.manual_seed(3)
    shape = {"layers": 2, "heads": 4, "kv_heads": 2, "width": 32, "context": 64} | shape
    gpt = GPT(GPTConfig(vocab_size=12, **shape))
    with torch.no_grad():
        gpt.tokens.weight.normal_(std=0.3)
        if gpt.config.rope is None:
            gpt.positions.weight.normal_(std=0.3)
    return gpt


RAGGED = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 1, 2], [3, 3], [2, 9, 9, 9]]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_cached_equals_uncached(kv_heads):
    """Prompts, single tokens and more after them give the logits of one full forward."""
    gpt = ragged_gpt(kv_heads=kv_heads)
    tokens = torch.randint(12, (3, 50))
    cache = model_module.Cache.empty(gpt.config, 3, gpt.device, torch.float32)
    logits, at = gpt(tokens), 0
    for length in (7, 1, 1, 1, 4, 1, 30, 1, 1, 3):
        part = tokens[:, at : at + length]
        hidden = gpt.extend(cache, part, torch.ones_like(part, dtype=torch.bool))
        at += length
        assert torch.allclose(gpt.logits(hidden), logits[:, at - 1], atol=1e-5)


def test_padding_changes_nothing():
    """Left padding, holes and what stands in them: a row's logits stay those of its own tokens."""
    gpt = ragged_gpt()
    row = torch.randint(12, (1, 9))
    slots = torch.tensor([2, 3, 5, 6, 7, 10, 11, 13, 14])
    for filler in (0, 7):
        tokens = torch.full((1, 18), filler)
        ok = torch.zeros(1, 18, dtype=torch.bool)
        tokens[:, slots], ok[:, slots] = row, True
        assert torch.allclose(gpt(tokens, ok)[:, slots], gpt(row), atol=1e-5)
    assert torch.isfinite(gpt(tokens, torch.zeros_like(ok))).all()  # rows of nothing at all


@pytest.mark.parametrize("tied", [True, False])
def test_initial_loss_is_that_of_the_uniform_distribution(tied):
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=200, layers=4, width=128, tied=tied))
    tokens = torch.randint(200, (16, 40))
    loss = torch.nn.functional.cross_entropy(gpt(tokens).flatten(0, 1), torch.randint(200, (640,)))
    assert abs(loss.item() - math.log(200)) < (0.1 if tied else 0.7)
    assert (gpt.head.weight is gpt.tokens.weight) == tied


@pytest.mark.parametrize(
    "field, value",
    [("width", 65), ("kv_heads", 3), ("layers", 0), ("activation", "relu"), ("head_width", 5)],
)
def test_impossible_shapes_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        GPTConfig(vocab_size=10, rope=1e4, **{field: value})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampler_is_scorer(temperature, dtype):
    """Log-probabilities that the sampler used = teacher-forced scores of prompt + answer."""
    gpt = ragged_gpt().to(dtype)
    made = generate(gpt, RAGGED, 20, samples=3, temperature=temperature, eos=0, seed=5)
    lengths = {len(answer) for answer in answers(made)}
    assert len(lengths) > 3 and max(lengths) == 20  # ragged, and some are cut
    for n, answer in enumerate(answers(made)):
        scores = plain_scores(gpt, RAGGED[n // 3], answer, temperature)
        assert (made.logprobs[n][made.mask[n]] - scores).abs().max() < 1e-5


def test_mask_ends_at_eos_and_not_before():
    made = generate(ragged_gpt(), RAGGED, 20, samples=3, eos=0, seed=5)
    for row, mask, ended in zip(made.tokens, made.mask, made.ended):
        n = int(mask.sum())
        assert mask[:n].all() and not mask[n:].any()
        assert (row[: n - 1] != 0).all()  # eos nowhere but at the end
        assert (row[n - 1] == 0) == ended and (ended or n == 20)


class Toy(data.Task):
    """Eleven words and an end token; a two-token instruction; right: an even first word."""

    name, eos, revise, max_new_tokens = "toy", 0, [11, 4], 12

    def prompt(self, problem):
        return [int(word) for word in problem.prompt.split()]

    def decode(self, tokens):
        return " ".join(map(str, tokens))

    def reward(self, problem, response):
        return float(response.split(" ")[0] in ("2", "4", "6", "8", "10"))

    def batch(self, seed, step, count):
        raise NotImplementedError

    held_out = batch


def toy_problems(prompts: list[list[int]]) -> list[Problem]:
    return [Problem(" ".join(map(str, prompt))) for prompt in prompts]


def test_rollout_scores_both_attempts_as_sampled():
    """Ragged prompts, ragged first and second attempts, rows dropped."""
    gpt, cfg = ragged_gpt(), score.Config(samples=8, revisions=3)
    rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED), cfg, seed=9)
    assert len(set(rolled.first.mask.sum(1).tolist())) > 5
    assert len(set(rolled.second.mask.sum(1).tolist())) > 5
    packed = sampled_logprobs(gpt, rolled, 1.0)
    for scored, sampled in zip(packed, (rolled.first, rolled.second)):
        assert (scored - sampled.logprobs).abs().max() < 1e-5
    # and against plain rows [x, y1, p, y2], one at a time, built without any of the packing
    firsts, seconds = answers(rolled.first), answers(rolled.second)
    for n, y2 in enumerate(seconds):
        scores = plain_scores(gpt, RAGGED[n // 24] + firsts[n // 3] + Toy.revise, y2)
        assert (rolled.second.logprobs[n][rolled.second.mask[n]] - scores).abs().max() < 1e-5


class Chatty(Toy):
    """Attempts are over at the word 3, whatever follows; those cut by the limit get their end."""

    max_new_tokens, close, runs_on = 6, [0], True

    def over(self, problem, response):
        return "3" in response.split(" ")


def test_cut_and_closed_attempts_are_scored_as_sampled():
    """What a model writes after its answer is gone for good: from the masks, from what attempt 2
    reads, from the packed rows. An attempt without an end is closed, in all three too."""
    gpt, cfg, task = ragged_gpt(), score.Config(samples=6, revisions=2), Chatty()
    rolled = score.rollout(gpt, task, toy_problems(RAGGED), cfg, seed=4)
    firsts, seconds = answers(rolled.first), answers(rolled.second)
    assert all(3 not in y[:-1] for y in firsts + seconds)
    ended = rolled.first.ended.tolist()
    assert [y[-1] in (0, 3) for y in firsts] == ended and 3 < sum(ended) < 27
    assert {3, 0} <= {y[-1] for y in firsts}
    parts = zip(sampled_logprobs(gpt, rolled, 1.0), (rolled.first, rolled.second))
    assert all((scored - part.logprobs).abs().max() < 1e-5 for scored, part in parts)
    for n, y2 in enumerate(seconds):
        y1 = firsts[n // 2] + [0] * (firsts[n // 2][-1] != 0)
        scores = plain_scores(gpt, RAGGED[n // 12] + y1 + task.revise, y2)
        assert (rolled.second.logprobs[n][rolled.second.mask[n]] - scores).abs().max() < 1e-5


@pytest.mark.parametrize("every", [1, 3])
def test_when_generation_asks_changes_nothing(every, monkeypatch):
    """Rollouts are the same, however often it is asked which answers are complete, and rows whose
    answers are complete cost nothing more."""
    gpt, cfg, task = ragged_gpt(), score.Config(samples=6, revisions=2), Chatty()
    task.max_new_tokens = 20
    decoded = []
    extend = GPT.extend

    def spy(gpt, cache, tokens, ok):
        decoded.append(len(ok))
        return extend(gpt, cache, tokens, ok)

    monkeypatch.setattr(GPT, "extend", spy)
    rolls = []
    for asked in (every, 1000):
        monkeypatch.setattr(model_module, "ASK_EVERY", asked)
        rolls.append(score.rollout(gpt, task, toy_problems(RAGGED), cfg, seed=4))
        rolls.append(sum(decoded))
        decoded.clear()
    asked, steps, plain, most = rolls
    assert steps < 0.9 * most
    for name in ("first", "second"):
        ours, theirs = getattr(asked, name), getattr(plain, name)
        assert answers(ours) == answers(theirs) and torch.equal(ours.ended, theirs.ended)
        assert torch.allclose(ours.logprobs[ours.mask], theirs.logprobs[theirs.mask], atol=1e-5)
    assert torch.equal(asked.r2, plain.r2)


def test_generation_ends_what_is_over():
    """It is told the tokens of every row so far, and what it ends does not depend on the batch."""
    gpt, seen = ragged_gpt(), []

    def over(rows):
        seen.append([list(row) for row in rows])
        return [sum(row) > 60 for row in rows]

    made = generate(gpt, RAGGED, 40, samples=2, seed=5, over=over)
    free = answers(generate(gpt, RAGGED, 40, samples=2, seed=5))
    assert [len(rows) for rows in seen] == [2 * len(RAGGED)] * len(seen) and len(seen) >= 2
    asked = model_module.ASK_EVERY
    for row, whole, ended in zip(answers(made), free, made.ended.tolist()):
        places = [n for n in (asked, 2 * asked) if sum(whole[:n]) > 60]
        assert ended == bool(places) and row == whole[: places[0] if places else 40]
    alone = generate(gpt, RAGGED[1:2], 40, samples=2, seed=5, over=over)
    assert answers(alone) == answers(made)[2:4]


needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")


@needs_cuda
@pytest.mark.parametrize("shape", [{}, {"rope": 100.0, "tied": False}, {"kv_heads": 4}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_samples_what_it_scores(dtype, shape):
    """Graphs, fused sampling and compaction against the scorer, in both attempts; then greedily. In
    bfloat16 they are closer to one another than the scorer is to float32, which is close."""
    gpt, cfg = ragged_gpt(context=128, **shape).to(DEVICE), score.Config(samples=8, revisions=2)
    auto = torch.autocast("cuda", dtype, enabled=dtype != torch.float32, cache_enabled=False)
    for seed in range(3):
        with auto:
            rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED), cfg, seed=seed)
            scored = sampled_logprobs(gpt, rolled, 1.0)
        exact = sampled_logprobs(gpt, rolled, 1.0)
        for ours, true, made in zip(scored, exact, (rolled.first, rolled.second)):
            error, rounding = ((ours - x)[made.mask].abs() for x in (made.logprobs, true))
            if dtype == torch.float32:
                assert error.max() < 1e-4
            else:
                assert error.mean() < rounding.mean() < 5e-3
    with auto:
        greedy = generate(gpt, RAGGED, 8, temperature=0.0)
    alone = generate(ragged_gpt(context=128, **shape), RAGGED, 8, temperature=0.0)
    assert dtype != torch.float32 or answers(greedy) == answers(alone)


needs_triton = pytest.mark.skipif(
    model_module.triton is None, reason="Triton, which requirements-dev.txt lists, is not installed"
)


def fused_case(N: int, V: int, C: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Random hidden states (N, C), a head (V, C), keys (N,); logits of standard deviation 2."""
    g = torch.Generator().manual_seed(N + V + C)
    hidden = torch.randn(N, C, generator=g).to(dtype)
    weight = (torch.randn(V, C, generator=g) * 2 / C**0.5).to(dtype)
    keys = model_module.fold(torch.tensor(1234567), torch.arange(N))
    return [each.to(DEVICE) for each in (hidden, weight, keys)]


def check_fused(hidden, weight, keys, temperature):
    """fused_sample against float64: the same tokens, but for rows whose two best perturbed logits
    are closer than float32 can tell; log-probabilities to 1e-5."""
    made = model_module.fused_sample(hidden, weight, temperature, keys)
    token, logprob = (each.cpu() for each in made)
    z = hidden.cpu().double() @ weight.cpu().double().T / temperature
    logprobs = z.log_softmax(-1)
    v = torch.arange(len(weight))
    noise = model_module.fold(keys.cpu()[:, None], v) >> 32 & 2**32 - 1
    u = ((noise.double() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)  # (N, V)
    top = (z - (-(-u).log1p()).log()).topk(2, -1)
    sure = top.values[:, 0] - top.values[:, 1] > 2e-5
    assert sure.double().mean() > 0.95
    assert torch.equal(token[sure], top.indices[sure, 0])
    expected = logprobs.gather(1, top.indices[:, :1])[:, 0]
    assert ((logprob - expected)[sure].abs() <= 1e-5 * expected[sure].abs().clamp(min=1)).all()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("shape", [(70, 300, 100), (1, 5, 3), (64, 256, 64), (3, 129, 1)])
def test_fused_sampler_against_float64(shape, temperature, dtype):
    """bfloat16 too: its products are exact in float32, in which they are summed."""
    check_fused(*fused_case(*shape, dtype), temperature)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_fused_sampler_gives_a_token_though_no_logit_is_finite():
    """Triton's interpreter always does; on a GPU the largest of NaNs may be the padding."""
    hidden, weight, keys = fused_case(3, 5, 3)
    token, _ = model_module.fused_sample(hidden * math.nan, weight, 1.0, keys)
    assert ((token >= 0) & (token < 5)).all()


@needs_triton
def test_fused_sampler_survives_extreme_logits():
    """Logits of ±10⁴ give neither NaN nor infinity."""
    hidden, weight, keys = fused_case(70, 300, 100)
    token, logprob = model_module.fused_sample(hidden * 5000, weight, 1.0, keys)
    assert torch.equal(token, (hidden.double() @ weight.double().T).argmax(-1))
    assert logprob.isfinite().all() and (logprob <= 0).all()


@needs_triton
def test_fused_noise_is_gumbels():
    """−log(−log(1 − u)) to float32's accuracy, at both ends of u and around the series' limit."""
    tl = model_module.tl

    @model_module.triton.jit
    def noise_of(row, out, GOLDEN: tl.constexpr, BLOCK: tl.constexpr, gumbel: tl.constexpr):
        at = tl.arange(0, BLOCK)
        tl.store(out + at, gumbel(tl.load(row + at), 0, GOLDEN))

    rows = model_module.fold(torch.tensor(99), torch.arange(4096)).to(DEVICE)
    out = torch.empty(4096, device=DEVICE)
    noise_of[(1,)](rows, out, model_module.GOLDEN, 4096, model_module.gumbel)
    bits = (model_module.fold(rows.cpu(), 0) >> 32) & (2**32 - 1)
    u = (bits.float() + 0.5) * 2.0**-32
    exact = -(-(-u.clamp(max=1 - 2.0**-24).double()).log1p()).log()
    assert exact.max() > 7 and exact.min() < -1.9 and (u < 0.25).any()
    assert ((out.cpu() - exact).abs() <= 4e-7 * exact.abs().clamp(min=1)).all()


@needs_triton
def test_fused_sampler_draws_from_the_softmax():
    """χ² of 10 degrees of freedom exceeds 29.6 once in a thousand times."""
    N, V, temperature = 8_000, 11, 1.3
    hidden, weight, _ = fused_case(1, V, 16)
    keys = model_module.fold(torch.tensor(7), torch.arange(N)).to(DEVICE)
    hidden = hidden.expand(N, -1)
    token, _ = model_module.fused_sample(hidden, weight, temperature, keys)
    expected = N * ((hidden[0] @ weight.T) / temperature).double().softmax(-1)
    assert ((token.bincount(minlength=V) - expected) ** 2 / expected).sum() < 29.6
    later, _ = model_module.fused_sample(hidden, weight, temperature, model_module.fold(keys, 1))
    assert not torch.equal(token, later)


@needs_triton
def test_fused_rows_stand_alone():
    """Neither the batch around a row nor its place in it, nor strides, change anything. Triton's
    interpreter multiplies by numpy, which on some processors rounds a row by its place."""
    hidden, weight, keys = fused_case(70, 300, 100)
    tokens, logprobs = model_module.fused_sample(hidden, weight, 0.7, keys)
    rounding = 0 if DEVICE == "cuda" else 2e-6
    for rows in (torch.arange(69, 70), torch.arange(13), torch.randperm(70)):
        strided = torch.stack([hidden[rows] * 0, hidden[rows]], 1)[:, -1]
        apart = torch.stack([keys[rows]] * 2, 1)[:, 1]
        token, logprob = model_module.fused_sample(strided, weight.T.contiguous().T, 0.7, apart)
        rows = rows.to(DEVICE)
        assert torch.equal(tokens[rows], token)
        assert (logprobs[rows] - logprob).abs().max() <= rounding


@needs_triton
@pytest.mark.skipif(DEVICE != "cpu", reason="on CUDA the other tests use the kernel")
def test_rollouts_with_the_fused_sampler_are_scored_as_sampled(monkeypatch):
    monkeypatch.setattr(model_module, "uses_graphs", lambda device: True)
    fused = model_module.fused_sample
    draw = lambda gpt, hidden, *rest: fused(hidden, gpt.head.weight, *rest)  # noqa: E731
    monkeypatch.setattr(model_module, "draw", draw)
    monkeypatch.setattr(linear, "has_onednn", lambda dtype: False)  # as on CUDA
    gpt, cfg = ragged_gpt(context=128), score.Config(samples=4, revisions=2, temperature=0.8)
    rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED), cfg, seed=2)
    scored = sampled_logprobs(gpt, rolled, 0.8)
    for ours, made in zip(scored, (rolled.first, rolled.second)):
        assert len(set(made.mask.sum(1).tolist())) > 3
        assert (ours - made.logprobs)[made.mask].abs().max() < 1e-5


COMPILE = """
import model, triton
kernel = model.head_and_noise
for dtype, line in (("fp32", 32), ("bf16", 64)):
    given = dict(GOLDEN=model.GOLDEN, WIDEN=False, BLOCK_N=64, BLOCK_V=128, BLOCK_C=line)
    types = dict(hidden="*" + dtype, weight="*" + dtype, row="*i64", partial="*fp32",
                 index="*i64", temperature="fp32", N="i32", V="i32", C="i32")
    names = kernel.arg_names
    signature = {name: "constexpr" if name in given else types[name] for name in names}
    constants = {(names.index(name),): value for name, value in given.items()}
    source = triton.compiler.ASTSource(kernel, signature, constants)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    built = triton.compile(source, target=target, options=dict(num_warps=8))
    assert built.asm["cubin"]
"""


@needs_triton
def test_fused_sampler_compiles(tmp_path):
    """The kernel becomes machine code for a GPU (compute capability 9.0) that need not be here."""
    pytest.importorskip("triton.backends.nvidia", reason="Triton came without its CUDA backend")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    run = [sys.executable, "-c", COMPILE]
    done = subprocess.run(run, env=env, cwd=HERE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_entropy_of_a_step_is_that_of_the_policy():
    """What the tokens drawn estimate, against the exact entropy of the softmax that each was drawn
    from: the mean of 5,000 differences is 0 but for four of its standard errors."""
    gpt, cfg = ragged_gpt(), score.Config(samples=64, revisions=2)
    rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED), cfg, seed=0)
    packed, rows = rolled.packed, torch.arange(320)[:, None]
    with torch.no_grad():
        hidden = gpt.hidden(packed.tokens, packed.ok, packed.branch)
        first, second = hidden[rows, packed.before1], hidden[:, packed.before2].flatten(0, 1)
        states = torch.cat([first[rolled.first.mask], second[rolled.second.mask]])
        logprobs = gpt.logits(states).log_softmax(-1)
    exact = -(logprobs.exp() * logprobs).sum(-1)
    drawn = [attempt.logprobs[attempt.mask] for attempt in (rolled.first, rolled.second)]
    error = -torch.cat(drawn) - exact
    assert len(error) > 5000 and error.mean().abs() < 4 * error.std() / len(error) ** 0.5
    estimate = score.rollout_metrics(rolled, score.stage1_returns, cfg)["entropy"]
    assert estimate == pytest.approx((exact + error).mean().item(), abs=1e-5)


@pytest.mark.parametrize("revisions, share", [(2, 3 / 6), (1, 1 / 3)])
def test_groups_without_a_signal_are_counted(revisions, share):
    """Seconds are compared with those of their first, or where it has one, of their problem."""
    gpt, cfg = ragged_gpt(), score.Config(samples=2, revisions=revisions)
    rolled = score.rollout(gpt, Toy(), toy_problems(RAGGED[:3]), cfg, seed=1)
    r2 = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 0, 0])
    r2 = r2 if revisions == 2 else torch.tensor([1.0, 0, 0, 0, 0, 1])
    rolled = dataclasses.replace(rolled, r2=r2)
    metrics = score.rollout_metrics(rolled, score.stage1_returns, cfg)
    assert metrics["no_signal"] == pytest.approx(share)


def test_a_cut_attempt_earns_nothing():
    gpt, task = ragged_gpt(), Toy()
    task.max_new_tokens = 4
    rolled = score.rollout(gpt, task, toy_problems(RAGGED), score.Config(), seed=1)
    begins_evenly = rolled.first.tokens[:, 0] % 2 == 0
    whole = rolled.first.ended
    assert (begins_evenly & ~whole).any() and (rolled.r1[~whole] == 0).all()
    assert torch.equal(rolled.r1.bool(), begins_evenly & whole & (rolled.first.tokens[:, 0] > 0))


class Picky(Toy):
    """What is right, and where an answer is over, depends on the problem."""

    runs_on = True

    def reward(self, problem, response):
        return float(zlib.crc32(f"{problem.prompt}={response}".encode()) % 2)

    def over(self, problem, response):
        return problem.prompt.split()[-1] in response.split()


def counted(r1: list, r2: list, changed: list) -> dict:
    """The paper's metrics, pair by pair."""
    pairs, n = list(zip(r1, r2)), len(r1)
    counts = {"acc_t1": sum(r1), "acc_t2": sum(r2), "delta": sum(r2) - sum(r1)}
    counts |= {"fixed": pairs.count((0, 1)), "broken": pairs.count((1, 0))}
    return {name: count / n for name, count in (counts | {"changed": sum(changed)}).items()}


def test_a_rollout_s_answers_belong_to_their_problems():
    """Each is graded, ended and counted by its own, and a step reports what can be counted."""
    gpt, task, K, M = ragged_gpt(), Picky(), 4, 3
    cfg, problems = score.Config(samples=K, revisions=M), toy_problems(RAGGED)
    rolled = score.rollout(gpt, task, problems, cfg, seed=2)
    texts, rewards, ended = [], [], []
    for attempt, each in ((rolled.first, K), (rolled.second, K * M)):
        ends = attempt.ended.tolist()
        said = [" ".join(str(t) for t in y if t != 0) for y in answers(attempt)]
        for n, y in enumerate(said):  # over at the problem's last word
            assert problems[n // each].prompt.split()[-1] not in y.split()[:-1]
        right = [
            task.reward(problems[n // each], y) * end for n, (y, end) in enumerate(zip(said, ends))
        ]
        texts.append(said)
        rewards.append(right)
        ended.append(ends)
    assert rolled.r1.tolist() == rewards[0] and rolled.r2.tolist() == rewards[1]

    r1, r2 = score.repeat(rewards[0], M), rewards[1]
    changed = [a != b for a, b in zip(score.repeat(texts[0], M), texts[1])]
    groups = [set(r2[n : n + M]) for n in range(0, len(r2), M)]
    wanted = counted(r1, r2, changed) | {
        "reward": sum(r1) / len(r1) + sum(r2) / len(r2),
        "truncated": 1 - statistics.mean(ended[0] + ended[1]),
        "no_signal": sum(len(group) == 1 for group in groups) / len(groups),
    }
    metrics = score.rollout_metrics(rolled, score.stage2_returns, cfg)
    del metrics["entropy"]  # which has a test of its own
    assert metrics == pytest.approx(wanted, abs=1e-6) and 0 < min(map(abs, wanted.values())) < 1


def test_an_evaluation_reports_what_can_be_counted():
    gpt, task = ragged_gpt(), Picky()
    problems = toy_problems(list(itertools.product(range(1, 11), repeat=2)))
    found = score.evaluate(gpt, task, problems, attempts=3, temperature=1.0, batch=30)
    for said, rewards, ended in zip(found.responses, found.rewards, found.ended):
        right = [task.reward(x, y) * end for x, y, end in zip(problems, said, ended.tolist())]
        assert rewards.tolist() == right
    r1, r2, _ = found.rewards.tolist()
    changed = [a != b for a, b in zip(*found.responses[:2])]
    wanted = counted(r1, r2, changed)
    assert {name: found.metrics[name] for name in wanted} == pytest.approx(wanted, abs=1e-6)
    assert 0 < min(map(abs, wanted.values())) and 0 < found.metrics["truncated"] < 1
    assert found.metrics["truncated"] == pytest.approx(1 - found.ended.float().mean().item())
    assert found.metrics["acc"] == pytest.approx(found.rewards.mean(1).tolist())
    assert found.metrics["cut"] == pytest.approx((1 - found.ended.float().mean(1)).tolist())
    for name, values in (
        ("acc_t1", r1),
        ("changed", changed),
        ("delta", [b - a for a, b in zip(r1, r2)]),
    ):
        error = statistics.pstdev(values) / len(values) ** 0.5
        assert found.metrics["se"][name] == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("reward", [-1.0, 0.5, math.nan, None, ValueError("no number")])
def test_a_verifier_says_0_or_1(reward, monkeypatch):
    """Else it is named: what it raises or returns is a bug of the task."""

    def rewards(task, problems, texts):
        if isinstance(reward, ValueError):
            raise reward
        return [reward for _ in texts]

    monkeypatch.setattr(Toy, "rewards", rewards)
    said = "failed" if isinstance(reward, ValueError) else f"gave {reward}, which is not 0 or 1"
    with pytest.raises(RuntimeError, match=f"the verifier of {Toy.name} {said}"):
        score.rollout(ragged_gpt(), Toy(), toy_problems(RAGGED), score.Config(), seed=1)


def test_verdicts_may_be_booleans(monkeypatch):
    """As a task of one's own may give them: a step makes returns of them."""
    monkeypatch.setattr(Toy, "rewards", lambda task, problems, texts: [True for _ in texts])
    rolled = score.rollout(ragged_gpt(), Toy(), toy_problems(RAGGED), score.Config(), seed=1)
    assert rolled.r1.dtype == rolled.r2.dtype == torch.float32
    assert torch.equal(rolled.r1, rolled.first.ended.float()) and rolled.r1.any()


def test_activations_are_computed_again(monkeypatch):
    """In the backward pass, where asked for: each block then runs twice."""
    calls, forward = [], model_module.Block.forward

    def watched(*args):
        calls.append(1)
        return forward(*args)

    monkeypatch.setattr(model_module.Block, "forward", watched)
    for again in (False, True):
        gpt = ragged_gpt()
        gpt.recompute = again
        gpt(torch.tensor([[1, 2, 3]])).sum().backward()
    assert len(calls) == 2 + 4  # of two blocks


@pytest.mark.parametrize("start", [[], [5, 6, 7]])
@pytest.mark.parametrize("micro, recompute", [(1, False), (2, False), (4, False), (None, True)])
def test_saving_memory_gives_the_same_gradient(micro, recompute, start):
    """Whatever the split, and where activations are computed again; with offline first attempts to
    some of the problems, and with a start that all prompts share."""
    problems = toy_problems([start + prompt for prompt in RAGGED])
    steps = []
    for size, again in ((None, False), (micro, recompute)):
        policy, ref = ragged_gpt(), freeze(ragged_gpt())
        policy.recompute = again
        with torch.no_grad():
            ref.blocks[0].mlp.up.weight.mul_(1.5)  # so that the KL is not 0
        optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
        cfg = score.Config(samples=3, revisions=2, offline=0.6, micro=size, clip=1e9)
        before = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
        metrics = score.train_step(
            policy, ref, optimizer, Toy(), problems, score.stage2_returns, cfg, 1
        )
        after = torch.nn.utils.parameters_to_vector(policy.parameters()).detach()
        steps.append((after - before, metrics))
    (whole, one), (parts, other) = steps
    assert (parts - whole).norm() < 1e-5 * whole.norm()
    for name in one.keys() - {"rollout_seconds", "update_seconds"}:
        assert other[name] == pytest.approx(one[name], rel=1e-4, abs=1e-6), name


def test_tokens_do_not_depend_on_the_batch():
    """A prompt's samples are the same alone, among others, in any order, and with more samples."""
    gpt = ragged_gpt()
    together = answers(generate(gpt, RAGGED, 20, samples=3, eos=0, seed=5))
    backwards = answers(generate(gpt, RAGGED[::-1], 20, samples=3, eos=0, seed=5))
    for b, prompt in enumerate(RAGGED):
        alone = answers(generate(gpt, [prompt], 20, samples=3, eos=0, seed=5))
        more = answers(generate(gpt, [prompt], 20, samples=7, eos=0, seed=5))
        there = len(RAGGED) - 1 - b
        assert alone == together[3 * b : 3 * b + 3] == more[:3]
        assert alone == backwards[3 * there : 3 * there + 3]
    assert together != answers(generate(gpt, RAGGED, 20, samples=3, eos=0, seed=6))


def tokens_read(monkeypatch) -> list[int]:
    """Will hold the number of tokens of each call of `extend` from now on."""
    read, extend = [], GPT.extend

    def counted(gpt: GPT, cache, tokens: torch.Tensor, ok: torch.Tensor) -> torch.Tensor:
        read.append(int(ok.sum()))
        return extend(gpt, cache, tokens, ok)

    monkeypatch.setattr(GPT, "extend", counted)
    return read


def assert_as_alone(gpt: GPT, prompts: list[list[int]]) -> None:
    """Three samples of each prompt have the tokens and log-probabilities that they have alone."""
    together = generate(gpt, prompts, 12, samples=3, eos=0)
    for n, prompt in enumerate(prompts):
        alone = generate(gpt, [prompt], 12, samples=3, eos=0)
        rows = slice(3 * n, 3 * n + 3)
        assert answers(together)[rows] == answers(alone)
        made = together.logprobs[rows][together.mask[rows]]
        assert torch.allclose(made, alone.logprobs[alone.mask], atol=1e-5)


@pytest.mark.parametrize("start", [[1, 2, 3], []])
def test_a_common_start_is_read_once_and_changes_nothing(start, monkeypatch):
    """Whether prompts have much in common, or nothing; one may be the start of another."""
    gpt, read = ragged_gpt(), tokens_read(monkeypatch)
    prompts = [start + rest for rest in ([4], [5, 6], [7], [4, 4])]
    assert_as_alone(gpt, prompts)
    assert read[: 1 + bool(start)] == [len(start), 6][not start :]
    with pytest.raises(AssertionError, match="context"):  # of 64 tokens, of which it takes some
        gpt.hidden(torch.ones(1, 62, dtype=torch.int64), start=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("start", [[1, 2, 3], []])
def test_long_prompts_do_not_pad_short_ones(start, monkeypatch):
    """They are read with others of their length, which changes nothing."""
    gpt, read = ragged_gpt(context=128), tokens_read(monkeypatch)
    lengths = (2, 60, 3, 41, 60, 19)
    prompts = [start + [4 + n] + [5 + n % 3] * (length - 1) for n, length in enumerate(lengths)]
    assert_as_alone(gpt, prompts)
    groups = [2 + 3, 19, 41 + 60 + 60]
    assert read[: 3 + bool(start)] == [len(start), *groups][not start :]


def test_equal_prompts_draw_by_their_keys():
    gpt = ragged_gpt()
    keyed = generate(gpt, [[4], [4]], 12, samples=3, keys=[1, 2])
    first, second = (generate(gpt, [[4]], 12, samples=3, keys=[key]) for key in (1, 2))
    assert answers(keyed) == answers(first) + answers(second)
    assert answers(first) != answers(second)


def test_solved_examples_are_read_once_for_all_problems(monkeypatch):
    """By an evaluation and by a rollout, for each attempt."""
    gpt, read = ragged_gpt(), tokens_read(monkeypatch)
    problems = toy_problems([[1, 2, 3, 4, 5], [1, 2, 3, 4, 6], [1, 2, 3, 4, 7, 8]])
    score.evaluate(gpt, Toy(), problems)
    assert read[:2] == [4, 1 + 1 + 2]
    assert read.count(4) >= 2
    read.clear()
    score.rollout(gpt, Toy(), problems, score.Config(samples=2, revisions=2), seed=1)
    assert read[:2] == [4, 1 + 1 + 2]


def test_rollout_does_not_depend_on_the_batch():
    gpt, cfg, problems = ragged_gpt(), score.Config(samples=2, revisions=2), toy_problems(RAGGED)
    together = score.rollout(gpt, Toy(), problems, cfg, seed=9)
    alone = score.rollout(gpt, Toy(), problems[2:3], cfg, seed=9)
    assert answers(alone.first) == answers(together.first)[4:6]
    assert answers(alone.second) == answers(together.second)[8:12]


def test_attempts_draw_independently():
    """A second attempt is keyed by its first one's row: two equal firsts get different seconds, and
    no draw of one attempt is a draw of another."""
    first = row_keys([1, 2, 3], 4, seed=0)  # (12,)
    second = row_keys(first, 2, seed=0)  # (24,)
    draws = [model_module.fold(keys[:, None], torch.arange(9)) for keys in (first, second)]
    assert len(set(torch.cat(draws).flatten().tolist())) == (12 + 24) * 9
    gpt, cfg = ragged_gpt(), score.Config(samples=64, revisions=2)
    rolled = score.rollout(gpt, Toy(), toy_problems([[1, 2]]), cfg, seed=0)
    seconds = {}
    for n, y1 in enumerate(answers(rolled.first)):
        seconds.setdefault(tuple(y1), set()).add(str(answers(rolled.second)[2 * n : 2 * n + 2]))
    assert max(map(len, seconds.values())) > 1


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampler_draws_from_the_softmax(temperature):
    """Chi-square over 200,000 draws, with cells of no mass and of next to none."""
    logits = torch.tensor([[2.0, -math.inf, 0.0, 1.0, -3.0, 1.5, -math.inf, -1.0, -30.0]])
    N = 200_000
    keys = row_keys(torch.arange(N), 1, seed=11)
    token, logprob = model_module.sample(logits.expand(N, -1), temperature, keys)
    p = (logits[0].double() / temperature).softmax(-1)
    assert torch.allclose(logprob.double(), p.log()[token], atol=1e-6)
    counts = torch.bincount(token, minlength=9).double()
    assert counts[p < 1e-9].sum() == 0
    cells = p > 1e-6
    chi2 = ((counts - N * p)[cells] ** 2 / (N * p)[cells]).sum().item()
    assert chi2 < 22.5  # 6 degrees of freedom: exceeded once in a thousand


def test_whole_answers_are_drawn_from_the_policy():
    """Chi-square over the seven answers of the toy world, whose probabilities are products."""
    gpt, N, temperature = toy_gpt(0).float(), 50_000, 3.0
    made = answers(generate(gpt, [PROMPT], 2, samples=N, temperature=temperature, eos=END, seed=5))
    expected = [N * plain_scores(gpt, PROMPT, y, temperature).sum().exp().item() for y in ATTEMPTS]
    counts = [made.count(y) for y in ATTEMPTS]
    assert sum(counts) == N and min(expected) > 100
    chi2 = sum((count - mean) ** 2 / mean for count, mean in zip(counts, expected))
    assert chi2 < 22.5  # 6 degrees of freedom: exceeded once in a thousand


def test_logits_that_are_not_finite_still_give_a_token():
    """So that a step which has diverged ends in its loss, and in the line that says so."""
    for bad in (math.nan, math.inf, -math.inf):
        token, _ = model_module.sample(torch.full((3, 7), bad), 1.0, torch.arange(3))
        assert ((token >= 0) & (token < 7)).all()


def test_uniform_stays_inside_the_interval():
    ends = model_module.uniform(torch.tensor([0, -(1 << 41)]))  # of the lowest and highest cell
    assert ends.dtype == torch.float32 and ends[0] > 0 and ends[1] < 1
    many = model_module.uniform(model_module.fold(torch.arange(100_000), 3))
    assert abs(many.mean().item() - 0.5) < 0.005 and 0 < many.min() and many.max() < 1


def test_greedy_is_argmax_without_randomness():
    gpt = ragged_gpt()
    first = answers(generate(gpt, RAGGED, 8, temperature=0.0, seed=1))
    assert first == answers(generate(gpt, RAGGED, 8, temperature=0.0, seed=2))
    row = list(RAGGED[2])
    for token in first[2]:
        assert token == gpt(torch.tensor([row]))[0, -1].argmax()
        row.append(token)


@pytest.mark.parametrize(
    "prompts, options",
    [([], {}), ([[1], []], {}), ([[1] * 60], {}), ([[1]], {"temperature": -1.0}),
     ([[1]], {"samples": 0}), ([[1]], {"keys": [1, 2]})],
)  # fmt: skip
def test_generate_refuses_what_it_cannot_do(prompts, options):
    with pytest.raises(ValueError, match="prompt|context|temperature|samples|keys"):
        generate(ragged_gpt(), prompts, 20, **options)


def test_reference_never_moves(puzzle, tiny):
    ref = GPT(tiny.config)
    ref.load_state_dict(tiny.state_dict())
    ref = freeze(ref)
    before = [weight.clone() for weight in ref.parameters()]
    optimizer = torch.optim.Adam(tiny.parameters(), lr=1e-2)
    cfg = score.Config(samples=2, revisions=2, beta2=1.0)
    start = [weight.clone() for weight in tiny.parameters()]
    for step in range(3):
        problems = puzzle.batch(0, step, 4)
        always = dataclasses.replace(cfg, offline=0.5)
        score.train_step(tiny, ref, optimizer, puzzle, problems, learnable_returns, always, step)
    assert all(torch.equal(a, b) for a, b in zip(before, ref.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(start, tiny.parameters()))


def learnable_returns(r1, r2, kl1, kl2, cfg):
    """Returns that vary where a random model's rewards, all 0, would not."""
    noise = (torch.arange(float(r2.numel())) % 3).view_as(r2)
    return -cfg.beta2 * kl1, noise - cfg.beta1 * kl2


# ---------------------------------------------------------------------------------------------
# 3. The diagnosis


def odd_start(task, problems, attempt) -> torch.Tensor:
    """In place of `score.grade`, for a model that hardly ever is right: rewards half of all."""
    return (attempt.tokens[:, 0] % 2).float()


def test_the_diagnosis_is_of_what_the_policy_samples(puzzle, tiny, monkeypatch):
    """p, f and b of the same sampled attempts, counted one by one."""
    problems = puzzle.held_out("val", 50)
    monkeypatch.setattr(score, "grade", odd_start)
    found = report.diagnose(tiny, puzzle, problems, seed=3)
    r1, r2 = score.evaluate(tiny, puzzle, problems, temperature=1.0, seed=3).rewards.tolist()
    after = {right: [b for a, b in zip(r1, r2) if a == right] for right in (0, 1)}
    p, f, b = statistics.mean(r1), statistics.mean(after[0]), 1 - statistics.mean(after[1])
    assert 0 < p < 1 and f > 0 and b > 0
    wanted = {"p": p, "f": f, "b": b, "ratio": f / b, "odds": p / (1 - p), "n": 50}
    assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("acc_t1", "fixed", "broken", "wanted"),
    [
        (0.0, 0.25, 0.0, {"p": 0.0, "f": 0.25, "b": None, "ratio": None, "odds": 0.0}),
        (1.0, 0.0, 0.5, {"p": 1.0, "f": None, "b": 0.5, "ratio": None, "odds": None}),
        (0.5, 0.25, 0.0, {"p": 0.5, "f": 0.5, "b": 0.0, "ratio": None, "odds": 1.0}),
    ],
)
def test_a_diagnosis_without_cases_has_no_value(acc_t1, fixed, broken, wanted, monkeypatch):
    metrics = {"acc_t1": acc_t1, "fixed": fixed, "broken": broken}
    result = types.SimpleNamespace(metrics=metrics)
    monkeypatch.setattr(score, "evaluate", lambda *args, **options: result)
    assert report.diagnose(None, None, [None] * 8) == wanted | {"n": 8}


@pytest.mark.parametrize(
    ("p", "f", "b", "n", "said"),
    [
        (0.526, 0.10, 0.30, 500, "would learn to copy"),  # the paper's base on MATH
        (0.5, 0.3, 0.1, 500, "would learn to edit"),
        (0.5, 0.1, 0.1, 500, "about as good"),
        (0.0, 0.2, None, 500, "would learn to edit"),
        (1.0, None, 0.2, 500, "would learn to copy"),
        (0.5, 0.0, 0.0, 500, "about as good"),
        (0.177, 0.002, 0.014, 2000, "about as good"),  # the base of RESULTS.md
        (0.0, 0.0, None, 2, "too few problems to say"),
        (0.5, 0.0, 0.0, 50, "too few problems to say"),
        (0.5, 0.3, 0.1, 20, "too few problems to say"),
        (0.5, 0.3, 0.1, 80, "would learn to edit"),
    ],
)
def test_what_plain_reward_would_learn(p, f, b, n, said):
    assert said in report.leaning({"p": p, "f": f, "b": b, "n": n})


# ---------------------------------------------------------------------------------------------
# 4. It learns


@pytest.mark.parametrize("returns", [score.stage1_returns, score.stage2_returns])
def test_a_tiny_run_learns_what_its_stage_rewards(returns):
    """Model seed 3, 40 steps on "begin evenly". Stage I teaches attempt 2 and leaves attempt 1
    about where the reference is; Stage II teaches both. Neither knows the task but by reward."""
    policy, ref = ragged_gpt(), freeze(ragged_gpt())
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    cfg = score.Config(samples=4, revisions=4, alpha=1.0, beta1=0.01, beta2=0.3)
    rows = [
        score.train_step(policy, ref, optimizer, Toy(), toy_problems(RAGGED), returns, cfg, step)
        for step in range(40)
    ]

    def accuracy(name: str, steps: list[dict]) -> float:
        return sum(row[name] for row in steps) / len(steps)

    assert accuracy("acc_t1", rows[:3]) < 0.4 and accuracy("acc_t2", rows[:3]) < 0.7
    assert accuracy("acc_t2", rows[-5:]) > 0.9
    if returns is score.stage1_returns:
        assert accuracy("acc_t1", rows[-5:]) < 0.4 and accuracy("kl_1", rows[-5:]) < 1.0
    else:
        assert accuracy("acc_t1", rows[-5:]) > 0.9
