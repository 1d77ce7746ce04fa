"""A model folder's own tokenizer as a tiktoken.Encoding, read from tokenizer.json or from
vocab.json and merges.txt.

Byte-level BPE only: GPT-2, Llama 3, SmolLM2, Qwen. tiktoken merges in the order of token ids, the
files list merges in an order of their own; a tokenizer whose ids are not in that order is refused.
Llama 2 and Gemma have SentencePiece models, which split text by other rules and are refused.
"""

import unicodedata
from dataclasses import dataclass
from pathlib import Path

import tiktoken

from pretrained.weights import KNOWN, read_json

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same with every digit a piece of its own: no blank joins a digit, and a run of blanks before a
# digit is split as at the end of the text.
DIGITS_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST = 200_000  # characters of a text; tiktoken panics at a run of a million blanks


class ByteLevel(tiktoken.Encoding):
    """An encoding that refuses text with a byte that has no token. SmolLM2's vocabulary lacks some
    bytes that hardly any text contains; tiktoken panics at them, and transformers drops them
    silently."""

    def __init__(self, name: str, *, mergeable_ranks: dict[bytes, int], **options):
        super().__init__(name, mergeable_ranks=mergeable_ranks, **options)
        self.lacking = {byte for byte in range(256) if bytes([byte]) not in mergeable_ranks}

    def prepare(self, text: str) -> str:
        """The text to cut into tokens. Raises ValueError if it is long or a byte has no token."""
        if len(text) > LONGEST:
            raise ValueError(f"a text of {len(text):,} characters is longer than {LONGEST:,}")
        if not self.lacking:
            return text
        # Replace half a surrogate pair as tiktoken does.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        found = self.lacking.intersection(text.encode())
        if found:
            byte = min(found)
            character = next(each for each in text if byte in each.encode())
            raise ValueError(
                f"the model's tokenizer has no token for the byte {byte} of {character!r}"
            )
        return text

    def encode_ordinary(self, text: str) -> list[int]:
        try:
            return super().encode_ordinary(self.prepare(text))
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # tiktoken's own, and no Exception
                raise
            raise ValueError(f"the model's tokenizer cannot split {text[:40]!r}") from None


class ComposedByteLevel(ByteLevel):
    """Composes characters first (Unicode's NFC), as Qwen's tokenizers do."""

    def prepare(self, text: str) -> str:
        return super().prepare(unicodedata.normalize("NFC", text))


