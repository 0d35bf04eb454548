"""Right answers to the exercises of chapter 09 in other styles than the solutions'."""

import numpy as np
import torch

# --- 9.1 ------------------------------------------------------------------------------------------


def affine_by_torch(x, low, high, bits):
    low, high = min(low, 0.0), max(high, 0.0)
    last = 2**bits - 1
    scale = (high - low) / last
    zero = int(np.rint(-low / scale))
    fake = torch.fake_quantize_per_tensor_affine(x.float(), scale, zero, 0, last)
    return (fake / scale + zero).round().to(torch.uint8), scale, zero


def affine_in_numpy(x, low, high, bits):
    ends = np.array([min(low, 0.0), max(high, 0.0)])
    scale = np.ptp(ends) / (2**bits - 1)
    zero = np.rint(-ends[0] / scale)
    codes = np.clip(np.rint(x.numpy() / scale + zero), 0, 2**bits - 1)
    return codes.astype(np.int32), scale, zero


def affine_by_holding(x, low, high, bits):
    """What lies outside is brought to the ends of the grid first."""
    low, high = torch.tensor([low, high, 0.0], dtype=torch.float64).aminmax()
    step = (high - low) / (2**bits - 1)
    zero = (-low / step).round()
    held = x.double().clamp(-zero * step, (2**bits - 1 - zero) * step)
    return (held / step + zero).round().long(), step, zero


# --- 9.2 ------------------------------------------------------------------------------------------


def groups_by_loops(weight, group, bits):
    last = 2 ** (bits - 1) - 1
    codes, scales = torch.zeros_like(weight), []
    for o, row in enumerate(weight):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale = part.abs().max() / last
            scale = scale if scale > 0 else torch.ones_like(scale)
            codes[o, start : start + group] = torch.round(part / scale)
            scales.append(scale)
    return codes.to(torch.int8), torch.stack(scales).reshape(len(weight), -1)


def groups_by_rows(weight, group, bits):
    rows = weight.double().reshape(-1, group)
    scales = torch.linalg.vector_norm(rows, ord=torch.inf, dim=1) / (2 ** (bits - 1) - 1)
    scales[scales == 0] = 1.0
    codes = (rows / scales[:, None]).round().reshape(weight.shape)
    return codes, scales.reshape(len(weight), -1)


def groups_by_repeating(weight, group, bits):
    parts = weight.abs().split(group, dim=1)
    largest = torch.stack([part.max(dim=1).values for part in parts], dim=1)
    scales = largest / (2 ** (bits - 1) - 1)
    scales = scales.masked_fill(scales == 0, 1)
    last = 2 ** (bits - 1) - 1
    return (weight / scales.repeat_interleave(group, 1)).round().clamp(-last, last), scales


# --- 9.3 ------------------------------------------------------------------------------------------


