r"""Every displayed formula of chapter 02, evaluated by loops, beside the chapter and the library.

A formula is known by its number, `\tag{2.4}`. Its evaluation here holds the formula's own text, so
that neither changes without the other. The chapter's functions are taken out of the notebook.
"""

import math
import re
from dataclasses import dataclass
from types import SimpleNamespace

import oracles
import pytest
import torch
from nbformat import v4
from torch.testing import assert_close

from distillkit.course.notebooks import ROOT, definitions, read_notebook
from distillkit.losses import (
    JensenShannon,
    distillation_loss,
    forward_kl,
    label_loss,
    masked_mean,
    reverse_kl,
    total_variation,
)

torch.set_num_threads(1)

PATH = ROOT / "chapters" / "02_the_loss.ipynb"
CHAPTER = read_notebook(PATH).cells
SHOWN = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
NUMBER = re.compile(r"\\tag\{(.+?)\}")
EVALUATIONS = {}


chapter = SimpleNamespace(**definitions(PATH))


def evaluates(number, formula):
    """Mark what evaluates a formula: case -> (value by loops, {who else: value})."""

    def keep(function):
        EVALUATIONS[number] = (formula, function)
        return function

    return keep


# --- the case: the distributions of one token, and a batch ----------------------------------------


@dataclass
class Case:
    """Logits of one token (V,), a batch (B, S, V) with a ragged mask, and the settings."""

    t: torch.Tensor
    z: torch.Tensor
    y: int
    t_BSV: torch.Tensor
    z_BSV: torch.Tensor
    y_BS: torch.Tensor
    T: float
    alpha: float
    beta: float

    def log_p(self, T=1.0):
        return oracles.log_softmax(self.t.tolist(), T)

    def log_q(self, T=1.0):
        return oracles.log_softmax(self.z.tolist(), T)

    @property
    def V(self):
        return len(self.t)

    @property
    def label(self):
        return torch.tensor(self.y)

    def one(self, alpha, T):
        """The library's loss of the one token."""
        return distillation_loss(
            self.z[None], self.t[None], self.label[None], alpha=alpha, temperature=T
        )


def case(seed, T, alpha, beta):
    random = torch.Generator().manual_seed(seed)
    B, S, V = 3, 4, 6
    t, z = 2 * torch.randn(2, V, generator=random, dtype=torch.float64)
    t_BSV, z_BSV = 2 * torch.randn(2, B, S, V, generator=random, dtype=torch.float64)
    y_BS = torch.randint(V, (B, S), generator=random)
    y_BS[0, 1:], y_BS[2, :2] = -100, -100
    return Case(t, z, seed % V, t_BSV, z_BSV, y_BS, T, alpha, beta)


CASES = [case(0, 1.0, 0.5, 0.5), case(1, 2.0, 0.9, 0.1), case(2, 0.7, 0.3, 0.8)]


def p_and_q(c, T=1.0):
    return (c.t / T).softmax(-1), (c.z / T).softmax(-1)


def entropy(log_p):
    total = 0.0
    for log_x in log_p:
        total -= math.exp(log_x) * log_x
    return total


def cross_entropy(log_p, log_q):
    total = 0.0
    for log_x, log_y in zip(log_p, log_q, strict=True):
        total -= math.exp(log_x) * log_y
    return total


def differences(function, row, step=1e-5):
    """The gradient of a function of a list, one element after the other."""
    slopes = []
    for w in range(len(row)):
        up, down = list(row), list(row)
        up[w] += step
        down[w] -= step
        slopes.append((function(up) - function(down)) / (2 * step))
    return slopes


def kl_at(c, T):
    return lambda row: oracles.kl(c.log_p(T), oracles.log_softmax(row, T))


# --- the formulas ---------------------------------------------------------------------------------


@evaluates("2.1", r"H(p) = -\sum_{v} p_v \log p_v")
def _(c):
    p, _ = p_and_q(c)
    to_uniform = forward_kl(torch.zeros_like(c.t), c.t)  # log V - H(p)
    others = {"chapter": chapter.entropy(p), "library": math.log(c.V) - to_uniform}
    return entropy(c.log_p()), others


@evaluates("2.2", r"H(p, q) = -\sum_{v} p_v \log q_v")
def _(c):
    p, q = p_and_q(c)
    others = {
        "chapter": chapter.cross_entropy(p, q),
        "torch": torch.nn.functional.cross_entropy(c.z, p),
        "library": forward_kl(c.z, c.t) + entropy(c.log_p()),
    }
    return cross_entropy(c.log_p(), c.log_q()), others


