"""A model's shape and tensors in a checkpoint folder, as model hubs keep them: config.json and
*.safetensors.

A shape is a dict of model.GPTConfig's fields, which are explained there. Tensors are copied into
and out of a model that exists already, a module with the parameters of model.GPT.
"""

import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

MODEL_TYPES = ("gpt2", "llama", "qwen2", "qwen3")  # config.json's model_type
KNOWN = "GPT-2, Llama 3, SmolLM2, Qwen2, Qwen2.5 and Qwen3"  # models of these families


def read_json(path: Path) -> dict:
    """A JSON object. Raises ValueError or OSError, in one line that names the file."""
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return content


# ---------------------------------------------------------------------------------------------
# config.json → a shape

# Features that this code lacks; config.json must omit them or have these values.
UNUSED = {
    "quantization_config": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "use_sliding_window": False,
    "is_causal": True,
    "partial_rotary_factor": 1.0,
}
ACTIVATION_NAMES = {  # config.json's → ours
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
}


def read_shape(folder: str | Path) -> dict:
    """The shape of a checkpoint folder's model. A field that is absent or None has GPTConfig's
    default. Raises ValueError or OSError, in one line that names the file, for fields that are
    missing, of the wrong type or not supported."""
    path = Path(folder) / "config.json"
    raw = read_json(path)
    try:
        shape = shape_from_json(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    # Before anything is allocated: do the embeddings and the widest matrices fit in the files?
    widths = shape.get("inner") or 1, shape["heads"] * (shape.get("head_width") or 1)
    rows = shape["vocab_size"] + shape["layers"] * max(shape["width"], *widths)
    rows += shape["context"] if shape["family"] == "gpt2" else 0
    size = sum(file.stat().st_size for file in path.parent.glob("*.safetensors")) or 2**45
    if 2 * shape["width"] * rows > size or shape["layers"] > 1000:  # a weight has two bytes or more
        raise ValueError(f"{path}: its model is larger than {size:,} bytes; is a file cut short?")
    return shape


def shape_from_json(raw: dict) -> dict:
    """The shape that config.json's content describes. Raises ValueError, naming the field."""
    family = raw.get("model_type")
    if family not in MODEL_TYPES:
        raise ValueError(f"model_type {family!r} is not supported; {KNOWN} are")
    for name, unused in UNUSED.items():
        if raw.get(name, unused) not in (unused, None):
            raise ValueError(f"{name} {raw[name]!r} is not supported")
    shape = gpt2_shape(raw) if family == "gpt2" else llama_shape(raw, family)
    return {"vocab_size": value(raw, "vocab_size", int), "family": family} | shape


REQUIRED = object()
KINDS = {
    int: "a whole number of at least 1",
    float: "a finite number above 0",
    bool: "true or false",
    dict: "an object",
}


def value(raw: dict, name: str, kind: type, default=REQUIRED):
    """The value of one of config.json's fields. Where the default is None, null means it too.
    Raises ValueError, naming the field, for one that is missing or not of its kind."""
    found = raw.get(name, default)
    if found is REQUIRED:
        raise ValueError(f"it has no {name}")
    if found is None and default is None:
        return None
    fits = type(found) is kind or (kind is float and type(found) is int)
    if fits and kind in (int, float):  # a whole number may be larger than any float
        fits = 0 < found and (kind is int or found <= sys.float_info.max)
    if not fits:
        raise ValueError(f"{name} must be {KINDS[kind]}, not {found!r}")
    return float(found) if kind is float else found


def activation(raw: dict, name: str, default: str) -> str:
    found = raw.get(name, default)
    if found not in list(ACTIVATION_NAMES):
        raise ValueError(f"{name} {found!r} is not one of {', '.join(ACTIVATION_NAMES)}")
    return ACTIVATION_NAMES[found]


# Fields of a shape → their names in config.json, kinds and, where one may be missing, defaults.
GPT2_FIELDS = {
    "context": ("n_positions", int),
    "layers": ("n_layer", int),
    "heads": ("n_head", int),
    "width": ("n_embd", int),
    "inner": ("n_inner", int, None),
    "norm_eps": ("layer_norm_epsilon", float, 1e-5),
    "tied": ("tie_word_embeddings", bool, True),
}
LLAMA_FIELDS = {
    "context": ("max_position_embeddings", int),
    "layers": ("num_hidden_layers", int),
    "heads": ("num_attention_heads", int),
    "kv_heads": ("num_key_value_heads", int, None),
    "width": ("hidden_size", int),
    "inner": ("intermediate_size", int),
    "norm_eps": ("rms_norm_eps", float, 1e-6),
    "tied": ("tie_word_embeddings", bool, False),
}
ROPE_SCALING = {
    "factor": float,
    "low_freq_factor": float,
    "high_freq_factor": float,
    "original_max_position_embeddings": int,
}


def gpt2_shape(raw: dict) -> dict:
    shape = {ours: value(raw, *field) for ours, field in GPT2_FIELDS.items()}
    return shape | {"activation": activation(raw, "activation_function", "gelu_new")}


def llama_shape(raw: dict, family: str) -> dict:
    """The shape of Llama and the families derived from it."""
    shape = rope_shape(raw) | {ours: value(raw, *field) for ours, field in LLAMA_FIELDS.items()}
    # Of Qwen2 transformers does not read it: there q, k and v have a bias, the output has none.
    bias = family != "qwen2" and value(raw, "attention_bias", bool, False)
    return shape | {
        "head_width": value(raw, "head_dim", int, 128 if family == "qwen3" else None),
        "activation": activation(raw, "hidden_act", "silu"),
        "gated": True,
        "rms_norm": True,
        "qk_norm": family == "qwen3",
        "qkv_bias": bias or family == "qwen2",
        "out_bias": bias,
        "mlp_bias": family == "llama" and value(raw, "mlp_bias", bool, False),
    }


def rope_shape(raw: dict) -> dict:
    """Rotary positions: in transformers 5 from rope_parameters, in older files from rope_theta and
    rope_scaling, which counts if a file has both."""
    new, old = (value(raw, name, dict, None) for name in ("rope_parameters", "rope_scaling"))
    rope = {"rope_theta": raw["rope_theta"]} if "rope_theta" in raw else {}
    rope |= old or new or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rope type {kind!r} is not supported")
    scaling = None
    if kind == "llama3":
        scaling = tuple(value(rope, *field) for field in ROPE_SCALING.items())
        if scaling[1] >= scaling[2]:
            raise ValueError("low_freq_factor must be below high_freq_factor")
    return {"rope": value(rope, "rope_theta", float, 10000.0), "rope_scaling": scaling}


# ---------------------------------------------------------------------------------------------
# A shape → config.json


def shape_to_json(shape: dict) -> dict:
    """The config.json from which the family's own tools build a model of this shape. If the family
    has no such model, and only then, `shape_from_json` refuses it or gives another shape."""
    family, scaling = shape["family"], shape["rope_scaling"]
    fields = GPT2_FIELDS if family == "gpt2" else LLAMA_FIELDS
    raw = {"model_type": family, "vocab_size": shape["vocab_size"]}
    raw |= {name: shape[ours] for ours, (name, *_) in fields.items()}
    if family == "gpt2":
        return raw | {
            "architectures": ["GPT2LMHeadModel"],
            "activation_function": shape["activation"].replace("gelu_tanh", "gelu_new"),
        }
    raw |= {
        "architectures": [f"{family.capitalize()}ForCausalLM"],
        "head_dim": shape["head_width"],
        "hidden_act": shape["activation"].replace("gelu_tanh", "gelu_pytorch_tanh"),
        "attention_bias": shape["out_bias"],
        "mlp_bias": shape["mlp_bias"],
        "rope_theta": shape["rope"],
    }
    if scaling is not None:
        raw["rope_scaling"] = {"rope_type": "llama3"} | dict(zip(ROPE_SCALING, scaling))
    return raw


# ---------------------------------------------------------------------------------------------
# Names of tensors


def checkpoint_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a checkpoint by their names in the model's family, each a view of a parameter.
    One list serves both directions: loading writes through the views, and saving reads them."""
    tensors = gpt2_tensors(model) if model.config.family == "gpt2" else llama_tensors(model)
    tensors = {name: tensor.detach() for name, tensor in tensors if tensor is not None}
    if not model.config.tied:
        tensors["lm_head.weight"] = model.head.weight.detach()
    return tensors


def gpt2_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """GPT-2's names. It stores the matrices of its blocks as (inputs, outputs)."""
    top = "transformer"
    yield f"{top}.wte.weight", model.tokens.weight
    yield f"{top}.wpe.weight", model.positions.weight
    for i, block in enumerate(model.blocks):
        for name, linear in (
            ("attn.c_attn", block.attention.qkv),
            ("attn.c_proj", block.attention.out),
            ("mlp.c_fc", block.mlp.up),
            ("mlp.c_proj", block.mlp.out),
        ):
            yield f"{top}.h.{i}.{name}.weight", linear.weight.T
            yield f"{top}.h.{i}.{name}.bias", linear.bias
        for name, norm in (("ln_1", block.norm1), ("ln_2", block.norm2)):
            yield f"{top}.h.{i}.{name}.weight", norm.weight
            yield f"{top}.h.{i}.{name}.bias", norm.bias
    yield f"{top}.ln_f.weight", model.norm.weight
    yield f"{top}.ln_f.bias", model.norm.bias


def llama_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor | None]]:
    """Llama's names. It stores separately what is fused here: queries, keys and values; gate and
    up. A bias that the model lacks is None."""
    config = model.config
    heads = [n * config.head_width for n in (config.heads, config.kv_heads, config.kv_heads)]
    yield "model.embed_tokens.weight", model.tokens.weight
    yield "model.norm.weight", model.norm.weight
    for i, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        for names, rows, linear in (
            (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), heads, attention.qkv),
            (("self_attn.o_proj",), [config.width], attention.out),
            (("mlp.gate_proj", "mlp.up_proj"), [config.inner] * 2, mlp.up),
            (("mlp.down_proj",), [config.width], mlp.out),
        ):
            for kind in ("weight", "bias"):
                whole = getattr(linear, kind)
                parts = [None] * len(rows) if whole is None else whole.split(rows)
                yield from ((f"model.layers.{i}.{n}.{kind}", p) for n, p in zip(names, parts))
        norms = {"input_layernorm": block.norm1, "post_attention_layernorm": block.norm2}
        if config.qk_norm:
            norms |= {"self_attn.q_norm": attention.q_norm, "self_attn.k_norm": attention.k_norm}
        for name, norm in norms.items():
            yield f"model.layers.{i}.{name}.weight", norm.weight


