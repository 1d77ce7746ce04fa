"""What a run is told: its settings, the stages that it needs, and the folder of each of them.

A setting comes from the command line, else from a stage's folder, else from the stage's defaults.
"""

import os
import re
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import data
import score
from pretrained.weights import read_json
from training.checkpoints import read_log, read_state
from training.processes import one_line, share

LARGEST = 10**12  # larger than any setting that makes sense
IN_WORDS = "arithmetic with --init"  # a kind of data: arithmetic in words, for a pretrained model


@dataclass(frozen=True)
class Stage:
    """One stage of training: its folder, its returns and its own defaults."""

    number: int  # part of the seeds, so that each stage draws its own problems
    folder: str
    title: str
    returns: score.Returns | None  # None for the base model, which learns from transcripts
    own: dict[str, dict]  # by kind of data, defaults instead of those of Run and score.Config
    always: dict = field(default_factory=dict)  # defaults for all data, a user's task included

    def defaults(self, kind: str) -> dict:
        """The stage's own for a kind of data; for a user's task, its class's, else MATH's."""
        of_task = getattr(data.TEXT_TASKS.get(kind), "defaults", {})
        return (self.own.get(kind) or self.own["math"] | of_task) | self.always


@dataclass(frozen=True)
class Run:
    """The settings of a run, except those of the algorithm (score.Config)."""

    # data
    data: str = "arithmetic"  # arithmetic, math, humaneval, or the .py file of a task of your own
    task: str = "puzzle"  # kind of arithmetic problem: puzzle, addition, multiplication
    difficulty: int | None = None  # digits of a puzzle (default: 6) or a number (3)
    shots: int = 2  # solved examples before each problem of arithmetic with --init
    data_dir: str | None = None  # folder with the files of MATH or MBPP (default: data/NAME)
    limit: int | None = None  # largest number of problems per split (default: all)
    levels: str | None = None  # MATH levels to use, such as 1-3 or 1,5 (default: all)
    subjects: str | None = None  # MATH subjects, such as algebra,number_theory (default: all)
    unsafe_sandbox: bool = False  # run programs even where the sandbox cannot confine them
    # model
    init: str | None = None  # folder of a pretrained model to start from (math, humaneval need one)
    layout: str = "auto"  # prompt layout: chatml, llama3 or plain; auto asks the tokenizer
    max_new_tokens: int | None = None  # token limit of an attempt with --init (default: the task's)
    context: int | None = None  # token limit of problem and attempts (default: the model's)
    layers: int = 3  # layers of the built-in model
    heads: int = 4  # attention heads of the built-in model
    width: int = 32  # width of the built-in model
    device: str = "auto"  # cpu, cuda, cuda:N or mps; auto takes cuda, then mps, then cpu
    dtype: str = "float32"  # forward passes in float32, or in bfloat16 where the hardware has it
    recompute: bool = False  # recompute activations in the backward pass: less memory, slower
    # stage
    seed: int = 0  # seed of the initial weights and of every random draw
    steps: int | None = None  # training steps of the last stage
    lr: float | None = None  # peak learning rate of the last stage
    warmup: int = 20  # steps of linear warm-up; a linear decay to 0 follows
    transcripts: int = 256  # transcripts per step of stage 0, the base model
    eval_every: int | None = None  # steps between evaluations on validation data (default: none)
    # evaluation
    attempts: int = 2  # attempts per problem in an evaluation; training makes two
    history: str = "all"  # earlier attempts that an evaluation's next one reads: all, or the last
    split: str = "test"  # split to evaluate: test, or val for development
    eval_problems: int | None = None  # problems to evaluate (default: 2000 of arithmetic, else all)
    eval_batch: int = 512  # problems per batch of an evaluation
    # output
    out: str = "out"  # folder for everything that is written

    def __post_init__(self):
        counts = ("layers", "heads", "width", "transcripts", "eval_problems", "eval_batch")
        sizes = ("steps", "limit", "max_new_tokens", "context", "eval_every")
        ranges = dict.fromkeys(counts, (1, score.MOST)) | dict.fromkeys(sizes, (1, LARGEST))
        ranges |= {"attempts": (2, score.MOST), "shots": (0, score.MOST), "warmup": (0, LARGEST)}
        score.check_ranges(self, lr=(1e-12, LARGEST), seed=(0, 2**32 - 1), **ranges)
        for name in ("init", "data_dir", "levels", "subjects", "layout"):
            if not isinstance(getattr(self, name), str | None):  # from a damaged folder
                raise ValueError(f"{name} must be text: {getattr(self, name)!r}")
        for name, known, hint in (
            ("data", ["arithmetic", *data.TEXT_TASKS], "; a task of your own needs --data FILE.py"),
            ("task", list(data.FAMILIES), ""),
            ("dtype", ["float32", "bfloat16"], ""),
            ("history", ["all", "last"], ""),
            ("split", ["val", "test"], ""),
        ):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}: {value}{hint}")

    @property
    def name(self) -> str:
        """The name of the task, and of the folder of its stages below `out`."""
        return self.task if self.data == "arithmetic" else self.data

    @property
    def watched(self) -> int | None:
        """Validation problems of each evaluation while a stage trains; None for all."""
        return self.eval_problems or (500 if self.data == "arithmetic" else None)

    @property
    def in_context(self) -> int:
        """Attempts of an evaluation that the context must hold."""
        return 2 if self.history == "last" else self.attempts


