"""Losses on what is inside a network: loop oracles, masks, gradients, and where the layers are."""

import math

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertForMaskedLM

from distillkit.errors import UserError
from distillkit.feature_training import Features
from distillkit.features import (
    DISTILBERT_LAYERS,
    After,
    Attention,
    Heads,
    Hidden,
    Inside,
    Relations,
    attention_maps_mse,
    attention_scores_mse,
    hidden_cosine,
    hidden_mse,
    last_layers,
    layers_to_copy,
    relation_kl,
    uniform_layers,
)
from distillkit.inside import looking_inside

torch.set_num_threads(1)


# --- Each loss as slow loops --------------------------------------------------------------------


def mse_loops(h, t):
    return sum((x - y) ** 2 for x, y in zip(h, t, strict=True)) / len(h)


def cosine_loops(h, t):
    dot = sum(x * y for x, y in zip(h, t, strict=True))
    lengths = [math.sqrt(sum(x * x for x in row)) for row in (h, t)]
    return 1.0 - dot / (lengths[0] * lengths[1])


def softmax_loops(row):
    highest = max(row)
    powers = [math.exp(x - highest) for x in row]
    return [x / sum(powers) for x in powers]


def attention_loops(student, teacher, seen, maps):
    """One token: (H, S) scores twice and which tokens it sees."""
    total = 0.0
    for a, b in zip(student, teacher, strict=True):
        a, b = (
            [x for x, ok in zip(a, seen, strict=True) if ok],
            [x for x, ok in zip(b, seen, strict=True) if ok],
        )
        if maps and a:
            a, b = softmax_loops(a), softmax_loops(b)
        total += sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / max(len(a), 1)
    return total / len(student)


def relation_loops(student, teacher, seen, token, heads):
    """One token of (S, X) and (S, Y) states."""
    total = 0.0
    for head in range(heads):
        rows = []
        for states in (teacher, student):
            width = len(states[0]) // heads
            cut = [row[head * width : (head + 1) * width] for row in states]
            scores = [
                sum(x * y for x, y in zip(cut[token], other, strict=True)) / math.sqrt(width)
                for other, ok in zip(cut, seen, strict=True)
                if ok
            ]
            rows.append(softmax_loops(scores) if scores else [])
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(*rows, strict=True))
    return total / heads