@evaluates("2.3", r"H(e_y, q) = -\log q_y")
def _(c):
    _, q = p_and_q(c)
    others = {
        "chapter": chapter.label_entropy(q, c.label),
        "chapter, by (2.2)": chapter.cross_entropy(torch.eye(c.V).double()[c.y], q),
        "library": label_loss(c.z[None], c.label[None]),
    }
    return -c.log_q()[c.y], others


@evaluates("2.4", r"\mathrm{KL}(p \,\|\, q) = \sum_{v} p_v (\log p_v - \log q_v) = H(p, q) - H(p)")
def _(c):
    total = 0.0
    for log_x, log_y in zip(c.log_p(), c.log_q(), strict=True):
        total += math.exp(log_x) * (log_x - log_y)
    p, q = p_and_q(c)
    others = {
        "right side": cross_entropy(c.log_p(), c.log_q()) - entropy(c.log_p()),
        "chapter": chapter.kl(p, q),
        "chapter, right side": chapter.cross_entropy(p, q) - chapter.entropy(p),
        "library": forward_kl(c.z, c.t),
    }
    return total, others


@evaluates(
    "2.5",
    r"-\mathrm{KL}(p \,\|\, q) = \sum_{v} p_v \log \frac{q_v}{p_v} "
    r"\le \log \sum_{v} p_v \frac{q_v}{p_v} = \log 1 = 0",
)
def _(c):
    mean_of_logs, inner = 0.0, 0.0
    for log_x, log_y in zip(c.log_p(), c.log_q(), strict=True):
        mean_of_logs += math.exp(log_x) * (log_y - log_x)
        inner += math.exp(log_x) * math.exp(log_y - log_x)
    log_of_mean = math.log(inner)
    assert mean_of_logs < log_of_mean
    others = {
        "chapter": torch.stack(chapter.jensen(*p_and_q(c))),
        "library": torch.stack([-forward_kl(c.z, c.t), torch.zeros(()).double()]),
    }
    return [mean_of_logs, log_of_mean], others


@evaluates(
    "2.6",
    r"\mathrm{JSD}_\beta(p, q) = \beta\, \mathrm{KL}(p \,\|\, m) + (1-\beta)\, "
    r"\mathrm{KL}(q \,\|\, m), \qquad m = \beta p + (1-\beta) q",
)
def _(c):
    log_m = oracles.mixture(c.log_p(), c.log_q(), c.beta)
    wanted = c.beta * oracles.kl(c.log_p(), log_m) + (1 - c.beta) * oracles.kl(c.log_q(), log_m)
    others = {
        "chapter": chapter.jsd(*p_and_q(c), c.beta),
        "library": JensenShannon(c.beta)(c.z, c.t),
    }
    return wanted, others


@evaluates("2.7", r"\mathrm{JSD}_\beta(p, q) = H(m) - \beta H(p) - (1-\beta) H(q)")
def _(c):
    log_m = oracles.mixture(c.log_p(), c.log_q(), c.beta)
    wanted = entropy(log_m) - c.beta * entropy(c.log_p()) - (1 - c.beta) * entropy(c.log_q())
    others = {
        "chapter": chapter.jsd_of_entropies(*p_and_q(c), c.beta),
        "library": JensenShannon(c.beta)(c.z, c.t),
    }
    return wanted, others


@evaluates("2.8", r"L = \alpha\, H(p, q) + (1-\alpha)\, H(e_y, q)")
def _(c):
    wanted = c.alpha * cross_entropy(c.log_p(), c.log_q()) - (1 - c.alpha) * c.log_q()[c.y]
    others = {
        "chapter": chapter.course_loss(*p_and_q(c), c.label, c.alpha),
        "library": c.one(c.alpha, 1.0) + c.alpha * entropy(c.log_p()),
    }
    return wanted, others


@evaluates("2.9", r"L = H(\alpha p + (1-\alpha) e_y,\; q)")
def _(c):
    wanted = 0.0
    for v in range(c.V):
        target = c.alpha * math.exp(c.log_p()[v]) + (1 - c.alpha) * (v == c.y)
        wanted -= target * c.log_q()[v]
    others = {
        "chapter": chapter.blended(*p_and_q(c), c.label, c.alpha),
        "library": c.one(c.alpha, 1.0) + c.alpha * entropy(c.log_p()),
    }
    return wanted, others


