"""SCoRe: self-correction via reinforcement learning, as in arXiv 2409.12917 (ICLR 2025).

A policy π_θ answers a problem x, reads an instruction p, "There might be an error. Try again.", and
answers again. A verifier r(y, y*) ∈ {0, 1} judges both answers during training; the policy never
sees r.

    y1 ~ π_θ(·|x1),   y2 ~ π_θ(·|x2),   x1 = x,   x2 = [x, y1, p]

    Stage I   (Eq. 3)   max  E[ r2 − β1·KL2 − β2·KL1 ]          KLi = KL(π_θ(·|xi) ‖ π_ref(·|xi))
    Stage II  (Eq. 4)   max  E[ r1 − β1·KL1  +  r2 + b − β1·KL2 ],     b = α·(r2 − r1)

π_ref is the base model in both stages [paper v1; later versions do not name it for Stage II].
Stage I learns to correct the base model's answers while β2 keeps attempt 1 close to the base; Stage
II improves both attempts, and the bonus b rewards progress from the first to the second.

One step, for P problems:
    1. roll out K first attempts a problem, and M second attempts to each first      `rollout`
    2. reward every attempt                                                             `grade`
    3. score all attempts under π_θ and π_ref: log π_θ and KL at every token   `attempt_scores`
    4. returns: what each attempt's tokens are credited with   `stage1_returns`, `stage2_returns`
    5. advantages: return − leave-one-out baseline                                `leave_one_out`
    6. loss = Σ_tokens −advantage · log π_θ + β · KL, averaged over attempts        `policy_loss`

**γ = 0 across attempts** (ICLR Fig. 9): y1's tokens are credited with y1's return alone, so the
expectation of y2's return is not differentiated through the probability of y1. With γ = 1 y1 would
be credited with (1 − α)·r1 + (1 + α)·r2, whose first term rewards a wrong first attempt.

**The baseline.** Given y1, the term −α·r1 of y2's return is a constant, and a constant has no
gradient in expectation: the bonus multiplies the gradient of r2 by 1 + α, and the term changes only
the noise (if r1 and r2 are independent, it adds α² times the variance of r1). Where y2 is compared
only with other second attempts *to the same y1*, the term cancels exactly; hence M. With M = 1 the
baseline runs over the whole rollouts of a problem, as is usual for RLOO, and the term stays. Both
are tested.

**The KL** of attempt i is a sum over the states that it visits: KLi = E[Σ_t D_t], where
D_t = Σ_v π_v·(log π_v − log π_ref,v) is exact at a state. Its gradient has two parts,

    ∇KLi = E[ Σ_t ∇D_t  +  Σ_t (Σ_{j>t} D_j)·∇log π(a_t) ]

the first at fixed states, the second for a token's effect on the states after it, a return like any
other (Rao-Blackwellised: Amini et al. 2504.10637, Tang and Munos 2506.09477). Without the second it
is biased. Schulman's k1 = log π − log π_ref of the tokens drawn, inside the return, has the same
expectation and more noise; differentiating k1 itself would give zero in expectation. [our reading:
the paper names no estimator. We sum over tokens, since a mean would divide β2 by the answer's
length.]

Left out on purpose: PPO's clipped importance ratios (one update a rollout, so the data is
on-policy), entropy bonuses, advantage normalisation, training on more than two attempts (ICLR A.1;
`evaluate` takes any number).

Dimensions: P problems, N = P·K first attempts, N·M second attempts, T1 and T2 their longest
lengths, S slots of a packed row, C width. Rows of a problem are adjacent, and so are second
attempts to one first.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data import Problem, Task
from fast.processes import averaged
from model import GPT, Generation, common_start, generate, pad_left, row_keys, unpadded

MOST = 10_000  # upper limit of counts in the settings: a larger one is a typo


@dataclass(frozen=True)
class Config:
    """The settings of the algorithm. The paper's values are those for MATH."""

    alpha: float = 10.0  # α, weight of the bonus for progress between attempts (paper: 10)
    beta1: float = 0.02  # β1, KL weight on the attempts that are rewarded (paper: 0.01)
    beta2: float = 0.3  # β2, KL weight that keeps attempt 1 near the base in Stage I (paper: 0.1)
    problems: int = 32  # P, problems per step (paper: a batch of 512, of problems or of rollouts)
    samples: int = 4  # K, first attempts per problem (paper: not given)
    revisions: int = 4  # M, second attempts per first attempt (paper: not given; 1 is plain RLOO)
    offline: float = 0.0  # share of the problems that also get first attempts by the base model
    temperature: float = 1.0  # sampling temperature in training (paper: 1); default in --eval: 0
    clip: float = 1.0  # largest norm of the gradient (paper: not given)
    micro: int | None = None  # problems per backward pass, to save memory (default: all)

    def __post_init__(self):
        weights = dict.fromkeys(("alpha", "beta1", "beta2"), (0, 1e12))
        counts = dict.fromkeys(("problems", "revisions", "micro"), (1, MOST))
        check_ranges(self, offline=(0, 1), temperature=(1e-3, 1e12), clip=(1e-12, 1e12), **weights)
        check_ranges(self, samples=(2, MOST), **counts)  # two samples at least, to leave one out


