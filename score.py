"""SCoRe: self-correction via reinforcement learning, as in arXiv 2409.12917 (ICLR 2025).

A policy π_θ answers a problem x, is told p = "there might be an error, try again", and answers
again. A verifier r(y, y*) ∈ {0, 1} judges both answers during training; the policy never sees it.

    y1 ~ π_θ(·|x),   y2 ~ π_θ(·|x, y1, p)

    Stage I   (Eq. 3)   max  E[ r2 − β1·KL2 − β2·KL1 ]          KLi = KL(π_θ(·|xi) ‖ π_ref(·|xi))
    Stage II  (Eq. 4)   max  E[ r1 − β1·KL1  +  r2 + b − β1·KL2 ],     b = α·(r2 − r1)

π_ref is the base model in both stages [paper v1; later versions do not name it for Stage II].
Stage I learns to correct the base model's own answers while β2 holds those still; Stage II improves
both, and b pays for progress between the attempts.

One step, for P problems:
    1. roll out K first attempts a problem, and M second attempts to each first      `rollout`
    2. reward every attempt                                                           `Rollout`
    3. score the tokens of all attempts under π_θ and π_ref, one forward each `attempt_logprobs`
    4. returns: what each attempt's tokens are credited with   `stage1_returns`, `stage2_returns`
    5. advantages: return − leave-one-out baseline                                `leave_one_out`
    6. loss = −Σ_tokens advantage · log π_θ, averaged over attempts                 `policy_loss`

**γ = 0 across attempts** (ICLR Fig. 9): y1's tokens are credited with y1's return alone. With γ = 1
the bonus would reach y1 as (1 − α)·r1 and pay for being wrong first.

**What follows for the baseline.** Given y1, the term −α·r1 of y2's return is a constant, and a
constant has no gradient in expectation: the bonus multiplies the gradient of r2 by 1 + α, and all
else it adds is variance, α² times that of r1. Comparing y2 only with other second attempts *to the
same y1* removes that variance exactly; hence M. With M = 1 the baseline runs over the whole
rollouts of a problem, as is usual for RLOO, and the variance stays. Both are tested.

**The KL** is estimated by k1 = log π − log π_ref, summed over an attempt's tokens, inside the
return and therefore detached: ∇E[k1] = E[k1·∇log π] is the gradient of the reverse KL, through the
attempt's own tokens. Differentiating k1 itself would give zero in expectation. A token cannot
change the k1 of those before it, so it is credited with the k1 from itself on: the same
expectation, less variance. [reading: the paper names no estimator; a sum, since a mean would
weaken β2 by the length of the answer.]

Left out on purpose: clipping and importance ratios (one update a rollout, so the data is
on-policy), entropy bonuses, advantage normalisation, training on more than two attempts (ICLR A.1;
`evaluate` takes any number).

Dimensions: P problems, N = P·K first attempts, N·M second attempts, T1 and T2 their longest
lengths, X the longest prompt, S slots of a packed rollout, C width. Rows of a problem are adjacent,
and so are second attempts to one first.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data import Problem, Task
from model import GPT, Generation, decode, decoding, read_prompts, row_keys


@dataclass(frozen=True)
class Config:
    """What the algorithm needs to know. The paper's values are those for MATH."""

    alpha: float = 10.0  # α, weight of the progress bonus (paper: 10)
    beta1: float = 0.02  # β1, KL weight on what is trained (paper: 0.01; Stage II here: 0.05)
    beta2: float = 0.3  # β2, KL weight that holds attempt 1 in Stage I (paper: 0.1)
    problems: int = 32  # P, problems a step (paper: 512 of problems or rollouts, it does not say)
    samples: int = 4  # K, first attempts a problem (paper: not given)
    revisions: int = 4  # M, second attempts to each first (paper: not given; 1 is plain RLOO)
    offline: float = 0.0  # extra problems whose y1 the base model wrote, as a share of P
    temperature: float = 1.0  # of sampling and scoring (paper: 1); of an evaluation, if given
    clip: float = 1.0  # largest gradient norm (paper: not given)
    micro: int | None = None  # problems a backward pass, to save memory; all if not given

    def __post_init__(self):
        for name in ("alpha", "beta1", "beta2", "offline"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative: {getattr(self, name)}")
        if not 1e-3 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be finite and at least 0.001: {self.temperature}")
        if not 0 < self.clip < float("inf"):
            raise ValueError(f"clip must be finite and positive: {self.clip}")
        for name in ("problems", "revisions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: {getattr(self, name)}")
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, to leave one out: {self.samples}")
        if self.offline > 1:
            raise ValueError(f"offline is a share of the problems, at most 1: {self.offline}")
        if self.micro is not None and self.micro < 1:
            raise ValueError(f"micro must be at least 1: {self.micro}")


# ---------------------------------------------------------------------------------------------
# 1, 2. Rollouts and rewards


@torch.no_grad()
def respond(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    prompts: list[list[int]],
    keys: Tensor,
    branches: list[int],
    temperature: float,
    seed: int,
) -> list[Generation]:
    """Answers prompts once per entry of `branches`, each time after the instruction to try again.

    branches[i] answers are drawn to every answer of attempt i − 1 (to every prompt for i = 0); the
    later attempts continue on the cache of the earlier ones. Each prompt poses its problem; keys
    (len(prompts),) int64. Raises ValueError where a prompt and its attempts cannot fit the context.
    """
    with decoding(policy):
        cache, hidden = read_prompts(policy, prompts, task.room(len(branches)))
        attempts = []
        for index, count in enumerate(branches):
            if index > 0:
                # The cache has not read the last token of any row; see Generation.last.
                p, p_ok = between(task.close, task.revise, attempts[-1].ended)
                feedback = torch.cat([attempts[-1].last, p], 1)
                ok = torch.cat([torch.ones_like(p_ok[:, :1]), p_ok], 1)
                hidden = policy.extend(cache, feedback, ok)
            problems = [x for x in problems for _ in range(count)]
            rows = torch.arange(len(keys), device=policy.device).repeat_interleave(count)
            keys = row_keys(keys, count, seed, attempt=index)
            generation = decode(
                policy,
                cache.take(rows),
                hidden[rows],
                task.max_new_tokens,
                keys=keys,
                temperature=temperature,
                eos=task.eos,
                keep_cache=index + 1 < len(branches),
            )
            generation = cut(task, problems, generation)
            cache = generation.cache
            attempts.append(replace(generation, cache=None))
    return attempts


def between(close: Sequence[int], revise: list[int], ended: Tensor) -> tuple[Tensor, Tensor]:
    """What the model reads between two attempts: p, and before it, where the length limit cut the
    first (ended false), the end that it never wrote. ended (N,) → tokens, ok (N, len)."""
    tokens = torch.tensor([*close, *revise], device=ended.device).expand(len(ended), -1)
    ok = torch.ones_like(tokens).bool()
    ok[:, : len(close)] = ~ended[:, None]
    return tokens, ok


def answer_length(task: Task, problem: Problem, tokens: list[int]) -> int | None:
    """How many tokens it takes until the answer is over, at least one; None if it never is."""

    def over(length: int) -> bool:
        return task.over(problem, task.decode(tokens[:length]))

    return bisect_left(range(1, len(tokens)), True, key=over) + 1 if over(len(tokens)) else None


def cut(task: Task, problems: list[Problem], attempt: Generation) -> Generation:
    """Ends attempts where the task says that they are over (`Task.over`), though the model went on.
    What it wrote after that is taken back: it is not trained on, and attempt 2 does not see it."""
    if not task.runs_on:
        return attempt
    said, (_, T), device = attempt.mask.sum(1).tolist(), attempt.mask.shape, attempt.mask.device
    rows = [tokens[:n] for tokens, n in zip(attempt.tokens.tolist(), said)]
    answers = [answer_length(task, *pair) for pair in zip(problems, rows)]
    lengths = torch.tensor([a or n for a, n in zip(answers, said)], device=device)  # (N,)
    mask = torch.arange(T, device=device) < lengths[:, None]  # (N, T)
    if attempt.cache is not None:  # which has read all but the last of T tokens
        attempt.cache.ok[:, attempt.cache.used - (T - 1) : attempt.cache.used] = mask[:, 1:]
    return replace(
        attempt,
        tokens=attempt.tokens * mask,
        mask=mask,
        logprobs=attempt.logprobs * mask,
        ended=attempt.ended | torch.tensor([a is not None for a in answers], device=device),
    )


def texts(task: Task, attempt: Generation) -> list[str]:
    """What each row says, without its end token."""
    rows = [row[:n] for row, n in zip(attempt.tokens.tolist(), attempt.mask.sum(1).tolist())]
    return [task.decode(row[:-1] if row[-1] == task.eos else row) for row in rows]


def rewards(task: Task, problems: list[Problem], attempt: Generation) -> Tensor:
    """r(y, y*), float32 (rows,). An answer cut by the length limit is wrong, whatever it says."""
    verdicts = task.rewards(problems, texts(task, attempt))
    return torch.tensor(verdicts, device=attempt.mask.device) * attempt.ended


@dataclass(frozen=True)
class Packed:
    """Rollouts laid out for one forward. A row is [x, y1, p, y2·1, …, y2·M]: a first attempt and
    all its seconds, each a branch that sees the trunk [x, y1, p] and itself."""

    tokens: Tensor  # (N, S) int64
    ok: Tensor  # (N, S) bool: the slots that hold a token
    branch: Tensor  # (S,) int64: 0 for the trunk, m for the m-th second attempt
    before1: Tensor  # (T1,) int64: the slot before each of y1's
    before2: Tensor  # (M, T2) int64: the slot before each of y2's


@dataclass(frozen=True)
class Rollout:
    """Two attempts at P problems."""

    first: Generation  # (N, T1)
    second: Generation  # (N·M, T2)
    r1: Tensor  # (N,)
    r2: Tensor  # (N·M,)
    changed: Tensor  # (N·M,): y2 says something else than y1
    on_policy: bool  # the policy itself wrote y1, so y1 may be trained
    packed: Packed


def rollout(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    cfg: Config,
    seed: int,
    first_by: GPT | None = None,
) -> Rollout:
    """K first attempts a problem and M second attempts to each, sampled from the policy; first
    attempts by another model where `first_by` is given (offline ones: the base model)."""
    K, M = cfg.samples, cfg.revisions
    prompts = [task.prompt(problem) for problem in problems]
    keys = torch.tensor([problem.key for problem in problems], device=policy.device)
    if first_by is None:
        first, second = respond(
            policy, task, problems, prompts, keys, [K, M], cfg.temperature, seed
        )
    else:
        keys = row_keys(keys, 1, seed, attempt=2)  # other attempts than the policy's own
        [first] = respond(first_by, task, problems, prompts, keys, [K], cfg.temperature, seed)
        p, p_ok = between(task.close, task.revise, first.ended)
        read = [
            prompts[row // K] + first.tokens[row][first.mask[row]].tolist() + p[row][ok].tolist()
            for row, ok in enumerate(p_ok)
        ]
        keys = row_keys(keys, K, seed, attempt=1)  # those of attempt 1 are spent
        posed = [x for x in problems for _ in range(K)]
        [second] = respond(policy, task, posed, read, keys, [M], cfg.temperature, seed)
    said1, said2 = texts(task, first), texts(task, second)
    return Rollout(
        first,
        second,
        r1=rewards(task, [x for x in problems for _ in range(K)], first),
        r2=rewards(task, [x for x in problems for _ in range(K * M)], second),
        changed=torch.tensor([y2 != said1[n // M] for n, y2 in enumerate(said2)]),
        on_policy=first_by is None,
        packed=pack(prompts, first, task.revise, second, K, M, task.close),
    )


def pack(
    prompts: list[list[int]],
    first: Generation,
    revise: list[int],
    second: Generation,
    K: int,
    M: int,
    close: Sequence[int] = (),
) -> Packed:
    """Lays out prompts (P), first attempts (P·K rows) and second attempts (P·K·M rows)."""
    device, (N, T1), T2 = first.tokens.device, first.tokens.shape, second.tokens.shape[1]
    X = max(map(len, prompts))
    x = torch.tensor([[0] * (X - len(p)) + p for p in prompts], device=device)  # (P, X)
    x_ok = torch.tensor([[False] * (X - len(p)) + [True] * len(p) for p in prompts], device=device)
    p, p_ok = between(close, revise, first.ended)
    tokens = [x.repeat_interleave(K, 0), first.tokens, p, second.tokens.reshape(N, M * T2)]
    ok = [x_ok.repeat_interleave(K, 0), first.mask, p_ok, second.mask.reshape(N, M * T2)]
    trunk = X + T1 + p.shape[1]
    slots = trunk + torch.arange(M * T2, device=device).view(M, T2)  # of the second attempts
    # A prompt is padded on its left and the instruction has no gap at its end, so the slot before
    # an attempt always holds a token; within an attempt tokens have no gaps.
    last = torch.full((M, 1), trunk - 1, device=device)
    branch = torch.arange(1, M + 1, device=device).repeat_interleave(T2)
    return Packed(
        tokens=torch.cat(tokens, 1),
        ok=torch.cat(ok, 1),
        branch=torch.cat([torch.zeros(trunk, dtype=torch.int64, device=device), branch]),
        before1=X - 1 + torch.arange(T1, device=device),
        before2=torch.cat([last, slots[:, :-1]], 1),
    )


# ---------------------------------------------------------------------------------------------
# 3. Log-probabilities


def token_logprobs(model: GPT, hidden: Tensor, attempt: Generation, temperature: float) -> Tensor:
    """log π(token | what precedes it), hidden (rows, T, C) → (rows, T); 0 outside the mask."""
    mask = attempt.mask
    # The head, the costliest product where the vocabulary is large, sees the attempt's tokens only.
    logprobs = model.logprobs(hidden[mask], attempt.tokens[mask], temperature)  # (n,)
    return logprobs.new_zeros(mask.shape).masked_scatter(mask, logprobs)


def attempt_logprobs(model: GPT, rolled: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """Scores both attempts in one forward of the packed rollout → (N, T1), (N·M, T2)."""
    packed = rolled.packed
    hidden = model.hidden(packed.tokens, packed.ok, packed.branch)  # (N, S, C)
    hidden1 = hidden[:, packed.before1]  # (N, T1, C)
    hidden2 = hidden[:, packed.before2].flatten(0, 1)  # (N·M, T2, C)
    return (
        token_logprobs(model, hidden1, rolled.first, temperature),
        token_logprobs(model, hidden2, rolled.second, temperature),
    )


# ---------------------------------------------------------------------------------------------
# 4. Returns: what each attempt's tokens are credited with. All (B,), or per token by broadcasting.

Returns = Callable[[Tensor, Tensor, Tensor, Tensor, Config], tuple[Tensor, Tensor]]


def stage1_returns(r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, cfg: Config):
    """Eq. 3: attempt 2 earns its reward, attempt 1 only stays where the base model is."""
    return1 = -cfg.beta2 * kl1
    return2 = r2 - cfg.beta1 * kl2
    return return1, return2


def stage2_returns(r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, cfg: Config):
    """Eq. 4: each attempt earns its own reward, attempt 2 the bonus α (r2 − r1) as well."""
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
    assert samples > 1 and len(returns) % samples == 0, "groups of at least two, all whole"
    groups = returns.unflatten(0, (-1, samples))
    others = (groups.sum(1, keepdim=True) - groups) / (samples - 1)
    return (groups - others).flatten(0, 1)


def to_go(values: Tensor) -> Tensor:
    """Sum over a token and those after it, (rows, T) → (rows, T)."""
    return values.flip(1).cumsum(1).flip(1)


def advantages(
    r1: Tensor, r2: Tensor, kl1: Tensor, kl2: Tensor, returns: Returns, cfg: Config
) -> tuple[Tensor, Tensor]:
    """Rewards r1 (N,), r2 (N·M,) and KL kl1 (N, T1), kl2 (N·M, T2) → what each token of the firsts
    (N, T1) and of the seconds (N·M, T2) is worth above its baseline."""
    K, M = cfg.samples, cfg.revisions
    return1, return2 = returns(
        r1.repeat_interleave(M)[:, None], r2[:, None], kl1.repeat_interleave(M, 0), kl2, cfg
    )
    # A first attempt is one sample however many seconds it has; with γ = 0 its M returns agree.
    first = leave_one_out(return1.unflatten(0, (-1, M)).mean(1), K)
    second = leave_one_out(return2, M if M > 1 else K)
    return first, second


def policy_loss(
    logprobs: tuple[Tensor, Tensor],
    ref_logprobs: tuple[Tensor, Tensor],
    rolled: Rollout,
    returns: Returns,
    cfg: Config,
) -> tuple[Tensor, Tensor]:
    """REINFORCE: −Σ_tokens advantage · log π, one value an attempt → (N,), (N·M,).

    The gradient of the sum of their two means is, in expectation, that of the stage's objective.
    Token log-probabilities are (N, T1) and (N·M, T2), 0 outside the masks; only `logprobs` has
    gradient.
    """
    kl1, kl2 = (
        to_go(mine - other).detach() for mine, other in zip(logprobs, ref_logprobs)
    )  # k1 from each token on
    first, second = advantages(rolled.r1, rolled.r2, kl1, kl2, returns, cfg)
    if not rolled.on_policy:
        first = torch.zeros_like(first)  # another model's words are a prompt, not an action
    return -(first * logprobs[0]).sum(1), -(second * logprobs[1]).sum(1)


# ---------------------------------------------------------------------------------------------
# One step, and evaluation


def step_metrics(rolled: Rollout, kl1: Tensor, kl2: Tensor, returns: Returns, cfg: Config) -> dict:
    """What a step reports. `reward` is what the stage maximises, without KL and bonus."""
    r1, r2 = rolled.r1.repeat_interleave(cfg.revisions), rolled.r2
    zero = torch.zeros_like(r2)
    plain = replace(cfg, alpha=0.0, beta1=0.0, beta2=0.0)
    ended = torch.cat([rolled.first.ended, rolled.second.ended])
    return {
        "reward": sum(part.mean().item() for part in returns(r1, r2, zero, zero, plain)),
        "acc_t1": r1.mean().item(),
        "acc_t2": r2.mean().item(),
        "delta": (r2 - r1).mean().item(),
        "kl_1": kl1.mean().item(),
        "kl_2": kl2.mean().item(),
        "changed": rolled.changed.float().mean().item(),
        "truncated": 1 - ended.float().mean().item(),
    }


def update(
    policy: GPT,
    ref: GPT,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    returns: Returns,
    cfg: Config,
) -> tuple[dict, Tensor, Tensor]:
    """Scores rollouts, the first of them on-policy, and takes one step on their loss → its metrics,
    and the first's KL of each attempt, (N,) and (N·M,)."""
    on_policy, seconds = len(rollouts[0].r1), sum(len(rolled.r2) for rolled in rollouts)
    optimizer.zero_grad()
    loss, kls = 0.0, []
    for part in (part for rolled in rollouts for part in split(rolled, cfg)):
        with torch.no_grad():
            ref_logprobs = attempt_logprobs(ref, part, cfg.temperature)
        logprobs = attempt_logprobs(policy, part, cfg.temperature)
        first, second = policy_loss(logprobs, ref_logprobs, part, returns, cfg)
        share = first.sum() / on_policy + second.sum() / seconds
        share.backward()  # gradients add up over the parts
        loss += share.item()
        if part.on_policy:
            kls.append([(a - b).sum(1).detach() for a, b in zip(logprobs, ref_logprobs)])
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.clip)
    optimizer.step()
    return {"loss": loss, "grad_norm": norm.item()}, *map(torch.cat, zip(*kls))


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
    steps. The first cfg.offline · P problems get offline first attempts *as well* [paper: added to
    the on-policy ones, not in their place]."""
    started = time.perf_counter()
    rollouts = [rollout(policy, task, problems, cfg, seed)]
    extra = round(cfg.offline * len(problems))
    if extra:
        rollouts.append(rollout(policy, task, problems[:extra], cfg, seed, first_by=ref))
    sampled = time.perf_counter()
    metrics, kl1, kl2 = update(policy, ref, optimizer, rollouts, returns, cfg)
    return (
        step_metrics(rollouts[0], kl1, kl2, returns, cfg)
        | metrics
        | {
            "tokens": sum(int(r.first.mask.sum() + r.second.mask.sum()) for r in rollouts),
            "samples": sum(len(r.r1) + len(r.r2) for r in rollouts),
            "rollout_seconds": sampled - started,
            "update_seconds": time.perf_counter() - sampled,
        }
    )


def split(rolled: Rollout, cfg: Config) -> Iterator[Rollout]:
    """The rollout, cfg.micro problems at a time. Baselines stay within a problem, so the gradients
    of the parts add up to that of the whole."""
    K, M = cfg.samples, cfg.revisions
    size = K * (cfg.micro or len(rolled.r1) // K)
    for start in range(0, len(rolled.r1), size):
        first, second = slice(start, start + size), slice(start * M, (start + size) * M)
        yield replace(
            rolled,
            first=rolled.first.take(first),
            second=rolled.second.take(second),
            r1=rolled.r1[first],
            r2=rolled.r2[second],
            changed=rolled.changed[second],
            packed=replace(
                rolled.packed, tokens=rolled.packed.tokens[first], ok=rolled.packed.ok[first]
            ),
        )


@dataclass(frozen=True)
class Evaluation:
    metrics: dict  # the five of the paper and a few more; see `evaluate`
    problems: list[Problem]
    responses: list[list[str]]  # per attempt, per problem
    rewards: Tensor  # (attempts, problems)
    ended: Tensor  # (attempts, problems) bool: not cut by the length limit


def evaluate(
    policy: GPT,
    task: Task,
    problems: list[Problem],
    *,
    attempts: int = 2,
    temperature: float = 0.0,
    seed: int = 0,
    batch: int = 512,
) -> Evaluation:
    """The paper's metrics on held-out problems, greedy by default. All are fractions of all
    problems: acc_t1, acc_t2, delta = acc_t2 − acc_t1 = fixed − broken, fixed (wrong → right),
    broken (right → wrong), changed (y2 ≠ y1), truncated (of all attempts), acc of every attempt,
    and standard errors `se` (delta's is paired)."""
    if attempts < 2:
        raise ValueError(f"attempts must be at least 2 to compare two: {attempts}")
    said: list[list[str]] = [[] for _ in range(attempts)]
    right: list[list[Tensor]] = [[] for _ in range(attempts)]
    ended: list[list[Tensor]] = [[] for _ in range(attempts)]
    for start in range(0, len(problems), batch):
        some = problems[start : start + batch]
        prompts = [task.prompt(problem) for problem in some]
        keys = torch.tensor([problem.key for problem in some], device=policy.device)
        generations = respond(policy, task, some, prompts, keys, [1] * attempts, temperature, seed)
        for index, generation in enumerate(generations):
            said[index] += texts(task, generation)
            right[index].append(rewards(task, some, generation).cpu())
            ended[index].append(generation.ended.cpu())
    r, whole = (torch.stack([torch.cat(one) for one in all_]) for all_ in (right, ended))
    series = {
        "acc_t1": r[0],
        "acc_t2": r[1],
        "delta": r[1] - r[0],
        "fixed": (1 - r[0]) * r[1],
        "broken": r[0] * (1 - r[1]),
        "changed": torch.tensor([float(a != b) for a, b in zip(*said[:2])]),
    }
    metrics = {name: values.mean().item() for name, values in series.items()}
    metrics["truncated"] = 1 - whole.float().mean().item()
    metrics["acc"] = r.mean(1).tolist()
    metrics["se"] = {
        name: (values.var(correction=0) / len(problems)).sqrt().item()
        for name, values in series.items()
    }
    return Evaluation(metrics, problems, said, r, whole)
