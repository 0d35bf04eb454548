"""What the README tells people to type works."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, flags=re.S)


def test_a_student_is_trained_as_the_readme_does(tmp_path, monkeypatch):
    [code] = [each for each in blocks() if "DistillationTrainer(" in each]
    monkeypatch.chdir(tmp_path)
    short = code.replace("max_steps=400", "max_steps=2").replace("front_desk(300)", "front_desk(8)")
    assert short.count("max_steps=2") == 1 and "front_desk(8)" in short
    names: dict = {}
    exec(short, names)
    assert names["trainer"].state.global_step == 2 and (tmp_path / "build" / "student").is_dir()


def test_a_model_is_cut_rounded_and_exported_as_the_readme_does(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    [code] = [each for each in blocks() if "export_onnx" in each]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "build").mkdir()
    names: dict = {}
    exec(code, names)
    whole = names["bytes_on_disk"](tmp_path / "build" / "onnx")
    for smaller in ("onnx-int8", "four-bits", "student.gguf"):
        assert names["bytes_on_disk"](tmp_path / "build" / smaller) < whole / 3
    again, _ = names["load_model"](tmp_path / "build" / "four-bits")
    assert again.config.num_hidden_layers == 2
    zeros = names["model"].model.layers[0].mlp.up_proj.weight == 0
    assert float(zeros.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(capsys.readouterr().out.split()[-1]) > 0.5  # visits served
