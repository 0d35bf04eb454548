"""Right answers to the exercises of chapter 06 in other styles than the solutions'."""

import math

import torch
import torch.nn.functional as F

# --- 6.1 ------------------------------------------------------------------------------------------


def map_by_ranges(mine, its):
    every = its // mine
    return list(range(every - 1, its, every)), list(range(0, its + 1, every))


def map_by_tensors(mine, its):
    states = torch.linspace(0, its, mine + 1).round().long()
    return states[1:] - 1, states


def map_by_pairs(mine, its):
    pairs = [(0, 0)]
    while pairs[-1][0] < mine:
        pairs.append((pairs[-1][0] + 1, pairs[-1][1] + its // mine))
    return [t - 1 for s, t in pairs if s], [t for _, t in pairs]


# --- 6.2 ------------------------------------------------------------------------------------------


def cosine_by_norms(student, teacher, mask):
    real = mask > 0
    h, t = F.normalize(student[real], dim=-1), F.normalize(teacher[real].detach(), dim=-1)
    return (1 - (h * t).sum(-1)).sum() / real.sum()


def cosine_by_torchs_loss(student, teacher, mask):
    real = mask.bool()
    h, t = student[real], teacher[real].detach()
    return F.cosine_embedding_loss(h, t, h.new_ones(len(h)))


def cosine_by_loops(student, teacher, mask):
    total, count = 0.0, 0
    for b, s in mask.nonzero().tolist():
        h, t = student[b, s].double(), teacher[b, s].detach().double()
        total, count = total + 1 - h @ t / (h.norm() * t.norm()), count + 1
    return total / count


def cosine_by_filling(student, teacher, mask):
    padding = (mask == 0).unsqueeze(-1)
    h, t = student.masked_fill(padding, 1.0), teacher.detach().masked_fill(padding, 1.0)
    away = 1 - torch.einsum("bsd,bsd->bs", h, t) / (h.norm(dim=-1) * t.norm(dim=-1))
    return away.masked_fill(padding[..., 0], 0.0).sum() / mask.sum()


# --- 6.3 ------------------------------------------------------------------------------------------


def relations_by_einsum(student, teacher, visible, heads):
    def logs(states):
        b, s, width = states.shape
        cut = states.reshape(b, s, heads, width // heads)
        scores = torch.einsum("biad,bjad->baij", cut, cut) / math.sqrt(width // heads)
        return torch.where(visible[:, None], scores, torch.full_like(scores, -1e6)).log_softmax(-1)

    log_p, log_q = logs(teacher.detach()), logs(student)
    kl = torch.where(visible[:, None], log_p.exp() * (log_p - log_q), torch.zeros_like(log_p))
    return kl.sum(-1).sum(1) / heads


def relations_by_chunks(student, teacher, visible, heads):
    total = 0.0
    for h, t in zip(student.chunk(heads, -1), teacher.detach().chunk(heads, -1), strict=True):
        logs = []
        for x in (t, h):
            scores = torch.bmm(x, x.transpose(1, 2)) / x.shape[-1] ** 0.5
            logs.append(F.log_softmax(scores - 1e9 * (~visible), dim=-1))
        kl = F.kl_div(logs[1], logs[0], reduction="none", log_target=True)
        total = total + kl.masked_fill(~visible, 0.0).sum(-1)
    return total / heads


def relations_by_loops(student, teacher, visible, heads):
    rows = []
    for b in range(len(student)):
        row = []
        for i in range(student.shape[1]):
            seen = visible[b, i]
            value = 0.0 * student[b, i].sum()
            for h, t in zip(student[b].chunk(heads, -1), teacher[b].chunk(heads, -1), strict=True):
                if seen.any():
                    log_q, log_p = (
                        (x[seen] @ x[i] / x.shape[-1] ** 0.5).log_softmax(0)
                        for x in (h, t.detach())
                    )
                    value = value + (log_p.exp() * (log_p - log_q)).sum() / heads
            row.append(value)
        rows.append(torch.stack(row))
    return torch.stack(rows)


# --- 6.4 ------------------------------------------------------------------------------------------


def triple_by_masks(student, teacher, ids, mask, labels, weights, T):
    mine, its = student(ids, mask), teacher(ids, mask)
    real = mask / mask.sum()
    p = (its.logits / T).softmax(-1)
    gap = p.log() - (mine.logits / T).log_softmax(-1)
    known = labels != -100
    parts = (
        T * T * ((p * gap).sum(-1) * real).sum(),
        F.cross_entropy(mine.logits[known], labels[known]),
        ((1 - F.cosine_similarity(mine.hidden_states[-1], its.hidden_states[-1], -1)) * real).sum(),
    )
    return torch.stack(parts) @ torch.tensor(weights, dtype=parts[0].dtype)


def triple_by_rows(student, teacher, ids, mask, labels, weights, T):
    q, p = student(ids, mask), teacher(ids, mask)
    soft, hard, away = [], [], []
    for b, s in mask.nonzero().tolist():
        target = (p.logits[b, s] / T).softmax(0)
        soft.append(F.kl_div((q.logits[b, s] / T).log_softmax(0), target, reduction="sum"))
        away.append(
            1 - F.cosine_similarity(q.hidden_states[-1][b, s], p.hidden_states[-1][b, s], 0)
        )
    for b, s in (labels >= 0).nonzero().tolist():
        hard.append(-q.logits[b, s].log_softmax(0)[labels[b, s]])
    means = [torch.stack(values).mean() for values in (soft, hard, away)]
    return weights[0] * T**2 * means[0] + weights[1] * means[1] + weights[2] * means[2]


STYLES = {
    "6.1": (map_by_ranges, map_by_tensors, map_by_pairs),
    "6.2": (cosine_by_norms, cosine_by_torchs_loss, cosine_by_loops, cosine_by_filling),
    "6.3": (relations_by_einsum, relations_by_chunks, relations_by_loops),
    "6.4": (triple_by_masks, triple_by_rows),
}
