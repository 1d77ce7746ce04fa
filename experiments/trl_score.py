"""The same algorithm inside TRL's trainer, for what train.py is not made for.

    pip install trl==1.16.0
    python experiments/trl_score.py --stage 1 --data math --init DIR --data-dir FOLDER
    accelerate launch experiments/trl_score.py --stage 2 … --trl use_vllm=True

Flags are train.py's, but for a few that are refused; --trl sets fields of TRL's GRPOConfig.
Loading, generation (transformers or vLLM), sharding (FSDP, DeepSpeed) and checkpoints are TRL's;
prompts, rewards, returns, advantages and the loss are this repository's. OUT/trl/TASK/STAGE is then
a folder for train.py's --init; `--trl resume_from_checkpoint=…` goes on from a checkpoint in it.

A row of TRL's batch is one rollout, [x] and [y1, p, y2]: a problem's K·M rows are its
`num_generations`, and a first attempt stands in M of them. Its mask leaves p out. So the mean over
rows is that of `score.policy_loss`: over N first attempts, and over N·M second ones.
"""

import ast
import contextlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

try:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    sys.exit(f"trl_score.py needs TRL ({error}): pip install trl==1.16.0")

import score
import train
from data import Problem, Task
from training import flags, processes, settings


class ScoreTrainer(GRPOTrainer):
    """GRPOTrainer with two attempts a rollout, and a return, KL and baseline for each attempt."""

    def __init__(
        self, task: Task, problems: list[Problem], cfg: score.Config, returns: score.Returns, **own
    ):
        self.task, self.problems, self.cfg, self.returns = task, problems, cfg, returns
        super().__init__(reward_funcs=second_reward, rollout_func=two_attempts, **own)
        self.beta = 0.0  # it has loaded the reference; the KL is taken below
        if task.eos not in self.eos_token_ids:
            raise ValueError(f"the model's end tokens {self.eos_token_ids} lack the layout's")

    def _generate_and_score_completions(self, inputs: list[dict]) -> dict:
        """TRL's rollouts, and what each token is worth: before TRL shuffles the rows, since those
        of a problem are compared."""
        batch = super()._generate_and_score_completions(inputs)
        device = batch["completion_ids"].device
        columns = ([row[x] for row in inputs] for x in ("first", "second", "r1", "r2", "changed"))
        first, second, r1, r2, changed = (torch.tensor(x, device=device) for x in columns)
        for name, x in score.outcomes(r1, r2, changed).items():
            self._metrics["train"][name].append(self.accelerator.gather(x).mean().item())
        T = batch["completion_ids"].shape[1]
        place = torch.arange(T, device=device)
        # Of every row: the tokens of y1, which begin it, and those of y2, which end it.
        batch["first"] = place < first[:, None]
        ends = batch["completion_mask"].sum(1, keepdim=True)
        batch["second"] = (place >= ends - second[:, None]) & (place < ends)
        with torch.no_grad():
            _, kl1, kl2 = self.attempt_scores(self.model, batch)
        M = self.cfg.revisions
        after1, after2 = score.later(kl1[::M]), score.later(kl2)
        values = score.advantages(r1[::M], r2, after1, after2, self.returns, self.cfg)
        batch["advantages1"] = values[0].repeat_interleave(M, 0) * batch["first"]
        batch["advantages2"] = values[1] * batch["second"]
        return batch

    def attempt_scores(self, model, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """log π of every completion token, and KL(π ‖ π_ref) there, of the first attempts and of
        the second, 0 elsewhere: three (rows, T). As `score.attempt_scores`, from whole logits,
        which bfloat16 rounds here."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        ok = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        T = batch["completion_ids"].shape[1]

        def logprobs(scored) -> Tensor:
            position = (ok.cumsum(1) - 1).clamp(min=0)
            with self.accelerator.autocast():
                logits = scored(
                    input_ids=ids, attention_mask=ok, position_ids=position, logits_to_keep=T + 1
                ).logits
            return (logits[:, :-1].float() / self.cfg.temperature).log_softmax(-1)

        policy = logprobs(model)
        with torch.no_grad():
            ref = logprobs(self.ref_model)
        kl = (policy.exp() * (policy - ref)).sum(-1)
        drawn = policy.gather(2, batch["completion_ids"][:, :, None])[:, :, 0]
        return drawn, kl * batch["first"], kl * batch["second"]

    def _compute_loss(self, model, inputs: dict) -> Tensor:
        """`score.policy_loss` of some rows: −advantage · log π + β KL, a mean over attempts."""
        logprobs, kl1, kl2 = self.attempt_scores(model, inputs)
        zero = kl1.new_zeros(())
        kl_return1, kl_return2 = self.returns(zero, zero, kl1.sum(1), kl2.sum(1), self.cfg)
        worth = inputs["advantages1"] + inputs["advantages2"]
        loss = (-(worth * logprobs).sum(1) - kl_return1 - kl_return2).mean()
        for name, kl in (("kl_1", kl1), ("kl_2", kl2)):
            self._metrics["train"][name].append(kl.detach().sum(1).mean().item())
        return loss / self.current_gradient_accumulation_steps


def two_attempts(prompts: list[str], trainer: ScoreTrainer) -> dict:
    """TRL's rollout hook: K·M rows of each problem, which `prompts` has as numbers."""
    task, K, M = trainer.task, trainer.cfg.samples, trainer.cfg.revisions
    problems = [trainer.problems[int(number)] for number in prompts]
    xs = [task.prompt(problem) for problem in problems]
    y1 = answer(trainer, task, xs[::M], problems[::M], K)
    second_prompts = score.repeat(score.try_again(task, xs[::M], [y for y, _ in y1]), M)
    y1 = score.repeat(y1, M)
    y2 = answer(trainer, task, second_prompts, problems, M)
    between = [len(row) - len(x) - len(y) for row, x, (y, _) in zip(second_prompts, xs, y1)]
    return {
        "prompt_ids": xs,
        "completion_ids": [row[len(x) :] + y for row, x, (y, _) in zip(second_prompts, xs, y2)],
        "logprobs": None,  # not needed: one update a rollout, so the data is on-policy
        "env_mask": [
            [1] * len(y) + [0] * n + [1] * len(z) for (y, _), n, (z, _) in zip(y1, between, y2)
        ],
        "first": [len(y) for y, _ in y1],
        "second": [len(y) for y, _ in y2],
        "r1": rewards(task, problems, y1),
        "r2": rewards(task, problems, y2),
        "changed": [score.text(task, y) != score.text(task, z) for (y, _), (z, _) in zip(y1, y2)],
    }


Attempt = tuple[list[int], bool]  # its tokens, and whether it is whole


def answer(
    trainer: ScoreTrainer, task: Task, prompts: list, problems: list, samples: int
) -> list[Attempt]:
    """One attempt after each prompt, of which `samples` adjacent ones are alike."""
    written, _ = trainer._generate_single_turn(prompts, None, {}, samples)
    attempts = []
    for problem, y in zip(problems, written):
        length = score.over_after(task, problem, y) if task.runs_on else len(y) + 1
        attempts.append((y[:length], length <= len(y) or y[-1] == task.eos))
    return attempts


def rewards(task: Task, problems: list[Problem], attempts: list[Attempt]) -> list[float]:
    said = [score.text(task, y) for y, _ in attempts]
    return [r * whole for r, (_, whole) in zip(task.rewards(problems, said), attempts)]


def second_reward(completions: list, r2: list[float], **others) -> list[float]:
    """What TRL logs as the reward."""
    return r2


def make_trainer(stage: settings.Stage, given: dict, own: dict) -> ScoreTrainer:
    """A trainer of a stage with train.py's settings, and others of GRPOConfig's."""
    run, cfg = settings.resolve(stage, given)
    folder = Path(run.out) / "trl" / run.name
    start = folder / "stage1" if stage.number == 2 else run.init
    if stage.number == 2 and not (start / "config.json").exists():
        raise ValueError(f"Stage II starts from {start}, which Stage I has not written yet")
    if (folder / stage.folder / "config.json").exists():
        raise ValueError(f"{folder / stage.folder} holds a trained model; choose another --out")
    task = train.load_task(run)
    rows = cfg.samples * cfg.revisions  # of a problem
    share = processes.share(cfg.problems, "problems")
    micro = cfg.micro or share
    if share % micro:
        raise ValueError(f"a process has {share} problems, which are no parts of {micro}")
    steps = range(1, run.steps + 1)
    seed = run.seed * 1_000_003 + stage.number  # the problems of train.py, in its order
    problems = [x for step in steps for x in task.batch(seed, step, cfg.problems)]
    config = GRPOConfig(
        **{
            "output_dir": str(folder / stage.folder),
            "max_steps": run.steps,
            "learning_rate": run.lr,
            "warmup_steps": run.warmup,
            "adam_beta2": 0.99,
            "max_grad_norm": cfg.clip,
            "bf16": run.dtype == "bfloat16",
            "per_device_train_batch_size": micro * rows,
            "gradient_accumulation_steps": share // micro,
            "num_generations": rows,
            "max_completion_length": task.max_new_tokens,
            "temperature": cfg.temperature,
            "top_k": 0,
            "beta": max(cfg.beta1, cfg.beta2) or 1.0,  # any but 0 has TRL load the reference
            "shuffle_dataset": False,
            "disable_dropout": True,
            "seed": run.seed,
            "use_cpu": processes.pick_device(run.device).type == "cpu",
            "report_to": [],
            "logging_steps": 1,
        }
        | own
    )
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.config._name_or_path = str(run.init)  # TRL's reference is loaded from there
    return ScoreTrainer(
        task,
        problems,
        cfg,
        stage.returns,
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [str(n) for n in range(len(problems))]}),
        processing_class=AutoTokenizer.from_pretrained(run.init),
    )


