"""What the long experiments stand on: records that go on, and a teacher that thinks once."""

import importlib
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import tiny
import torch

from distillkit.chat import Collator
from distillkit.models import ModelSize, count_parameters, load_model
from distillkit.on_policy import WholeVisits
from distillkit.provenance import provenance
from distillkit.training import DistillationArguments, DistillationTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

import arms
import real
import shipping
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
        torch.testing.assert_close(ours[mask], theirs[mask], rtol=1e-4, atol=1e-4)
    assert len(calls) == 7  # each conversation was read once


def test_what_a_teacher_remembers_does_not_depend_on_the_batch():
    rows, kept = tiny.encoded(5), []
    for chosen in ([0, 1, 2, 3, 4], [4, 2], [2]):
        remembering = RememberingTeacher(tiny.teacher().eval())
        with torch.no_grad():
            remembering(Collator(tiny.TOKENIZER)([rows[number] for number in chosen])["input_ids"])
        kept.append(remembering.seen[tuple(rows[2]["input_ids"])])
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


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


@pytest.fixture
def classroom(monkeypatch) -> arms.Classroom:
    """A classroom whose students train for two steps, and are measured by a little."""
    sizes = {"STEPS": 2, "EVALUATIONS": 1, "VALIDATION": 2, "VISITS": 2, "TEST": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(arms, name, value)
    teacher, tokenizer = load_model("front-desk-teacher")
    return arms.Classroom(RememberingTeacher(teacher), tokenizer)


def test_every_arm_of_the_fair_fight_trains_and_is_measured(classroom):
    fair_fight = importlib.import_module("04_fair_fight")
    for arm, trials in fair_fight.TRIALS.items():
        run = fair_fight.fight(arm, 8, 0, trials[0], classroom)
        assert len(run["successes"]) == 2 and run["nll"] > 0
        assert [step for step, _ in run["curve"]] == [2]


@pytest.mark.parametrize("arm", ["labels", "distilled"])
def test_students_of_every_size_are_tuned_trained_and_shipped(
    classroom, arm, tmp_path, monkeypatch
):
    students = importlib.import_module("00_students")
    monkeypatch.setattr(students, "STEPS", 4)
    monkeypatch.setattr(students, "CONVERSATIONS", 9)
    monkeypatch.setattr(shipping, "SHIPPED_FOLDER", tmp_path)
    trial = students.tune(record := Record("x.json", tmp_path), arm, classroom)
    assert trial in students.TRIALS[arm] and [run["steps"] for run in record.runs] == [1] * 3
    for size in students.SIZES:
        run = students.graduate(arm, size, trial, classroom)
        model, _ = load_model(tmp_path / run["name"])
        assert run["steps"] == 4 and run["bytes"] < 2e6  # what a student may take
        assert count_parameters(model) == run["parameters"]
        assert f"{run['success']:.1%}" in (tmp_path / run["name"] / "README.md").read_text()


def test_the_stages_of_a_teacher_train_and_are_measured(monkeypatch):
    stages = importlib.import_module("03_stages")
    small = {"STEPS": 4, "EVALUATIONS": 2, "DEVELOPMENT": 2, "TEST": 2, "VISITS": 2}
    small |= {"FEW": 3, "BATCH_SIZE": 2}
    for name, value in small.items():
        monkeypatch.setattr(stages, name, value)
    _, tokenizer = load_model("front-desk-teacher")
    fitted = []
    fit = stages.fit
    monkeypatch.setattr(stages, "fit", lambda *args: (fitted.append(args), fit(*args)))
    for arm in stages.ARMS:
        run = stages.train("student", arm, 0, tokenizer)
        assert [point[0] for point in run["curve"]] == [2, 4]
        assert set(run["by_origin"]) == {"copied", "own"} and len(run["successes"]) == 2
    learned = [
        (len(rows), -100 not in rows[0]["labels"], steps) for _, _, rows, steps, *_ in fitted
    ]
    turns, all_tokens, few = (8, False, 4), (4, True, 2), (3, False, 2)
    assert learned == [turns, all_tokens, (4, False, 2), (3, False, 4), all_tokens, few]


def test_distilberts_recipe_runs_from_end_to_end_and_goes_on(tmp_path, monkeypatch):
    recipe = importlib.import_module("06_distilbert")
    small = {"VOCABULARY": 300, "VISITS": 8, "HELD_OUT": 2, "TEXTS": 80, "JUDGED": 20, "TIMED": 3}
    small |= {"SIZE": ModelSize(16, 4, 2, 32), "STUDENT_LAYERS": 2}
    for name in ("TEACHER_RUN", "STUDENT_RUN", "FINE_RUN"):
        small[name] = getattr(recipe, name) | {"steps": 2}
    for name, value in small.items():
        monkeypatch.setattr(recipe, name, value)
    monkeypatch.setattr(recipe, "Record", partial(Record, folder=tmp_path))
    command = f"x --work {tmp_path / 'work'} --seeds 0"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--arms", "triple", "new"])
    recipe.main()
    record = tmp_path / "06_distilbert.json"
    first = json.loads(record.read_text())["runs"]
    assert [run["arm"] for run in first] == ["pre-trained", "teacher", "triple", "new"]
    monkeypatch.setattr(sys, "argv", command.split())
    recipe.main()
    runs = json.loads(record.read_text())["runs"]
    assert runs[:4] == first and {run["arm"] for run in runs[4:]} == recipe.ARMS.keys() - {
        "triple",
        "new",
    }
    by_arm = {run["arm"]: run for run in runs}
    assert by_arm["triple"]["parameters"] < by_arm["teacher"]["parameters"]
    assert all(0 <= run["accuracy"] <= 1 and len(run["milliseconds"]) == 3 for run in runs[1:])
    assert by_arm["copied"]["gap_nll"] == by_arm["copied"]["gap_nll_before"]
    assert by_arm["random"]["gap_nll_before"] == by_arm["new"]["gap_nll"]
    assert by_arm["triple"]["gap_nll_before"] == by_arm["no cosine"]["gap_nll_before"]
    assert by_arm["triple"]["gap_nll"] != by_arm["no cosine"]["gap_nll"]


@pytest.mark.slow  # every method in turn: 60 s
def test_every_method_trains_and_is_measured(tmp_path, monkeypatch):
    methods = importlib.import_module("07_methods")
    small = {"STEPS": 4, "EVERY": 2, "SERVE_EVERY": 4, "CONVERSATIONS": 24, "VALIDATION": 3}
    small |= {"DEVELOPMENT_VISITS": 2, "VISITS": 2, "TEST": 2, "OWN": 2, "SPEAKING": 0.5}
    for name, value in (small | {"WORK": tmp_path}).items():
        monkeypatch.setattr(methods, name, value)
    school, nlls = methods.School(), {}
    for arm, method in methods.METHODS.items():
        run = methods.fight(arm, 0, method.trials[0], school)
        assert [step for step, *_ in run["curve"]] == [2, 4] and len(run["successes"]) == 2
        nlls[arm] = run["nll"]
        assert run["kl"] > 0 and run["kl_own_words"] > 0
        assert (run["teacher_seconds"] > 0) == bool(method.text or method.divergence)
    assert nlls.pop("forward_kl_weight") == nlls["forward_kl"]  # its first trial is the same
    assert len(set(nlls.values())) == len(nlls)  # and no other two are
    assert len(school.teacher.seen) == 24  # what the student says is not remembered


def test_the_shipped_student_is_taken_further_by_every_arm(tmp_path, monkeypatch):
    best = importlib.import_module("07_best_student")
    small = {name: replace(way, steps=2, batch_size=2) for name, way in best.ARMS.items()}
    small["forward_kl_longer"] = replace(small["forward_kl_longer"], steps=3)
    sizes = {"ARMS": small, "CHOOSE": 2, "VISITS": 2, "TEST": 2}
    for name, value in sizes.items():
        monkeypatch.setattr(best, name, value)
    monkeypatch.setattr(best, "Record", partial(Record, folder=tmp_path))
    monkeypatch.setattr(sys, "argv", ["x"])
    spoke = []
    converse = WholeVisits.serve
    monkeypatch.setattr(
        WholeVisits, "serve", lambda self, *given: (spoke.append(1), converse(self, *given))[1]
    )
    best.main()
    runs = json.loads((tmp_path / "07_best_student.json").read_text())["runs"]
    assert [run["arm"] for run in runs] == ["as shipped"] * 2 + list(best.ARMS)
    assert all(len(run["successes"]) == 2 and 0 <= run["development"] <= 1 for run in runs)
    assert len({run["nll"] for run in runs}) == len(runs)  # each has learned something else
    assert 4 <= len(spoke) <= 6  # every step of two arms, and of the mixed one some
    best.main()
    assert json.loads((tmp_path / "07_best_student.json").read_text())["runs"] == runs


def test_the_same_visitors_are_served_by_the_desk_and_by_the_student(tmp_path, monkeypatch):
    drift = importlib.import_module("07_drift")
    monkeypatch.setattr(drift, "VISITORS", 3)
    monkeypatch.setattr(drift, "Record", partial(Record, folder=tmp_path))
    monkeypatch.setattr(sys, "argv", ["x", "--students", "front-desk-student-small"])
    drift.main()
    [run] = json.loads((tmp_path / "07_drift.json").read_text())["runs"]
    *parts, whole = run["groups"]
    assert whole["turns"] == "all" and whole["visitors"] == 3 and parts[0]["turns"] == "1-3"
    for each in run["groups"]:
        low, high = each["difference_interval"]
        assert low <= each["own"] - each["desk"] <= high and each["desk"] > 0
    drift.main()  # it is there, and not measured again
    assert json.loads((tmp_path / "07_drift.json").read_text())["runs"] == [run]


def test_a_group_is_compared_on_the_visitors_who_come_there_both_ways():
    drift = importlib.import_module("07_drift")
    tokens = torch.tensor([[2.0, 2.0], [2.0, 0.0]]).numpy()
    values = torch.tensor([[2.0, 4.0], [6.0, 0.0]]).numpy()
    desk = drift.TurnSums(values, tokens, tokens)
    stopped = torch.tensor([[1.0, 0.0], [4.0, 0.0]]).numpy()  # the first one broke off early
    own = drift.TurnSums(stopped * 3, stopped, stopped)
    first, *others = drift.compared(desk, own)
    assert first["visitors"] == 2 and first["desk"] == 2.0 and first["own"] == 3.0
    assert [each["turns"] for each in others] == ["all"]  # nobody comes to turn 4 both ways
    assert others[0]["desk"] == 2.0


@pytest.fixture
def real_job(tmp_path, monkeypatch):
    """A script of real conversations, on six made-up ones, for a step: name, more -> its runs."""
    rows = [row | {"source": "multiwoz2.1"} for row in tiny.dialogues(6)]
    for part in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"dialogues_en.{part}.jsonl").write_text(text)
    plan = {"steps": 1, "batch_size": 2, "learning_rate": 1e-3, "eval_every": 1}
    for name, value in {"TEACHER": plan, "STUDENT": plan, "VOCABULARY": 130}.items():
        monkeypatch.setattr(real, name, value)
    monkeypatch.setattr(real, "Record", partial(Record, folder=tmp_path))

    def run(name: str, *more: str) -> list[dict]:
        given = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), *more]
        monkeypatch.setattr(sys, "argv", ["x", *given])
        arms = {arm: dict(more) for arm, more in importlib.import_module(name).ARMS.items()}
        for settings in arms.values():
            if settings.get("lmbda"):  # half of that many steps would be all of this one
                settings |= {"lmbda": 1.0, "off_policy_steps": 0}
        real.record_arms(f"{name}.json", arms, None)
        return json.loads((tmp_path / f"{name}.json").read_text())["runs"]

    return run