# Settings that all stages of a run share: a later stage reads them from an earlier one's folder.
SHARED = {"data", "task", "difficulty", "shots", "data_dir", "limit", "levels", "subjects"}
SHARED |= {"init", "layout", "max_new_tokens", "context", "layers", "heads", "width", "seed"}
PLACES = {"init", "data_dir"}  # folders; the last path that is known holds for all stages
# Settings that may change on --resume or in an evaluation: training does not depend on them.
FREE = {"out", "device", "attempts", "split", "eval_problems", "eval_batch"}
FREE |= {"eval_every", "history", "unsafe_sandbox", "micro", "recompute"}

# Settings of an evaluation; results with other settings are kept under another name.
EVALUATION = {"attempts", "history", "split", "eval_problems", "seed", "shots", "limit", "levels"}
EVALUATION |= {"subjects", "layout", "max_new_tokens", "context", "data_dir", "dtype", "difficulty"}


def names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def pick(settings: dict, wanted: Set[str]) -> dict:
    return {name: value for name, value in settings.items() if name in wanted}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def resolve(stage: Stage, known: dict) -> tuple[Run, score.Config]:
    """A stage's settings: the general defaults, replaced by the stage's own for this kind of data,
    replaced by `known`, from the command line or a folder. Raises ValueError for an impossible
    value."""
    known = {name: value for name, value in known.items() if value is not None}
    try:
        kind = known.get("data", Run.data)
        if kind == "arithmetic" and "init" in known:
            kind = IN_WORDS
        own = stage.defaults(kind)
        for name in own.keys() - names(Run) - names(score.Config):  # in a user's task
            raise ValueError(f"{kind} has a default for {name}, which is no setting")
        run = Run(**pick(own | known, names(Run)))
        if run.data == "arithmetic" and run.difficulty is None:
            run = replace(run, difficulty=data.FAMILIES[run.task].default)
        return run, score.Config(**pick(own | known, names(score.Config)))
    except TypeError as error:  # from a user's task, whose defaults nothing has checked
        raise ValueError(one_line(error)) from None


def check_settings_match(folder: Path, saved: dict, wanted: dict) -> None:
    """Raises ValueError if a folder was made with other settings than those wanted."""
    for name, value in pick(wanted, saved.keys()).items():
        if saved[name] != value and not (name in PLACES and may_be_same(saved[name], value)):
            raise ValueError(
                f"{folder} was made with {name} {saved[name]}, not {value}; choose another folder"
            )


def may_be_same(before: str | None, now: str | None) -> bool:
    """Whether two paths name the same folder, or may: one that does not exist may have moved."""
    if before is None or now is None:
        return False
    moved = not (os.path.exists(before) and os.path.exists(now))
    return moved or os.path.realpath(before) == os.path.realpath(now)


def check_applies(given: dict, run: Run) -> None:
    """Refuses flags that this run would ignore: the user probably meant something else."""
    arithmetic, built_in = run.data == "arithmetic", run.init is None
    ignored = dict.fromkeys(("data_dir", "limit"), arithmetic)
    ignored |= dict.fromkeys(("levels", "subjects"), run.data in ("arithmetic", "humaneval"))
    ignored |= dict.fromkeys(("task", "difficulty"), not arithmetic)
    ignored |= dict.fromkeys(("layout", "max_new_tokens", "context"), built_in)
    ignored |= dict.fromkeys(("layers", "heads", "width"), not built_in)
    ignored |= {"shots": not arithmetic or built_in}
    for name in given:
        if ignored.get(name):
            init = "without" if built_in else "with"
            raise ValueError(f"{flag(name)} is not a setting of --data {run.data} {init} --init")


