"""Right answers to exercises of chapters 01 and 04, in other styles than the solutions'."""

import math

import numpy as np
import torch
import torch.nn.functional as F

# --- 1.1, 1.2, 1.3 --------------------------------------------------------------------------------


def parameters_by_matrices(vocabulary, width, layers, heads, kv_heads, feed_forward, tied):
    narrow = width * kv_heads // heads
    shapes = [(width, width), (width, narrow), (width, narrow), (width, width)]
    shapes += [(width, feed_forward)] * 2 + [(feed_forward, width), (2, width)]
    outside = [(vocabulary, width)] * (2 - tied) + [(1, width)]
    return sum(map(math.prod, shapes * layers + outside))


def parameters_in_numpy(vocabulary, width, layers, heads, kv_heads, feed_forward, tied):
    share = kv_heads / heads
    layer = np.float64(2 * width**2 * (1 + share) + 3 * width * feed_forward + 2 * width)
    return layers * layer + width + vocabulary * width * (1 if tied else 2)


def parameters_of_modules(vocabulary, width, layers, heads, kv_heads, feed_forward, tied):
    def linear(one, other):
        return torch.empty(one, other, device="meta").numel()

    keys = kv_heads * (width // heads)
    attention = linear(width, width + 2 * keys) + linear(width, width)
    layer = attention + 3 * linear(width, feed_forward) + linear(2, width)
    tables = linear(vocabulary, width) + (0 if tied else linear(width, vocabulary))
    return torch.tensor(tables + layers * layer + width)


def cache_by_tensors(layers, width, heads, kv_heads, head_width, tokens, batch, bits):
    one = torch.empty(batch, kv_heads, tokens, head_width, device="meta")
    return sum(one.numel() for _ in range(layers) for _ in "kv") * (bits / 8)


def cache_by_token(layers, width, heads, kv_heads, head_width, tokens, batch, bits):
    each = bits * head_width // 4
    return each * kv_heads * layers * tokens * batch


def cache_in_numpy(layers, width, heads, kv_heads, head_width, tokens, batch, bits):
    return np.prod([2.0, layers, kv_heads, head_width, tokens, batch, bits / 8])


def step_in_parts(parameters, bits, cache_bytes, batch, bandwidth, overhead_ms):
    per_ms = bandwidth * 1e6
    return parameters * bits / 8 / per_ms + sum([cache_bytes / per_ms] * batch) + overhead_ms


def step_in_numpy(parameters, bits, cache_bytes, batch, bandwidth, overhead_ms):
    read = np.array([parameters * bits // 8, *[cache_bytes] * batch], dtype=np.float64)
    return overhead_ms + 1e3 * (read / bandwidth / 1e9).sum()


def step_in_bits(parameters, bits, cache_bytes, batch, bandwidth, overhead_ms):
    read = torch.tensor(parameters * bits + 8 * batch * cache_bytes, dtype=torch.float64)
    return read / (8e6 * bandwidth) + overhead_ms


# --- 4.1 ------------------------------------------------------------------------------------------


def train_with_kl_div(build, tokens_NBS, T, rate):
    student, teacher = build()
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=rate)
    losses = []
    for tokens in tokens_NBS:
        optimizer.zero_grad(set_to_none=False)
        log_q, log_p = (model(tokens).div(T).log_softmax(-1) for model in (student, teacher))
        kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / tokens.numel()
        (T * T * kl).backward()
        optimizer.step()
        losses.append(T * T * kl.detach())
    return losses


def train_by_the_gradient(build, tokens_NBS, T, rate):
    student, teacher = build()
    table, target = student.table.detach().double(), teacher.table.detach().double()
    losses = []
    for tokens in tokens_NBS.flatten(1):
        log_q = (table[tokens] / T).log_softmax(-1)
        log_p = (target[tokens] / T).log_softmax(-1)
        losses.append(T**2 * (log_p.exp() * (log_p - log_q)).sum(-1).mean())
        slope = T * (log_q.exp() - log_p.exp()) / len(tokens)
        table = table.index_add(0, tokens, slope, alpha=-rate)
    return torch.stack(losses)


def train_with_autograd(build, tokens_NBS, T, rate):
    student, teacher = build()
    teacher = teacher.eval()
    losses = []
    for tokens in tokens_NBS:
        with torch.inference_mode():
            p = torch.softmax(teacher(tokens) / T, -1)
        q = torch.softmax(student(tokens) / T, -1)
        p = p.clone()
        loss = T**2 * torch.einsum("bsv,bsv->", p, p.log() - q.log()) / tokens.numel()
        slopes = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for weight, slope in zip(student.parameters(), slopes, strict=True):
                weight -= rate * slope
        losses.append(loss.item())
    return tuple(losses)


# --- 4.2 ------------------------------------------------------------------------------------------


def shares_by_loops(losses, labels):
    count = max(int((labels != -100).sum()), 1)
    return [losses[n][labels[n] != -100].sum() / count for n in range(len(losses))]


def shares_by_weights(losses, labels):
    weight = (labels != -100).double()
    return torch.einsum("nbs,nbs->n", losses.double(), weight / weight.sum().clamp(min=1))


def shares_in_place_on_copies(losses, labels):
    kept = losses.clone()
    kept[labels == -100] = 0.0
    kept /= labels.ne(-100).sum().clamp(min=1)
    return kept.flatten(1).sum(1)


# --- 4.3 ------------------------------------------------------------------------------------------


def interval_by_counts(ours, theirs, seed_draws, visitor_draws):
    seeds = F.one_hot(seed_draws, ours.shape[0]).sum(1).double()
    visitors = F.one_hot(visitor_draws, ours.shape[1]).sum(1).double()
    means = torch.einsum("ns,sg,ng->n", seeds, (ours - theirs).double(), visitors)
    return torch.quantile(means / ours.numel(), torch.tensor([0.025, 0.975]).double())


def interval_in_numpy(ours, theirs, seed_draws, visitor_draws):
    a, b = ours.numpy(), theirs.numpy()
    means = [
        (a[np.ix_(seeds, visitors)] - b[np.ix_(seeds, visitors)]).mean()
        for seeds, visitors in zip(seed_draws.numpy(), visitor_draws.numpy(), strict=True)
    ]
    return np.percentile(means, [2.5, 97.5])


def interval_by_two_means(ours, theirs, seed_draws, visitor_draws):
    means = []
    for seeds, visitors in zip(seed_draws.tolist(), visitor_draws.tolist(), strict=True):
        first, second = (x[seeds].double().mean(0)[visitors].mean() for x in (ours, theirs))
        means.append(float(first - second))
    means = torch.tensor(means).sort().values
    return [means.quantile(0.025).item(), means.quantile(0.975).item()]


# --- 4.5 ------------------------------------------------------------------------------------------


def best_by_loops(validation_nll, test_success):
    pairs = zip(validation_nll.tolist(), test_success.tolist(), strict=True)
    return [success[nll.index(min(nll))] for nll, success in pairs]


def best_by_index(validation_nll, test_success):
    return test_success[torch.arange(len(test_success)), validation_nll.argmin(1)]


def best_in_numpy(validation_nll, test_success):
    places = np.argmin(validation_nll.numpy(), axis=1)
    return np.take_along_axis(test_success.numpy(), places[:, None], axis=1)[:, 0]


OTHER_STYLES_01_04 = {
    "1.1": (parameters_by_matrices, parameters_in_numpy, parameters_of_modules),
    "1.2": (cache_by_tensors, cache_by_token, cache_in_numpy),
    "1.3": (step_in_parts, step_in_numpy, step_in_bits),
    "4.1": (train_with_kl_div, train_by_the_gradient, train_with_autograd),
    "4.2": (shares_by_loops, shares_by_weights, shares_in_place_on_copies),
    "4.3": (interval_by_counts, interval_in_numpy, interval_by_two_means),
    "4.5": (best_by_loops, best_by_index, best_in_numpy),
}
