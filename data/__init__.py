"""Problems: one file a source, one way in.

`load` gives a Task. A task has what the algorithm needs and nothing more: problems by split, token
ids for them and for the instruction between the attempts, text for what the model wrote, rewards.
"""

from data.arithmetic import FAMILIES, ArithmeticTask
from data.hendrycks import MathTask
from data.posed import PosedArithmetic
from data.programs import ProgramTask
from data.task import Problem, Task
from data.text import Source, TextTask

__all__ = ["FAMILIES", "OPEN", "Problem", "Source", "Task", "TextTask", "load"]

OPEN = {task.name: task for task in (MathTask, ProgramTask)}


def load(name: str, difficulty: int | None = None, source: Source | None = None) -> Task:
    """The task of that name: a family of synthetic arithmetic, at a difficulty or its default, or
    MATH or programs for open models. A source, which says where those come from, poses arithmetic
    to an open model, too. Raises ValueError for an unknown name, a difficulty out of the family's
    range, and files that do not fit."""
    if name in OPEN:
        return OPEN[name](source)
    if name not in FAMILIES:
        raise ValueError(f"no task named {name!r}; there are {', '.join([*FAMILIES, *OPEN])}")
    if source is None:
        return ArithmeticTask(FAMILIES[name], difficulty)
    return PosedArithmetic(source, FAMILIES[name], difficulty)
