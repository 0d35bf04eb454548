"""Broken functions of chapter 02."""

import torch.nn.functional as F


def soft_loss(student_logits, teacher_logits, attention_mask, labels, T):
    """T² times the mean KL of the tokens that the assistant speaks.

    attention_mask: 0 at padding. labels: the token ids themselves where
    the assistant speaks, -100 elsewhere; nothing has been shifted yet.
    """
    log_q = F.log_softmax(student_logits / T, dim=-1)
    log_p = F.log_softmax(teacher_logits / T, dim=-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    mask = attention_mask.bool()
    return T**2 * (kl * mask).mean()
