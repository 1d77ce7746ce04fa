"""A baseline of methods.py from a pretrained model: naive multi-turn RL, or both rewarded.

    python experiments/baseline.py naive --task addition --init DIR …    flags of train.py --stage 1

It starts from the base model that train.py has left in OUT/TASK, or from the pretrained model
itself, and lies beside it; it makes as many updates as both stages together.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from methods import METHODS

import train
from training.settings import Stage

BASE, STAGE1, STAGE2 = train.STAGES


class BothStages(Stage):  # takes as many steps as Stage I and Stage II together
    def defaults(self, kind: str) -> dict:
        own = super().defaults(kind)
        return own | {"steps": own["steps"] + STAGE2.defaults(kind)["steps"]}


def main(argv: list[str]) -> int:
    """train.py's Stage I with another method's returns and name → its exit code."""
    if argv[:1] not in (["naive"], ["both"]) or any(x.startswith("--stage") for x in argv):
        print(__doc__, file=sys.stderr)
        return 2
    name, *flags = argv
    if not any(flag.partition("=")[0] == "--init" for flag in flags):
        print("baseline.py: --init is missing; compare.py has the puzzle's", file=sys.stderr)
        return 2
    method = METHODS[name]
    own = {"folder": name, "title": method.title, "returns": method.learns}
    train.STAGES = (BASE, BothStages(**vars(STAGE1) | own))
    return train.main(["--stage", "1", *flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