@pytest.mark.slow  # trains three models, if only for a step: 16 s
def test_the_job_on_real_conversations_can_be_stopped_and_moved(tmp_path, real_job):
    first = real_job("04_real_dialogues", "--seeds", "0")
    assert [run["arm"] for run in first] == ["teacher", "labels", "distilled"]
    assert real_job("04_real_dialogues", "--seeds", "0") == first
    shutil.rmtree(tmp_path / "work" / "teacher")  # a fresh clone that has the record
    runs = real_job("04_real_dialogues", "--seeds", "0", "1")
    assert [run["seed"] for run in runs] == [0, 0, 0, 1, 1]


@pytest.mark.slow  # trains five models, if only for a step
def test_the_methods_of_speech_on_real_conversations(tmp_path, real_job):
    runs = real_job("07_real_dialogues", "--seeds", "0")
    assert [run["arm"] for run in runs][1:] == ["reverse_kl", "on_policy", "written", "skew_kl"]
    assert all("test" in run["scores"] for run in runs)
    replies = (tmp_path / "work" / "written.jsonl").read_text().splitlines()
    made = json.loads((tmp_path / "work" / "written.jsonl.manifest.json").read_text())["state"]
    assert len(replies) + sum(made["left_out"].values()) == made["done"] > 6


def test_the_teacher_writes_the_visits_of_the_same_visitors(classroom, monkeypatch):
    monkeypatch.setattr(arms, "VALIDATION", 1)
    few, _ = classroom.conversations("written", 2, seed=0)
    more, validation = classroom.conversations("written", 3, seed=0)
    plain, _ = classroom.conversations("labels", 3, seed=0)
    assert more[:2] == few and len(more) == 3 and len(validation) == 1
    assert [row["messages"][0] for row in more] == [row["messages"][0] for row in plain]


