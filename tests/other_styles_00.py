"""Right answers to the exercises of chapter 00 in other styles than the solutions'."""

import torch

# --- 0.2 ------------------------------------------------------------------------------------------


def bytes_by_dictionary(shapes, widths, places, learned):
    sizes = shapes.prod(1) * widths
    rows = zip(places.tolist(), sizes.tolist(), learned.tolist(), strict=True)
    return sum({place: size for place, size, counts in rows if counts}.values())


def bytes_by_unique(shapes, widths, places, learned):
    found = torch.stack([places, shapes[:, 0] * shapes[:, 1] * widths], 1)[learned]
    return found.unique(dim=0)[:, 1].sum()


def bytes_by_numpy(shapes, widths, places, learned):
    import numpy as np

    kept = learned.numpy()
    _, first = np.unique(places.numpy()[kept], return_index=True)
    return float((shapes.numpy().prod(1) * widths.numpy())[kept][first].sum())


# --- 0.3 ------------------------------------------------------------------------------------------


def success_by_loops(wanted, booked, untrue):
    served = 0
    for n in range(len(wanted)):
        served += wanted[n].tolist() == booked[n].tolist() and not untrue[n]
    return served / len(wanted)


def success_by_failures(wanted, booked, untrue):
    failures = (wanted != booked).sum(1) + untrue
    return 1 - (failures > 0).double().mean()


def success_by_products(wanted, booked, untrue):
    right = wanted.eq(booked).long().prod(1) * untrue.eq(0)
    return right.sum().item() / right.numel()


STYLES = {
    "0.2": (bytes_by_dictionary, bytes_by_unique, bytes_by_numpy),
    "0.3": (success_by_loops, success_by_failures, success_by_products),
}
