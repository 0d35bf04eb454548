"""Right answers to the exercises of chapter 07 in other styles than the solutions'."""

import math

import torch
import torch.nn.functional as F

# --- 7.1 ------------------------------------------------------------------------------------------


def own_by_loops(ids, prompt, end):
    rows = []
    for row in ids.tolist():
        reply = row[prompt:]
        said = reply.index(end) + 1 if end in reply else len(reply)
        rows.append([False] * prompt + [True] * said + [False] * (len(reply) - said))
    return torch.tensor(rows)


def own_by_place(ids, prompt, end):
    place = torch.arange(ids.shape[1]).expand_as(ids)
    ends = (ids == end) & (place >= prompt)
    first = place.masked_fill(~ends, ids.shape[1]).amin(1, keepdim=True)
    return (place >= prompt) & (place <= first)


def own_by_argmax(ids, prompt, end):
    ends = ids[:, prompt:] == end
    last = ends.int().argmax(1)
    last[~ends.any(1)] = ends.shape[1] - 1
    mask = torch.arange(ends.shape[1]) <= last[:, None]
    return F.pad(mask.int(), (prompt, 0)).bool()


# --- 7.2 ------------------------------------------------------------------------------------------


def skew_by_torch(student, teacher, skew, T):
    log_q, log_p = (F.log_softmax(x / T, -1) for x in (student, teacher))
    shares = torch.stack([log_p + math.log(skew), log_q + math.log1p(-skew)])
    return F.kl_div(shares.logsumexp(0), log_p, log_target=True, reduction="none").sum(-1)


def skew_by_loops(student, teacher, skew, T):
    values = []
    width = student.shape[-1]
    for z, t in zip(student.reshape(-1, width), teacher.reshape(-1, width), strict=True):
        log_p, log_q = (t / T).log_softmax(0), (z / T).log_softmax(0)
        total = 0.0
        for v in range(width):
            log_m = torch.logaddexp(log_p[v] + math.log(skew), log_q[v] + math.log(1 - skew))
            total = total + log_p[v].exp() * (log_p[v] - log_m)
        values.append(total)
    return torch.stack(values).reshape(student.shape[:-1])


def skew_in_float64(student, teacher, skew, T):
    p, q = (x.double().div(T).softmax(-1) for x in (teacher, student))
    m = skew * p + (1 - skew) * q
    return torch.where(p > 0, p * ((p + 1e-300) / (m + 1e-300)).log(), 0.0 * m).sum(-1)


# --- 7.3 ------------------------------------------------------------------------------------------


def train_by_the_formula(build, first, noise, labels, end, tau, rate):
    student, teacher = build()
    losses = []
    for tokens, chance, _ in zip(first, noise, labels, strict=True):
        student.eval()
        ids, said = student.generate(tokens, chance, tau, end)
        student.train()
        with torch.no_grad():
            before = ids[:, :-1][said]
            log_q, log_p = student(before).log_softmax(-1), teacher(before).log_softmax(-1)
            q = log_q.exp()
            kl = (q * (log_q - log_p)).sum(-1, keepdim=True)
            slope = q * (log_q - log_p - kl) * student.kept[before] / len(before)
            student.table.index_add_(0, before, -rate * slope)
        losses.append(kl.mean().item())
    return losses


def train_with_kl_div(build, first, noise, labels, end, tau, rate):
    student, teacher = build()
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    losses = []
    for step in range(len(first)):
        mode = student.training
        student.eval()
        ids, said = student.generate(first[step], noise[step], tau, end)
        student.train(mode)
        with torch.no_grad():
            log_p = teacher(ids[:, :-1][said]).log_softmax(-1)
        log_q = student(ids[:, :-1][said]).log_softmax(-1)
        optimizer.zero_grad()
        loss = F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


# --- 7.4 ------------------------------------------------------------------------------------------


def lessons_by_a_dict(prompts, replies):
    first = {}
    for place, row in enumerate(zip(prompts, map(tuple, replies), strict=True)):
        first.setdefault(row, place)
    return [place for (_, reply), place in first.items() if reply[-1] == 2]


def lessons_from_behind(prompts, replies):
    rows = {}
    for place in reversed(range(len(replies))):
        if replies[place][-1:] == [2]:
            rows[prompts[place], str(replies[place])] = place
    return torch.tensor(sorted(rows.values()))


STYLES = {
    "7.1": (own_by_loops, own_by_place, own_by_argmax),
    "7.2": (skew_by_torch, skew_by_loops, skew_in_float64),
    "7.3": (train_by_the_formula, train_with_kl_div),
    "7.4": (lessons_by_a_dict, lessons_from_behind),
}