def states(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def visible_tokens(lengths, size, causal):
    valid = torch.arange(size) < torch.tensor(lengths)[:, None]
    pairs = valid[:, None] & valid[:, :, None]
    return valid, pairs.tril() if causal else pairs


@given(st.integers(0, 1000))
def test_hidden_losses_are_their_loops(seed):
    h, t = states(2, 3, 5, seed=seed), states(2, 3, 5, seed=seed + 1)
    for loss, loops in ((hidden_mse, mse_loops), (hidden_cosine, cosine_loops)):
        for b in range(2):
            for s in range(3):
                expected = loops(h[b, s].tolist(), t[b, s].tolist())
                assert loss(h, t)[b, s].item() == pytest.approx(expected, rel=1e-12)


@given(st.integers(0, 1000), st.booleans())
def test_attention_losses_are_their_loops(seed, causal):
    a, b = 2 * states(2, 3, 4, 4, seed=seed), 2 * states(2, 3, 4, 4, seed=seed + 1)
    _, visible = visible_tokens([4, 2], 4, causal)
    for loss, maps in ((attention_scores_mse, False), (attention_maps_mse, True)):
        found = loss(a, b, visible)
        for n in range(2):
            for s in range(4):
                expected = attention_loops(
                    a[n, :, s].tolist(), b[n, :, s].tolist(), visible[n, s].tolist(), maps
                )
                assert found[n, s].item() == pytest.approx(expected, rel=1e-12, abs=1e-15)


@given(st.integers(0, 1000), st.booleans(), st.sampled_from([1, 2, 4]))
def test_relations_are_their_loops(seed, causal, heads):
    a, b = states(2, 4, 8, seed=seed), states(2, 4, 12, seed=seed + 1)
    _, visible = visible_tokens([4, 2], 4, causal)
    found = relation_kl(a, b, visible, heads)
    for n in range(2):
        for s in range(4):
            expected = relation_loops(
                a[n].tolist(), b[n].tolist(), visible[n, s].tolist(), s, heads
            )
            assert found[n, s].item() == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    h, t = states(1, 3, 8, seed=0).to(dtype), states(1, 3, 8, seed=1).to(dtype)
    _, visible = visible_tokens([3], 3, True)
    for found, exact in (
        (hidden_mse(h, t), hidden_mse(h.double(), t.double())),
        (relation_kl(h, t, visible, 2), relation_kl(h.double(), t.double(), visible, 2)),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_relations_of_rows_that_see_nothing_are_zero_with_finite_gradients():
    a = states(1, 4, 8, seed=0).requires_grad_()
    _, visible = visible_tokens([2], 4, True)
    loss = relation_kl(a * 100, states(1, 4, 8, seed=1), visible, 2)
    loss.sum().backward()
    assert loss[0, 2:].tolist() == [0.0, 0.0]
    assert a.grad.isfinite().all()
    assert not a.grad[0, 2:].any()


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(UserError, match="project"):
        hidden_mse(states(1, 2, 3, seed=0), states(1, 2, 4, seed=0))
    _, visible = visible_tokens([2], 2, True)
    with pytest.raises(UserError, match="relation heads"):
        relation_kl(states(1, 2, 8, seed=0), states(1, 2, 9, seed=0), visible, 2)


# --- Which layer is which -----------------------------------------------------------------------


def test_layer_maps():
    assert uniform_layers(2, 4) == [(0, 0), (1, 2), (2, 4)]
    assert uniform_layers(4, 12) == [(0, 0), (1, 3), (2, 6), (3, 9), (4, 12)]
    assert last_layers(3, 12) == [(0, 0), (1, 10), (2, 11), (3, 12)]
    assert layers_to_copy(uniform_layers(6, 12)) == [1, 3, 5, 7, 9, 11]
    assert DISTILBERT_LAYERS == (0, 2, 4, 7, 9, 11)
    with pytest.raises(UserError, match="multiple"):
        uniform_layers(5, 12)
    with pytest.raises(UserError, match="no more"):
        last_layers(3, 2)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_places_are_what_transformers_calls_hidden_states(kind):
    model = tiny.teacher() if kind == "llama" else bert()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    places = [After(0), After(1), After(2), After(2, normed=True)]
    with torch.no_grad(), looking_inside(model, places, [2]) as seen:
        output = model(ids, output_hidden_states=True)
    embeddings, first, last = output.hidden_states
    assert torch.equal(seen.hidden[After(0)], embeddings)
    assert torch.equal(seen.hidden[After(1)], first)
    assert torch.equal(seen.hidden[After(2, normed=True)], last)
    assert torch.equal(seen.hidden[After(2)], last) == (kind == "bert")  # which has no final norm
    if kind == "llama":
        assert torch.equal(model.model.norm(seen.hidden[After(2)]), last)
        assert torch.equal(model.model.embed_tokens(ids), seen.hidden[After(0)])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_scores_are_those_of_the_attention(kind):
    model = tiny.teacher() if kind == "llama" else bert()
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad(), looking_inside(model, layers=[1, 2]) as seen:
        output = model(ids)
    model.set_attn_implementation("eager")
    with torch.no_grad(), looking_inside(model, layers=[1]) as eager:
        maps = model(ids, output_attentions=True).attentions
    torch.testing.assert_close(eager.heads[1].scores(), seen.heads[1].scores())
    for layer in (1, 2):
        heads = seen.heads[layer]
        assert heads.causal == (kind == "llama")
        scores = heads.scores()
        if heads.causal:
            scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
        torch.testing.assert_close(scores.softmax(-1), maps[layer - 1], rtol=1e-5, atol=1e-6)
    assert output.logits.shape[:2] == (1, 4)


def test_looking_inside_leaves_nothing_behind():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as functions

    model, before = tiny.teacher(), dict(functions)
    with pytest.raises(RuntimeError), looking_inside(model, [After(0)], [1]):
        raise RuntimeError
    assert dict(functions) == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.parametrize(
    "wrong", [{"places": [After(3)]}, {"places": [After(1, True)]}, {"layers": [0]}], ids=str
)
def test_places_that_are_not_there_are_refused(wrong):
    with pytest.raises(UserError, match="expected"), looking_inside(tiny.teacher(), **wrong):
        pass


def bert():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
    )
    torch.manual_seed(0)
    return BertForMaskedLM(config).eval()


# --- Together -----------------------------------------------------------------------------------

MATCHES = [
    Hidden([(After(0), After(0)), (After(1), After(1))]),
    Hidden([(After(1, True), After(2, True))], loss=hidden_cosine),
    Attention([(1, 2)]),
    Relations([(1, 2)], heads=4),
]


def looked_at(student, teacher, features, ids):
    with looking_inside(student, **features.wanted(0)) as mine:
        student(ids)
    with torch.no_grad(), looking_inside(teacher, **features.wanted(1)) as its:
        teacher(ids)
    return mine, its


def test_gradients_reach_the_student_and_the_projections_and_nothing_else():
    student, teacher = tiny.student(), tiny.teacher()
    features = Features(student, teacher, MATCHES)
    assert [tuple(p.shape) for p in features.parameters()] == [(24, 16), (24, 16)]
    ids = torch.tensor([[1, 2, 3]])
    sums = features(*looked_at(student, teacher, features, ids), torch.ones(1, 3).bool())
    sum(sums).backward()
    assert all(p.grad is None for p in teacher.parameters())
    for parameter in features.parameters():
        assert parameter.grad.abs().sum() > 0
    assert student.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("match", MATCHES, ids=lambda match: match.name)
def test_what_stands_at_masked_tokens_does_not_matter(match):
    student, teacher = tiny.student().double(), tiny.teacher().double()
    features = Features(student, teacher, [match])
    valid = torch.tensor([[True, True, True, False, False]])
    found = []
    for rest in ([3, 4], [9, 60]):
        student.zero_grad()
        seen = looked_at(student, teacher, features, torch.tensor([[1, 2, 5, *rest]]))
        [total] = features(*seen, valid)
        total.backward()
        head = student.model.layers[0].self_attn.k_proj.weight.grad.clone()
        found.append((total.item(), head))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-10, atol=1e-12)


