"""Broken functions of chapter 07."""

import torch


def train(build, first_NB, noise_NGBV, labels_NBS, end, tau, rate):
    student, teacher = build()
    optimizer = torch.optim.SGD(student.parameters(), lr=rate)
    losses = []
    for first, noise, labels in zip(first_NB, noise_NGBV, labels_NBS, strict=True):
        ids, said = student.generate(first, noise, tau, end)
        log_q = (student(ids[:, :-1]) / tau).log_softmax(-1)
        log_p = (teacher(ids[:, :-1]) / tau).log_softmax(-1)
        kl_BG = (log_q.exp() * (log_q - log_p)).sum(-1)
        loss = (kl_BG * said).sum() / (labels != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
