"""The losses of distillkit once more, as slow explicit loops: the specification, to be read.

Everything is a Python float (64 bits) or a list of them. One *row* is the list of V logits of one
token. Logarithms are kept, because exp(-8000) is 0 and log(0) is not -8000.
"""

import math

from distillkit.course.exercises.loops import log_softmax

INFINITY = math.inf


def kl(log_a, log_b):
    """KL(a‖b): where a has no mass there is nothing to pay."""
    total = 0.0
    for log_x, log_y in zip(log_a, log_b, strict=True):
        if math.exp(log_x) == 0.0:
            continue
        if log_y == -INFINITY:
            return INFINITY
        total += math.exp(log_x) * (log_x - log_y)
    return total


def mixture(log_a, log_b, share_of_a):
    """The logarithm of share·a + (1 - share)·b, where at least one of the two has mass."""
    mixed = []
    for log_x, log_y in zip(log_a, log_b, strict=True):
        highest = max(log_x, log_y)
        if highest == -INFINITY:
            mixed.append(-INFINITY)
            continue
        weighted = share_of_a * math.exp(log_x - highest)
        weighted += (1 - share_of_a) * math.exp(log_y - highest)
        mixed.append(highest + math.log(weighted))
    return mixed


def forward_kl(student_row, teacher_row, temperature):
    return kl(log_softmax(teacher_row, temperature), log_softmax(student_row, temperature))


def reverse_kl(student_row, teacher_row, temperature):
    return kl(log_softmax(student_row, temperature), log_softmax(teacher_row, temperature))


def jensen_shannon(beta):
    def divergence(student_row, teacher_row, temperature):
        log_p = log_softmax(teacher_row, temperature)
        log_q = log_softmax(student_row, temperature)
        if beta == 0:
            return kl(log_p, log_q)
        if beta == 1:
            return kl(log_q, log_p)
        log_m = mixture(log_p, log_q, beta)
        return beta * kl(log_p, log_m) + (1 - beta) * kl(log_q, log_m)

    return divergence


def skew_kl(skew):
    def divergence(student_row, teacher_row, temperature):
        log_p = log_softmax(teacher_row, temperature)
        log_q = log_softmax(student_row, temperature)
        return kl(log_p, mixture(log_p, log_q, skew))

    return divergence


def total_variation(student_row, teacher_row, temperature):
    log_p = log_softmax(teacher_row, temperature)
    log_q = log_softmax(student_row, temperature)
    total = 0.0
    for log_x, log_y in zip(log_p, log_q, strict=True):
        total += abs(math.exp(log_x) - math.exp(log_y))
    return total / 2


def logits_mse(student_row, teacher_row, temperature):
    total = 0.0
    for student, teacher in zip(student_row, teacher_row, strict=True):
        if student == teacher == -INFINITY:
            continue
        total += (student - teacher) ** 2
    return total / len(student_row)


def buckets(log_x, kept):
    """The logarithms of the kept tokens, one after the other, and of all others together."""
    highest = max([log_x[v] for v in range(len(log_x)) if v not in kept], default=-INFINITY)
    if highest == -INFINITY:
        return [log_x[v] for v in kept] + [-INFINITY]
    total = 0.0
    for v in range(len(log_x)):
        if v not in kept:
            total += math.exp(log_x[v] - highest)
    return [log_x[v] for v in kept] + [highest + math.log(total)]


def best(log_p, k):
    return sorted(range(len(log_p)), key=lambda v: -log_p[v])[:k]


def top_k_kl(k):
    def divergence(student_row, teacher_row, temperature):
        log_p = log_softmax(teacher_row, temperature)
        log_q = log_softmax(student_row, temperature)
        kept = best(log_p, k)
        return kl(buckets(log_p, kept), buckets(log_q, kept))

    return divergence


def sampled_kl(student_row, token_ids, log_probs, weights, temperature):
    log_q = log_softmax(student_row, temperature)
    total = 0.0
    for v, log_x, weight in zip(token_ids, log_probs, weights, strict=True):
        if weight > 0:
            total += weight * (log_x - log_q[v])
    return total


def universal_logit_distance(student_row, teacher_row, temperature):
    p = sorted((math.exp(x) for x in log_softmax(teacher_row, temperature)), reverse=True)
    q = sorted((math.exp(x) for x in log_softmax(student_row, temperature)), reverse=True)
    total = 0.0
    for rank in range(max(len(p), len(q))):
        total += abs((p[rank] if rank < len(p) else 0.0) - (q[rank] if rank < len(q) else 0.0))
    return total


def per_token(divergence, student_logits, teacher_logits, temperature):
    """A divergence for each of the (B, S) tokens, as B lists of S floats."""
    values = []
    for student_rows, teacher_rows in zip(student_logits, teacher_logits, strict=True):
        line = []
        for student_row, teacher_row in zip(student_rows, teacher_rows, strict=True):
            line.append(divergence(student_row, teacher_row, temperature))
        values.append(line)
    return values


def masked_mean(values, mask):
    total, count = 0.0, 0
    for value_line, mask_line in zip(values, mask, strict=True):
        for value, valid in zip(value_line, mask_line, strict=True):
            if valid:
                total += value
                count += 1
    return total / count if count else 0.0


def label_loss(student_logits, labels, label_smoothing, ignore_index, num_items=None):
    total, count = 0.0, 0
    for rows, label_line in zip(student_logits, labels, strict=True):
        for row, label in zip(rows, label_line, strict=True):
            if label == ignore_index:
                continue
            log_q = log_softmax(row)
            total += -(1 - label_smoothing) * log_q[label]
            if label_smoothing:
                for log_x in log_q:
                    total += -label_smoothing * log_x / len(log_q)
            count += 1
    if num_items is None:
        num_items = count
    return total / num_items if num_items else 0.0


def distillation_loss(
    student_logits,
    teacher_logits,
    labels,
    alpha,
    temperature,
    divergence,
    temperature_power,
    ignore_index,
    num_items=None,
):
    soft, hard, count = 0.0, 0.0, 0
    for b in range(len(labels)):
        for s in range(len(labels[b])):
            if labels[b][s] == ignore_index:
                continue
            student_row, teacher_row = student_logits[b][s], teacher_logits[b][s]
            soft += divergence(student_row, teacher_row, temperature)
            hard += -log_softmax(student_row)[labels[b][s]]
            count += 1
    if num_items is None:
        num_items = count
    if num_items == 0:
        return 0.0
    return (alpha * temperature**temperature_power * soft + (1 - alpha) * hard) / num_items