# ---------------------------------------------------------------------------------------------
# *.safetensors
#
# The format is a length, a JSON header and raw little-endian arrays, so no library is needed.

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Masks and frequencies that old files have beside the weights.
BUFFERS = re.compile(r".*\.attn\.(masked_)?bias|.*rotary_emb\.inv_freq")


def load_tensors(model: nn.Module, folder: Path) -> None:
    """Fills the model from the folder's *.safetensors, with one tensor in memory at a time, besides
    a tied head that a file repeats. Raises ValueError or OSError, in one line that names file and
    tensor, if they do not fit."""
    wanted = checkpoint_tensors(model)
    head = "lm_head.weight"
    if tied := model.config.tied:
        wanted[head] = torch.empty_like(model.head.weight, device="cpu")
    found: set[str] = set()
    for path in safetensors_files(folder):
        header, start = read_header(path)
        with path.open("rb") as file:
            for name, (dtype, shape, begin, end) in header.items():
                if name.split(".")[0] in ("wte", "wpe", "h", "ln_f"):
                    name = "transformer." + name  # missing in GPT-2's first files
                if name not in wanted or name in found:
                    which = "twice" if name in found else "which config.json has no place for"
                    raise ValueError(f"{path} holds {name}, {which}")
                if tuple(wanted[name].shape) != shape:
                    raise ValueError(
                        f"{path}: {name} is {list(shape)}, but config.json makes it "
                        f"{list(wanted[name].shape)}"
                    )
                raw = torch.empty(end - begin, dtype=torch.uint8)
                file.seek(start + begin)
                file.readinto(raw.numpy())
                wanted[name].copy_(raw.view(dtype).view(shape))
                found.add(name)
    if tied and head in found and not torch.equal(wanted[head], model.head.weight.cpu()):
        raise ValueError(
            f"{folder}: {head} differs from the embeddings; should tie_word_embeddings be false?"
        )
    missing = sorted(wanted.keys() - found - ({head} if tied else set()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        tie = "; should tie_word_embeddings be true?" if missing == [head] else ""
        raise ValueError(f"{folder} lacks the tensor {missing[0]}{more}{tie}")


def safetensors_files(folder: Path) -> list[Path]:
    """The files with weights: those that the index names, or else model.safetensors."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        path = folder / "model.safetensors"
        if not path.exists():
            hint = "; pickled weights are never read" if any(folder.glob("*.bin")) else ""
            raise FileNotFoundError(f"{folder} has no model.safetensors{hint}")
        return [path]
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
        raise ValueError(f"{index} has no weight_map")
    paths = [folder / Path(name).name for name in sorted(set(names.values()))]
    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"{index} names {path.name}, which is missing")
    return paths


def read_header(path: Path) -> tuple[dict[str, tuple[torch.dtype, tuple[int, ...], int, int]], int]:
    """The tensors of a safetensors file, name → (dtype, shape, begin, end), and the offset of the
    data, from which begin and end count bytes. Raises ValueError if they are inconsistent."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, 10**8):  # as the safetensors library has it
            raise ValueError(f"{path} is truncated or not a safetensors file")
        try:
            raw = json.loads(file.read(length))
            raw.pop("__metadata__", None)
            header = {
                name: (DTYPES[entry["dtype"]], tuple(entry["shape"]), *entry["data_offsets"])
                for name, entry in raw.items()
                if not BUFFERS.fullmatch(name)
            }
            for name, (dtype, shape, begin, end) in header.items():
                if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                    raise ValueError(f"{name} has sizes that are not whole numbers")
                if end - begin != math.prod(shape) * dtype.itemsize:
                    raise ValueError(f"the size of {name} is not that of its shape")
            ranges = sorted(entry[2:] for entry in header.values())
            if any(end > begin for (_, end), (begin, _) in zip(ranges, ranges[1:])):
                raise ValueError("tensors overlap")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} has a header that cannot be read ({error})") from None
    start = 8 + length
    last = max((end for *_, end in header.values()), default=0)
    if start + last > size:
        raise ValueError(f"{path} is truncated: {size} bytes of {start + last}")
    return header, start


def save_checkpoint(model: nn.Module, content: dict, folder: Path) -> None:
    """Writes `content` to config.json, and model.safetensors. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    dtype = str(model.tokens.weight.dtype).removeprefix("torch.")
    text = json.dumps(content | {"torch_dtype": dtype}, indent=2) + "\n"
    (folder / "config.json").write_text(text)
    write_safetensors(folder / "model.safetensors", checkpoint_tensors(model))


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    codes = {dtype: code for code, dtype in DTYPES.items()}
    header: dict = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entry = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape)}
        header[name] = entry | {"data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    with partial.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.cpu().contiguous().view(torch.uint8).numpy().data)
    os.replace(partial, path)


COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
COMPANIONS += ("merges.txt", "added_tokens.json", "special_tokens_map.json")
COMPANIONS += ("chat_template.jinja", "chat_template.json", "generation_config.json")


def companions(source: Path, target: Path) -> list[Path]:
    """The files of `source` to copy. Raises ValueError if it is not a model's folder, for a folder
    in place of a file, and for links among the files or in `target`, which may lead anywhere."""
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json; if it was moved, --init tells where")
    paths = [path for path in map(source.joinpath, COMPANIONS) if os.path.lexists(path)]
    for path in (*paths, target, *target.glob("*")):
        if path.is_symlink() or (path in paths and not path.is_file()):
            raise ValueError(f"{path} is a link or a folder; put a plain copy there")
    return paths


def copy_companions(source: Path, target: Path) -> None:
    """Copies the rest of a model's folder: the files of its tokenizer and chat template, and from
    config.json the ids of the tokens that begin and end a text."""
    ids = {k: v for k, v in read_json(source / "config.json").items() if k.endswith("_token_id")}
    content = read_json(target / "config.json") | ids
    (target / "config.json").write_text(json.dumps(content, indent=2) + "\n")
    for path in companions(source, target):
        shutil.copy(path, target)
