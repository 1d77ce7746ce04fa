"""The command line: train the base model, Stage I and Stage II, evaluate, ask, export.

    python train.py --stage 1            Stage I of SCoRe, training the base model first
    python train.py --stage 2            Stage II, training first what it needs
    python train.py --eval out/puzzle/stage2
    python train.py --ask out/puzzle/stage2 737152=11      two attempts at a problem of your own
    python train.py --stage 1 --data math --init DIR       Stage I from a pretrained model, on MATH
    python train.py --export out/math/stage1               a folder that transformers can load

Each stage writes to OUT/TASK/{base,stage1,stage2}/: model.pt (the weights with the highest training
reward; of the base, the last), state.pt (all that --resume needs), metrics.jsonl (one line a step)
and results.json (the evaluation on held-out problems). With --init the base model is read from that
folder, which is never written to.
"""

import os

# Set before torch starts its threads. Threads that spin while waiting make a step on shared cores
# up to three times slower; threads that sleep at once, a third slower on idle ones. So let them
# spin for microseconds, then sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import contextlib
import math
import shlex
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import rewards
import score
from fast.linear import freeze
from fast.processes import averaged, process
from model import GPT, GPTConfig, common_start
from pretrained.weights import companions, copy_companions, read_shape
from training import checkpoints, processes, settings
from training.flags import evaluation_temperature, parse
from training.memory import plan_text
from training.processes import device_for, is_first, one_line, pick_device, precision, print_once
from training.report import AnswersBar, Report, cost, diagnose, dialogue, report
from training.results import write_results
from training.settings import IN_WORDS, Job, Run, Stage, jobs_up_to, load_job, pick

# NVIDIA's containers choose TF32 for products of float32, which the sampler's kernel does not.
torch.set_float32_matmul_precision("highest")

# Answers in words are short, so their summed KL is small and beta2 is larger than in the paper.
WORDS = {"transcripts": 32, "problems": 8, "beta2": 2.0, "eval_problems": 500}
# The paper's settings. It gives the number of steps of both stages together, of which each gets
# half. Long texts take gigabytes: so one problem per backward pass, and the few longest problems
# are left out.
PAPER = {
    "math": {"steps": 1500, "lr": 5e-6, "beta1": 0.01, "beta2": 0.1, "micro": 1, "context": 3072},
    "humaneval": {
        "steps": 750, "lr": 1e-5, "beta1": 0.01, "beta2": 0.25, "micro": 1, "context": 2048
    },
}  # fmt: skip
STAGES = (
    Stage(0, "base", "base", None, {
        "arithmetic": {"steps": 3000, "lr": 4e-3},
        IN_WORDS: WORDS | {"steps": 100, "lr": 1e-4},
    } | PAPER),
    Stage(1, "stage1", "Stage I", score.stage1_returns, {
        "arithmetic": {"steps": 200, "lr": 2e-3},
        IN_WORDS: WORDS | {"steps": 30, "lr": 2e-5, "warmup": 5, "beta1": 0.01},
    } | PAPER),
    Stage(2, "stage2", "Stage II", score.stage2_returns, {
        "arithmetic": {"steps": 600, "lr": 1e-3},
        IN_WORDS: WORDS | {"steps": 40, "lr": 5e-6, "warmup": 5, "beta1": 0.1},
    } | PAPER),
)  # fmt: skip
# Defaults of --quick.
QUICK = {"steps": 20, "problems": 8, "transcripts": 32, "eval_problems": 50}
QUICK_STAGES = tuple(replace(stage, always=QUICK) for stage in STAGES)


# ---------------------------------------------------------------------------------------------
# Training


