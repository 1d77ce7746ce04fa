"""A model folder's own tokenizer as a tiktoken.Encoding, read from tokenizer.json or from
vocab.json and merges.txt.

Byte-level BPE only: GPT-2, Llama 3, SmolLM2, Qwen. tiktoken merges by token id where the files
list merges in order, so the two must agree, and that is checked. Llama 2 and Gemma come with
SentencePiece models, which split text by other rules and are refused.
"""

import json
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import tiktoken

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The same where every digit is first cut out on its own: no blank joins a digit, and a run of
# blanks before a digit ends as if the text did.
DIGITS_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class NFC(tiktoken.Encoding):
    """Composes characters before encoding, as Qwen's tokenizers do."""

    def encode(self, text: str, **options) -> list[int]:
        return super().encode(unicodedata.normalize("NFC", text), **options)

    def encode_ordinary(self, text: str) -> list[int]:
        return super().encode_ordinary(unicodedata.normalize("NFC", text))


@dataclass(frozen=True)
class Tokenizer:
    """An encoding and what its folder says about the ends of texts."""

    encoding: tiktoken.Encoding
    eos: int  # ends a text; of a model tuned to chat, its turn
    bos: int | None  # begins a text, if the folder names such a token
    adds_bos: bool  # to every text
    chat: str  # the folder's chat template; empty if it has none


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Raises ValueError or OSError, in one line that names the file, for a tokenizer that is
    missing, malformed or not byte-level BPE."""
    folder = Path(folder)
    settings = read(folder / "tokenizer_config.json") or {}
    whole = read(folder / "tokenizer.json")
    try:
        if whole is not None:
            encoding = from_tokenizer_json(whole, folder)
        elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            encoding = from_vocab_and_merges(folder, settings)
        elif (folder / "tokenizer.model").exists():
            raise ValueError(not_byte_level(folder / "tokenizer.model"))
        else:
            raise FileNotFoundError(f"no tokenizer.json, nor vocab.json and merges.txt in {folder}")
        added = added_first(whole or {})
        return Tokenizer(
            encoding,
            eos=end_of_text(encoding, settings, folder),
            bos=token_named(encoding, added or settings.get("bos_token")),
            adds_bos=added is not None or settings.get("add_bos_token", False),
            chat=chat_template(settings, folder),
        )
    except (KeyError, TypeError, AttributeError, OverflowError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds a malformed tokenizer ({error!r})") from None


def read(path: Path) -> dict | None:
    """A JSON object, or None where there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


def not_byte_level(path: Path) -> str:
    return (
        f"{path} is not a byte-level BPE; as with Llama 2 and Gemma it splits text by the rules of "
        "SentencePiece. GPT-2, Llama 3, SmolLM2 and Qwen models have tokenizers that work"
    )


# ---------------------------------------------------------------------------------------------
# The two forms


