"""Problems, one file for each source.

`load` returns a Task. A task has what the algorithm needs and nothing more: problems by split,
token ids of problems and of the instruction between attempts, the text of token ids, and rewards.
"""

import importlib.util
import sys
from pathlib import Path

from data.arithmetic import FAMILIES, ArithmeticTask
from data.hendrycks import MathTask
from data.in_words import ArithmeticInWords
from data.programs import ProgramTask
from data.task import Problem, Task
from data.text import Source, TextTask

TEXT_TASKS = {task.name: task for task in (MathTask, ProgramTask)}  # `kind` adds a user's own
BUILT_IN = {"arithmetic", *FAMILIES, *TEXT_TASKS}


def kind(text: str) -> str:
    """The kind of data that a user's --data names. The path of a Python file runs the file and adds
    the last task that it defines. Only what a user has typed may come here: a checkpoint's settings
    hold a task's name, so loading them runs nothing."""
    if not text.endswith(".py"):
        return text
    spec = importlib.util.spec_from_file_location("own_task", text)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    sys.path.append(str(Path(text).resolve().parent))  # for what the file imports
    spec.loader.exec_module(module)
    tasks = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, TextTask)]
    name = getattr(tasks[-1], "name", "") if tasks else ""
    if not name.isidentifier() or name in BUILT_IN:
        raise ValueError(f"{text} must define a task: a subclass of FileTask with a new name")
    TEXT_TASKS[name] = tasks[-1]
    return name


def load(name: str, difficulty: int | None = None, source: Source | None = None) -> Task:
    """The task of that name: a family of synthetic arithmetic (at its default difficulty if none is
    given), or MATH or programs for pretrained models. With a source, arithmetic is put into words
    for a pretrained model. Raises ValueError for an unknown name, a difficulty outside the family's
    range, and malformed files."""
    if name in TEXT_TASKS:
        return TEXT_TASKS[name](source)
    if name not in FAMILIES:
        raise ValueError(f"no task named {name!r}; there are {', '.join([*FAMILIES, *TEXT_TASKS])}")
    if source is None:
        return ArithmeticTask(FAMILIES[name], difficulty)
    return ArithmeticInWords(source, FAMILIES[name], difficulty)
