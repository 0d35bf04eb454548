"""Right answers to the exercises of chapter 08 in other styles than the solutions'."""

import copy

import torch
import torch.nn.functional as F

# --- 8.1 ------------------------------------------------------------------------------------------


def wanda_by_sorting(weight, inputs, mask, sparsity):
    energy = torch.einsum("bsi,bs->i", inputs.double() ** 2, mask.double())
    scores = weight.double() ** 2 * energy
    order = scores.argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros(weight.shape, dtype=torch.bool)
    for row, best in zip(kept, order[:, : round(weight.shape[1] * (1 - sparsity))], strict=True):
        row[best] = True
    return kept


def wanda_in_lists(weight, inputs, mask, sparsity):
    real = [x for x, m in zip(inputs.flatten(0, 1), mask.flatten(), strict=True) if m]
    norms = torch.stack(real).pow(2).sum(0).sqrt().tolist()
    rows = []
    for row in weight.tolist():
        scores = sorted((abs(w) * n, i) for i, (w, n) in enumerate(zip(row, norms, strict=True)))
        cut = {i for _, i in scores[: round(sparsity * len(row))]}
        rows.append([int(i not in cut) for i in range(len(row))])
    return rows


def wanda_by_cutting(weight, inputs, mask, sparsity):
    norms = (inputs * mask[..., None]).flatten(0, 1).norm(dim=0)
    cut = (weight.abs() * norms).sort(dim=-1, stable=True).indices
    kept = torch.ones_like(weight)
    return kept.scatter_(-1, cut[:, : round(sparsity * weight.shape[-1])], 0.0)


# --- 8.2 ------------------------------------------------------------------------------------------


