"""Right answers in other styles than the solutions': they must pass. Number -> functions.

Different programmers, one quantity: einsum, loops, log-space, in place on own copies, float64.
"""

import torch
import torch.nn.functional as F
from other_styles_00 import STYLES as STYLES_00
from other_styles_03 import STYLES as STYLES_03
from other_styles_05 import STYLES as STYLES_05
from other_styles_06 import STYLES as STYLES_06
from other_styles_07 import STYLES as STYLES_07
from other_styles_08 import STYLES as STYLES_08
from other_styles_09 import STYLES as STYLES_09

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


# --- 2.1 ------------------------------------------------------------------------------------------


def entropy_by_distribution(logits, T):
    return torch.distributions.Categorical(logits=logits / T).entropy()


def entropy_by_logsumexp(logits, T):
    scaled = logits.double() / T
    return scaled.logsumexp(-1) - torch.einsum("bsv,bsv->bs", scaled.softmax(-1), scaled)


def entropy_by_loops(logits, T):
    rows = [[-(x.exp() * x).sum() for x in (row / T).log_softmax(-1)] for row in logits]
    return torch.stack([torch.stack(row) for row in rows])


# --- 2.6 ------------------------------------------------------------------------------------------


def gradient_by_autograd(student, teacher, T):
    student = student.clone().requires_grad_()
    (T**2 * kl_by_torch(student, teacher, T)).sum().backward()
    return student.grad


def gradient_in_place_on_copies(student, teacher, T):
    q = (student / T).log_softmax(-1).exp_()
    q -= (teacher / T).softmax(-1)
    return q.mul_(T)


def gradient_in_float64(student, teacher, T):
    both = torch.stack([student, teacher]).double().div(T).softmax(-1)
    return torch.einsum("n,nbsv->bsv", torch.tensor([T, -T]).double(), both)


# --- 2.7 ------------------------------------------------------------------------------------------


def _kl_of_logs(log_a, log_b):
    return F.kl_div(log_b, log_a, reduction="none", log_target=True).sum(-1)


def jsd_by_torch(student, teacher, beta, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    if beta in (0, 1):
        return _kl_of_logs(log_q, log_p) if beta else _kl_of_logs(log_p, log_q)
    shares = torch.tensor([beta, 1 - beta], dtype=log_p.dtype).log()
    log_m = torch.logsumexp(torch.stack([log_p + shares[0], log_q + shares[1]]), 0)
    return beta * _kl_of_logs(log_p, log_m) + (1 - beta) * _kl_of_logs(log_q, log_m)


def jsd_by_loops(student, teacher, beta, T):
    rows = []
    for q_row, p_row in zip(student, teacher, strict=True):
        values = [
            jsd_by_torch(q[None], p[None], beta, T)[0] for q, p in zip(q_row, p_row, strict=True)
        ]
        rows.append(torch.stack(values))
    return torch.stack(rows)


def jsd_in_float64(student, teacher, beta, T):
    return jsd_by_torch(student.double(), teacher.double(), beta, T)


# --- 2.8 ------------------------------------------------------------------------------------------


def top_k_by_a_mask(student, teacher, k, T):
    log_p, log_q = F.log_softmax(teacher / T, -1), F.log_softmax(student / T, -1)
    kept = torch.zeros_like(log_p, dtype=torch.bool).scatter(-1, log_p.topk(k).indices, True)
    rest_p = log_p.masked_fill(kept, -torch.inf).logsumexp(-1)
    rest_q = log_q.masked_fill(kept, -torch.inf).logsumexp(-1)
    terms = (log_p.exp() * (log_p - log_q)).masked_fill(~kept, 0.0)
    return terms.sum(-1) + rest_p.exp() * (rest_p - rest_q)


def top_k_by_sorting(student, teacher, k, T):
    order = teacher.argsort(-1, descending=True)
    log_p, log_q = (x.div(T).log_softmax(-1).gather(-1, order) for x in (teacher, student))
    buckets = [
        torch.cat([x[..., :k], x[..., k:].logsumexp(-1, keepdim=True)], -1) for x in (log_p, log_q)
    ]
    return _kl_of_logs(*buckets)


def top_k_in_float64(student, teacher, k, T):
    return top_k_by_sorting(student.double(), teacher.double(), k, T)


OTHER_STYLES = {
    **STYLES_00,
    "2.1": (entropy_by_distribution, entropy_by_logsumexp, entropy_by_loops),
    "2.2": (kl_by_einsum, kl_by_loops, kl_by_torch, kl_in_place_on_copies, kl_in_float64),
    "2.3": (loss_by_rows, loss_by_loops, loss_by_weights, loss_in_logarithms),
    "2.6": (gradient_by_autograd, gradient_in_place_on_copies, gradient_in_float64),
    "2.7": (jsd_by_torch, jsd_by_loops, jsd_in_float64),
    "2.8": (top_k_by_a_mask, top_k_by_sorting, top_k_in_float64),
    **STYLES_03,
    **STYLES_05,
    **STYLES_06,
    **STYLES_07,
    **STYLES_08,
    **STYLES_09,
}