def test_nothing_to_match_is_zero_when_both_are_the_same():
    model = tiny.teacher()
    places = [(After(i), After(i)) for i in range(3)]
    features = Features(
        model, model, [Hidden(places), Attention([(1, 1)]), Relations([(2, 2)], heads=3)]
    )
    assert not list(features.parameters())
    seen = looked_at(model, model, features, torch.tensor([[1, 2, 3]]))
    assert [s.item() for s in features(*seen, torch.ones(1, 3).bool())] == pytest.approx([0, 0, 0])


def test_grouped_queries_use_the_key_of_their_group():
    query, key = states(1, 4, 3, 2, seed=0), states(1, 2, 3, 2, seed=1)
    heads = Heads(query, key, key, 0.5, causal=True)
    for head in range(4):
        expected = query[0, head] @ key[0, head // 2].T * 0.5
        torch.testing.assert_close(heads.scores()[0, head], expected)
    torch.testing.assert_close(heads.scores([3, 0])[0, 0], heads.scores()[0, 3])
    assert isinstance(Inside().hidden, dict)


def test_scores_of_half_precision_do_not_overflow():
    states = torch.full((1, 1, 3, 64), 60.0, dtype=torch.float16)  # 64 · 60² is more than 65,504
    scores = Heads(states, states, states, scaling=0.125, causal=True).scores()
    assert scores.dtype == torch.float32 and (scores == 64 * 60**2 / 8).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Relations([(1, 1)], of=("keys",)), "of is"),
        (lambda: relation_kl(*[torch.ones(1, 2, 4)] * 2, torch.ones(1, 2, 2) > 0, 0), "0 relation"),
        (lambda: Heads(*[torch.ones(1, 2, 3, 4)] * 3, 1.0, True).scores([2]), "from 0 to 1"),
    ],
    ids=["states", "relation heads", "teacher heads"],
)
def test_heads_and_states_that_are_not_there_are_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()
