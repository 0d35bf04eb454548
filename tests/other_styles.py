"""Right answers in other styles than the solutions': they must pass. Number -> functions.

Different programmers, one quantity: einsum, loops, log-space, in place on own copies, float64.
"""

import torch
import torch.nn.functional as F
from other_styles_00 import STYLES as STYLES_00
from other_styles_03 import STYLES as STYLES_03

# --- 2.2 ------------------------------------------------------------------------------------------


def kl_by_einsum(student, teacher, T):
    p = torch.softmax(teacher / T, -1)
    gap = F.log_softmax(teacher / T, -1) - F.log_softmax(student / T, -1)
    return torch.einsum("bsv,bsv->bs", p, gap)


def kl_by_loops(student, teacher, T):
    rows = []
    for b in range(student.shape[0]):
        row = []
        for s in range(student.shape[1]):
            log_p, log_q = (x[b, s].div(T).log_softmax(0) for x in (teacher, student))
            total = student.new_zeros(())
            for v in range(student.shape[2]):
                total = total + log_p[v].exp() * (log_p[v] - log_q[v])
            row.append(total)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def kl_by_torch(student, teacher, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def kl_in_place_on_copies(student, teacher, T):
    log_p = teacher.clone()
    log_p /= T
    log_p -= log_p.logsumexp(-1, keepdim=True)
    log_q = student.clone()
    log_q /= T
    log_q = log_q - log_q.logsumexp(-1, keepdim=True)
    return (log_p.exp() * log_p.sub(log_q)).sum(dim=2)


def kl_in_float64(student, teacher, T):
    return kl_by_torch(student.double(), teacher.double(), T)


# --- 2.3 ------------------------------------------------------------------------------------------


def loss_by_rows(student, teacher, labels, alpha, temperature):
    valid = labels != -100
    q, p, y = student[valid], teacher[valid].detach(), labels[valid]
    if y.numel() == 0:
        return 0.0 * student.sum()
    soft = kl_by_torch(q[None], p[None], temperature).mean()
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(q, y)


def loss_by_loops(student, teacher, labels, alpha, temperature):
    soft, hard, count = 0.0 * student.sum(), 0.0 * student.sum(), 0
    for b, row in enumerate(labels.tolist()):
        for s, label in enumerate(row):
            if label == -100:
                continue
            one, other = student[b : b + 1, s : s + 1], teacher[b : b + 1, s : s + 1].detach()
            soft = soft + kl_by_torch(one, other, temperature).sum()
            hard = hard - student[b, s].log_softmax(-1)[label]
            count += 1
    return (alpha * temperature**2 * soft + (1 - alpha) * hard) / max(count, 1)


def loss_by_weights(student, teacher, labels, alpha, temperature):
    weight = (labels != -100).double()
    weight = weight / weight.sum().clamp(min=1)
    kl = kl_in_float64(student, teacher.detach(), temperature)
    flat = F.cross_entropy(student.double().flatten(0, 1), labels.flatten(), reduction="none")
    nll = flat.view_as(weight)
    return torch.einsum("bs,bs", weight, alpha * temperature**2 * kl + (1 - alpha) * nll)


def loss_in_logarithms(student, teacher, labels, alpha, temperature):
    with torch.no_grad():
        log_p = teacher / temperature - (teacher / temperature).logsumexp(-1, keepdim=True)
    log_q = student / temperature - (student / temperature).logsumexp(-1, keepdim=True)
    one_hot = F.one_hot(labels.clamp(min=0), student.shape[-1])
    hard = student.logsumexp(-1) - (student * one_hot).sum(-1)
    soft = (log_p.exp() * (log_p - log_q)).sum(-1)
    token = alpha * temperature**2 * soft + (1 - alpha) * hard
    return token.masked_fill(labels == -100, 0.0).sum() / (labels != -100).sum().clamp(min=1)


OTHER_STYLES = {
    **STYLES_00,
    "2.2": (kl_by_einsum, kl_by_loops, kl_by_torch, kl_in_place_on_copies, kl_in_float64),
    "2.3": (loss_by_rows, loss_by_loops, loss_by_weights, loss_in_logarithms),
    **STYLES_03,
}