def groups_by_ranks(weight, n, m):
    o, i = weight.shape
    groups = weight.abs().reshape(o, i // m, m)
    ranks = groups.argsort(-1, descending=True).argsort(-1)
    return (ranks < n).reshape(o, i).to(weight.dtype)


def groups_by_flattening(weight, n, m):
    groups = weight.contiguous().view(-1, m)
    cut = groups.abs().topk(m - n, largest=False).indices
    return torch.ones_like(groups).scatter(1, cut, 0).view(weight.shape).bool()


def groups_by_loops(weight, n, m):
    kept = torch.zeros(weight.shape, dtype=torch.int64)
    for o in range(weight.shape[0]):
        for start in range(0, weight.shape[1], m):
            sizes = weight[o, start : start + m].abs().tolist()
            for best in sorted(range(m), key=lambda k: -sizes[k])[:n]:
                kept[o, start + best] = 1
    return kept


# --- 8.3 ------------------------------------------------------------------------------------------


def column_by_solving(weight, hessian, column, cut):
    """The columns behind by their own equations: no inverse at all."""
    result = weight.clone()
    block, side = hessian[column + 1 :, column + 1 :], hessian[column + 1 :, column]
    moves = torch.linalg.solve(block, side)
    result[cut, column + 1 :] += torch.outer(weight[cut, column], moves)
    result[cut, column] = 0
    return result


def column_by_rows(weight, hessian, column, cut):
    inverse = torch.linalg.inv(hessian[column:, column:].double())
    rows = []
    for row, chosen in zip(weight.double(), cut.tolist(), strict=True):
        moved = row[column:] - row[column] * (inverse[0] / inverse[0, 0])  # 1 at its own place
        rows.append(torch.cat([row[:column], moved if chosen else row[column:]]))
    return torch.stack(rows)


def column_by_cholesky(weight, hessian, column, cut):
    """SparseGPT's own: one factor of the whole inverse has the row of every step."""
    whole = torch.cholesky_inverse(torch.linalg.cholesky(hessian.double()))
    factor = torch.linalg.cholesky(whole, upper=True)
    error = weight[:, column] * cut / factor[column, column]
    result = weight - torch.outer(error, factor[column]).to(weight.dtype)
    return result.index_fill(1, torch.tensor([column]), 0.0).where(cut[:, None], weight)


# --- 8.4 ------------------------------------------------------------------------------------------


def neurons_by_loops(gate, up, down, inputs, keep):
    scores = []
    for f in range(len(gate)):
        g = inputs @ gate[f]
        said = g * torch.sigmoid(g) * (inputs @ up[f])
        scores.append((said @ said * (down[:, f] @ down[:, f])).sqrt().item())
    kept = sorted(sorted(range(len(gate)), key=lambda f: scores[f])[len(gate) - keep :])
    return gate[kept], up[kept], torch.stack([down[:, f] for f in kept], 1)


def neurons_by_a_mask(gate, up, down, inputs, keep):
    hidden = F.silu(F.linear(inputs, gate)).mul(F.linear(inputs, up)).double()
    energy = (hidden**2).sum(0) * (down.double() ** 2).sum(0)
    stay = energy >= energy.sort(descending=True).values[keep - 1]
    return [gate[stay], up[stay], down.T[stay].T]


def neurons_of_one_matrix(gate, up, down, inputs, keep):
    table = torch.cat([gate, up, down.T], dim=1)  # a neuron a row
    both = inputs @ torch.cat([gate, up]).T
    hidden = F.silu(both[:, : len(gate)]) * both[:, len(gate) :]
    order = torch.argsort(-hidden.norm(dim=0) * down.norm(dim=0))[:keep]
    one, two, three = table[order.sort().values].split(len(down), dim=1)
    return one, two, three.T


# --- 8.5 ------------------------------------------------------------------------------------------


def heads_by_numbers(q, k, v, o, kv_heads, kept):
    d = k.shape[0] // kv_heads
    share = q.shape[0] // k.shape[0]
    asked = [g * d + i for g in kept for i in range(d)]
    asking = [(g * share + s) * d + i for g in kept for s in range(share) for i in range(d)]
    return q[asking], k[asked], v[asked], o[:, asking]


def heads_by_chunks(q, k, v, o, kv_heads, kept):
    def some(matrix, axis):
        parts = matrix.chunk(kv_heads, axis)
        return torch.cat([parts[g] for g in kept], axis)

    return some(q, 0), some(k, 0), some(v, 0), some(o, 1)


def heads_by_a_mask(q, k, v, o, kv_heads, kept):
    stay = torch.zeros(kv_heads, dtype=torch.bool)
    stay[kept] = True
    asking = stay.repeat_interleave(q.shape[0] // kv_heads)
    asked = stay.repeat_interleave(k.shape[0] // kv_heads)
    return q[asking], k[asked], v[asked], o[:, asking]


# --- 8.7 ------------------------------------------------------------------------------------------


def recovery_by_gradients(build, masks, ids, labels, alpha, rate):
    """Zeros stay where neither a weight nor its slope is: the masks are on the gradients."""
    student = build()
    teacher = copy.deepcopy(student).requires_grad_(False)
    pairs = list(zip((student.embed.weight, student.middle.weight), masks, strict=True))
    with torch.no_grad():
        for weight, mask in pairs:
            weight.copy_(weight * mask)
    optimizer = torch.optim.SGD(student.parameters(), lr=rate, momentum=0.9)
    losses = []
    for batch, wanted in zip(ids, labels, strict=True):
        logits = student(batch)
        target = alpha * teacher(batch).softmax(-1) + (1 - alpha) * F.one_hot(
            wanted, logits.shape[-1]
        )
        entropy = torch.special.entr(teacher(batch).softmax(-1)).sum(-1).mean()
        loss = F.cross_entropy(logits, target) - alpha * entropy
        optimizer.zero_grad()
        loss.backward()
        for weight, mask in pairs:
            weight.grad *= mask
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor([*losses, sum(int(w.count_nonzero()) for w in student.parameters())])


def recovery_by_hand(build, masks, ids, labels, alpha, rate):
    """Momentum written out, on masked copies of the two matrices."""
    model = build()
    whole = [model.embed.weight.detach(), model.middle.weight.detach()]
    cut = [(w * m).requires_grad_() for w, m in zip(whole, masks, strict=True)]
    speed, losses = [torch.zeros_like(w) for w in cut], []

    def logits(table, middle, batch):
        return table[batch].mean(1) @ middle.T @ table.T

    for batch, wanted in zip(ids, labels, strict=True):
        log_q = logits(*cut, batch).log_softmax(-1)
        log_p = logits(*whole, batch).log_softmax(-1)
        soft = F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
        loss = alpha * soft + (1 - alpha) * F.nll_loss(log_q, wanted)
        slopes = torch.autograd.grad(loss, cut)
        speed = [0.9 * v + g for v, g in zip(speed, slopes, strict=True)]
        moved = zip(cut, speed, masks, strict=True)
        cut = [((w - rate * v) * m).detach().requires_grad_() for w, v, m in moved]
        losses.append(loss.item())
    return [*losses, sum(int((w != 0).sum()) for w in cut)]


STYLES = {
    "8.1": (wanda_by_sorting, wanda_in_lists, wanda_by_cutting),
    "8.2": (groups_by_ranks, groups_by_flattening, groups_by_loops),
    "8.3": (column_by_solving, column_by_rows, column_by_cholesky),
    "8.4": (neurons_by_loops, neurons_by_a_mask, neurons_of_one_matrix),
    "8.5": (heads_by_numbers, heads_by_chunks, heads_by_a_mask),
    "8.7": (recovery_by_gradients, recovery_by_hand),
}