@evaluates(
    "2.10",
    r"L - \bigl(\alpha\, \mathrm{KL}(p \,\|\, q) + (1-\alpha)\, H(e_y, q)\bigr) = \alpha\, H(p)",
)
def _(c):
    one = (*p_and_q(c), c.label, c.alpha)
    others = {
        "chapter": chapter.course_loss(*one) - chapter.kl_loss(*one),
        "library": chapter.course_loss(*one) - c.one(c.alpha, 1.0),
    }
    return c.alpha * entropy(c.log_p()), others


@evaluates(
    "2.11",
    r"p_v = \frac{\exp(t_v / T)}{\sum_{w} \exp(t_w / T)}, \qquad "
    r"q_v = \frac{\exp(z_v / T)}{\sum_{w} \exp(z_w / T)}",
)
def _(c):
    wanted = []
    for logits in (c.t.tolist(), c.z.tolist()):
        total = 0.0
        for logit in logits:
            total += math.exp(logit / c.T)
        wanted.append([math.exp(logit / c.T) / total for logit in logits])
    uniform = torch.zeros_like(c.t)  # against which the gradient is (1/V - p) / T
    others = {
        "chapter": torch.stack([chapter.soften(c.t, c.T), chapter.soften(c.z, c.T)]),
        "library": torch.stack(
            [1 / c.V - c.T * forward_kl.gradient(uniform, each, c.T) for each in (c.t, c.z)]
        ),
    }
    return wanted, others


@evaluates(
    "2.12",
    r"\frac{\partial \log q_v}{\partial z_w} = \frac{1}{T} \bigl( [v = w] - q_w \bigr)",
)
def _(c):
    q = [math.exp(x) for x in c.log_q(c.T)]
    wanted = [[((v == w) - q[w]) / c.T for w in range(c.V)] for v in range(c.V)]
    by_differences = [
        differences(lambda row, v=v: oracles.log_softmax(row, c.T)[v], c.z.tolist())
        for v in range(c.V)
    ]
    certain = torch.full((c.V, c.V), -math.inf).double().fill_diagonal_(0.0)
    others = {
        "differences": by_differences,
        "chapter": chapter.slope_of_log(p_and_q(c, c.T)[1], c.T),
        "library": -forward_kl.gradient(c.z.expand(c.V, c.V), certain, c.T),
    }
    return wanted, others


@evaluates(
    "2.13",
    r"\frac{\partial\, \mathrm{KL}(p \,\|\, q)}{\partial z_w} = -\sum_{v} p_v "
    r"\frac{\partial \log q_v}{\partial z_w} = \frac{q_w - p_w}{T}",
)
def _(c):
    p, q = ([math.exp(x) for x in row] for row in (c.log_p(c.T), c.log_q(c.T)))
    middle = []
    for w in range(c.V):
        middle.append(-sum(p[v] * ((v == w) - q[w]) / c.T for v in range(c.V)))
    softened = p_and_q(c, c.T)
    others = {
        "middle": middle,
        "differences": differences(kl_at(c, c.T), c.z.tolist()),
        "chapter": chapter.slope(*softened, c.T),
        "chapter's differences": chapter.finite_differences(
            lambda z: chapter.kl(softened[0], chapter.soften(z, c.T)), c.z
        ),
        "chapter's autograd": chapter.gradient(
            lambda z: chapter.kl(softened[0], chapter.soften(z, c.T)), c.z
        ),
        "library": forward_kl.gradient(c.z, c.t, c.T),
    }
    return [(q[w] - p[w]) / c.T for w in range(c.V)], others


@evaluates("2.14", r"q_v \approx \frac{1}{V} \Bigl( 1 + \frac{z_v - \bar z}{T} \Bigr)")
def _(c):
    z, off = c.z.tolist(), []
    mean = sum(z) / c.V
    for T in (1e3, 1e4):
        hot = [(1 + (logit - mean) / T) / c.V for logit in z]
        exact = [math.exp(x) for x in c.log_q(T)]
        off.append(max(abs(a - b) for a, b in zip(hot, exact, strict=True)))
    assert off[0] < 1e-5
    assert off[1] == pytest.approx(off[0] / 100, rel=0.1)  # the next term falls like 1/T²
    others = {"chapter": chapter.hot(c.z, 1e4)}
    return hot, others


@evaluates(
    "2.15",
    r"\frac{\partial\, \mathrm{KL}(p \,\|\, q)}{\partial z_w} \approx "
    r"\frac{(z_w - \bar z) - (t_w - \bar t)}{V\, T^2}",
)
def _(c):
    z, t, T = c.z.tolist(), c.t.tolist(), 1e6
    z_mean, t_mean = sum(z) / c.V, sum(t) / c.V
    wanted = [((z[w] - z_mean) - (t[w] - t_mean)) / c.V for w in range(c.V)]
    others = {
        "chapter": T**2 * chapter.hot_slope(c.z, c.t, T),
        "library, almost": T**2 * forward_kl.gradient(c.z, c.t, T),
    }
    return wanted, others