def check_ranges(settings, **ranges: tuple[float, float]) -> None:
    """Raises ValueError, naming the field, for a setting out of its range; None is not set."""
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:  # nan is in no range
            raise ValueError(f"{name} must be from {low} to {high}: {value}")


# ---------------------------------------------------------------------------------------------
# 1, 2. Rollouts and rewards


@dataclass(frozen=True)
class Rollout:
    """K first attempts at each of P problems, and M second attempts to each of those."""

    first: Generation  # (N, T1)
    second: Generation  # (N·M, T2)
    r1: Tensor  # (N,)
    r2: Tensor  # (N·M,)
    changed: Tensor  # (N·M,) bool: y2's text differs from y1's
    on_policy: bool  # the policy wrote y1, so y1 may be trained
    packed: "Packed"  # both attempts, laid out for scoring


def rollout(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    cfg: Config,
    seed: int,
    first_by: GPT | None = None,
) -> Rollout:
    """K first attempts a problem and M second attempts to each, sampled from the policy.
    `first_by`: another model that writes the first attempts (offline ones: the base model). Raises
    FloatingPointError if a model's logits are no longer finite."""
    K, M = cfg.samples, cfg.revisions
    author = policy if first_by is None else first_by
    if first_by is not None:
        # A separate random stream (step seeds are ≥ 0, ~seed is negative): with the same one, a
        # reference still equal to the policy would repeat its answers.
        seed = ~seed
    prompts, keys = [task.prompt(x) for x in problems], [x.key for x in problems]
    first = respond(author, task, problems, prompts, keys, K, cfg.temperature, seed)

    # The random key of a second attempt derives from that of its first attempt.
    problems, keys = repeat(problems, K), row_keys(keys, K, seed)
    second_prompts = try_again(task, prompts, answers(first))
    second = respond(policy, task, problems, second_prompts, keys, M, cfg.temperature, seed)

    for number, attempt in enumerate((first, second), 1):
        if not attempt.logprobs.isfinite().all():
            raise FloatingPointError(f"the logits of attempt {number} are not finite")

    y1, y2 = repeat(texts(task, first), M), texts(task, second)
    return Rollout(
        first,
        second,
        r1=grade(task, problems, first),
        r2=grade(task, repeat(problems, M), second),
        changed=torch.tensor([a != b for a, b in zip(y1, y2)]),
        on_policy=first_by is None,
        packed=pack(prompts, first, second_prompts, second),
    )


def respond(
    model: GPT,
    task: Task,
    problems: list[Problem],
    prompts: list[list[int]],
    keys: Sequence[int] | Tensor,
    samples: int,
    temperature: float,
    seed: int,
) -> Generation:
    """`samples` attempts after each prompt, [x] or [x, y1, p] → len(prompts) · samples rows, those
    of a prompt adjacent. One problem and one key per prompt."""
    problems = repeat(problems, samples)
    complete = [False] * len(problems)

    def over(rows: list[list[int]]) -> list[bool]:
        for n, (x, y) in enumerate(zip(problems, rows)):
            complete[n] = complete[n] or y[-1] == task.eos or task.over(x, task.decode(y))
        return complete

    attempt = generate(
        model,
        prompts,
        task.max_new_tokens,
        samples=samples,
        temperature=temperature,
        eos=task.eos,
        seed=seed,
        keys=keys,
        over=over if task.runs_on else None,
    )
    return end_when_over(task, problems, attempt) if task.runs_on else attempt