def unpacked_by_loops(packed, scales, group, columns):
    rows = []
    for line, own in zip(packed.tolist(), scales.tolist(), strict=True):
        stored = [half for byte in line for half in (byte % 16, byte // 16)][:columns]
        rows.append([(code - 8) * own[i // group] for i, code in enumerate(stored)])
    return rows


def unpacked_in_place(packed, scales, group, columns):
    wide = packed.to(torch.int16)
    weight = torch.empty(len(packed), 2 * packed.shape[1], dtype=scales.dtype)
    weight[:, 0::2] = (wide & 0xF) - 8
    weight[:, 1::2] = (wide >> 4) - 8
    return weight[:, :columns] * scales[:, torch.arange(columns) // group]


def unpacked_by_a_table(packed, scales, group, columns):
    codes = torch.arange(256)
    table = torch.stack([codes % 16 - 8, codes // 16 - 8], dim=1)
    weight = table[packed.long()].reshape(len(packed), -1)[:, :columns].to(scales.dtype)
    return torch.cat(
        [part * scales[:, [g]] for g, part in enumerate(weight.split(group, dim=1))], dim=1
    )


# --- 9.4 ------------------------------------------------------------------------------------------


def smooth_by_columns(inputs, weight, alpha):
    xs, ws = [], []
    for x, w in zip(inputs.T, weight.T, strict=True):
        top, low = x.abs().max(), w.abs().max()
        s = top**alpha / low ** (1 - alpha) if top > 0 and low > 0 else 1.0
        xs.append(x / s)
        ws.append(w * s)
    return torch.stack(xs, 1), torch.stack(ws, 1)


def smooth_in_logarithms(inputs, weight, alpha):
    top, low = (m.double().abs().amax(0).log() for m in (inputs, weight))
    s = (alpha * top - (1 - alpha) * low).exp()
    s[~s.isfinite() | (s == 0)] = 1.0
    return inputs / s, torch.einsum("oi,i->oi", weight.double(), s)


def smooth_by_matrices(inputs, weight, alpha):
    top = torch.linalg.vector_norm(inputs, torch.inf, dim=0)
    low = torch.linalg.vector_norm(weight, torch.inf, dim=0)
    fine = (top > 0) & (low > 0)
    s = torch.ones_like(top)
    s[fine] = top[fine].pow(alpha) * low[fine].pow(alpha - 1)
    return inputs @ torch.diag(1 / s), weight @ torch.diag(s)


# --- 9.5 ------------------------------------------------------------------------------------------


def feedback_by_cholesky(weight, hessian, scales, bits):
    """GPTQ's own: one upper factor of H⁻¹ has the row of every step."""
    last = 2 ** (bits - 1) - 1
    inverse = torch.linalg.inv(hessian.double())
    factor = torch.linalg.cholesky(inverse, upper=True)
    w, found = weight.double().clone(), []
    for q in range(w.shape[1]):
        rounded = scales * (w[:, q] / scales).round().clamp(-last, last)
        error = (w[:, q] - rounded) / factor[q, q]
        w[:, q + 1 :] -= error[:, None] * factor[q, q + 1 :]
        found.append(rounded)
    return torch.stack(found, 1)


def feedback_by_solving(weight, hessian, scales, bits):
    """The columns behind by their own equations, row by row."""
    last = 2 ** (bits - 1) - 1
    rows = []
    for row, scale in zip(weight.clone(), scales, strict=True):
        for q in range(len(row)):
            new = scale * torch.clamp(torch.round(row[q] / scale), -last, last)
            side = hessian[q + 1 :, q] * (row[q] - new)
            row[q + 1 :] += torch.linalg.solve(hessian[q + 1 :, q + 1 :], side)
            row[q] = new
        rows.append(row)
    return torch.stack(rows)


def feedback_by_elimination(weight, hessian, scales, bits):
    """One inverse, from which each column is eliminated when it is done."""
    last, inverse = 2 ** (bits - 1) - 1, torch.linalg.inv(hessian)
    w, rounded = weight.clone(), torch.zeros_like(weight)
    for q in range(w.shape[1]):
        rounded[:, q] = (w[:, q] / scales).round().clamp(-last, last) * scales
        error = (w[:, q] - rounded[:, q]) / inverse[q, q]
        w = w - torch.outer(error, inverse[q])
        inverse = inverse - torch.outer(inverse[:, q], inverse[q]) / inverse[q, q]
    return rounded


# --- 9.6 ------------------------------------------------------------------------------------------


class Straight(torch.autograd.Function):
    """The gradient written by hand."""

    @staticmethod
    def forward(context, w, scale, bits):
        last = 2 ** (bits - 1) - 1
        context.save_for_backward(w.abs() <= last * scale)
        return torch.clamp(torch.round(w / scale), -last, last) * scale

    @staticmethod
    def backward(context, slope):
        return slope * context.saved_tensors[0], None, None


def straight_by_hand(weight, scale, bits):
    return Straight.apply(weight, scale, bits)


def straight_by_torch(weight, scale, bits):
    last = 2 ** (bits - 1) - 1
    held = weight.float().clamp(-last * scale, last * scale)  # its own gradient ends later
    return torch.fake_quantize_per_tensor_affine(held, scale, 0, -last, last)


def straight_by_a_mask(weight, scale, bits):
    last = 2 ** (bits - 1) - 1
    with torch.no_grad():
        rounded = scale * torch.round(weight / scale).clamp(-last, last)
        inside = (weight.abs() <= scale * last).to(weight.dtype)
    return rounded + inside * (weight - weight.detach())


# --- 9.7 ------------------------------------------------------------------------------------------


def linear_by_loops(inputs, codes, scales, bias):
    rows = []
    for token in inputs:
        scale = token.abs().max().item() / 127 or 1.0
        own = (token / scale).round().long()
        rows.append(
            [
                int((own * row.long()).sum()) * scale * s.item() + b.item()
                for row, s, b in zip(codes, scales, bias, strict=True)
            ]
        )
    return torch.tensor(rows)


def linear_in_numpy(inputs, codes, scales, bias):
    x = inputs.numpy()
    scale = np.abs(x).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1.0
    whole = np.rint(x / scale).astype(np.int32)
    return whole @ codes.numpy().astype(np.int32).T * scale * scales.numpy() + bias.numpy()


def linear_by_torch(inputs, codes, scales, bias):
    largest = inputs.abs().max(dim=1).values
    scale = torch.where(largest > 0, largest / 127, 1.0)
    x = torch.clamp(torch.round(inputs / scale[:, None]), -128, 127)
    y = torch.einsum("ti,oi->to", x.double(), codes.double())
    return torch.addcmul(bias.double(), y, torch.outer(scale, scales).double())


STYLES = {
    "9.1": (affine_by_torch, affine_in_numpy, affine_by_holding),
    "9.2": (groups_by_loops, groups_by_rows, groups_by_repeating),
    "9.3": (unpacked_by_loops, unpacked_in_place, unpacked_by_a_table),
    "9.4": (smooth_by_columns, smooth_in_logarithms, smooth_by_matrices),
    "9.5": (feedback_by_cholesky, feedback_by_solving, feedback_by_elimination),
    "9.6": (straight_by_hand, straight_by_torch, straight_by_a_mask),
    "9.7": (linear_by_loops, linear_in_numpy, linear_by_torch),
}
