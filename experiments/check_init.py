"""An open model's folder, as transformers reads it and as this repository does.

    python experiments/check_init.py DIR

Compares the ids of awkward texts, the layout of a conversation of two attempts and the logits of
its tokens, prints what it found, and ends with exit code 1 where they differ. Needs transformers,
which is among the packages of requirements-dev.txt.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
from model import GPT
from pretrained.tokenizer import load_tokenizer

TEXTS = (
    *("", " ", "\n\n \t", "47 + 85 = 132", "don't  stop", "naïve café", "ﬁ Å Å", "数学 ١٢٣ 🙂🏽"),
    *("\u200b\ufeff", "a" * 300, "<|im_start|>user", "x\r\ny\x00\x07", "\\frac{1}{2} \\boxed{7}"),
)
TOLERANCE = 1e-3  # of logits in float32, of up to a hundred in size


def compare_tokenizers(folder: Path, theirs) -> str | None:
    """The first text whose ids differ."""
    encode = load_tokenizer(folder).encoding.encode_ordinary
    # Text that spells a control token is text here, so it is put to theirs in the same sense.
    wanted = {
        text: theirs(text, add_special_tokens=False, split_special_tokens=True).input_ids
        for text in TEXTS
    }
    return next((repr(text) for text, ids in wanted.items() if encode(text) != ids), None)


def conversation(task: data.TextTask, theirs) -> tuple[list[int], list[int]]:
    """[x, y1, eos, p] of a sum, in our ids and in those of the model's chat template."""
    problem, answer = data.Problem("47+85="), "47 + 85 = 122"
    ours = task.prompt(problem) + task.encoding.encode_ordinary(answer) + task.close + task.revise
    turns = [("system", task.system)]
    for user, assistant in [*task.examples, (task.user(problem), answer)]:
        turns += [("user", user), ("assistant", assistant)]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages.append({"role": "user", "content": task.instruction})
    template = {"tokenize": False, "add_generation_prompt": True}
    text = theirs.apply_chat_template(messages, **template)
    return ours, theirs(text, add_special_tokens=False).input_ids


@torch.no_grad()
def compare_logits(folder: Path, ids: list[int]) -> tuple[float, bool]:
    """The largest difference at any token, and whether all arg-maxima agree."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor([ids])
    ours, wanted = GPT.from_pretrained(folder)(tokens), theirs(tokens).logits
    return (ours - wanted).abs().max().item(), torch.equal(ours.argmax(-1), wanted.argmax(-1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    theirs = AutoTokenizer.from_pretrained(folder)
    differs = compare_tokenizers(folder, theirs)
    print(f"tokenizer: {f'{differs} differs' if differs else f'{len(TEXTS)} texts equal'}")

    task = data.load("addition", 2, data.Source(folder=Path(), init=folder, shots=2))
    ours, wanted = conversation(task, theirs)
    print(f"conversation of {len(wanted)} tokens: {'equal' if ours == wanted else 'differs'}")

    apart, agree = compare_logits(folder, wanted)
    print(f"logits: {apart:.2g} apart at most, arg-maxima {'equal' if agree else 'differ'}")
    if differs or ours != wanted or apart > TOLERANCE or not agree:
        sys.exit(1)


if __name__ == "__main__":
    main()
