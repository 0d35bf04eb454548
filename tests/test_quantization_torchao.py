"""torchao beside our own integers."""

import subprocess
import sys

import pytest
import tiny
import torch

from distillkit.errors import UserError
from distillkit.models import load_model, save_model
from distillkit.quantization import EIGHT_BITS, Grid, quantize, torchao_int8

IDS = torch.tensor([tiny.encoded(1)[0]["input_ids"]])


def test_torchao_saves_and_loads_and_rounds_as_we_do(tmp_path):
    pytest.importorskip("torchao", reason='torchao is not installed: pip install ".[quant]"')
    model = tiny.teacher().eval()
    with torch.no_grad():
        before = model(IDS).logits
        theirs = torchao_int8(model)
        found = theirs(IDS).logits
        again, _ = load_model(save_model(theirs, tiny.TOKENIZER, tmp_path / "theirs"))
        ours = quantize(model, Grid(scales=torch.float32), embeddings=None)
        assert torch.equal(model(IDS).logits, before) and not torch.equal(found, before)
        torch.testing.assert_close(again(IDS).logits, found)
        errors = [(each - before).abs().mean() for each in (ours(IDS).logits, found)]
    assert errors[0] / 3 < errors[1] < 3 * errors[0]  # both round to one scale a row
    save_model(model, tiny.TOKENIZER, tmp_path / "floats")
    sizes = [
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("theirs", "floats")
    ]
    assert sizes[0] < sizes[1]
    with pytest.raises(UserError, match="quantized already"):
        torchao_int8(quantize(model, EIGHT_BITS))


def test_where_torchao_is_installed_importing_us_says_nothing():
    pytest.importorskip("torchao", reason='torchao is not installed: pip install ".[quant]"')
    command = [sys.executable, "-c", "import distillkit.models"]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def test_without_torchao_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"distillkit\[quant\]"):
        torchao_int8(tiny.teacher())
