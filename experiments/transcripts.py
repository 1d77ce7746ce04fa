"""An HTML page to look through an evaluation's attempts with.

    python experiments/transcripts.py out/puzzle/stage2
    python experiments/transcripts.py DIR --problems 500 --split val --to page.html

It answers the problems again, greedily, as `train.py --eval` does, and writes DIR/transcripts.html,
which needs nothing else. Both attempts stand above one another, token by token; what differs is
underlined, and the redder a token, the less likely the model held it. Buttons or keys choose what
is shown: f fixed, k kept right, b broken, u unchanged, a all; j and n go on, J and p back.
"""

import json
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import score
import train
from data import Problem, Task, kind
from model import GPT, Generation
from rewards import SandboxError
from training import processes, report

PAGE = Path(__file__).with_suffix(".html")


def pieces(task: Task, attempt: Generation) -> list[list[tuple[str, float]]]:
    """(text, log-probability) of the tokens of every row, without its end; tokens that are part of
    one character stand together, with the sum of theirs."""
    rows = []
    for ids, logprobs in zip(score.answers(attempt), attempt.logprobs.tolist()):
        ids = ids[:-1] if ids[-1] == task.eos else ids
        row, begin, total = [], 0, 0.0
        for end, logprob in enumerate(logprobs[: len(ids)], 1):
            text, total = task.decode(ids[begin:end]), total + logprob
            if end == len(ids) or not text.endswith("\ufffd"):
                row.append((text, total))
                begin, total = end, 0.0
        rows.append(row)
    return rows


def aligned(first: list[tuple], second: list[tuple]) -> list[dict]:
    """Columns of both attempts' pieces: one a piece where they agree, one a change elsewhere."""
    texts = ([text for text, _ in attempt] for attempt in (first, second))
    columns = []
    for same, here, there in report.compared(*texts):
        if same:
            pairs = zip(first[here], second[there])
            columns += [{"new": False, "rows": [[y1], [y2]]} for y1, y2 in pairs]
        else:
            columns.append({"new": True, "rows": [first[here], second[there]]})
    return columns


@torch.no_grad()
def look(model: GPT, task: Task, problems: list[Problem], seed: int, batch: int) -> list[dict]:
    """What the page shows of each problem."""
    shown = []
    for start in range(0, len(problems), batch):
        some = problems[start : start + batch]
        attempts, rewards = [], []
        for attempt in score.conversation(model, task, some, 2, seed=seed):
            attempts.append(pieces(task, attempt))
            rewards.append(score.grade(task, some, attempt).tolist())
        for x, y1, y2, r1, r2 in zip(some, *attempts, *rewards):
            right = [r1 == 1, r2 == 1]
            shown.append({"problem": x.prompt, "right": right, "columns": aligned(y1, y2)})
    return shown


def page(title: str, shown: list[dict]) -> str:
    # A "<" could end the script that the content stands in.
    content = json.dumps({"title": title, "shown": shown}).replace("<", "\\u003c")
    return PAGE.read_text().replace("null /* content */", content)


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a stage")
    parser.add_argument("--problems", type=int, help="how many [200, or all if there are fewer]")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="[test]")
    parser.add_argument("--device", default="auto", help="[auto]")
    parser.add_argument("--data", help="the .py file of a task of your own")
    parser.add_argument("--to", type=Path, help="[DIR/transcripts.html]")
    args = parser.parse_args()
    try:
        if args.problems is not None and args.problems < 1:
            raise ValueError(f"--problems must be at least 1: {args.problems}")
        given = {"split": args.split, "device": args.device}
        given |= {"data": kind(args.data)} if args.data else {}
        job = train.load_job(train.STAGES, args.folder, given)
        task, device = train.load_task(job.run), processes.device_for(job.run.device, job.run.dtype)
        problems = task.held_out(args.split, args.problems)[: args.problems or 200]
        model = train.stage_model(job, task, device)
        with processes.precision(job.run.dtype, device):
            shown = look(model, task, problems, job.run.seed, job.run.eval_batch)
        to = args.to or args.folder / "transcripts.html"
        to.write_text(page(f"{args.folder}: {len(shown)} {args.split} problems", shown))
    except (ValueError, OSError, SandboxError) as error:
        print(f"transcripts.py: {processes.one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("transcripts.py: interrupted", file=sys.stderr)
        sys.exit(130)
    print(f"wrote {to}")


if __name__ == "__main__":
    main()
