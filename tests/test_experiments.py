"""What the long experiments stand on: records that go on, and a teacher that thinks once."""

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch

from distillkit.chat import Collator
from distillkit.provenance import provenance
from distillkit.training import DistillationArguments, DistillationTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from recording import Record
from remembering import RememberingTeacher


def test_a_recorded_run_is_not_made_again(tmp_path):
    made = []

    def make() -> dict:
        made.append(1)
        return {"nll": 0.5}

    Record("x.json", tmp_path).once(make, arm="labels", seed=0)
    again = Record("x.json", tmp_path)
    assert again.once(make, arm="labels", seed=0)["nll"] == 0.5
    again.once(make, arm="labels", seed=1)
    assert len(made) == 2
    content = json.loads((tmp_path / "x.json").read_text())
    assert [run["seed"] for run in content["runs"]] == [0, 1]
    assert all(run["seconds"] >= 0 for run in content["runs"])
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_fails_leaves_the_record_as_it_was(tmp_path):
    record = Record("x.json", tmp_path)
    record.once(lambda: {"nll": 1.0}, seed=0)
    before = record.path.read_bytes()
    with pytest.raises(RuntimeError):
        record.once(lambda: (_ for _ in ()).throw(RuntimeError("killed")), seed=1)
    assert record.path.read_bytes() == before


def test_provenance_names_no_folder_of_this_machine():
    text = json.dumps(provenance())
    assert {"command", "commit", "date", "distillkit", "machine"} <= provenance().keys()
    assert str(Path.home()) not in text and str(Path.cwd()) not in text


def test_a_remembering_teacher_gives_the_teachers_logits():
    teacher = tiny.teacher().eval()
    remembering = RememberingTeacher(teacher)
    rows = tiny.encoded(7)
    collate = Collator(tiny.TOKENIZER)
    calls = []
    teacher.model.register_forward_hook(lambda *_: calls.append(1))
    for chosen in ([0, 1, 2], [2, 0], [3, 4, 5, 6], [6, 1, 3]):
        batch = collate([rows[number] for number in chosen])
        with torch.no_grad():
            ours = remembering(batch["input_ids"]).logits
            before = len(calls)
            theirs = teacher(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            calls[before:] = []
        mask = batch["attention_mask"].bool()
        torch.testing.assert_close(ours[mask], theirs[mask])
    assert len(calls) == 2  # two of the four batches had nothing new


def test_a_remembering_teacher_teaches_the_same(tmp_path):
    def trained(teacher) -> dict:
        trainer = DistillationTrainer(
            tiny.student(),
            teacher,
            args=DistillationArguments(
                output_dir=str(tmp_path),
                alpha=0.7,
                max_steps=6,
                per_device_train_batch_size=3,
                save_strategy="no",
                disable_tqdm=True,
                use_cpu=True,
            ),
            train_dataset=tiny.encoded(9),
            processing_class=tiny.TOKENIZER,
        )
        trainer.train()
        return trainer.model.state_dict()

    plain, remembered = trained(tiny.teacher()), trained(RememberingTeacher(tiny.teacher()))
    for name in plain:
        torch.testing.assert_close(remembered[name], plain[name], rtol=1e-4, atol=1e-5)