def from_tokenizer_json(raw: dict, folder: Path) -> tiktoken.Encoding:
    path, model = folder / "tokenizer.json", raw["model"]
    steps = flattened(raw.get("pre_tokenizer"), "pretokenizers")
    if model.get("type", "BPE") != "BPE" or not any(s["type"] == "ByteLevel" for s in steps):
        raise ValueError(not_byte_level(path))
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ValueError(f"{path}: {name} is not supported")
    normalizers = [step["type"] for step in flattened(raw.get("normalizer"), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise ValueError(f"{path}: the normalizer {', '.join(normalizers)} is not supported")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    special = {token["content"]: token["id"] for token in raw.get("added_tokens", [])}
    kind = NFC if normalizers else tiktoken.Encoding
    whole_words = model.get("ignore_merges", False)
    return build(
        kind, path, split_pattern(steps, path), model["vocab"], merges, special, whole_words
    )


def flattened(step: dict | None, name: str) -> list[dict]:
    """A pipeline's steps, whether it is none, one or a sequence of them."""
    if step is None:
        return []
    return (
        [part for inner in step[name] for part in flattened(inner, name)]
        if name in step
        else [step]
    )


def split_pattern(steps: list[dict], path: Path) -> str:
    """One regular expression that cuts text as the steps together do."""
    *before, last = steps
    plain = last["type"] == "ByteLevel" and not last.get("add_prefix_space", False)
    own = last.get("use_regex", True)  # ByteLevel cuts by GPT-2's pattern
    if plain and own and not before:
        return GPT2_PATTERN
    if plain and len(before) == 1:
        [step] = before
        if own and step["type"] == "Digits" and step["individual_digits"]:
            return DIGITS_PATTERN
        isolated = step.get("behavior") == "Isolated" and not step.get("invert")
        if not own and step["type"] == "Split" and isolated and "Regex" in step["pattern"]:
            return step["pattern"]["Regex"] + r"|[\s\S]"  # tiktoken drops what nothing matches
    kinds = ", ".join(step["type"] for step in steps)
    raise ValueError(f"{path}: splitting by {kinds} with these settings is not supported")


def from_vocab_and_merges(folder: Path, settings: dict) -> tiktoken.Encoding:
    vocab = read(folder / "vocab.json")
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    special = dict(read(folder / "added_tokens.json") or {})
    for token_id, token in settings.get("added_tokens_decoder", {}).items():
        special[token["content"]] = int(token_id)
    if "<|endoftext|>" in vocab:
        special["<|endoftext|>"] = vocab["<|endoftext|>"]
    qwen = settings.get("tokenizer_class", "").startswith("Qwen2")
    pattern = QWEN_PATTERN if qwen else GPT2_PATTERN
    return build(NFC if qwen else tiktoken.Encoding, path, pattern, vocab, merges, special)


def build(
    kind: type[tiktoken.Encoding],
    path: Path,
    pattern: str,
    vocab: dict[str, int],
    merges: list[list[str]],
    special: dict[str, int],
    whole_words: bool = False,
) -> tiktoken.Encoding:
    """Checks that merging by token id is merging in the listed order, and makes the encoding. With
    whole_words a piece of text that is a token becomes that token, whether merges make it or not.
    """
    previous, merged = -1, set()
    for pair in merges:
        token = "".join(pair)
        if len(pair) != 2 or token not in vocab:
            raise ValueError(f"{path}: the merge {' '.join(pair)!r} is malformed")
        if token in merged:
            continue  # a second way to the same token, with its id
        if vocab[token] <= previous:
            raise ValueError(f"{path}: token ids do not follow the order of merges at {token!r}")
        previous = vocab[token]
        merged.add(token)
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    ranks, special = {}, dict(special)
    for token, token_id in vocab.items():
        if token in special:
            continue
        if len(token) > 1 and token not in merged and not whole_words:
            special[token] = token_id  # no merge makes it, so text never becomes it
            continue
        try:
            ranks[bytes(byte_of[character] for character in token)] = token_id
        except KeyError:
            raise ValueError(not_byte_level(path)) from None
    # 0xC0, 0xC1 and 0xF5 to 0xFF are not part of any UTF-8 text.
    needed = set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}
    lacking = [byte for byte in needed if bytes([byte]) not in ranks]
    if lacking:
        raise ValueError(f"{path} has no token for the byte {min(lacking)}")
    if min(vocab.values()) < 0:
        raise ValueError(f"{path} has a negative token id")
    try:
        name = path.parent.name
        return kind(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    except ValueError as error:
        raise ValueError(f"{path}: tiktoken cannot use it ({error})") from None


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
    """In a file of its own or, from older tools, in a setting."""
    path = folder / "chat_template.jinja"
    return (
        path.read_text(encoding="utf-8")
        if path.exists()
        else str(settings.get("chat_template", ""))
    )


def added_first(whole: dict) -> str | None:
    """The token that tokenizer.json puts before every text, if it does so."""
    post = whole.get("post_processor") or {}
    templates = [step.get("single", []) for step in post.get("processors", [post])]
    firsts = [template[0] for template in templates if template]
    return next((part["SpecialToken"]["id"] for part in firsts if "SpecialToken" in part), None)