# ---------------------------------------------------------------------------------------------
# Stages and their folders


@dataclass(frozen=True)
class Job:
    """One stage of a run: its settings, its folder, and what an earlier run left there."""

    stage: Stage
    run: Run
    cfg: score.Config
    folder: Path
    saved: dict | None  # the settings stored in state.pt, None without that file
    step: int  # the step that state.pt was saved at
    requested: bool = False  # named on the command line, not a prerequisite

    @property
    def finished(self) -> bool:
        return self.saved is not None and self.step >= self.saved["steps"]

    @property
    def has_model(self) -> bool:
        """Whether there is a finished model without a state.pt."""
        return self.saved is None and without_state(self.folder) is not None

    @property
    def is_done(self) -> bool:
        """Whether nothing is to be trained."""
        return self.finished or self.is_init or self.has_model

    @property
    def is_init(self) -> bool:
        """Whether this stage is the pretrained model itself, which only --stage 0 trains. A log
        alone counts as training, too: a run that was killed at once leaves no more."""
        begun = any((self.folder / name).exists() for name in ("model.pt", "metrics.jsonl"))
        trained = begun or self.requested
        return self.stage.number == 0 and self.run.init is not None and not trained

    def settings(self) -> dict:
        """The settings that a resumed or reused stage must have been made with."""
        every = asdict(self.run) | asdict(self.cfg) | {"stage": self.stage.number}
        return pick(every, every.keys() - FREE)


def jobs_up_to(stages: tuple[Stage, ...], given: dict, last: int) -> list[Job]:
    """The stages up to number `last`. A setting comes from the command line, else from the stage's
    folder, else, if stages share it, from an earlier stage's folder, else from the stage's
    defaults. --steps and --lr apply to the last stage alone. A stage that is still to be trained
    must match its folder in all settings, a finished prerequisite only in the shared ones."""
    asked = Run(**pick(given, {"data", "task", "out"}))
    folders = [Path(asked.out, asked.name, stage.folder) for stage in stages[: last + 1]]
    found = [read_progress(folder) for folder in folders]
    known = [
        (without_state(folder) or {}) if saved is None else saved
        for folder, (saved, _) in zip(folders, found)
    ]
    shared = pick(given, SHARED)
    for folder, trained in zip(folders, known):
        check_settings_match(folder, trained, shared)
        shared |= pick(trained, SHARED)
    places = pick(shared | given, PLACES)
    jobs = []
    for stage, folder, (saved, step), trained in zip(stages, folders, found, known):
        check_settings_match(folder, trained, {"stage": stage.number})
        wanted = given if stage.number == last else pick(given, given.keys() - {"steps", "lr"})
        run, cfg = resolve(stage, shared | trained | wanted | places)
        job = Job(stage, run, cfg, folder, saved, step, requested=stage.number == last)
        if job.requested or not job.is_done:
            check_settings_match(folder, trained, wanted)
        if saved is None and not job.is_done:
            refuse_later(job, stages)
        jobs.append(job)
    check_applies(given, jobs[0].run)
    if asked.data != "arithmetic" and (folders[0] / "model.pt").exists():
        raise ValueError(
            f"{folders[0]}/model.pt exists, but --init is this run's base; remove it or choose "
            "another --out"
        )
    return jobs


def refuse_later(job: Job, stages: tuple[Stage, ...]) -> None:
    """Raises ValueError if a later stage is there already, since it started from another model than
    the one that `job` would train. All that lies beside a base, baselines too, comes after it."""
    later = [job.folder.with_name(stage.folder) for stage in stages[job.stage.number + 1 :]]
    if job.stage.number == 0:
        later = [folder for folder in sorted(job.folder.parent.glob("*")) if folder != job.folder]
    for folder in later:
        if any((folder / name).exists() for name in ("model.pt", "state.pt")):
            raise ValueError(
                f"{folder} did not start from the {job.stage.title} model that would now be "
                "trained; choose another --out"
            )


def load_job(stages: tuple[Stage, ...], folder: Path | None, given: dict) -> Job:
    """The stage stored in a folder, with the settings it was trained with, except for those given.
    Without a folder, the untouched model of --init."""
    if folder is None:
        run, cfg = resolve(stages[0], given)
        check_applies(given, run)
        folder = Path(run.out, run.name, f"init-{Path(run.init).resolve().name}")
        return Job(stages[0], run, cfg, folder, None, 0)
    saved, step = read_progress(folder)
    known = evaluated(folder) if saved is None else saved
    check_settings_match(folder, known, pick(given, {"data", "task", "difficulty"}))
    by_name = {name: stage for stage in stages for name in (stage.number, stage.folder)}
    stage = by_name.get(known.get("stage", folder.name), stages[0])
    run, cfg = resolve(stage, known | given)
    check_applies(given, run)
    return Job(stage, run, cfg, folder, saved, step)