def supervised_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    task: data.Task,
    transcripts: list[tuple[str, str, str]],
    clip: float,
    both: bool = True,
) -> dict:
    """One step of cross-entropy on the tokens of both attempts, eos included, in the layout of a
    rollout; with both=False on those of the second attempt alone."""
    prompts = [task.prompt(data.Problem(prompt)) for prompt, _, _ in transcripts]
    start = common_start(prompts)  # read once for all, as in a rollout
    rows, weights = [], []
    for x, (_, *attempts) in zip(prompts, transcripts):
        x = x[len(start) :]
        y1, y2 = (task.encode(text) + [task.eos] for text in attempts)
        rows.append(x + y1 + task.revise + y2)
        weights.append([0] * len(x) + [both] * len(y1) + [0] * len(task.revise) + [1] * len(y2))
    T = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (T - len(row)) for row in rows], device=model.device)
    scored = torch.tensor([w + [0] * (T - len(w)) for w in weights], device=model.device).bool()
    start = torch.tensor(start, dtype=torch.int64, device=model.device)
    # Padding follows every scored token, so causal attention hides it without a mask.
    hidden = model.hidden(tokens[:, :-1], start=start)  # (B, T − 1, C)
    loss = F.cross_entropy(model.logits(hidden[scored[:, 1:]]), tokens[scored])
    count = scored.sum().float()
    loss = loss * (count / averaged(count.clone()))  # weights each process by its tokens
    optimizer.zero_grad()
    loss.backward()
    norm = score.clipped_step(model, optimizer, clip)
    return {"loss": loss.item(), "grad_norm": norm, "tokens": int(count)}


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """The learning rate of step 1 … steps: a linear rise over `warmup` steps, then a linear fall
    that reaches 0 just after the last."""
    return peak * min(step / (warmup + 1), (steps - step + 1) / max(1, steps - warmup), 1.0)


class Trainer:
    """One stage in progress: its state, how a step changes it, and how it is saved and restored."""

    def __init__(self, job: Job, task: data.Task, policy: GPT, ref: GPT | None):
        self.job, self.task, self.policy, self.ref = job, task, policy, ref
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.best = checkpoints.Best()
        self.optimizer = torch.optim.Adam(
            policy.parameters(), lr=job.run.lr, betas=(0.9, 0.99), fused=True
        )

    def advance(self) -> dict:
        """One training step. All of its randomness is a function of (seed, stage, step)."""
        run, title = self.job.run, self.job.stage.title
        self.step += 1
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, run.steps, run.warmup, run.lr)
        try:
            metrics = self.learn(run.seed * 1_000_003 + self.job.stage.number)
        except FloatingPointError as error:
            raise processes.OwnError(
                f"{title} diverged at step {self.step}: {error}; try a lower --lr"
            ) from None
        except ValueError as error:  # a bug, not bad input: show its traceback
            raise RuntimeError(f"{title} failed at step {self.step}") from error
        metrics = processes.average_metrics(metrics, self.policy.device)
        if "reward" in metrics and self.best.add(self.step, run.steps, metrics["reward"]):
            checkpoints.save_model(self.job.folder, self.policy)
        self.samples += metrics.get("samples", 0)
        seconds = time.perf_counter() - started
        self.seconds += seconds
        metrics["tokens_per_second"] = metrics.pop("tokens") / seconds
        if run.eval_every is not None and self.step % run.eval_every == 0:
            problems = self.task.held_out("val", run.watched)
            found = score.evaluate(self.policy, self.task, problems, batch=run.eval_batch).metrics
            metrics["val"] = pick(found, {"acc_t1", "acc_t2", "changed"})
            self.policy.graph_cache = None  # its rows may be many more than a rollout's
        return {"step": self.step, "stage": self.job.stage.number, "seconds": seconds} | metrics

    def learn(self, seed: int) -> dict:
        """One update of the policy, on this process's share of the step's problems."""
        run, cfg, returns = self.job.run, self.job.cfg, self.job.stage.returns
        rank, count = process()
        if returns is None:
            progress = self.step / run.steps
            rows = self.task.transcripts(seed, self.step, run.transcripts, progress)
            own = rows[rank::count]
            return supervised_step(self.policy, self.optimizer, self.task, own, cfg.clip)
        problems = self.task.batch(seed, self.step, cfg.problems)[rank::count]
        seed = seed * 1_000_003 + self.step  # apart for a million steps
        models = self.policy, self.ref, self.optimizer
        return score.train_step(*models, self.task, problems, returns, cfg, seed)

    def save(self) -> None:
        """Writes state.pt, and model.pt if no step has been compared yet; only the first process
        does."""
        if not is_first():
            return
        state = {"settings": self.job.settings(), "step": self.step}
        state |= {"samples": self.samples, "seconds": self.seconds}
        if self.best.reward == -math.inf:
            checkpoints.save_model(self.job.folder, self.policy)
        finished = self.step >= self.job.run.steps  # it needs no weights or moments any more
        if not finished:
            state |= {"model": self.policy.state_dict(), "best": vars(self.best)}
            state |= {"optimizer": self.optimizer.state_dict()}
        checkpoints.save_state(self.job.folder, state)
        if finished:
            (self.job.folder / "state.before.pt").unlink(missing_ok=True)

    def restore(self) -> None:
        """Restores what `save` wrote. Raises ValueError if it belongs to another stage."""
        state = checkpoints.read_state(self.job.folder)
        try:
            settings.check_settings_match(self.job.folder, state["settings"], self.job.settings())
            self.step = state["step"]
            self.samples, self.seconds = int(state["samples"]), float(state["seconds"])
            self.policy.load_state_dict(state["model"])
            moments = state["optimizer"]["state"].values()  # empty before the first step
            for weight, moment in zip(self.policy.parameters(), moments):
                if moment["exp_avg"].shape != weight.shape:  # fused Adam would read out of bounds
                    raise ValueError("the optimizer's moments have other shapes")
            ours = {"param_groups": self.optimizer.state_dict()["param_groups"]}  # not the file's
            self.optimizer.load_state_dict(state["optimizer"] | ours)
            self.best.restore(state["best"])
            # model.pt holds the best model so far, perhaps from a step that runs again.
            checkpoints.read_pt(self.job.folder / "model.pt", {"config", "model"}, mmap=True)
        except (RuntimeError, ValueError, KeyError, AttributeError, TypeError) as error:
            path = self.job.folder / "state.pt"
            raise ValueError(f"{path} does not belong to this stage ({one_line(error)})") from None