def parse(argv: list[str]) -> tuple[settings.Stage, dict, dict]:
    """A stage, train.py's settings, and those of GRPOConfig: what follows --trl, up to a flag."""
    early, own = flags.Parser(add_help=False, allow_abbrev=False), {}
    early.add_argument("--trl", nargs="+", action="extend", default=[])
    known, rest = early.parse_known_args(argv)
    for part in known.trl:
        name, equals, value = part.partition("=")
        if not equals or name not in GRPOConfig.__dataclass_fields__:
            raise ValueError(f"--trl takes settings of GRPOConfig like use_vllm=True: {part}")
        with contextlib.suppress(ValueError, SyntaxError):
            value = ast.literal_eval(value)
        own[name] = value
    args, given = flags.parse(rest, train.STAGES, __doc__)
    if args.stage not in (1, 2) or "init" not in given or args.resume or args.plan:
        raise ValueError("trl_score.py takes --stage 1 or 2, --init, and no --resume or --plan")
    for name in given.keys() & {"offline", "recompute", "eval_every"}:
        raise ValueError(f"{settings.flag(name)} is not a setting of trl_score.py")
    return train.STAGES[args.stage], given, own


def main() -> int:
    try:
        trainer = make_trainer(*parse(sys.argv[1:]))
    except (ValueError, OSError, train.rewards.SandboxError) as error:
        print(f"trl_score.py: {processes.one_line(error)}", file=sys.stderr)
        return 2
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_model()
    return 0


if __name__ == "__main__":
    sys.exit(main())