def test_pruning_is_measured_with_every_method_and_pattern(tmp_path, monkeypatch):
    pruning = importlib.import_module("08_pruning")
    small = {"CALIBRATION": 2, "TEST": 2, "VISITS": 2, "HELD_OUT": 1}
    small["PATTERNS"] = pruning.PATTERNS[2:]
    for name, value in small.items():
        monkeypatch.setattr(pruning, name, value)
    monkeypatch.setattr(pruning, "Record", partial(Record, folder=tmp_path))
    monkeypatch.setattr(sys, "argv", ["x", "--seeds", "0", "1"])
    pruning.main()
    record = tmp_path / "08_pruning.json"
    runs = json.loads(record.read_text())["runs"]
    assert len(runs) == 2 * (1 + 2 * (1 + 2 * 2))  # magnitude reads nothing: one run
    whole = [run for run in runs if run["method"] == "whole"]
    assert [run["error"] for run in whole] == [0, 0]
    assert whole[0]["nll"] == pytest.approx(whole[1]["nll"], abs=1e-4)
    for run in runs[2:]:
        assert run["sparsity"] == pytest.approx(0.5 if run["pattern"] == "2:4" else 0.7, abs=1e-2)
        assert run["error"] > 0 and run["nll"] > whole[0]["nll"]
    by_method = {run["method"]: run["error"] for run in runs if run["model"] == "twin"}
    assert by_method["sparsegpt"] < by_method["wanda"] < by_method["magnitude"]
    pruning.main()  # it is there, and not made again
    assert json.loads(record.read_text())["runs"] == runs