SAVE_EVERY = 60.0  # seconds between saves, or more if saving took over SAVE_SHARE of the time
SAVE_SHARE = 0.02


def train(trainer: Trainer) -> None:
    """Runs a stage to its end, or until Ctrl-C: then finishes the step, saves, and raises
    KeyboardInterrupt. Raises ValueError if training diverges."""
    run, stage, device = trainer.job.run, trainer.job.stage, trainer.policy.device
    interrupted: list[int] = []

    def note(signum, frame):
        if interrupted:
            raise SystemExit(130)  # a second Ctrl-C stops at once; the last save remains valid
        interrupted.append(signum)
        if is_first():
            with contextlib.suppress(OSError):  # nobody may read it any more
                os.write(2, b"\nstopping after this step; again: at once, without saving\n")

    old = {which: signal.signal(which, note) for which in (signal.SIGINT, signal.SIGTERM)}
    shown, stop = Report(stage.title, run.steps, trainer.step, trainer.job.folder), False
    saved, took = time.monotonic(), 0.0  # the time the last save ended, and the seconds it took
    try:
        with precision(run.dtype, device):
            while trainer.step < run.steps and not stop:
                shown.add(trainer.advance())
                started = time.monotonic()
                due = started - saved >= max(SAVE_EVERY, took / SAVE_SHARE)
                stop, due = processes.any_process([bool(interrupted), due], device)
                if due:
                    trainer.save()
                    saved = time.monotonic()
                    took = saved - started
            trainer.save()
    except BrokenPipeError:  # the reader of the output has ended, as tee does at Ctrl-C
        trainer.save()
        raise
    except ConnectionError:
        old = {}  # torchrun stops this process next, which must not hide the error
        raise
    finally:
        for which, handler in old.items():
            signal.signal(which, handler)
        shown.close()
    if stop or interrupted:  # the signal may have come during the last step or save
        raise KeyboardInterrupt("saved")