def evaluated(folder: Path) -> dict:
    """The settings in a folder's results.json, {} without one. An untouched model has no others."""
    results = folder / "results.json"
    if not results.exists():
        return {}
    known = read_json(results).get("config")
    if not isinstance(known, dict):
        raise ValueError(f"{results} has no config, so this program did not write it")
    return checked(results, known)


def without_state(folder: Path) -> dict | None:
    """The settings of a finished model that has no state.pt: those in results.json, if its log has
    as many steps as they say; {} if it has no log, since it was copied here by hand. None if there
    is no such model."""
    if not (folder / "model.pt").exists():
        return None
    if not (folder / "metrics.jsonl").exists():
        return {}
    known = evaluated(folder)
    return known if known and len(read_log(folder)) >= (known.get("steps") or 0) else None


def read_progress(folder: Path) -> tuple[dict | None, int]:
    """The settings in a folder's state.pt, None if it has none, and the step that it is at."""
    refuse_pipes(folder.glob("*"))
    state = read_state(folder, mmap=True)
    if state is None:
        return None, 0
    saved, step = state["settings"], state["step"]
    whole = isinstance(saved, dict) and isinstance(saved.get("steps"), int)
    if not whole or not isinstance(step, int) or step < 0:
        raise ValueError(f"{folder / 'state.pt'} has no valid step and number of steps")
    return checked(folder / "state.pt", saved), step


def checked(path: Path, settings: dict) -> dict:
    """Returns settings read from a file, without the free ones, which only the command line gives.
    Raises ValueError, naming the file, if one is impossible."""
    settings = pick(settings, settings.keys() - FREE)
    try:
        Run(**pick(settings, names(Run)))
        score.Config(**pick(settings, names(score.Config)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {one_line(error)}") from None
    if not isinstance(settings.get("stage", 0), int):
        raise ValueError(f"{path}: stage must be a number: {settings['stage']}")
    return settings


def check_shares(jobs: list[Job]) -> None:
    """Raises ValueError if the processes cannot share a step evenly."""
    for job in jobs:
        if job.is_done:
            continue
        if job.stage.returns is None:
            share(job.run.transcripts, "transcripts")
        else:
            share(job.cfg.problems, "problems")
            share(round(job.cfg.offline * job.cfg.problems), "offline problems")


# ---------------------------------------------------------------------------------------------
# The data of a pretrained model's task


def source(run: Run) -> data.Source:
    """Where a pretrained model's task gets its problems and tokens."""
    if run.init is None:
        raise ValueError(f"--data {run.data} needs --init DIR, the folder of a pretrained model")
    init, folder = Path(run.init), Path(run.data_dir or f"data/{run.data}")
    if not init.is_dir():
        hub = f"; or: hf download {init} --local-dir DIR" if len(init.parts) == 2 else ""
        raise ValueError(f"--init {init}: no such folder (has it moved?){hub}")
    if run.data_dir and not folder.is_dir():
        raise ValueError(f"--data-dir {folder}: no such folder")
    # Only the files that a task may read: to search a whole tree can take long.
    refuse_pipes([*init.glob("*"), *folder.glob("*"), *folder.glob("*/*/*.json")])
    levels = None if run.levels is None else parse_levels(run.levels)
    subjects = None if run.subjects is None else frozenset(run.subjects.split(","))
    same = pick(asdict(run), names(data.Source)) | {"attempts": run.in_context}
    return data.Source(
        **same | {"folder": folder, "init": init, "levels": levels, "subjects": subjects}
    )


def refuse_pipes(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is no file to read from")  # a device or pipe may never end


def parse_levels(text: str) -> frozenset[int]:
    """ "1-3" → {1, 2, 3};  "1,5" → {1, 5}."""
    if not re.fullmatch(r"[1-5](-[1-5])?(,[1-5](-[1-5])?)*", text):
        raise ValueError(f"levels must be like 1-3 or 1,5, between 1 and 5: {text}")
    ranges = [(int(part[0]), int(part[-1])) for part in text.split(",")]
    for low, high in ranges:
        if low > high:
            raise ValueError(f"levels {text}: {low}-{high} is an empty range")
    return frozenset(n for low, high in ranges for n in range(low, high + 1))
