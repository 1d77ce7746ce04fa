"""Every method that `compare.py` runs, next to one another, and the bases that they start from.

A method is a pair of returns, as in score.py, or a choice of pairs of attempts to imitate; the
settings that are its own; and the model that it goes on from. Nothing else differs: they share the
base model, the trainer, the optimizer and its schedule, the way problems are drawn, and the numbers
of model samples and of updates. (RL keeps the weights of its highest reward, imitation its last.)
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
from data.arithmetic import Corpus
from score import Config, Returns, stage1_returns, stage2_returns

# ---------------------------------------------------------------------------------------------
# Returns (y1's tokens, y2's tokens), to be read beside `stage1_returns` and `stage2_returns`


def naive_returns(r1, r2, kl1, kl2, cfg: Config):
    """Eq. 1 on attempt 2: y1 is sampled from the policy and not trained."""
    return torch.zeros_like(r1), r2 - cfg.beta1 * kl2


def both_returns(r1, r2, kl1, kl2, cfg: Config):
    """Each attempt earns its own reward: Stage II without the bonus."""
    return r1 - cfg.beta1 * kl1, r2 - cfg.beta1 * kl2


def trajectory_returns(r1, r2, kl1, kl2, cfg: Config):
    """γ = 1: y1's tokens are credited with y2's reward, too, though not with its KL. Its `reward`
    counts r2 twice, and the checkpoint is chosen by that."""
    return r1 + r2 - cfg.beta1 * kl1, r2 - cfg.beta1 * kl2


def single_returns(r1, r2, kl1, kl2, cfg: Config):
    """Eq. 2, single-turn RL: y1 alone is trained."""
    return r1 - cfg.beta1 * kl1, torch.zeros_like(r2)


# ---------------------------------------------------------------------------------------------
# Which pairs of answers to imitate, by their rewards


def wrong_to_right(r1: float, r2: float) -> bool:
    """D of STaR and of Pair-SFT."""
    return r1 == 0 and r2 == 1


def ends_right(r1: float, r2: float) -> bool:
    """D+: right → right as well."""
    return r2 == 1


@dataclass(frozen=True)
class Imitation:
    """Supervised training on attempts of the policy's own: in each of several rounds it writes as
    many rollouts as there are updates, and pairs of attempts whose rewards pass `keep` are
    imitated. [reading: STaR imitates both attempts, since with y2 alone this small model forgets
    how to answer first; Pair-SFT y2 alone, since every y1 of its D is wrong. NOTES.md has the
    validation runs. A round goes on from the model of the last, where STaR starts from the base
    again, and an update draws its pairs at random, not in epochs.]"""

    keep: Callable[[float, float], bool]
    rounds: int = 3
    both: bool = True  # imitate y1, too
    once: bool = False  # each different pair in one update of its round, not in many
    paired: bool = False  # Pair-SFT: y1 is any answer to the problem, y2 a right one at random


# ---------------------------------------------------------------------------------------------
# The methods


@dataclass(frozen=True)
class Method:
    title: str
    learns: Returns | Imitation | None  # None: the base model's transcripts
    own: dict = field(default_factory=dict)  # in place of the defaults
    start: str | None = "base"  # the method whose model it goes on from
    offline_only: bool = False  # all first attempts are the base model's
    number: int = 1  # of the stage whose problems it draws


BASE, STAGE1, STAGE2 = (stage.own["arithmetic"] for stage in train.STAGES)
# Baselines make as many updates as both stages together, each on 640 samples.
STEPS = STAGE1["steps"] + STAGE2["steps"]


def baseline(title: str, learns: Returns | Imitation, lr: float, **own) -> Method:
    return Method(title, learns, {"steps": STEPS, "lr": lr} | own)


def stage2(title: str, start: str = "stage1", **own) -> Method:
    return Method(title, stage2_returns, STAGE2 | own, start, number=2)


METHODS = {
    "base": Method("base", None, BASE, start=None, number=0),
    "stage1": Method("SCoRe, Stage I", stage1_returns, STAGE1),
    "stage2": stage2("SCoRe, Stage II"),
    # Baselines. Learning rates are the best of three in acc@t2: tuning.json.
    "naive": baseline("naive multi-turn RL", naive_returns, 5e-4),
    "both": baseline("both rewarded", both_returns, 5e-4),
    "trajectory": baseline("trajectory reward, γ = 1", trajectory_returns, 1e-3),
    "single": baseline("single-turn RL", single_returns, 3e-4, samples=10, revisions=1),
    "star": baseline("STaR", Imitation(wrong_to_right), 8e-3),
    "star_plus": baseline("STaR, D+", Imitation(ends_right), 4e-3),
    # STaR, D+, without learning from a pair again and again; and controls for the size of an update
    # and the rate, which change with that.
    "star_once": baseline("STaR, D+, each pair once", Imitation(ends_right, once=True), 4e-3),
    "star_online": baseline("STaR, D+, a round an update", Imitation(ends_right, STEPS), 1e-3),
    "star_small": baseline("STaR, D+, small updates", Imitation(ends_right), 4e-3, transcripts=32),
    "star_slow": baseline("STaR, D+, lower rate", Imitation(ends_right), 1e-3),
    # At its best rate from the base habit_copies.
    "star_firm": baseline("STaR, D+", Imitation(ends_right), 8e-3),
    "pair_sft": baseline("Pair-SFT", Imitation(wrong_to_right, 1, both=False, paired=True), 4e-3),
    "pair_sft_plus": baseline(
        "Pair-SFT, D+", Imitation(ends_right, 1, both=False, paired=True), 3e-4
    ),
    # Ablations.
    "no_stage1": stage2("without Stage I", start="base", steps=STEPS),
    "no_bonus": stage2("without the bonus, α = 0", alpha=0.0),
    "alpha1": stage2("α = 1", alpha=1.0),
    "alpha1_alone": stage2("α = 1, without Stage I", start="base", steps=STEPS, alpha=1.0),
    "rloo_stage1": Method(
        "plain RLOO, Stage I", stage1_returns, STAGE1 | {"samples": 10, "revisions": 1}
    ),
    "rloo": stage2("plain RLOO, M = 1", start="rloo_stage1", samples=10, revisions=1),
    "star_stage2": Method(
        "STaR, D+, in place of Stage II", Imitation(ends_right), STAGE2, "stage1", number=2
    ),
    "offline_only": Method(
        "offline first attempts only", stage2_returns, STAGE2, "stage1", offline_only=True, number=2
    ),
    "offline_added": stage2("offline first attempts added", problems=20, offline=0.6),
}
# In the order of the tables.
SCORE = ("base", "stage1", "stage2")
MAIN = ("naive", "both", "single", "star_plus", "pair_sft")
REST = ("trajectory", "star", "pair_sft_plus")
ABLATIONS = ("no_stage1", "no_bonus", "rloo", "star_stage2", "offline_only", "offline_added")
# By α: Stage II alone, and after Stage I.
STAGE1_BY_ALPHA = {
    "0": ("both", "no_bonus"),
    "1": ("alpha1_alone", "alpha1"),
    "10": ("no_stage1", "stage2"),
}
# STaR with less reuse of its pairs, on validation problems.
REUSE = ("base", "star_plus", "star_slow", "star_small", "star_once", "star_online", "stage2")
# From the base habit_copies.
FIRM = (*SCORE, "no_stage1", "star_firm")
QUICK = (*SCORE, *MAIN)
# Learning rates; of each method its best and the two beside it are tried.
LRS = (2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


# ---------------------------------------------------------------------------------------------
# The bases that they start from


@dataclass(frozen=True)
class Base:
    title: str
    corpus: Corpus = Corpus()


# Whether attempt 1 has room to grow (the habit), and whether the base edits now and then.
FLAT = {"right_hard": Corpus.right, "habit": 0.0}
BASES = {
    "habit": Base("habit, rare edits: the default"),
    "habit_edits": Base("habit, edits", Corpus(copy_late=0.8)),
    "habit_copies": Base("habit, copies .9999", Corpus(copy_late=0.9999)),
    "flat": Base("no habit, rare edits", Corpus(**FLAT)),
    "flat_edits": Base("no habit, edits", Corpus(**FLAT, copy_late=0.8)),
}