# ---------------------------------------------------------------------------------------------
# Stages


def new_config(run: Run, task: data.Task) -> GPTConfig:
    shape = {name: getattr(run, name) for name in ("layers", "heads", "width")}
    return GPTConfig(vocab_size=task.encoding.n_vocab, **shape)


def new_model(job: Job, task: data.Task, device: torch.device) -> GPT:
    """The base model before its training: the pretrained one, or a random one."""
    if job.run.init is None:
        torch.manual_seed(job.run.seed)
        return GPT(new_config(job.run, task)).to(device)
    model = GPT.from_pretrained(job.run.init, device=device)
    checkpoints.check_model(Path(job.run.init), model, task)
    return model


def stage_model(job: Job, task: data.Task, device: torch.device) -> GPT:
    """The result of a stage: its best model by training reward, or the pretrained model."""
    if job.is_init:
        return new_model(job, task, device)
    model = checkpoints.load_model(job.folder, task, device)
    if job.run.init is not None:
        check_origin(job.folder, model, job.run.init)
    return model


def check_origin(folder: Path, model: GPT, init: str) -> None:
    """Raises ValueError if a stage's model cannot come from the pretrained one in `init`."""
    if GPTConfig(**read_shape(init)) != model.config:
        raise ValueError(f"{folder} was not trained from the model in {init}: their shapes differ")


def run_stage(
    jobs: list[Job], number: int, resume: bool, task: data.Task, device: torch.device
) -> None:
    """Trains a stage, resumes it, or reuses it if it is finished."""
    job, last = jobs[number], jobs[-1].stage
    title, folder = job.stage.title, job.folder
    if job.is_init:
        return print_once(f"base: using {job.run.init}")
    if job.has_model:
        return print_once(f"{title}: using {folder}/model.pt")
    if job.finished:
        return print_once(f"{title}: using {folder}, finished after {job.step} steps")
    if job.saved is not None and not resume:
        raise ValueError(
            f"{folder} holds an unfinished run (step {job.step} of {job.run.steps}): "
            "add --resume to continue it, or choose another --out"
        )
    if job.saved is None and number < last.number:
        print_once(
            f"{last.title} needs the {title} model, which {folder} does not have yet: training it"
        )
    if number == 0:
        policy, ref = new_model(job, task, device), None
    else:
        policy = stage_model(jobs[number - 1], task, device)
        ref = freeze(stage_model(jobs[0], task, device), getattr(torch, job.run.dtype))
    policy.recompute = job.run.recompute
    trainer = Trainer(job, task, policy, ref)
    if job.saved is not None:
        trainer.restore()
        print_once(f"{title}: resuming after step {trainer.step} of {job.run.steps}")
    train(trainer)
    print_once(cost(title, trainer.seconds, folder, device))


def load_task(run: Run) -> data.Task:
    if issubclass(data.TEXT_TASKS.get(run.data, data.Task), data.ProgramTask):
        print_once(rewards.sandbox_status(run.unsafe_sandbox))
    built_in = run.data == "arithmetic" and run.init is None
    task = data.load(run.name, run.difficulty, None if built_in else settings.source(run))
    for note in task.notes:
        print_once(note)
    return task


