"""How two attempts and the instruction between them are laid out for a model.

    chatml   <|im_start|>user\\n…<|im_end|>\\n            Qwen, SmolLM2
    llama3   <|start_header_id|>user<|end_header_id|>\\n\\n…<|eot_id|>
    plain    text alone, for base models

Control tokens are kept apart from text, so that a problem which spells one does not become one.
"""

from dataclasses import dataclass

from data.tokenizer import Tokenizer


class Control(str):
    """A special token, as opposed to text that looks like one."""


def turn(style: str, role: str, text: str | None) -> list[str]:
    """One turn of a conversation; with no text, only its opening, for the model to go on."""
    if style == "chatml":
        parts = [Control("<|im_start|>"), f"{role}\n{text or ''}", Control("<|im_end|>"), "\n"]
        return parts[:2] if text is None else parts
    header = [Control("<|start_header_id|>"), role, Control("<|end_header_id|>")]
    return header + (["\n\n"] if text is None else ["\n\n" + text.strip(), Control("<|eot_id|>")])


# What stands before the first turn, what ends an attempt, and what stands between that and the
# next turn.
STYLES = {
    "chatml": ([], Control("<|im_end|>"), ["\n"]),
    "llama3": ([Control("<|begin_of_text|>")], Control("<|eot_id|>"), []),
}


@dataclass(frozen=True)
class Layout:
    """Token ids of a prompt and of the instruction p, in a model's own style."""

    tokenizer: Tokenizer
    style: str  # chatml, llama3 or plain

    @property
    def eos(self) -> int:
        """What ends an attempt: the end of a turn, or of the document."""
        if self.style == "plain":
            return self.tokenizer.eos
        return self.tokenizer.encoding.encode_single_token(STYLES[self.style][1])

    def prompt(self, system: str, user: str, plain: str) -> list[int]:
        """[x]: system and user turns and the opening of the assistant's, or else `plain`."""
        if self.style == "plain":
            bos = [] if self.tokenizer.bos is None else [self.tokenizer.bos]
            return bos + self.tokenizer.encoding.encode_ordinary(plain)
        turns = [("system", system), ("user", user), ("assistant", None)]
        parts = [part for role, text in turns for part in turn(self.style, role, text)]
        return self._encode(STYLES[self.style][0] + parts)

    def revise(self, instruction: str, plain: str) -> list[int]:
        """[p], after the token that ended attempt 1."""
        if self.style == "plain":
            return self.tokenizer.encoding.encode_ordinary(plain)
        turns = [("user", instruction), ("assistant", None)]
        parts = [part for role, text in turns for part in turn(self.style, role, text)]
        return self._encode(STYLES[self.style][2] + parts)

    def _encode(self, parts: list[str]) -> list[int]:
        encoding, ids = self.tokenizer.encoding, []
        for part in merged(parts):
            if isinstance(part, Control):
                ids.append(encoding.encode_single_token(part))
            else:
                ids += encoding.encode_ordinary(part)
        return ids


def merged(parts: list[str]) -> list[str]:
    """Neighbouring texts joined: tokens may cross from one to the next, but not control tokens."""
    joined: list[str] = []
    for part in parts:
        if joined and not isinstance(part, Control) and not isinstance(joined[-1], Control):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def pick_layout(tokenizer: Tokenizer, style: str = "auto") -> Layout:
    """The style asked for; auto takes the one whose control tokens the folder's chat template has.
    Raises ValueError for an unknown style or one whose control tokens the tokenizer lacks."""
    needs = {name: end for name, (_, end, _) in STYLES.items()}
    if style == "auto":
        fits = [name for name, token in needs.items() if token in tokenizer.chat]
        style = fits[0] if fits else "plain"
    if style not in (*needs, "plain"):
        raise ValueError(f"layout must be auto, {', '.join(needs)} or plain: {style}")
    if style != "plain" and needs[style] not in tokenizer.encoding.special_tokens_set:
        raise ValueError(f"the model's tokenizer has no {needs[style]}, which {style} needs")
    return Layout(tokenizer, style)