def try_again(task: Task, prompts: list[list[int]], attempts: list[list[int]]) -> list[list[int]]:
    """The next attempt's prompt, [x, y, p], for every attempt y; those at a prompt are adjacent.
    Where y has no end token, because the length limit or `Task.over` ended it, the task's own
    closing tokens are added."""
    prompts = repeat(prompts, len(attempts) // len(prompts))
    ends = [[] if y[-1] == task.eos else task.close for y in attempts]
    return [x + y + end + task.revise for x, y, end in zip(prompts, attempts, ends)]


def grade(task: Task, problems: list[Problem], attempt: Generation) -> Tensor:
    """r(y, y*), float32 (rows,). An answer that the length limit cut is wrong, whatever it
    contains. Raises RuntimeError if the verifier fails, or gives anything but 0 and 1."""
    try:
        rewards = task.rewards(problems, texts(task, attempt))
    except ValueError as error:  # a bug of the task, not bad input
        raise RuntimeError(f"the verifier of {task.name} failed") from error
    if others := set(rewards) - {0, 1}:
        raise RuntimeError(f"the verifier of {task.name} gave {others.pop()}, which is not 0 or 1")
    return torch.tensor(rewards, dtype=torch.float32, device=attempt.mask.device) * attempt.ended


def repeat(items: list, times: int) -> list:
    """Every item `times` times, copies adjacent."""
    return [item for item in items for _ in range(times)]


def answers(attempt: Generation) -> list[list[int]]:
    """The tokens of every row."""
    return unpadded(attempt.tokens, attempt.mask)


def texts(task: Task, attempt: Generation) -> list[str]:
    """The text of every row."""
    return [text(task, y) for y in answers(attempt)]


def text(task: Task, tokens: list[int]) -> str:
    """An attempt's text, without its end token."""
    return task.decode(tokens[:-1] if tokens[-1] == task.eos else tokens)


def end_when_over(task: Task, problems: list[Problem], attempt: Generation) -> Generation:
    """Cuts each attempt right after the token that completes its answer (`Task.over`). What the
    model wrote after it is neither trained on nor shown to the next attempt."""
    rows = zip(problems, answers(attempt))
    lengths = torch.tensor([over_after(task, *row) for row in rows], device=attempt.mask.device)
    over = lengths <= attempt.mask.sum(1)  # (N,)
    mask = attempt.mask & (attempt.mask.cumsum(1) <= lengths[:, None])  # (N, T)
    return Generation(attempt.tokens * mask, mask, attempt.logprobs * mask, attempt.ended | over)


def over_after(task: Task, problem: Problem, tokens: list[int]) -> int:
    """The number of tokens after which the answer is over, at least 1; one more than there are if
    it never is. Found by bisection, since an answer that is over stays so as it grows."""

    def over(length: int) -> bool:
        return task.over(problem, task.decode(tokens[:length]))

    return 1 + bisect_left(range(1, len(tokens) + 1), True, key=over)


# ---------------------------------------------------------------------------------------------
# 3. Log-probabilities and KL


@dataclass(frozen=True)
class Packed:
    """Rollouts laid out for one forward. A row is [x, y1, p, y2·1, …, y2·M]: a first attempt and
    all its seconds, each a branch that sees the trunk [x, y1, p] and itself. The longest common
    prefix of all prompts, solved examples for instance, is stored once, as `start`."""

    start: Tensor  # (S0,) int64, possibly empty
    tokens: Tensor  # (N, S) int64
    ok: Tensor  # (N, S) bool: true where a slot holds a token
    branch: Tensor  # (S,) int64: 0 for the trunk, m for the m-th second attempt
    before1: Tensor  # (N, T1) int64: the slot before each of y1's
    before2: Tensor  # (M, T2) int64: the slot before each of y2's

    def take(self, rows: slice) -> "Packed":
        """The given rows, without slots that are empty in all of them."""
        used = self.ok[rows].any(0)  # (S,)
        place = used.cumsum(0) - 1  # each slot's new index; that of an unused slot does not matter
        return Packed(
            start=self.start,
            tokens=self.tokens[rows, used],
            ok=self.ok[rows, used],
            branch=self.branch[used],
            before1=place[self.before1[rows]],
            before2=place[self.before2],
        )


def pack(
    prompts: list[list[int]], first: Generation, second_prompts: list[list[int]], second: Generation
) -> Packed:
    """Lays out first attempts (N rows) to prompts [x] (P) and second attempts (N·M rows) to the
    prompts [x, y1, p] (N) of `try_again`."""
    device, (N, T1), T2 = first.tokens.device, first.tokens.shape, second.tokens.shape[1]
    M = len(second.tokens) // N
    start = common_start(prompts)
    trunk, trunk_ok = pad_left([row[len(start) :] for row in second_prompts], device)  # (N, S1)
    S1 = trunk.shape[1]
    # All trunks end at S1; y1 begins this many slots before it.
    back = [len(row) - len(x) for x, row in zip(repeat(prompts, N // len(prompts)), second_prompts)]
    begin = S1 - torch.tensor(back, device=device)  # (N,)
    slots = S1 + torch.arange(M * T2, device=device).view(M, T2)  # of the second attempts
    # Rows are padded on the left and attempts have no gaps, so the slot before a token holds the
    # token that precedes it.
    last = torch.full((M, 1), S1 - 1, device=device)
    branch = torch.arange(1, M + 1, device=device).repeat_interleave(T2)
    return Packed(
        start=torch.tensor(start, dtype=torch.int64, device=device),
        tokens=torch.cat([trunk, second.tokens.reshape(N, M * T2)], 1),
        ok=torch.cat([trunk_ok, second.mask.reshape(N, M * T2)], 1),
        branch=torch.cat([torch.zeros(S1, dtype=torch.int64, device=device), branch]),
        before1=(begin[:, None] - 1 + torch.arange(T1, device=device)).clamp(max=S1 - 1),
        before2=torch.cat([last, slots[:, :-1]], 1),
    )


Pair = tuple[Tensor, Tensor]  # (first attempts, second attempts)


def attempt_scores(policy: GPT, ref: GPT, rolled: Rollout, temperature: float) -> tuple[Pair, Pair]:
    """log π(token | what precedes it) of each token of both attempts, (N, T1) and (N·M, T2), and
    D = KL(π ‖ π_ref) of the next token there, both 0 outside the masks, with π and π_ref at the
    temperature. One forward of the packed rollout by each model; the reference has no gradient."""
    states = attempt_states(policy, rolled)
    with torch.no_grad():
        ref_states = attempt_states(ref, rolled)
    scores = []
    for attempt, hidden, ref_hidden in zip((rolled.first, rolled.second), states, ref_states):
        mask = attempt.mask
        # Apply the head to real tokens only: with a large vocabulary it is the costliest product.
        tokens, hidden, ref_hidden = (table[mask] for table in (attempt.tokens, hidden, ref_hidden))
        values = policy.scores(hidden, tokens, ref, ref_hidden, temperature)
        scores.append([x.new_zeros(mask.shape).masked_scatter(mask, x) for x in values])
    return tuple(zip(*scores))


def attempt_states(model: GPT, rolled: Rollout) -> Pair:
    """The model's final states before each token of the attempts, (N, T1, C), (N·M, T2, C)."""
    packed = rolled.packed
    hidden = model.hidden(packed.tokens, packed.ok, packed.branch, packed.start)  # (N, S, C)
    rows = torch.arange(len(hidden), device=hidden.device)[:, None]
    return hidden[rows, packed.before1], hidden[:, packed.before2].flatten(0, 1)


# ---------------------------------------------------------------------------------------------
# 4. Returns: what each attempt's tokens are credited with. All (B,), or shapes that broadcast

Returns = Callable[[Tensor, Tensor, Tensor, Tensor, Config], tuple[Tensor, Tensor]]


def stage1_returns(r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, cfg: Config):
    """Eq. 3: attempt 2 earns its reward, attempt 1 is only kept close to the base model."""
    return1 = -cfg.beta2 * kl1
    return2 = r2 - cfg.beta1 * kl2
    return return1, return2


def stage2_returns(r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, cfg: Config):
    """Eq. 4: each attempt earns its own reward, and attempt 2 also the bonus α (r2 − r1)."""
    return1 = r1 - cfg.beta1 * kl1
    return2 = r2 + cfg.alpha * (r2 - r1) - cfg.beta1 * kl2
    return return1, return2


# ---------------------------------------------------------------------------------------------
# 5, 6. Advantages and the loss


def leave_one_out(returns: Tensor, samples: int) -> Tensor:
    """Advantage of each return over the mean of the *others* of its group (RLOO, Kool et al. 2019).

    returns (B,) or (B, T), groups of `samples` ≥ 2 adjacent rows → the same shape. A row's own
    return stays out of its baseline: one that includes it would shrink the gradient by
    1 − 1/samples.
    """
    assert samples > 1 and len(returns) % samples == 0, "whole groups of at least two"
    groups = returns.unflatten(0, (-1, samples))
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten(0, 1)


def later(values: Tensor) -> Tensor:
    """For each token, the sum over the tokens after it, (rows, T) → (rows, T)."""
    return values.flip(1).cumsum(1).flip(1) - values


def advantages(
    r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, returns: Returns, cfg: Config
) -> tuple[Tensor, Tensor]:
    """Rewards r1 (N,), r2 (N·M,) and for each token the KL after it, kl1 (N, T1), kl2 (N·M, T2) →
    the advantages of all tokens of first (N, T1) and second attempts (N·M, T2)."""
    K, M = cfg.samples, cfg.revisions
    r1, r2 = r1[:, None, None], r2.view(-1, M, 1)  # (N, 1, 1), (N, M, 1)
    kl1, kl2 = kl1[:, None], kl2.unflatten(0, (-1, M))  # (N, 1, T1), (N, M, T2)
    return1, return2 = returns(r1, r2, kl1, kl2, cfg)
    # A baseline per position: other samples do not depend on this token, so it adds no bias.
    advantage1 = leave_one_out(return1.mean(1), K)  # (N, T1), over its second attempts
    # Second attempts are compared with others to the same first, or with M = 1 to the problem.
    advantage2 = leave_one_out(return2.flatten(0, 1), M if M > 1 else K)  # (N·M, T2)
    return advantage1, advantage2


def policy_loss(
    logprobs: Pair, kls: Pair, rolled: Rollout, returns: Returns, cfg: Config
) -> tuple[Tensor, Tensor]:
    """−Σ_tokens advantage · log π (REINFORCE) + β Σ_tokens D, one value an attempt → (N,), (N·M,).

    The gradient of the sum of their two means is, in expectation, that of minus the objective with
    γ = 0. `logprobs` and `kls` are those of `attempt_scores`, (N, T1) and (N·M, T2).
    """
    after = (later(kl.detach()) for kl in kls)
    advantage1, advantage2 = advantages(rolled.r1, rolled.r2, *after, returns, cfg)
    # Returns are linear in the KL, so with zero rewards they are −β·KL, here with gradient.
    zero = kls[0].new_zeros(())
    kl_return1, kl_return2 = returns(zero, zero, *(kl.sum(1) for kl in kls), cfg)  # (N,), (N·M,)
    if not rolled.on_policy:  # another model's tokens are a prompt, not an action
        advantage1, kl_return1 = torch.zeros_like(advantage1), zero
    loss1 = -(advantage1 * logprobs[0]).sum(1) - kl_return1
    loss2 = -(advantage2 * logprobs[1]).sum(1) - kl_return2
    return loss1, loss2


# ---------------------------------------------------------------------------------------------
# One step, and evaluation


def outcomes(r1: Tensor, r2: Tensor, changed: Tensor) -> dict[str, Tensor]:
    """The paper's metrics of pairs of attempts, one value a pair; they report the means.
    delta = acc_t2 − acc_t1 = fixed (wrong → right) − broken (right → wrong)."""
    return {
        "acc_t1": r1,
        "acc_t2": r2,
        "delta": r2 - r1,
        "fixed": (1 - r1) * r2,
        "broken": r1 * (1 - r2),
        "changed": changed.float(),
    }


def rollout_metrics(rolled: Rollout, returns: Returns, cfg: Config) -> dict:
    """The metrics of a step's rollout: those of `outcomes`; `reward`, the sum of both returns
    without KL and bonus; `entropy`, the mean of −log π over the tokens drawn, which estimates the
    policy's own, in nats a token at the sampling temperature; `no_signal`, the share of groups of
    second attempts whose rewards are all equal, so that r2 gives no gradient."""
    r1, r2 = rolled.r1.repeat_interleave(cfg.revisions), rolled.r2
    zero = torch.zeros_like(r2)
    plain = replace(cfg, alpha=0.0, beta1=0.0, beta2=0.0)
    attempts = rolled.first, rolled.second
    ended = torch.cat([attempt.ended for attempt in attempts])
    drawn = torch.cat([attempt.logprobs[attempt.mask] for attempt in attempts])
    compared = r2.view(-1, cfg.revisions if cfg.revisions > 1 else cfg.samples)
    means = {name: x.mean().item() for name, x in outcomes(r1, r2, rolled.changed).items()}
    return means | {
        "reward": sum(part.mean().item() for part in returns(r1, r2, zero, zero, plain)),
        "entropy": -drawn.mean().item(),
        "truncated": 1 - ended.float().mean().item(),
        "no_signal": (compared == compared[:, :1]).all(1).float().mean().item(),
    }


def update(
    policy: GPT,
    ref: GPT,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    returns: Returns,
    cfg: Config,
) -> dict:
    """Scores rollouts and takes one step on their loss. kl_1 and kl_2 are those of the first
    rollout if it is on-policy, otherwise 0: sums over tokens, averaged over attempts."""
    # Offline firsts have no loss, so only the first rollout's are counted.
    firsts, seconds = len(rollouts[0].r1), sum(len(rolled.r2) for rolled in rollouts)
    metrics = {"loss": 0.0, "kl_1": 0.0, "kl_2": 0.0}
    optimizer.zero_grad()
    for part in (part for rolled in rollouts for part in micro_batches(rolled, cfg)):
        logprobs, kls = attempt_scores(policy, ref, part, cfg.temperature)
        loss1, loss2 = policy_loss(logprobs, kls, part, returns, cfg)
        loss = loss1.sum() / firsts + loss2.sum() / seconds
        loss.backward()  # gradients add up over the parts
        metrics["loss"] += loss.item()
        if part.on_policy:
            metrics["kl_1"] += kls[0].sum().item() / firsts
            metrics["kl_2"] += kls[1].sum().item() / len(rollouts[0].r2)
    return metrics | {"grad_norm": clipped_step(policy, optimizer, cfg.clip)}


def clipped_step(policy: GPT, optimizer: torch.optim.Optimizer, clip: float) -> float:
    """One step along the gradient, averaged over processes and clipped to a norm of `clip`; returns
    the norm before clipping. If that is not finite, raises FloatingPointError before any weight
    changes."""
    for weight in policy.parameters():
        averaged(weight.grad)
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), clip).item()
    if not math.isfinite(norm):
        raise FloatingPointError("the gradient is not finite")
    optimizer.step()
    return norm


def train_step(
    policy: GPT,
    ref: GPT,
    optimizer: torch.optim.Optimizer,
    task: Task,
    problems: list[Problem],
    returns: Returns,
    cfg: Config,
    seed: int,
) -> dict:
    """Rolls out, scores and updates once; returns the step's metrics. `seed` must change between
    steps. The first cfg.offline · P problems get offline first attempts in addition [paper: added
    to the on-policy ones, not replacing them]."""
    started = time.perf_counter()
    rollouts = [rollout(policy, task, problems, cfg, seed)]
    extra = round(cfg.offline * len(problems))
    if extra:
        rollouts.append(rollout(policy, task, problems[:extra], cfg, seed, first_by=ref))
    sampled = time.perf_counter()
    metrics = rollout_metrics(rollouts[0], returns, cfg)
    metrics |= update(policy, ref, optimizer, rollouts, returns, cfg)
    return metrics | {
        "tokens": sum(int(r.first.mask.sum() + r.second.mask.sum()) for r in rollouts),
        "samples": sum(len(r.r1) + len(r.r2) for r in rollouts),
        "rollout_seconds": sampled - started,
        "update_seconds": time.perf_counter() - sampled,
    }


def micro_batches(rolled: Rollout, cfg: Config) -> Iterator[Rollout]:
    """The rollout, cfg.micro problems at a time. Baselines stay within a problem, so the gradients
    of the parts add up to that of the whole. Each part is only as long as its longest answer."""
    K, M = cfg.samples, cfg.revisions
    size = K * (cfg.micro or len(rolled.r1))
    for start in range(0, len(rolled.r1), size):
        rows1, rows2 = slice(start, start + size), slice(start * M, (start + size) * M)
        yield replace(
            rolled,
            first=rolled.first.take(rows1),
            second=rolled.second.take(rows2),
            r1=rolled.r1[rows1],
            r2=rolled.r2[rows2],
            changed=rolled.changed[rows2],
            packed=rolled.packed.take(rows1),
        )


def conversation(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    attempts: int,
    temperature: float = 0.0,
    seed: int = 0,
    last_only: bool = False,
    respond: Callable[..., Generation] = respond,
) -> Iterator[Generation]:
    """Yields one attempt after another at all problems. Each reads all attempts before it, or with
    last_only the last one alone."""
    start, keys = [task.prompt(x) for x in problems], [x.key for x in problems]
    prompts = start
    for _ in range(attempts):
        attempt = respond(policy, task, problems, prompts, keys, 1, temperature, seed)
        yield attempt
        prompts = try_again(task, start if last_only else prompts, answers(attempt))
        keys = row_keys(keys, 1, seed)


@dataclass(frozen=True)
class Evaluation:
    metrics: dict  # see `evaluate`
    problems: list[Problem]
    responses: list[list[str]]  # one list per attempt, one text per problem
    rewards: Tensor  # (attempts, problems)
    ended: Tensor  # (attempts, problems) bool: not cut by the length limit


def evaluate(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    *,
    attempts: int = 2,
    temperature: float = 0.0,
    last_only: bool = False,
    seed: int = 0,
    batch: int = 512,
    on_graded: Callable[[Tensor], object] = lambda rewards: None,
    respond: Callable[..., Generation] = respond,
) -> Evaluation:
    """The paper's metrics on held-out problems, greedy by default: means of `outcomes` over all
    problems, truncated (of all attempts), acc and cut of every attempt, and standard errors `se`
    (delta's is paired). `on_graded` is called with the rewards of each attempt at a batch; attempts
    come from `respond`."""
    if attempts < 2:
        raise ValueError(f"attempts must be at least 2: {attempts}")
    responses: list[list[str]] = [[] for _ in range(attempts)]
    rewards, ended = torch.zeros(2, attempts, len(problems))
    for start in range(0, len(problems), batch):
        some = problems[start : start + batch]
        said = conversation(policy, task, some, attempts, temperature, seed, last_only, respond)
        for index, attempt in enumerate(said):
            responses[index] += texts(task, attempt)
            rewards[index, start : start + batch] = grade(task, some, attempt)
            ended[index, start : start + batch] = attempt.ended
            on_graded(rewards[index, start : start + batch])
    changed = torch.tensor([y1 != y2 for y1, y2 in zip(*responses[:2])])
    series = outcomes(*rewards[:2], changed)
    metrics = {name: values.mean().item() for name, values in series.items()}
    metrics["truncated"] = 1 - ended.mean().item()
    metrics["acc"], metrics["cut"] = rewards.mean(1).tolist(), (1 - ended.mean(1)).tolist()
    # √(p(1 − p)/n) for a share p
    metrics["se"] = {n: (x.var(correction=0) / len(x)).sqrt().item() for n, x in series.items()}
    return Evaluation(metrics, problems, responses, rewards, ended.bool())
