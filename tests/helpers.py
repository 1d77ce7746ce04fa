"""What the rooms share and is no fixture: small runs, tiny checkpoints, data made up or real."""

import dataclasses
import itertools
import json
import pathlib

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

import data
import train
from model import GPT, GPTConfig
from pretrained.tokenizer import byte_characters
from training import settings

ROOT = pathlib.Path(__file__).parent.parent
LOOK = "--difficulty 2 --eval-problems 20 --device cpu".split()
BASE = [*LOOK, *"--layers 1 --width 16 --transcripts 8".split()]
SMALL = [*BASE, *"--problems 4 --samples 2 --revisions 2".split()]


def run(*args: object) -> int:
    """A small run, with those of the small settings that the command has a use for."""
    command = [str(arg) for arg in args]
    return train.main(command + small_settings(command))


def small_settings(command: list[str]) -> list[str]:
    if "--stage" in command:
        return BASE if command[command.index("--stage") + 1] == "0" else SMALL
    return LOOK if "--eval" in command else []


def weights(path: pathlib.Path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def same(a, b) -> bool:
    """Equality of what torch.save writes, tensors included."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def same_weights(one: pathlib.Path, other: pathlib.Path) -> bool:
    return same(weights(one), weights(other))


def without_times(path: pathlib.Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def kill_after(step: int, patch: pytest.MonkeyPatch) -> None:
    advance = train.Trainer.advance

    def killed(trainer):
        if trainer.step == step:
            raise MemoryError("as good as a SIGKILL: nothing is saved")
        return advance(trainer)

    patch.setattr(train.Trainer, "advance", killed)


def six_steps() -> tuple[settings.Stage, ...]:
    def short(stage: settings.Stage) -> settings.Stage:
        own = {kind: values | {"steps": 6} for kind, values in stage.own.items()}
        return dataclasses.replace(stage, own=own)

    return tuple(map(short, train.STAGES))


# For programs that measure their memory in bytes. Not ru_maxrss, which begins at the peak of the
# process that started this one.
PEAK = """
import pathlib, re

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024
"""


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>",
            "<|start_header_id|>", "<|end_header_id|>"]  # fmt: skip


def their_tokenizer(style: str, vocabulary: dict | None = None):
    """A byte-level BPE of the tokenizers library: trained on a text of the tests' own, which seldom
    changes, or with the vocabulary and merges given."""
    tokenizers = pytest.importorskip("tokenizers", reason="equality is with tokenizers")
    parts, split = tokenizers.pre_tokenizers, tokenizers.pre_tokenizers.Split
    own = parts.ByteLevel(add_prefix_space=False, use_regex=True)
    given = parts.ByteLevel(add_prefix_space=False, use_regex=False)

    def by(pattern: str):
        return parts.Sequence([split(tokenizers.Regex(pattern), "isolated"), given])

    made = tokenizers.Tokenizer(tokenizers.models.BPE(**(vocabulary or {})))
    made.pre_tokenizer = {
        "gpt2": own,
        "llama3": by(LLAMA3_PATTERN),
        "qwen": by(LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")),
        "smollm": parts.Sequence([parts.Digits(individual_digits=True), own]),
    }[style]
    if style == "qwen":
        made.normalizer = tokenizers.normalizers.NFC()
    made.decoder = tokenizers.decoders.ByteLevel()
    if vocabulary is None:
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=600, special_tokens=CONTROLS, initial_alphabet=parts.ByteLevel.alphabet(),
            show_progress=False,
        )  # fmt: skip
        made.train([str(ROOT / "tests" / "cases" / "problems.txt")], trainer)
    made.add_special_tokens(CONTROLS)
    return made


def without_bytes(path: pathlib.Path, *lacking: int) -> None:
    """Takes the tokens of some bytes, which no merge may need, out of a tokenizer.json."""
    raw = json.loads(path.read_text())
    for byte in lacking:
        del raw["model"]["vocab"][byte_characters()[byte]]
    path.write_text(json.dumps(raw))


def shared(name: str) -> pathlib.Path:
    """A file of real data, where docs/models-and-data.md puts it or beside the repository, or a
    skip."""
    for folder in (ROOT / "data" / "humaneval", ROOT.parent / "shared" / "data"):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"the real data is not here: data/humaneval/{name}")


CHAT_TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama3": "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
}


def tiny_checkpoint(folder: pathlib.Path, template: str | None) -> pathlib.Path:
    theirs = their_tokenizer("qwen")
    theirs.save(str(folder / "tokenizer.json"))
    eos = "<|endoftext|>" if template is None else "<|im_end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    if template is not None:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[template])
    torch.manual_seed(0)
    GPT(
        GPTConfig(
            vocab_size=theirs.get_vocab_size() + 7,
            context=4096,
            layers=1,
            heads=2,
            kv_heads=1,
            width=16,
            inner=24,
            family="qwen2",
            activation="silu",
            gated=True,
            rms_norm=True,
            norm_eps=1e-6,
            out_bias=False,
            mlp_bias=False,
            rope=1e4,
        )  # fmt: skip
    ).save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"eos_token_id": 7}))
    return folder


def source(init: pathlib.Path, folder: pathlib.Path, **settings) -> data.Source:
    return data.Source(folder, init, **settings)


def write_math(folder: pathlib.Path) -> pathlib.Path:
    """Problems of our own in Hendrycks' layout: 2 subjects, 6 problems each, in train and test."""
    for split, subject in itertools.product(("train", "test"), ("algebra", "number_theory")):
        (folder / split / subject).mkdir(parents=True)
        for n in range(1, 7):
            answer = n * len(subject) if split == "train" else n + len(subject)
            sign = "\\cdot" if split == "train" else "+"
            record = {
                "problem": f"What is ${n} {sign} {len(subject)}$?",
                "level": f"Level {1 + n % 5}",
                "type": subject.replace("_", " ").title(),
                "solution": f"First $\\boxed{{0}}$, no: it is $\\boxed{{{answer}}}$.",
            }
            (folder / split / subject / f"{n}.json").write_text(json.dumps(record))
    return folder


def write_programs(folder: pathlib.Path, mbpp: bool = True) -> pathlib.Path:
    """Records of our own in HumanEval's and MBPP's formats: to multiply and to add a number."""
    folder.mkdir(exist_ok=True)
    lines = []
    for n in range(104):
        lines.append(
            {
                "task_id": f"HumanEval/{n}",
                "prompt": f'def times{n}(x):\n    """{n} times x"""\n',
                "entry_point": f"times{n}",
                "canonical_solution": f"    return {n} * x\n",
                "test": f"def check(candidate):\n    assert candidate(3) == {3 * n}\n",
            }
        )
    (folder / "HumanEval.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if mbpp:
        lines = []
        for n in (2, 3, 4, *range(600, 612)):
            code, test = f"def plus(x):\r\n  return x + {n}", f"assert plus(1) == {n + 1}"
            record = {"task_id": n, "text": f"Add {n}.", "code": code, "test_list": [test]}
            lines.append(record)
        (folder / "mbpp.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def anything(examples: int):
    """So many drawn inputs, without a limit on the time of one: a hang ends the whole suite."""
    return hypothesis.settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


@st.composite
def with_damage(draw, whole: bytes) -> bytes:
    """A copy with a part overwritten, cut out or put in."""
    place, length = draw(st.integers(0, len(whole))), draw(st.integers(0, 40))
    return whole[:place] + draw(st.binary(max_size=40)) + whole[place + length :]


PLAIN_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
