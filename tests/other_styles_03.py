"""Right answers to the exercises of chapter 03 in other styles than the solutions'."""

import torch
import torch.nn.functional as F

# --- 3.1 ------------------------------------------------------------------------------------------


def labels_by_counting(ids, user, assistant, tool, end):
    def before(token):
        return (ids == token).cumsum(1) - (ids == token).long()

    heads = sum((ids == who).cumsum(1) for who in (user, assistant, tool))
    last = torch.where((ids == user) | (ids == assistant) | (ids == tool), ids, 0)
    who = last.gather(1, _latest(last > 0))
    open_now = heads > before(end)
    mask = open_now & (who == assistant) & (ids != assistant)
    return torch.where(mask, ids, -100)


def _latest(mark):
    places = torch.arange(mark.shape[1]).expand_as(mark)
    return torch.where(mark, places, 0).cummax(1).values


def labels_by_slices(ids, user, assistant, tool, end):
    labels = torch.full(ids.shape, -100)
    for row, line in zip(ids.tolist(), labels, strict=True):
        start = 0
        while assistant in row[start:]:
            start = row.index(assistant, start) + 1
            stop = row.index(end, start) + 1 if end in row[start:] else len(row)
            line[start:stop] = torch.tensor(row[start:stop])
            start = stop
    return labels


def labels_in_lists(ids, user, assistant, tool, end):
    rows = []
    for row in ids.tolist():
        said, rows = None, [*rows, []]
        for token in row:
            rows[-1].append(token if said == assistant else -100)
            said = token if token in (user, assistant, tool) else None if token == end else said
    return rows


# --- 3.2 ------------------------------------------------------------------------------------------


def step_as_one_batch(weights, ids, labels, learning_rate):
    w = weights.detach().clone().requires_grad_()
    logits, targets = w[ids.flatten(0, 1)[:, :-1]], labels.flatten(0, 1)[:, 1:]
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    with torch.no_grad():
        w -= learning_rate * w.grad
    return w.detach()


def step_by_sums(weights, ids, labels, learning_rate):
    w = weights.clone().requires_grad_()
    total, count = 0.0, int((labels[..., 1:] != -100).sum())
    for batch, goal in zip(ids, labels, strict=True):
        logits = w[batch][:, :-1].transpose(1, 2)
        loss = F.cross_entropy(logits, goal[:, 1:], reduction="sum")
        total = total + torch.autograd.grad(loss, w)[0] / count
    return w - learning_rate * total


def step_by_hand(weights, ids, labels, learning_rate):
    at = labels[..., 1:] != -100
    read, said = ids[..., :-1][at], labels[..., 1:][at]
    slope = weights.softmax(-1)[read] - F.one_hot(said, weights.shape[-1])
    total = torch.zeros_like(weights).index_add_(0, read, slope.to(weights))
    return (weights - learning_rate * total / len(said)).double()


# --- 3.3 ------------------------------------------------------------------------------------------


def ece_by_bucketize(logits, labels, bins):
    sure, likely = logits.double().softmax(-1).max(-1)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    place = torch.bucketize(sure, edges) - 1
    gap = torch.zeros(bins, dtype=torch.float64)
    gap.index_add_(0, place, (likely == labels).double() - sure)
    return gap.abs().sum() / len(labels)


def ece_by_numpy(logits, labels, bins):
    import numpy as np

    q = torch.softmax(logits, -1).numpy()
    sure, hit = q.max(-1), q.argmax(-1) == labels.numpy()
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    parts = [abs((hit[place == b] - sure[place == b]).sum()) for b in range(bins)]
    return sum(parts) / len(hit)


def ece_by_loops(logits, labels, bins):
    table = {}
    for row, label in zip(logits, labels.tolist(), strict=True):
        q = torch.exp(row - row.logsumexp(0))
        sure, likely = float(q.max()), int(row.argmax())
        b = next(b for b in range(bins) if sure <= (b + 1) / bins or b == bins - 1)
        table.setdefault(b, []).append((sure, likely == label))
    error = 0.0
    for found in table.values():
        confidence = sum(sure for sure, _ in found) / len(found)
        accuracy = sum(hit for _, hit in found) / len(found)
        error += len(found) / len(labels) * abs(accuracy - confidence)
    return error


# --- 3.5 ------------------------------------------------------------------------------------------


def excess_by_torch(logits, true, labels):
    valid = labels != -100
    log_q = F.log_softmax(logits[valid], -1)
    return F.kl_div(log_q, true[valid], reduction="sum") / valid.sum()


def excess_as_a_difference(logits, true, labels):
    valid = (labels != -100).double()
    p = true.double()
    cross = -torch.einsum("bsv,bsv->bs", p, logits.double().log_softmax(-1))
    entropy = torch.special.entr(p).sum(-1)
    return torch.einsum("bs,bs", cross - entropy, valid) / valid.sum()


def excess_by_loops(logits, true, labels):
    found = []
    for b, s in (labels != -100).nonzero().tolist():
        log_q = logits[b, s] - logits[b, s].logsumexp(0)
        said = true[b, s] > 0
        p = true[b, s][said]
        found.append(float((p * (p.log() - log_q[said])).sum()))
    return sum(found) / len(found)


STYLES = {
    "3.1": (labels_by_counting, labels_by_slices, labels_in_lists),
    "3.2": (step_as_one_batch, step_by_sums, step_by_hand),
    "3.3": (ece_by_bucketize, ece_by_numpy, ece_by_loops),
    "3.5": (excess_by_torch, excess_as_a_difference, excess_by_loops),
}
