"""A baseline of methods.py from an open model: naive multi-turn RL, or rewarding both attempts.

    python experiments/baseline.py naive --task addition --init DIR …    flags of train.py --stage 1

It starts from the base model that train.py has left in OUT/TASK, or from the open model itself, and
lies beside it; it makes as many updates as both stages together.
"""

import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from methods import METHODS

import train


def main(argv: list[str]) -> int:
    """train.py's Stage I with another method's returns and name → its exit code."""
    if not argv or argv[0] not in ("naive", "both"):
        print(__doc__, file=sys.stderr)
        return 2
    name, *flags = argv
    base, stage1, stage2 = train.STAGES
    method = METHODS[name]
    own = {
        kind: values | {"steps": values["steps"] + stage2.own[kind]["steps"]}
        for kind, values in stage1.own.items()
    }
    stage = replace(stage1, folder=name, title=method.title, returns=method.learns, own=own)
    train.STAGES = (base, stage, stage2)
    return train.main(["--stage", "1", *flags])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
