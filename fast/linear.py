"""Linear layers in fewer bits or in a faster layout."""

import contextlib
import functools
from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache
def has_onednn(dtype: torch.dtype) -> bool:
    """Whether this build of torch has oneDNN's product with packed weights (a private operator) and
    this processor supports it in the dtype."""
    try:
        one = torch.ones(1, 1, dtype=dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(one, 1)
        return torch.ops.mkldnn._linear_pointwise(one, packed, None, "none", [], "").item() == 1
    except (AttributeError, RuntimeError):
        return False


class OneDNNLinear(nn.Module):
    """A linear layer on a CPU by oneDNN, with weights in a dtype and its fastest layout, followed
    by an elementwise function. The result has the input's dtype."""

    FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.after = dtype, ("none", "")
        self.weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach().to(dtype), 64)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        function, variant = self.after
        given = x.to(self.dtype), self.weight, self.bias, function, [], variant
        return torch.ops.mkldnn._linear_pointwise.default(*given).to(x.dtype)


class LowLinear(nn.Linear):
    """A linear layer whose weights have fewer bits. The result has the input's dtype; under
    autocast, that of the weights, as for any linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers by name; subclasses other than the head's are left out, since they may
    compute something else."""
    kinds = nn.Linear, type(model.head)
    return {name: layer for name, layer in model.named_modules() if type(layer) in kinds}


def onednn_layers(model: nn.Module, low: torch.dtype) -> dict[str, nn.Module]:
    """By name, the replacements of a model's linear layers on a CPU: in `low`, except the head."""
    found: dict[str, nn.Module] = {}
    for name, layer in linear_layers(model).items():
        dtype = torch.float32 if layer is model.head else low
        # For small products in float32, calling oneDNN costs more than it saves.
        small = dtype == torch.float32 and layer.weight.numel() < 1 << 16
        if has_onednn(dtype) and not small:
            found[name] = OneDNNLinear(layer, dtype)
    # A plain MLP applies its activation to all of `up`'s output, so it is fused with the product; a
    # gated one applies it to half.
    for name in [name for name in found if name.endswith("mlp.up") and not model.config.gated]:
        found[name].after = OneDNNLinear.FUSED[model.config.activation]
        found[name.replace("mlp.up", "mlp.activation")] = nn.Identity()
    return found


def freeze(model: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Makes a model the frozen reference. Weights that autocast would round to `dtype` at every
    step are rounded once; the head's are not."""
    for name, layer in linear_layers(model).items():
        if layer is not model.head and dtype != layer.weight.dtype:
            shape = layer.in_features, layer.out_features, layer.bias is not None
            rounded = LowLinear(*shape, device=layer.weight.device, dtype=dtype)
            rounded.load_state_dict(layer.state_dict())
            model.set_submodule(name, rounded)
    return model.requires_grad_(False).eval()


def low_copies(model: nn.Module, low: torch.dtype) -> dict[str, nn.Module]:
    """By name, the replacements of a model's linear layers on CUDA. The copies are kept between
    calls, since CUDA graphs refer to them by address."""
    copies = model.low_copies
    for name, layer in linear_layers(model).items():
        place = layer.weight.device
        kept = copies[name].weight if name in copies else None
        if kept is None or (kept.dtype, kept.device) != (low, place):
            kind = type(layer) if layer is model.head else LowLinear
            shape = layer.in_features, layer.out_features, layer.bias is not None
            copy = nn.utils.skip_init(kind, *shape, device=place, dtype=low)
            copies[name] = copy.requires_grad_(False)
        copies[name].load_state_dict(layer.state_dict())
    return copies


@contextlib.contextmanager
def decoding(model: nn.Module) -> Iterator[torch.dtype]:
    """A context in which faster copies replace a float32 model's linear layers; the weights must
    not change inside it. Yields the dtype for keys and values.

    Under autocast the copies have its dtype, made once and not at every step. Everything else stays
    in float32: norms, residual stream, softmax, logits, and on a CPU the head and the cache, which
    would not be read faster in bfloat16.
    """
    device, own = model.device.type, model.tokens.weight.dtype
    auto = own == torch.float32 and torch.is_autocast_enabled(device)
    low = torch.get_autocast_dtype(device) if auto else own
    layers: dict[str, nn.Module] = {}
    if own == torch.float32 and device == "cpu":
        layers = onednn_layers(model, low)
    elif low != own:
        layers = low_copies(model, low)
    originals = {name: model.get_submodule(name) for name in layers}
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        with torch.autocast(device, enabled=False):
            yield low if device == "cuda" else own
    finally:
        for name, layer in originals.items():
            model.set_submodule(name, layer)