@dataclass(frozen=True)
class Tokenizer:
    """An encoding, the tokens that begin and end a text, and the chat template."""

    encoding: tiktoken.Encoding
    eos: int  # token that ends a text, or a turn if the model is tuned to chat
    bos: int | None  # token that begins a text, if the folder names one
    adds_bos: bool  # whether bos begins every text
    chat: str  # chat template of the folder; empty if it has none


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Raises ValueError or OSError, in one line that names the file, for a tokenizer that is
    missing, malformed or not byte-level BPE."""
    folder = Path(folder)
    settings = read_if_there(folder / "tokenizer_config.json")
    whole = read_if_there(folder / "tokenizer.json")
    try:
        if (folder / "tokenizer.json").exists():
            encoding = from_tokenizer_json(whole, folder / "tokenizer.json")
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            encoding = from_vocab_and_merges(folder, settings)
        elif (folder / "tokenizer.model").exists():
            raise ValueError(not_byte_level(folder / "tokenizer.model"))
        else:
            raise FileNotFoundError(f"no tokenizer.json, nor vocab.json and merges.txt in {folder}")
        first, adds_bos = first_of_every_text(whole), settings.get("add_bos_token")
        made = Tokenizer(
            encoding,
            eos=end_of_text(encoding, settings, folder),
            bos=token_named(encoding, first or settings.get("bos_token")),
            adds_bos=first is not None if adds_bos is None else adds_bos,
            chat=chat_template(settings, folder),
        )
        if made.adds_bos and made.bos is None:
            raise ValueError(f"{folder}: each text begins with a token that its tokenizer lacks")
        return made
    except (KeyError, TypeError, AttributeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds a malformed tokenizer ({error!r})") from None


def read_if_there(path: Path) -> dict:
    """The JSON object in a file; empty if there is no such file."""
    return read_json(path) if path.exists() else {}


def not_byte_level(path: Path) -> str:
    return (
        f"{path} is not a byte-level BPE; as with Llama 2 and Gemma it splits text by the rules of "
        f"SentencePiece. The tokenizers of {KNOWN} work"
    )


# ---------------------------------------------------------------------------------------------
# The two forms


def from_tokenizer_json(raw: dict, path: Path) -> ByteLevel:
    model = raw["model"]
    steps = flattened(raw.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    if model.get("type", "BPE") != "BPE" or not byte_level:
        raise ValueError(not_byte_level(path))
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"{path}: {name} is not supported")
    normalizers = [step["type"] for step in flattened(raw.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise ValueError(f"{path}: the normalizer {', '.join(normalizers)} is not supported")
    return build(
        ComposedByteLevel if normalizers else ByteLevel,
        path,
        split_pattern(steps, path),
        model["vocab"],
        [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]],
        special={token["content"]: token["id"] for token in raw.get("added_tokens", [])},
        whole_words=model.get("ignore_merges", False),
    )


def flattened(step: dict | None, name: str) -> list[dict]:
    """The steps of a pipeline, which may be missing, a single step, or a sequence."""
    if step is None:
        return []
    if name not in step:
        return [step]
    return [part for inner in step[name] for part in flattened(inner, name)]


def split_pattern(steps: list[dict], path: Path) -> str:
    """One regular expression that cuts text as all the steps together do."""
    *before, last = steps
    if last["type"] == "ByteLevel" and not last.get("add_prefix_space", False) and len(before) < 2:
        by_gpt2 = last.get("use_regex", True)  # ByteLevel itself cuts by GPT-2's pattern
        if not before and by_gpt2:
            return GPT2_PATTERN
        if before and by_gpt2 and cuts_out_digits(before[0]):
            return DIGITS_PATTERN
        if before and not by_gpt2 and cuts_by_pattern(before[0]):
            pattern = before[0]["pattern"]["Regex"]
            # tiktoken drops text that the pattern does not match; here it is a piece of its own
            return rf"{pattern}|(?:(?!{pattern})[\s\S])+"
    kinds = ", ".join(step["type"] for step in steps)
    raise ValueError(f"{path}: splitting by {kinds} with these settings is not supported")


def cuts_out_digits(step: dict) -> bool:
    return step["type"] == "Digits" and step["individual_digits"]


def cuts_by_pattern(step: dict) -> bool:
    isolated = step.get("behavior") == "Isolated" and not step.get("invert")
    return step["type"] == "Split" and isolated and "Regex" in step["pattern"]


def from_vocab_and_merges(folder: Path, settings: dict) -> ByteLevel:
    vocab = read_json(folder / "vocab.json")
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    special = read_if_there(folder / "added_tokens.json")
    for token_id, token in settings.get("added_tokens_decoder", {}).items():
        if not token_id.isdecimal():
            raise ValueError(f"{folder}/tokenizer_config.json: the token id {token_id!r}")
        special[token["content"]] = int(token_id)
    if "<|endoftext|>" in vocab:
        special["<|endoftext|>"] = vocab["<|endoftext|>"]
    if settings.get("tokenizer_class", "").startswith("Qwen2"):
        return build(ComposedByteLevel, path, QWEN_PATTERN, vocab, merges, special)
    return build(ByteLevel, path, GPT2_PATTERN, vocab, merges, special)


def build(
    kind: type[ByteLevel],
    path: Path,
    pattern: str,
    vocab: dict[str, int],
    merges: list[list[str]],
    special: dict[str, int],
    whole_words: bool = False,
) -> ByteLevel:
    """Makes the encoding. With whole_words, a piece of text that is a token becomes that token even
    if no merges lead to it."""
    merged = merged_tokens(path, vocab, merges)
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks, special = {}, dict(special)
    for token, token_id in vocab.items():
        if token in special:
            continue
        if len(token) > 1 and token not in merged and not whole_words:
            special[token] = token_id  # no merge leads to it, so text never becomes it
            continue
        try:
            ranks[bytes(byte_of[character] for character in token)] = token_id
        except KeyError:
            raise ValueError(not_byte_level(path)) from None
    if min(vocab.values(), default=0) < 0:
        raise ValueError(f"{path} has a negative token id")
    if len({*ranks.values(), *special.values()}) < len(ranks) + len(special):
        raise ValueError(f"{path} gives two tokens the same id")
    try:
        name = path.parent.name
        return kind(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise ValueError(f"{path}: tiktoken cannot use it ({error})") from None


def merged_tokens(path: Path, vocab: dict[str, int], merges: list[list[str]]) -> set[str]:
    """The tokens that merges lead to. Raises ValueError unless the order of token ids, which
    tiktoken merges by, is the order of the list, which the file means."""
    previous, merged = -1, set()
    for pair in merges:
        token = "".join(pair)
        if len(pair) != 2 or any(part not in vocab for part in (*pair, token)):
            raise ValueError(f"{path}: the merge {' '.join(pair)!r} is malformed")
        if token in merged:
            continue  # a second way to the same token, with its id
        if vocab[token] <= previous:
            raise ValueError(f"{path}: token ids do not follow the order of merges at {token!r}")
        previous = vocab[token]
        merged.add(token)
    return merged


def byte_characters() -> list[str]:
    """GPT-2's names of the 256 bytes: printable Latin-1 as it is, the rest from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


# ---------------------------------------------------------------------------------------------
# Beginnings and ends


def token_named(encoding: tiktoken.Encoding, token: str | dict | None) -> int | None:
    """The id of a special token given by its text, or by the object that older files keep."""
    text = token.get("content") if isinstance(token, dict) else token
    if text not in encoding.special_tokens_set:
        return None
    return encoding.encode_single_token(text)


def end_of_text(encoding: tiktoken.Encoding, settings: dict, folder: Path) -> int:
    for token in (settings.get("eos_token"), "<|endoftext|>", "<|end_of_text|>"):
        found = token_named(encoding, token)
        if found is not None:
            return found
    raise ValueError(f"{folder} names no end-of-text token that its tokenizer has")


def chat_template(settings: dict, folder: Path) -> str:
    """The chat template, from its own file or, with older tools, a setting; empty without one."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return str(settings.get("chat_template") or "")


def first_of_every_text(whole: dict) -> str | None:
    """The token that tokenizer.json puts before every text, or None."""
    post = whole.get("post_processor") or {}
    templates = [step.get("single", []) for step in post.get("processors", [post])]
    firsts = [template[0] for template in templates if template]
    return next((part["SpecialToken"]["id"] for part in firsts if "SpecialToken" in part), None)
