"""How two attempts and the instruction between them are laid out for a model.

    chatml   <|im_start|>user\\n…<|im_end|>\\n            Qwen, SmolLM2
    llama3   <|start_header_id|>user<|end_header_id|>\\n\\n…<|eot_id|>
    plain    text alone, for models not tuned to chat

These are the families' own templates, with two exceptions: Llama 3.1's puts dates into the system
turn, and Qwen3's drops the empty thoughts of an earlier answer. Control tokens are kept apart from
text, so the text of a problem never turns into one.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

from pretrained.tokenizer import Tokenizer


class Control(str):
    """A special token, as opposed to text that looks like one."""


def turn(style: str, role: str, text: str | None) -> list[str]:
    """One turn of a conversation; with no text, only its opening, for the model to go on."""
    if style == "chatml":
        parts = [Control("<|im_start|>"), f"{role}\n{text or ''}", Control("<|im_end|>"), "\n"]
        return parts[:2] if text is None else parts
    header = [Control("<|start_header_id|>"), role, Control("<|end_header_id|>")]
    return header + (["\n\n"] if text is None else ["\n\n" + text.strip(), Control("<|eot_id|>")])


# The line end may be spelt as in Jinja's strings.
BEGINS_WITH_THOUGHT = re.compile(r"assistant(\\n|\n)<think>")


class Style(NamedTuple):
    """The parts of a layout that are not turns."""

    before: list[str]  # parts before the first turn
    end: Control  # token that ends an attempt
    between: list[str]  # parts between that token and the next turn


STYLES = {
    "chatml": Style([], Control("<|im_end|>"), ["\n"]),
    "llama3": Style([Control("<|begin_of_text|>")], Control("<|eot_id|>"), []),
}


def thought(tokenizer: Tokenizer) -> list[str]:
    """The start of the assistant's turn: for models that may think first, an empty thought, as in
    Qwen3's template with enable_thinking=False."""
    if "enable_thinking" not in tokenizer.chat:
        return []
    return [Control("<think>"), "\n\n", Control("</think>"), "\n\n"]


@dataclass(frozen=True)
class Layout:
    """Token ids of a prompt and of the instruction p, in a model's own style."""

    tokenizer: Tokenizer
    style: str  # chatml, llama3 or plain

    @property
    def eos(self) -> int:
        """The token that ends an attempt: the end of a turn, or of a document."""
        if self.style == "plain":
            return self.tokenizer.eos
        return self.tokenizer.encoding.encode_single_token(STYLES[self.style].end)

    def prompt(
        self, system: str, user: str, plain: str, examples: list[tuple[str, str]] = ()
    ) -> list[int]:
        """[x]: the system turn, the turns of the examples, the user's turn and the opening of the
        assistant's; for a plain model `plain` alone."""
        if self.style == "plain":
            bos = [self.tokenizer.bos] if self.tokenizer.adds_bos else []
            return bos + self.tokenizer.encoding.encode_ordinary(plain)
        shown = [part for u, a in examples for part in (("user", u), ("assistant", a))]
        turns = [("system", system), *shown, ("user", user), ("assistant", None)]
        ids = self._encode(STYLES[self.style].before, turns)
        bos = self.tokenizer.bos  # an empty text in the template if the folder names none
        if self.style == "chatml" and "bos_token" in self.tokenizer.chat and bos is not None:
            return [bos, *ids]
        return ids

    def revise(self, instruction: str, plain: str) -> list[int]:
        """[p], after the token that ended attempt 1."""
        if self.style == "plain":
            return self.tokenizer.encoding.encode_ordinary(plain)
        turns = [("user", instruction), ("assistant", None)]
        return self._encode(STYLES[self.style].between, turns)

    def _encode(self, before: list[str], turns: list[tuple[str, str | None]]) -> list[int]:
        encoding, ids = self.tokenizer.encoding, []
        parts = before + [part for role, text in turns for part in turn(self.style, role, text)]
        for part in joined(parts + thought(self.tokenizer)):
            if isinstance(part, Control):
                ids.append(encoding.encode_single_token(part))
            else:
                ids += encoding.encode_ordinary(part)
        return ids


def joined(parts: list[str]) -> list[str]:
    """Joins adjacent texts, since a token may span the end of one and the start of the next, but
    never a control token."""
    result: list[str] = []
    for part in parts:
        if result and not isinstance(part, Control) and not isinstance(result[-1], Control):
            result[-1] += part
        else:
            result.append(part)
    return result


def pick_layout(tokenizer: Tokenizer, style: str = "auto") -> Layout:
    """The layout of a given style; "auto" derives it from the folder. Raises ValueError for an
    unknown style or template, or if the tokenizer lacks the style's control tokens."""
    if style == "auto":
        style = style_of(tokenizer)
    if style not in (*STYLES, "plain"):
        raise ValueError(f"layout must be auto, {', '.join(STYLES)} or plain: {style}")
    if style != "plain":
        needed = [*STYLES[style].before, *turn(style, "user", ""), *thought(tokenizer)]
        for part in needed:
            if isinstance(part, Control) and part not in tokenizer.encoding.special_tokens_set:
                raise ValueError(f"the model's tokenizer has no {part}, which {style} needs")
    return Layout(tokenizer, style)


def style_of(tokenizer: Tokenizer) -> str:
    """The style of the folder's chat template, if the token that ends a turn is also the model's
    end of text. Otherwise plain: a model may have a template that it was not tuned to."""
    if not tokenizer.chat:
        return "plain"
    for name, style in STYLES.items():
        if style.end in tokenizer.chat and style.end in tokenizer.encoding.special_tokens_set:
            if tokenizer.encoding.encode_single_token(style.end) != tokenizer.eos:
                return "plain"
            if BEGINS_WITH_THOUGHT.search(tokenizer.chat):
                raise ValueError(
                    "the model's chat template begins every answer with a thought, which is not "
                    f"supported; --layout {name} does without it"
                )
            return name
    raise ValueError(
        "the model's chat template is neither ChatML nor Llama 3's; --layout plain does without it"
    )
