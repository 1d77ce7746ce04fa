"""The output head without its logits in memory, and products that are exact in float32."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor


def exact_product(x: Tensor, y: Tensor) -> Tensor:
    """x · yᵀ in float32 at least. Products of bfloat16 numbers are exact in float32 and are summed
    there; a bfloat16 result would be rounded to 8 bits. x (…, n, C), y (m, C) → (…, n, m), or
    batches of both."""
    kind = torch.promote_types(x.dtype, torch.float32)
    if x.is_cuda and x.dtype != kind and not torch.is_grad_enabled():  # out_dtype has no gradient
        if y.ndim == 3:
            return torch.bmm(x, y.mT, out_dtype=kind)
        return torch.mm(x.flatten(0, -2), y.mT, out_dtype=kind).unflatten(0, x.shape[:-1])
    return x.to(kind) @ y.to(kind).mT


class HeadScores(torch.autograd.Function):
    """log softmax(z) at one token a row, KL(softmax(z) ‖ softmax(z_ref)), and their gradients, for
    logits z = hidden · weightᵀ / temperature and z_ref alike, without the (n, V) logits: both
    passes go through slices of the vocabulary, and the backward pass recomputes each slice's
    logits instead of storing them.

    hidden and ref_hidden (n, C), weight and ref_weight (V, C), tokens (n,) int64 → (n,), (n,)
    float32, float64 for float64 input. The reference has no gradient. Under autocast on CUDA the
    products take its dtype, but logits and what is summed over rows and vocabulary are never less
    than float32, as in the sampler.
    """

    # Largest number of each model's logits in memory at a time (32 MiB), but at least 256 a row.
    CHUNK = 1 << 23

    @staticmethod
    def slices(
        hidden: Tensor, table: Tensor, ref_hidden: Tensor, ref_table: Tensor, temperature: float
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slice by slice of the vocabulary: which it is, and z and z_ref there, (n, width) each."""
        # Narrower products are slower; whole multiples of 64 keep the rows of a slice aligned.
        width = max(256, HeadScores.CHUNK // len(hidden) // 64 * 64)
        for start in range(0, len(table), width):
            part = slice(start, min(start + width, len(table)))
            z, z_ref = (
                exact_product(x, rows[part]).div_(temperature)
                for x, rows in ((hidden, table), (ref_hidden, ref_table))
            )
            yield part, z, z_ref

    @staticmethod
    def place(part: slice, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Where in a slice each row's token lies, (n, 1), and whether it does, (n, 1)."""
        at = (tokens - part.start)[:, None]
        width = part.stop - part.start
        return at.clamp(0, width - 1), (at >= 0) & (at < width)

    @staticmethod
    def forward(ctx, hidden, weight, ref_hidden, ref_weight, tokens, temperature):
        auto = hidden.is_cuda and torch.is_autocast_enabled("cuda")
        low = torch.get_autocast_dtype("cuda") if auto else hidden.dtype
        kind = torch.promote_types(hidden.dtype, torch.float32)
        heads = hidden, weight, ref_hidden, ref_weight
        chosen, mass, gap = torch.zeros(3, len(tokens), 1, dtype=kind, device=hidden.device)
        peak, ref_logsumexp = torch.full((2, *mass.shape), -math.inf).to(mass)
        with torch.autocast(hidden.device.type, enabled=False):
            operands = [x.to(low) for x in heads]
            for part, z, z_ref in HeadScores.slices(*operands, temperature):
                at, inside = HeadScores.place(part, tokens)
                chosen = torch.where(inside, z.gather(1, at), chosen)
                ref_logsumexp = ref_logsumexp.logaddexp(z_ref.logsumexp(1, keepdim=True))
                z_ref = z - z_ref
                higher = peak.maximum(z.amax(1, keepdim=True))
                shrink, peak = (peak - higher).exp(), higher
                z = z.sub_(peak).exp_()
                mass = mass * shrink + z.sum(1, keepdim=True)
                gap = gap * shrink + z.mul_(z_ref).sum(1, keepdim=True)
        logsumexp, gap = peak + mass.log(), gap / mass  # gap: E over softmax(z) of z − z_ref
        ctx.save_for_backward(*heads, tokens, logsumexp, gap)
        ctx.low, ctx.temperature = low, temperature
        return (chosen - logsumexp)[:, 0], (gap - logsumexp + ref_logsumexp)[:, 0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_logprob, d_kl):
        *heads, tokens, logsumexp, gap = ctx.saved_tensors
        d_logprob, d_kl = (d[:, None] / ctx.temperature for d in (d_logprob, d_kl))  # (n, 1)
        d_hidden = torch.zeros_like(heads[0], dtype=d_kl.dtype)
        d_weight = torch.empty_like(heads[1])
        with torch.autocast(d_kl.device.type, enabled=False):
            operands = hidden, weight, *_ = [x.to(ctx.low) for x in heads]
            for part, z, z_ref in HeadScores.slices(*operands, ctx.temperature):
                at, inside = HeadScores.place(part, tokens)
                # ∂ log softmax(z)_token = [v = token] − p_v and ∂ KL = p_v (z_v − z_ref_v − gap)
                factor = z_ref.neg_().add_(z).sub_(gap).mul_(d_kl).sub_(d_logprob)
                grad = z.sub_(logsumexp).exp_().mul_(factor)
                grad.scatter_add_(1, at, torch.where(inside, d_logprob, 0))  # (n, width)
                grad = grad.to(ctx.low)
                d_hidden += exact_product(grad, weight[part].T)
                d_weight[part] = exact_product(grad.T, hidden.T)
        return d_hidden.to(heads[0].dtype), d_weight, None, None, None, None
