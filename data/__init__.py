"""Problems, one file for each source.

`load` returns a Task. A task has what the algorithm needs and nothing more: problems by split,
token ids of problems and of the instruction between attempts, the text of token ids, and rewards.
"""

from data.arithmetic import FAMILIES, ArithmeticTask
from data.hendrycks import MathTask
from data.in_words import ArithmeticInWords
from data.programs import ProgramTask
from data.task import Problem, Task
from data.text import Source, TextTask

__all__ = ["FAMILIES", "OPEN", "Problem", "Source", "Task", "TextTask", "load"]

OPEN = {task.name: task for task in (MathTask, ProgramTask)}


def load(name: str, difficulty: int | None = None, source: Source | None = None) -> Task:
    """The task of that name: a family of synthetic arithmetic (at its default difficulty if none is
    given), or MATH or programs for pretrained models. With a source, arithmetic is put into words
    for a pretrained model. Raises ValueError for an unknown name, a difficulty outside the family's
    range, and malformed files."""
    if name in OPEN:
        return OPEN[name](source)
    if name not in FAMILIES:
        raise ValueError(f"no task named {name!r}; there are {', '.join([*FAMILIES, *OPEN])}")
    if source is None:
        return ArithmeticTask(FAMILIES[name], difficulty)
    return ArithmeticInWords(source, FAMILIES[name], difficulty)