def evaluate(
    job: Job, task: data.Task, device: torch.device, temperature: float = 0.0
) -> score.Evaluation:
    """Evaluates a stage's model on held-out problems and writes what it found. An evaluation that
    was stopped goes on after its last batch."""
    run, folder = job.run, job.folder
    problems = task.held_out(run.split, run.eval_problems)
    model = stage_model(job, task, device)
    asked = {"attempts": run.attempts, "last_only": run.history == "last"}
    total = (run.attempts + 2) * len(problems)  # the diagnosis makes two
    shown = {"total": total, "unit": "answer", "leave": False, "disable": None}  # on terminals
    with checkpoints.kept_answers(folder, model, task, run.dtype, score.respond) as respond:
        with precision(run.dtype, device), AnswersBar(desc=job.stage.title, **shown) as bar:
            how = {"seed": run.seed, "batch": run.eval_batch}
            how |= {"on_graded": bar.add, "respond": respond}
            result = score.evaluate(model, task, problems, temperature=temperature, **asked, **how)
            diagnosis = diagnose(model, task, problems, **how)
        write_results(job, task, temperature, result, diagnosis)
    return result


# ---------------------------------------------------------------------------------------------
# Commands


def check_evaluation(run: Run, task: data.Task) -> None:
    """Raises ValueError, before hours of work, if the evaluation after them would be impossible."""
    problems = task.held_out(run.split, run.eval_problems)
    if run.eval_every is not None:
        task.held_out("val", run.watched)
    if run.init is not None:
        return  # its task has left out, or refused, problems that do not fit
    longest = max(len(task.prompt(problem)) for problem in problems)
    needed, context = longest + task.room(run.in_context), GPTConfig.context
    if needed > context:
        raise ValueError(
            f"{run.attempts} attempts take {needed} tokens, more than the context of {context}; "
            "--history last needs room for two"
        )


def train_command(stages: tuple[Stage, ...], given: dict, last: int, resume: bool) -> None:
    """Trains the stages up to the last that are missing, evaluates all, and prints the results."""
    jobs = jobs_up_to(stages, given, last)
    run = jobs[-1].run
    device, task = device_for(run.device, run.dtype), load_task(run)
    check_evaluation(run, task)
    if last > 0:
        task.batch(0, 1, jobs[-1].cfg.problems)  # raises ValueError where there are fewer
    settings.check_shares(jobs)
    if resume and all(job.saved is None for job in jobs):
        raise ValueError(f"nothing to resume: no state.pt in {jobs[0].folder.parent}")
    with contextlib.ExitStack() as training:
        with processes.process_group(device):
            if is_first():
                for job in jobs:
                    checkpoints.check_writable(job.folder)
                training.enter_context(checkpoints.locked(jobs[0].folder.parent))
            processes.wait_for_others(device)
            # Again, now that the folder is locked: another run may have just ended.
            jobs = jobs_up_to(stages, given, last)
            for number in range(len(jobs)):
                run_stage(jobs, number, resume, task, device)
                processes.wait_for_others(device)  # until the model is written
        if not is_first():
            return
        # Every stage is evaluated as the last one is; what it was trained with stays its own.
        asked = pick(asdict(run), settings.EVALUATION | settings.FREE)
        for job in jobs:
            result = evaluate(replace(job, run=replace(job.run, **asked)), task, device)
    folders = [(job.stage.title, job.folder) for job in jobs]
    report(folders, run, result, task, 0.0)


def plan_command(given: dict, last: int) -> None:
    """Prints the memory that a step of the stage takes, without allocating it."""
    if not last:
        raise ValueError("--plan needs --stage 1 or 2")
    job = jobs_up_to(STAGES, given, last)[-1]
    task = load_task(job.run)
    if job.run.init is not None:
        config = GPTConfig(**read_shape(Path(job.run.init)))
    else:
        config = new_config(job.run, task)
    cfg, memory = job.cfg, processes.memory_of(pick_device(job.run.device))
    print_once(
        f"{job.stage.title}: {cfg.problems} problems a step, {cfg.samples} first attempts, "
        f"{cfg.revisions} second ones to each\n{plan_text(config, task, job.run, cfg, memory)}"
    )


