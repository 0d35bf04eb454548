"""Models to export in the tests, and a fresh process in which an export speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from distillkit.dialogues import front_desk
from distillkit.model_files import load_model

ROWS = front_desk(4, seed=41)
FRESH = """
import json, sys
from distillkit.export import load_onnx, read_gguf
from distillkit.decoding import generate_replies
from distillkit.model_files import load_model
prompts, *paths = sys.argv[1:]
_, tokenizer = load_model("front-desk-student")
for path in paths:
    model = read_gguf(path) if path.endswith(".gguf") else load_onnx(path)
    print(json.dumps(generate_replies(model, tokenizer, json.loads(prompts))))
"""


def student():
    return load_model("front-desk-student")


def ids_of(model, batch, length, *, seed=0):
    """Random ids that the model knows."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=chance)


def logits_of(model, ids, **settings):
    with torch.inference_mode():
        return model(ids, **settings).logits


def in_a_fresh_process(prompts, *paths):
    """The replies of each of these exports to the prompts."""
    command = [sys.executable, "-W", "ignore", "-c", FRESH, json.dumps(prompts), *map(str, paths)]
    variables = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    return [json.loads(line) for line in said.stdout.splitlines()[-len(paths) :]]
