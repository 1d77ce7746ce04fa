"""What goes wrong, and what you will see: the usual mistakes, made on purpose.

    python experiments/wrong.py --out out/compare        makes the runs, draws figures/wrong_*.png

Each case is one change to this repository's source, or runs of the comparison whose base or method
is at fault; WRONG.md says what to look for. A changed copy of the repository trains in a
folder of its own, from the models of seed 0 that `compare.py` has left in --out.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

import plot

from test_score import MUTANTS


@dataclass(frozen=True)
class Case:
    """A line of the source as it is and as it is often written, and the stage that shows it."""

    stage: int
    file: str
    right: str
    wrong: str


# The same line as a mutant of the tests. Their other versions of these mistakes are for one second
# attempt a first, or change one attempt alone.
_, _, _, *NO_KL1 = MUTANTS["no KL on attempt 1, I"]
CASES = {
    "gamma1": Case(
        2,
        "score.py",
        "return1 = r1 - cfg.beta1 * kl1",
        "return1 = r1 + r2 + cfg.alpha * (r2 - r1) - cfg.beta1 * kl1",
    ),
    "no_kl1": Case(1, "score.py", *NO_KL1),
    "token_mean": Case(
        1,
        "score.py",
        "return loss1, loss2",
        "return loss1 / rolled.first.mask.sum(1), loss2 / rolled.second.mask.sum(1)",
    ),
    "top_k": Case(
        1,
        "model.py",
        "        token = torch.searchsorted(cdf, target, right=True)",
        "        kept = z >= z.topk(2, -1).values[:, 1:]\n"
        "        top = ((z - peak).exp() * kept).cumsum(-1)\n"
        "        target = uniform(key)[:, None] * top[:, -1:] * (1 - 2.0**-23)\n"
        "        token = torch.searchsorted(top, target, right=True)",
    ),
}
# Runs of the comparison, by the name of their figure: a base that changes answers by itself, where
# rewarding both does as well as SCoRe, and what plain reward does with one that does not.
RUNS = {
    "edits": ("flat_edits", ("stage2", "both")),
    "collapse": ("habit", ("stage2", "naive", "both")),
}


def train(case: Case, name: str, out: Path) -> None:
    """Trains the case's stage in a changed copy of the repository; a finished run is left alone."""
    folder = out / "wrong" / name / "puzzle"
    if (folder / f"stage{case.stage}" / "results.json").exists():
        return
    for before in ("base", "stage1")[: case.stage]:
        (folder / before).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "habit" / "seed0" / before / "model.pt", folder / before / "model.pt")
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(ROOT, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", "out"))
        source = Path(copy, case.file)
        source.write_text(changed(case, source.read_text()))
        command = [sys.executable, "train.py", "--stage", str(case.stage)]
        command += ["--out", str(folder.parent), "--eval-problems", "500"]
        if (folder / f"stage{case.stage}" / "state.pt").exists():  # it was stopped
            command += ["--resume"]
        subprocess.run(command, cwd=copy, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def changed(case: Case, source: str) -> str:
    assert source.count(case.right) == 1, f"{case.right!r} stands not once in {case.file}"
    return source.replace(case.right, case.wrong)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "compare")
    out = parser.parse_args().out.resolve()
    seed = out / "habit" / "seed0"
    for name, case in CASES.items():
        train(case, name, out)
        stage = f"stage{case.stage}"
        runs = {"right": seed / stage, "wrong": out / "wrong" / name / "puzzle" / stage}
        draw(name, runs)
    for name, (base, arms) in RUNS.items():
        draw(name, {arm: out / base / "seed0" / arm for arm in arms})


def draw(name: str, runs: dict[str, Path]) -> None:
    figure = plot.draw({title: plot.read(folder) for title, folder in runs.items()}, window=20)
    figure.savefig(HERE / "figures" / f"wrong_{name}.png", dpi=70)


if __name__ == "__main__":
    main()
