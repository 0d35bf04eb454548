"""The tables of chapter 08: how much can be pruned away when nothing is trained afterwards.

    python experiments/08_pruning.py [--methods magnitude wanda] [--seeds 0 1]

The teacher, and its twin that says the same and has outliers inside, are pruned by magnitude, by
Wanda and by SparseGPT: half of the weights, 60 and 70 %, and 2:4. What a method reads are 64
conversations; a seed draws other ones (magnitude reads nothing and is the same for all seeds). Of
each result: the NLL of 200 test conversations, how many of 400 visitors of test towns it serves,
and the squared error of the matrices' outputs as a share of these outputs, the mean over all
matrices, on held-out conversations that no method has read.

About forty minutes on one core. Each run is written to ``experiments/results/08_pruning.json`` as
it ends, and one that is there is not made again.
"""

import argparse
import copy

import torch
from recording import Record, served

from distillkit.calibration import linear_inputs
from distillkit.chat import encode_rows
from distillkit.dialogues import front_desk
from distillkit.evaluation import nll, task_success
from distillkit.models import load_model
from distillkit.pruning import Magnitude, NofM, SparseGPT, Unstructured, Wanda, prunable, prune
from distillkit.rescaling import with_outliers

METHODS = {"magnitude": Magnitude(), "wanda": Wanda(), "sparsegpt": SparseGPT()}
PATTERNS = (Unstructured(0.5), Unstructured(0.6), Unstructured(0.7), NofM(2, 4))
CALIBRATION, CALIBRATION_SEED = 64, 800  # conversations; the first seed that draws them
TEST, VISITS, HELD_OUT = 200, 400, 24


class Ward:
    """The two models, and what the pruned ones are judged by."""

    def __init__(self) -> None:
        teacher, self.tokenizer = load_model("front-desk-teacher")
        self.models = {"teacher": teacher, "twin": with_outliers(teacher, seed=0)}
        self.test = encode_rows(self.tokenizer, front_desk(TEST, seed=3, split="test"))
        aside = encode_rows(self.tokenizer, front_desk(HELD_OUT, seed=2, split="development"))
        self.products = {
            name: {part: read.products for part, read in found.items()}
            for name, model in self.models.items()
            for found in [linear_inputs(model, aside, products=True)]
        }

    def judge(self, model, named: str) -> dict:
        success = task_success(model, self.tokenizer, visits=VISITS, seed=4)
        return {
            "nll": nll(model, self.test).per_token,
            "error": self.error(model, named),
            **served(success),
        }

    def error(self, model, named: str) -> float:
        """The mean over matrices of ‖(W − W') X‖² / ‖W X‖², X being what the whole model reads."""
        whole, found = prunable(self.models[named]), []
        for name, linear in prunable(model).items():
            products = self.products[named][name]
            weight = whole[name].weight.detach().double()
            lost = weight - linear.weight.detach().double()
            found.append(float((lost @ products * lost).sum() / (weight @ products * weight).sum()))
        return sum(found) / len(found)

    def prune(self, named: str, method, pattern, seed: int) -> dict:
        model = copy.deepcopy(self.models[named])
        texts = encode_rows(self.tokenizer, front_desk(CALIBRATION, seed=CALIBRATION_SEED + seed))
        masks = prune(model, method, pattern, texts)
        return {"sparsity": masks.sparsity, **self.judge(model, named)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record, ward = Record("08_pruning.json"), Ward()
    for named, model in ward.models.items():
        record.once(
            lambda named=named, model=model: ward.judge(model, named), model=named, method="whole"
        )
    for seed in args.seeds:
        for named in ward.models:
            for pattern in PATTERNS:
                for name in args.methods:
                    method = METHODS[name]
                    key = {"model": named, "method": name, "pattern": str(pattern)}
                    if method.reads_inputs or seed == 0:
                        record.once(
                            lambda run=(named, method, pattern, seed): ward.prune(*run),
                            **key,
                            seed=seed,
                        )


if __name__ == "__main__":
    main()