def test_what_was_cut_learns_again(tmp_path, monkeypatch):
    repair = importlib.import_module("08_repair")
    small = {"STEPS": 2, "TUNING_STEPS": 1, "BATCH_SIZE": 2, "CONVERSATIONS": 4, "CALIBRATION": 2}
    for name, value in (small | {"VALIDATION": 2, "TEST": 2, "VISITS": 2}).items():
        monkeypatch.setattr(repair, name, value)
    monkeypatch.setattr(repair, "Record", partial(Record, folder=tmp_path))
    monkeypatch.setattr(sys, "argv", [*"x --seeds 0 --cuts 2:4 layers".split(), "layers anew"])
    repair.main()
    files = sorted(path.name for path in tmp_path.glob("08_repair.*.json"))
    assert files == [f"08_repair.{name}.json" for name in ("2_4", "layers", "layers_anew")]
    runs = [run for name in files for run in json.loads((tmp_path / name).read_text())["runs"]]
    judged = {(run["cut"], run["lesson"]): run for run in runs if "success" in run}
    assert len(judged) == 8 and judged["layers", "labels"]["before"] < 3
    assert judged["layers anew", "labels"]["before"] > 3
    assert judged["layers", "logits"]["nll"] != judged["layers", "labels"]["nll"]
    sizes = {run["parameters"] for key, run in judged.items() if key[1] != "none"}
    assert len(sizes) == 2  # zeros are no parameters less
