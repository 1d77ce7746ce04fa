"""What Stage I is for: the smallest policy that can copy or edit, trained by exact gradients.

    python experiments/copying.py        writes figures/copying.png (needs matplotlib)

A first attempt is right with probability p, which training can raise to TOP. A second attempt
copies it or edits it. An edit of a wrong answer is right with probability FIX, an edit of a right
answer is wrong with probability BREAK. The policy has three parameters: a, the log-odds of p / TOP;
b, those of an edit; and c, which distinguishes wrong answers (log-odds b + c) from right ones
(b − c). It starts with c = 0 and few edits, and follows the expected gradient of the returns of
score.py, without KL: by plain gradient ascent, or by steps of equal length, which clipping makes of
nearly all steps in training.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch
from torch import Tensor

from score import Returns, stage1_returns, stage2_returns

P0, TOP, FIX, BREAK = 0.18, 0.45, 0.5, 0.9
STEPS = 200  # of Stage I; Stage II has three times as many, as in train.py
RATE = 0.075  # of gradient ascent
LENGTH = 0.01  # of a step, where all are equally long
WAYS = {
    "Stage II alone": [stage2_returns] * 4,
    "Stage I, then Stage II": [stage1_returns] + [stage2_returns] * 3,
}
# Every outcome: whether attempt 1 is right, whether attempt 2 edits, whether attempt 2 is right.
FIRST, EDIT, SECOND = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T[:, :, None, None]


def outcomes(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of the 8 outcomes' first attempt, choice and result, for grids of policies."""
    p = TOP * a.sigmoid()
    first = torch.where(FIRST == 1, p, 1 - p)
    edit = (b + c * (1 - 2 * FIRST)).sigmoid()
    choice = torch.where(EDIT == 1, edit, 1 - edit)
    right = torch.where(EDIT == 1, torch.where(FIRST == 1, 1 - BREAK, FIX), FIRST)
    return first, choice, torch.where(SECOND == 1, right, 1 - right)


def gradient(policy: list[Tensor], returns: Returns, alpha: Tensor) -> list[Tensor]:
    """The gradient of the expected returns, each attempt's by its own choice alone (γ = 0)."""
    policy = [weight.detach().requires_grad_() for weight in policy]
    first, choice, result = outcomes(*policy)
    cfg = SimpleNamespace(alpha=alpha, beta1=0.0, beta2=0.0)
    return1, return2 = returns(FIRST, SECOND, torch.zeros(()), torch.zeros(()), cfg)
    probability = (first * choice * result).detach()
    credited = probability * (return1 * first.log() + return2 * choice.log())
    return list(torch.autograd.grad(credited.sum(), policy, materialize_grads=True))


def train(
    stages: list[Returns], edits: Tensor, alpha: Tensor, equal: bool
) -> tuple[Tensor, Tensor]:
    """acc@t1 and acc@t2 after stages of STEPS each, for every first probability of an edit (n, 1)
    and every α (1, m): both (n, m). With `equal` all steps are equally long."""
    b = edits.logit() + 0 * alpha
    policy = [torch.full_like(b, P0 / TOP).logit(), b, torch.zeros_like(b)]
    for returns in stages:
        for _ in range(STEPS):
            slopes = gradient(policy, returns, alpha)
            rate = LENGTH / torch.stack(slopes).norm(dim=0) if equal else RATE
            policy = [weight + rate * slope for weight, slope in zip(policy, slopes)]
    probability = torch.stack(torch.broadcast_tensors(*outcomes(*policy))).prod(0)
    return (probability * FIRST).sum(0), (probability * SECOND).sum(0)


def draw(path: Path) -> None:
    from plot import plt

    edits = torch.logspace(-3, -1, 41)[:, None]
    alpha = torch.logspace(0, 1.5, 41)[None] - 1
    grid = {"sharex": True, "sharey": True, "layout": "constrained"}
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), **grid)
    for row, equal in zip(axes, (False, True)):
        second = []
        for axis, (title, stages) in zip(row, WAYS.items()):
            t1, t2 = train(stages, edits, alpha, equal)
            second.append(t2)
            shown = axis.pcolormesh(1 + alpha[0], edits[:, 0], 100 * (t2 - t1), vmin=0, vmax=30)
            axis.set_title(title)
        figure.colorbar(shown, ax=row[:2], label="Δ(t1,t2), points")
        gain = 100 * (second[1] - second[0])
        options = {"cmap": "RdBu", "vmin": -30, "vmax": 30}
        shown = row[2].pcolormesh(1 + alpha[0], edits[:, 0], gain, **options)
        figure.colorbar(shown, ax=row[2], label="acc@t2, points")
        row[2].set_title("what Stage I adds")
        how = "steps of equal length" if equal else "gradient ascent"
        row[0].set_ylabel(f"{how}\nprobability of an edit in the base")
    for axis in axes[1]:
        axis.set(xscale="log", yscale="log", xlabel="1 + α")
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    draw(HERE / "figures" / "copying.png")
