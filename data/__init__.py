"""Problems and tokenizers: one file a source, one way in.

`load` gives a Task. A task has what the algorithm needs and nothing more: problems by split, token
ids for them and for the instruction between the attempts, text for what the model wrote, rewards.
"""

from data.arithmetic import FAMILIES, ArithmeticTask
from data.task import Problem, Task

__all__ = ["FAMILIES", "Problem", "Task", "load"]


def load(name: str, difficulty: int | None = None) -> Task:
    """The task of that name: a family of synthetic arithmetic, at a difficulty or its default.
    Raises ValueError for an unknown name or a difficulty out of the family's range."""
    if name not in FAMILIES:
        raise ValueError(f"no task named {name!r}; there are {', '.join(FAMILIES)}")
    return ArithmeticTask(FAMILIES[name], difficulty)
