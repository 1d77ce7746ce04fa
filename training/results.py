"""What an evaluation writes into the folder of its stage."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import data
import score
from training.checkpoints import keep_other_results, read_state, write_json, write_lines
from training.settings import EVALUATION, Job, Run, pick, without_state


def write_results(
    job: Job, task: data.Task, temperature: float, result: score.Evaluation, diagnosis: dict
) -> None:
    """Writes results.json, with the cost of the training from state.pt, if there is one, and the
    answers."""
    run, folder, state = job.run, job.folder, read_state(job.folder, mmap=True) or {}
    evaluation = pick(asdict(run), EVALUATION) | {"temperature": temperature}
    default = data.FAMILIES[run.task].default if run.data == "arithmetic" else None
    usual = pick(asdict(Run()), EVALUATION) | {"temperature": 0.0, "difficulty": default}
    keep_other_results(folder, evaluation, usual)
    content = {
        "data": run.data,
        "task": task.name,
        "stage": job.stage.number,
        "split": run.split,
        "n": len(result.problems),
        "skipped": task.skipped.get(run.split, 0),  # problems that do not fit the context
        "seed": run.seed,
        "temperature": temperature,
        **result.metrics,
        "diagnosis": diagnosis,
        "seconds": state.get("seconds"),  # the cost of training, like the next two
        "steps": state.get("step"),
        "samples": state.get("samples"),
        "evaluation": evaluation,
        "config": state.get("settings") or without_state(folder) or job.settings(),
        "command": shlex.join(["python"] + sys.argv),
    }
    write_json(folder / "results.json", content)
    write_answers(folder, task, result)


def write_answers(folder: Path, task: data.Task, result: score.Evaluation) -> None:
    """Writes samples.jsonl, one problem a line, and for the reference evaluator of a benchmark that
    has one samples_t1.jsonl, samples_t2.jsonl, …"""
    judged = result.rewards.T.tolist(), result.ended.T.tolist()
    rows = zip(result.problems, zip(*result.responses), *judged)
    lines = [dict(id=x.id, problem=x.prompt, attempts=y, rewards=r, ended=e) for x, y, r, e in rows]
    write_lines(folder / "samples.jsonl", lines)
    for path in folder.glob("samples_t*.jsonl"):
        path.unlink()  # from another evaluation, perhaps with more attempts
    for number, (responses, ended) in enumerate(zip(result.responses, result.ended), 1):
        # An attempt that was cut is wrong here, so the reference evaluator must reject it too.
        said = [text if whole else "" for text, whole in zip(responses, ended.tolist())]
        samples = task.samples(result.problems, said)
        if samples:
            write_lines(folder / f"samples_t{number}.jsonl", samples)