@evaluates(
    "2.16",
    r"\mathrm{TV}(p, q) = \frac{1}{2} \sum_{v} \lvert p_v - q_v \rvert, \qquad "
    r"\frac{\partial\, \mathrm{TV}}{\partial z_w} = \frac{q_w}{2\,T} "
    r"\Bigl( \sigma_w - \sum_{v} q_v \sigma_v \Bigr)",
)
def _(c):
    p, q = ([math.exp(x) for x in row] for row in (c.log_p(c.T), c.log_q(c.T)))
    s = [math.copysign(1.0, y - x) for x, y in zip(p, q, strict=True)]
    value = sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
    mean = sum(x * y for x, y in zip(q, s, strict=True))
    slope = [q[w] / (2 * c.T) * (s[w] - mean) for w in range(c.V)]

    def at(row):
        return oracles.total_variation(row, c.t.tolist(), c.T)

    by_chapter = chapter.tv_and_slope(*p_and_q(c, c.T), c.T)
    by_library = total_variation(c.z, c.t, c.T), total_variation.gradient(c.z, c.t, c.T)
    others = {
        "differences": [at(c.z.tolist()), *differences(at, c.z.tolist())],
        "chapter": torch.cat([by_chapter[0][None], by_chapter[1]]),
        "library": torch.cat([by_library[0][None], by_library[1]]),
    }
    return [value, *slope], others


@evaluates(
    "2.17",
    r"\frac{\partial\, \mathrm{KL}(q \,\|\, p)}{\partial z_w} = \frac{q_w}{T} "
    r"\bigl( \log q_w - \log p_w - \mathrm{KL}(q \,\|\, p) \bigr)",
)
def _(c):
    log_p, log_q = c.log_p(c.T), c.log_q(c.T)
    kl = oracles.kl(log_q, log_p)
    wanted = [math.exp(y) / c.T * (y - x - kl) for x, y in zip(log_p, log_q, strict=True)]

    def at(row):
        return oracles.reverse_kl(row, c.t.tolist(), c.T)

    others = {
        "differences": differences(at, c.z.tolist()),
        "chapter": chapter.reverse_slope(*p_and_q(c, c.T), c.T),
        "library": reverse_kl.gradient(c.z, c.t, c.T),
    }
    return wanted, others


@evaluates("2.18", r"\bar\ell = \frac{\sum_{b,s} \mu_{bs}\, \ell_{bs}}{\sum_{b,s} \mu_{bs}}")
def _(c):
    values, mask = c.z_BSV[..., 0], c.y_BS != -100
    total, count = 0.0, 0
    for b in range(len(values)):
        for s in range(len(values[b])):
            total += values[b, s].item() * mask[b, s].item()
            count += mask[b, s].item()
    others = {
        "chapter": chapter.mean_of_valid(values, mask),
        "library": masked_mean(values, mask),
    }
    return total / count, others


@evaluates(
    "2.19",
    r"L = \frac{1}{N} \sum_{b,s} \mu_{bs} \Bigl[ \alpha\, T^2\, \mathrm{KL}(p_{bs} \,\|\, q_{bs}) "
    r"- (1-\alpha) \log q^{T=1}_{bs}[y_{bs}] \Bigr]",
)
def _(c):
    N, wanted = 17, 0.0  # the valid tokens of a step of which this is a part
    for b in range(len(c.y_BS)):
        for s in range(len(c.y_BS[b])):
            if c.y_BS[b, s] == -100:
                continue
            t, z = c.t_BSV[b, s].tolist(), c.z_BSV[b, s].tolist()
            wanted += c.alpha * c.T**2 * oracles.forward_kl(z, t, c.T) / N
            wanted -= (1 - c.alpha) * oracles.log_softmax(z)[c.y_BS[b, s]] / N
    settings = {"alpha": c.alpha, "temperature": c.T, "num_items": N}
    others = {
        "chapter": chapter.by_hand(c.z_BSV, c.t_BSV, c.y_BS, c.alpha, c.T, N),
        "library": distillation_loss(c.z_BSV, c.t_BSV, c.y_BS, **settings),
    }
    return wanted, others


