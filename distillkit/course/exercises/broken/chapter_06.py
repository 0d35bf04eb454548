"""Broken functions of chapter 06."""

import torch.nn.functional as F


def triple_loss(student, teacher, ids_BS, mask_BS, labels_BS, weights, T):
    q, p = student(ids_BS, mask_BS), teacher(ids_BS, mask_BS)
    real = mask_BS.bool()
    log_q = F.log_softmax(q.logits[real] / T, dim=-1)
    log_p = F.log_softmax(p.logits[real] / T, dim=-1)
    soft = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    hard = F.cross_entropy(q.logits.flatten(0, 1), labels_BS.flatten())
    last = len(q.hidden_states) - 1
    h, t = q.hidden_states[last], p.hidden_states[last]
    cosine = (1 - F.cosine_similarity(h, t, dim=-1)).mean()
    a, b, c = weights
    return a * soft + b * hard + c * cosine