def eval_command(given: dict, folder: Path | None) -> None:
    """Evaluates the model in a stage's folder, or the untouched one of --init."""
    temperature = evaluation_temperature(given)
    job = load_job(STAGES, folder, given)
    if job.is_init:
        checkpoints.check_writable(job.folder)  # not there yet: a pretrained base leaves no files
        before = settings.evaluated(job.folder)  # perhaps of another folder with the same name
        settings.check_settings_match(job.folder, before, {"init": job.run.init})
    task = load_task(job.run)
    check_evaluation(job.run, task)
    result = evaluate(job, task, device_for(job.run.device, job.run.dtype), temperature)
    title = "untouched" if job.is_init else job.folder.resolve().name
    report([(title, job.folder)], job.run, result, task, temperature)


def ask_command(given: dict, problems: list[str]) -> None:
    """Prints attempts at the problems given, or at each line of the standard input. `problems`
    begins with the folder of a stage, unless the model is that of --init, untouched."""
    temperature, folder = evaluation_temperature(given), None
    # With a folder, too, --init may be given: where the stage's pretrained model was moved to.
    if "init" not in given or (problems and os.path.isdir(problems[0])):
        folder, problems = Path(problems[0]), problems[1:]
    job = load_job(STAGES, folder, given)
    run = job.run
    device, task = device_for(run.device, run.dtype), load_task(run)
    model = stage_model(job, task, device)
    how = {"attempts": run.attempts, "last_only": run.history == "last", "seed": run.seed}

    def answer(text: str) -> str:
        problem = task.problem(text)
        with precision(run.dtype, device):
            result = score.evaluate(model, task, [problem], temperature=temperature, **how)
        return dialogue(result, task)

    for text in problems:
        print_once(answer(text))
    while not problems:
        try:
            print_once(answer(input("problem> ").strip()))
        except EOFError:
            return print_once("")
        except ValueError as error:
            print_once(one_line(error))


def export_command(given: dict, folder: Path) -> None:
    """Writes a trained model as a folder like that of --init, in float32, since bfloat16 would
    round small updates away."""
    model = checkpoints.load_model(folder, None, torch.device("cpu"))
    init, target = load_job(STAGES, folder, given).run.init, folder / "pretrained"
    if init is None:
        raise ValueError(f"{folder} was not trained from a pretrained model (--init)")
    try:
        companions(Path(init), target)  # refused before anything is written
        check_origin(folder, model, init)
        model.save_pretrained(target)
        copy_companions(Path(init), target)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot export to {target}: {one_line(error)}") from None
    print_once(f"wrote {target}")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ^C does
    try:
        args, given = parse(argv, STAGES, __doc__)
        if args.stage is None and processes.number_of_processes() > 1:
            raise ValueError("only --stage runs in several processes")
        if args.eval is not None:
            eval_command(given, Path(args.eval) if args.eval else None)
        elif args.ask is not None:
            ask_command(given, args.ask)
        elif args.export is not None:
            export_command(given, Path(args.export))
        elif args.plan:
            plan_command(given, args.stage)
        elif args.quick:
            # In a folder of its own, so that no later run starts from these models.
            train_command(QUICK_STAGES, {"out": "out/quick"} | given, 2, args.resume)
            print_once("\nAll of it runs; models so little trained say nothing about the method.")
        else:
            train_command(STAGES, given, args.stage, args.resume)
    except (ValueError, OSError, rewards.SandboxError) as error:
        # All processes meet any other error alike, and the first one prints it.
        if is_first() or isinstance(error, processes.OwnError):
            print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    except KeyboardInterrupt as stop:
        more = ""
        if stop.args:  # training saved its state, or an evaluation its answers
            again = [arg for arg in sys.argv if arg != "--resume"]
            again += ["--resume"] if stop.args == ("saved",) else []
            started_by = "python" if processes.number_of_processes() == 1 else "torchrun …"
            more = f"; continue with: {started_by} {shlex.join(again)}"
        if is_first():
            print(f"{Path(sys.argv[0]).name}: interrupted{more}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # the shell has closed it
            setattr(sys, name, open(os.devnull, mode))
    sys.stdout.reconfigure(errors="replace")  # a terminal without Δ does not lose the table
    sys.exit(main())
