"""The command line's flags. Each setting is a field of Run or score.Config, and its flag, type,
defaults and help are read from there."""

import argparse
import difflib
import functools
import inspect
import re
import types
import typing
from dataclasses import fields
from pathlib import Path

import data
import score
from training.settings import SHARED, Run, Stage, flag, names, pick

# Settings that the commands other than --stage take.
ASK = (SHARED - {"layers", "heads", "width"}) | {"device", "dtype", "attempts", "temperature"}
ASK |= {"history", "unsafe_sandbox"}
USED = {"ask": ASK, "eval": ASK | {"split", "eval_problems", "eval_batch"}}
USED |= {"export": {"data", "init"}}


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(message)


def parse(
    argv: list[str], stages: tuple[Stage, ...], description: str
) -> tuple[argparse.Namespace, dict]:
    """The command and the settings given. Raises ValueError for an unknown flag, and for one that
    the command would ignore: the user probably meant something else."""
    for word in argv:
        if re.search("[\ud800-\udfff]", word):  # what Python makes of bytes that are no text
            raise ValueError(f"{word!r} has bytes that are not UTF-8")
    early = Parser(add_help=False, allow_abbrev=False)
    early.add_argument("--data")
    named = early.parse_known_args(argv)[0].data
    kind = {} if named is None else {"data": data.kind(str(named))}  # --help has its defaults
    parser = make_parser(stages, description)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        typed = unknown[0].partition("=")[0]
        near = [option for option in known if option.startswith(typed)]
        near = near or difflib.get_close_matches(typed, known, 1)
        hint = f"; is {' or '.join(near)} meant?" if near else ""
        raise ValueError(f"unknown: {unknown[0]}{hint}")
    given = pick(vars(args), names(Run) | names(score.Config)) | kind
    check_command(args, given)
    for name in given.keys() & {"init", "data_dir", "out"}:  # DIR/ is the same folder as DIR
        given[name] = str(Path(given[name]))
    return args, given


def make_parser(stages: tuple[Stage, ...], description: str) -> Parser:
    parser = Parser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_argument_group("command")
    what = commands.add_mutually_exclusive_group()
    what.add_argument(
        "--stage",
        type=int,
        choices=range(len(stages)),
        help="train stage 0 (the base model), 1 or 2, after those that it needs",
    )
    what.add_argument(
        "--quick", action="store_true", help="a few steps of each stage, to see it run"
    )
    what.add_argument(
        "--eval", nargs="?", const="", metavar="DIR", help="evaluate a stage, or --init untouched"
    )
    what.add_argument(
        "--ask",
        nargs="*",
        metavar=("DIR", "PROBLEM"),
        help="print attempts at problems given or typed in; without DIR, by the model of --init",
    )
    what.add_argument(
        "--export", metavar="DIR", help="write DIR/pretrained, a folder that transformers can load"
    )
    commands.add_argument(
        "--plan",
        action="store_true",
        help="print the memory that a step of --stage takes, and exit",
    )
    commands.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    add_flags(parser, stages, Run)
    add_flags(parser, stages, score.Config, "algorithm (score.Config)")
    return parser


def check_command(args: argparse.Namespace, given: dict) -> None:
    """Raises ValueError without a command, and for what the command would ignore."""
    if not args.quick and all(getattr(args, name) is None for name in ("stage", *USED)):
        raise ValueError(f"one of --stage, --quick, {', '.join(map(flag, USED))} is needed")
    for name, value in vars(args).items():
        # Versions of Python differ in what argparse makes of "--"; --ask alone is no mistake.
        if value in ("--", ["--"]) or (value == [] and name != "ask"):
            raise ValueError(f"{flag(name)}: -- is no value")
    for name, value in given.items():
        if value == "":
            raise ValueError(f"{flag(name)}: the value is empty")
    if args.stage == 0:
        if given.get("data", Run.data) != Run.data:
            raise ValueError(
                f"stage 0 of --data {given['data']} is the model of --init itself: evaluate it by "
                "--eval --init DIR"
            )
        for name in given.keys() & (names(score.Config) - {"clip"}):
            raise ValueError(f"{flag(name)} is not a setting of stage 0, which learns by imitation")
    for command, used in USED.items():
        folder = getattr(args, command)
        if folder is None:
            continue
        if not folder and "init" not in given:
            raise ValueError(f"--{command} needs the folder of a stage, or --init DIR")
        if command == "eval" and not folder:
            used = used | {"out"}  # below which the results of an untouched model lie
        for name in given.keys() - used:
            raise ValueError(f"{flag(name)} is not a setting of --{command}")
        for name in ("resume", "plan"):
            if getattr(args, name):
                raise ValueError(f"--{name} is of no use to --{command}")
    if args.plan and args.resume:
        raise ValueError("--resume is of no use to --plan")


def add_flags(
    parser: argparse.ArgumentParser, stages: tuple[Stage, ...], config: type, group: str = ""
) -> None:
    """Adds one flag per field, with its type and defaults. Its help is the comment after the
    field, and a comment on its own line starts a group; both are read from the source, so they are
    written once."""
    code = source_of(config)
    comments = dict(re.findall(r"^    (\w+): .*?# (.+)$", code, re.MULTILINE))
    begins = dict(re.findall(r"^    # (\w+)\n    (\w+):", code, re.MULTILINE))
    begins = {first: title for title, first in begins.items()}
    hints, flags = typing.get_type_hints(config), parser.add_argument_group(group)
    for field in fields(config):
        if field.name in begins:
            flags = parser.add_argument_group(begins[field.name])
        kind = hints[field.name]
        if isinstance(kind, types.UnionType):
            kind = typing.get_args(kind)[0]
        text = comments[field.name].replace("%", "%%")
        if kind is bool:
            options = {"action": "store_true", "help": text}
        else:
            options = {"type": kind, "help": text + defaults(field, stages)}
        flags.add_argument(flag(field.name), default=argparse.SUPPRESS, **options)


source_of = functools.cache(inspect.getsource)  # for a class it parses the whole file


def defaults(field, stages: tuple[Stage, ...]) -> str:
    """The defaults of a setting: one, or one per stage, and those of other data where they
    differ."""
    parts, usual = [], None
    for kind in [*stages[0].own, *(data.TEXT_TASKS.keys() - data.BUILT_IN)]:
        values = [stage.defaults(kind).get(field.name, field.default) for stage in stages]
        usual = usual or values
        if values == [None] * len(values) or (parts and values == usual):
            continue
        alike = all(value == values[0] for value in values)
        text = str(values[0]) if alike else f"{', '.join(map(str, values))} by stage"
        parts.append(text if values is usual else f"{kind} {text}")
    return f" [{'; '.join(parts)}]" if parts else ""


def evaluation_temperature(given: dict) -> float:
    """Removes the temperature from the settings and returns it: 0, greedy, if not given."""
    temperature = given.pop("temperature", 0.0)
    if temperature:
        score.Config(temperature=temperature)  # raises ValueError for an impossible one
    return temperature