@evaluates(
    "2.20",
    r"-\frac{\partial L}{\partial z_w} = \alpha\, T\, (p_w - q_w) + (1-\alpha) "
    r"\bigl( [w = y] - q^{T=1}_w \bigr)",
)
def _(c):
    p, q = ([math.exp(x) for x in row] for row in (c.log_p(c.T), c.log_q(c.T)))
    wanted = []
    for w in range(c.V):
        soft = c.alpha * c.T * (p[w] - q[w])
        wanted.append(soft + (1 - c.alpha) * ((w == c.y) - math.exp(c.log_q()[w])))
    z = c.z.clone().requires_grad_()
    distillation_loss(z[None], c.t[None], c.label[None], alpha=c.alpha, temperature=c.T).backward()
    others = {
        "chapter": sum(chapter.pulls(c.z, c.t, c.label, c.alpha, c.T)),
        "library": -z.grad,
    }
    return wanted, others


@pytest.mark.parametrize("c", CASES, ids=lambda c: f"T={c.T}")
@pytest.mark.parametrize("number", EVALUATIONS)
def test_a_formula_is_what_the_chapter_and_the_library_compute(number, c):
    wanted, others = EVALUATIONS[number][1](c)
    assert "chapter" in others
    for who, value in others.items():
        exact = not any(word in who for word in ("differences", "almost"))
        tolerance = {"rtol": 1e-9, "atol": 1e-12} if exact else {"rtol": 1e-4, "atol": 1e-7}
        assert_close(
            torch.as_tensor(value, dtype=torch.float64),
            torch.tensor(wanted, dtype=torch.float64),
            msg=lambda text, who=who: f"({number}) {who}: {text}",
            **tolerance,
        )


# --- every displayed formula has an id, an evaluation, and its code under it ----------------------


def faults(cells, evaluations):
    """What is wrong with the displayed formulas of a notebook, in sentences."""
    found, numbers = [], []
    for cell, below in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type != "markdown":
            continue
        for formula in SHOWN.findall(cell.source):
            ids, text = NUMBER.findall(formula), " ".join(NUMBER.sub("", formula).split())
            if len(ids) != 1:
                found.append(f"{len(ids)} ids: {text}")
                continue
            numbers.append(ids[0])
            if ids[0] not in evaluations:
                found.append(f"({ids[0]}) has no evaluation")
            elif text != evaluations[ids[0]][0]:
                found.append(f"({ids[0]}) is evaluated as another formula: {text}")
            if below is None or below.cell_type != "code":
                found.append(f"({ids[0]}) has no code under it")
    first = numbers[0].split(".")[0] if numbers else ""
    if numbers != [f"{first}.{place}" for place in range(1, len(numbers) + 1)]:
        found.append(f"not numbered in order: {numbers}")
    return found + [f"({n}) is evaluated, not displayed" for n in evaluations if n not in numbers]


def test_every_displayed_formula_has_an_id_an_evaluation_and_code_under_it():
    assert faults(CHAPTER, EVALUATIONS) == []
    assert len(EVALUATIONS) >= 15


KNOWN = {"2.1": ("a = b", None), "2.2": ("c = d", None)}
BOTH = "$$a = b \\tag{2.1}$$\nand\n$$c = d \\tag{2.2}$$"
BROKEN = {
    "0 ids: e = f": BOTH + "\n$$e = f$$",
    "2 ids": BOTH + "\n$$e = f \\tag{2.3} \\tag{2.4}$$",
    r"\(2.3\) has no evaluation": BOTH + "\n$$e = f \\tag{2.3}$$",
    r"\(2.2\) is evaluated, not displayed": "$$a = b \\tag{2.1}$$",
    r"\(2.1\) is evaluated as another formula: a = 2 b": BOTH.replace("a = b", "a = 2 b"),
    "not numbered in order": "$$c = d \\tag{2.2}$$\n$$a = b \\tag{2.1}$$",
    "not numbered in order: .'2.1', '2.2', '2.2'": BOTH + "\n$$c = d \\tag{2.2}$$",
}


@pytest.mark.parametrize("sentence", BROKEN)
def test_a_formula_without_its_id_evaluation_or_order_is_found(sentence):
    code = v4.new_code_cell("1")
    assert faults([v4.new_markdown_cell(BOTH), code], KNOWN) == []
    [said] = faults([v4.new_markdown_cell(BROKEN[sentence]), code], KNOWN)
    assert re.search(sentence, said)


def test_a_formula_without_code_under_it_is_found():
    said = faults([v4.new_markdown_cell(BOTH), v4.new_markdown_cell("text")], KNOWN)
    assert [fault.endswith("has no code under it") for fault in said] == [True, True]
