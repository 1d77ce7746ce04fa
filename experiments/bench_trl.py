"""What a step of reinforcement costs beside TRL's own: CPU seconds a completion.

    pip install trl==1.16.0 && python experiments/bench_trl.py

    ours   score.train_step, Stage II: 8 problems × 4 first attempts × 4 second ones
    rloo   trl.RLOOTrainer, single-turn: as many completions, 4 to a prompt

Both draw 160 completions of 64 tokens, score them by policy and reference, and take a step of Adam,
with one random Qwen2 of the same weights, in float32 with one thread. Prompts have 32 tokens; ours
puts 80 more before its second attempts. TRL's is set to what is cheapest for it: no gradient
checkpointing, no logging. Each way runs in a process of its own, in turn with the other, and
reports the median step of five, after one that does not count.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import bench_rollout
import bench_update
import torch

import score
from data import Problem, Task
from model import GPT, GPTConfig

FILE = Path(__file__).with_name("bench_trl.json")
WAYS = ("ours", "rloo")
VOCABULARY, PROMPT, NEW, REVISE = 1024, 32, 64, 16  # tokens
CFG = score.Config(problems=8, samples=4, revisions=4)
COMPLETIONS = CFG.problems * CFG.samples * (1 + CFG.revisions)
STEPS = 6
SHAPE = {"layers": 4, "heads": 6, "kv_heads": 6, "width": 192, "inner": 512, "family": "qwen2"}
SHAPE |= {"activation": "silu", "gated": True, "mlp_bias": False, "out_bias": False}
SHAPE |= {"rms_norm": True, "norm_eps": 1e-6, "rope": 1e4}


def random_prompts(count: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, VOCABULARY, (count, PROMPT), generator=draw).tolist()


def words(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def reward(response: str) -> float:
    """Any function of the text: half of all responses are right."""
    return float(sum(map(int, response.split())) % 2)


class Random(Task):
    """Prompts of random tokens, and answers that nothing ends before the limit."""

    eos, close, revise, max_new_tokens = VOCABULARY, [], [3] * REVISE, NEW

    def batch(self, seed, step, count):
        prompts = random_prompts(STEPS * count)[(step - 1) * count : step * count]
        return [Problem(words(prompt)) for prompt in prompts]

    def held_out(self, split, count):
        raise NotImplementedError

    def prompt(self, problem):
        return list(map(int, problem.prompt.split()))

    def decode(self, tokens):
        return words(tokens)

    def reward(self, problem, response):
        return reward(response)


def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(VOCABULARY, 512, **SHAPE))


def ours() -> list[float]:
    """CPU seconds of each step."""
    policy, ref = model(), model()
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-6, fused=True)
    task, times = Random(), [time.process_time()]
    for step in range(1, STEPS + 1):
        problems = task.batch(0, step, CFG.problems)
        score.train_step(
            policy, ref, optimizer, task, problems, score.stage2_returns, CFG, seed=step
        )
        times.append(time.process_time())
    return [after - before for before, after in zip(times, times[1:])]


def rloo() -> list[float]:
    """CPU seconds of each step."""
    with tempfile.TemporaryDirectory() as folder:
        model().save_pretrained(Path(folder))
        return rloo_from(folder)


def rloo_from(folder: str) -> list[float]:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    tokenizer = Tokenizer(models.WordLevel({str(n): n for n in range(VOCABULARY)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = RLOOConfig(
        output_dir=f"{folder}/trl",
        max_steps=STEPS,
        learning_rate=1e-6,
        per_device_train_batch_size=COMPLETIONS,
        num_generations=CFG.samples,
        max_completion_length=NEW,
        generation_kwargs={"min_new_tokens": NEW},
        beta=CFG.beta1,
        model_init_kwargs={"dtype": "float32"},
        gradient_checkpointing=False,
        use_cpu=True,
        bf16=False,
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to=[],
    )
    prompts = random_prompts(STEPS * COMPLETIONS // CFG.samples)
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **others):
            times.append(time.process_time())

        def on_step_end(self, *args, **others):
            times[-1] = time.process_time() - times[-1]

    trainer = RLOOTrainer(
        model=folder,
        reward_funcs=lambda completions, **others: [reward(text) for text in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": words(prompt)} for prompt in prompts]),
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, eos_token="1", pad_token="2", padding_side="left"
        ),
        callbacks=[Clock()],
    )
    trainer.train()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=bench_rollout.whole, default=3)
    parser.add_argument("--write", type=Path, default=FILE, help="the JSON file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.way:
        steps = {"ours": ours, "rloo": rloo}[args.way]()
        return print(json.dumps({"seconds": statistics.median(steps[1:]) / COMPLETIONS}))
    try:
        from trl import __version__ as version
    except ImportError:
        sys.exit("bench_trl.py compares with TRL, which is not installed: pip install trl==1.16.0")
    results = bench_update.medians(list(WAYS), args.repeats)
    content = bench_rollout.about(__file__, "cpu") | {"trl": version, "results": results}
    args.write.write_text(json.dumps(content, indent=1) + "\n")
    for way, result in results.items():
        print(f"{way}: {1e3 * result['seconds']:.1f} CPU ms a completion")


if __name__ == "__main__":
    main()
