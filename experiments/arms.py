"""One student of the front desk: the four ways to train it, and how it is measured.

Every student starts from random weights of its seed, sees the conversations of its seed, and is
judged at its own best validation checkpoint: the labels' NLL on development visitors; for the
student of teacher-written text, the NLL of teacher-written development text. It is measured in
unseen worlds.
"""

import shutil
import tempfile
from pathlib import Path

from remembering import RememberingTeacher
from transformers import PreTrainedTokenizerBase

from distillkit.chat import encode_rows
from distillkit.dialogues import Visit, front_desk
from distillkit.evaluation import calibration_error, nll, serve, task_success
from distillkit.models import build_model, count_parameters, save_model
from distillkit.optimizers import muon
from distillkit.training import DistillationArguments, DistillationTrainer

SHORT = {100: 300, 300: 400, 1000: 800, 3000: 1200}  # optimizer steps of eight conversations
VISITS = 200


def train(
    arm: str,
    size: int,
    seed: int,
    trial: dict,
    teacher: RememberingTeacher,
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: str = "test",
    keep: Path | None = None,
) -> dict:
    """Train one student, load its best checkpoint, and measure it on this split's visitors."""
    model = build_model("student", tokenizer, seed=seed)
    steps = int(SHORT[size] * trial.get("longer", 1))
    work = Path(tempfile.mkdtemp(prefix="fair-fight-"))
    arguments = DistillationArguments(
        output_dir=str(work),
        alpha=trial.get("alpha", 0.0),
        temperature=trial.get("temperature", 1.0),
        label_smoothing_factor=trial.get("smoothing", 0.0),
        max_steps=steps,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        bucket_by_length=True,
        eval_strategy="steps",
        eval_steps=steps // 10,
        save_steps=steps // 10,
        save_total_limit=1,
        load_best_model_at_end=True,
        logging_steps=steps // 10,
        disable_tqdm=True,
        seed=seed,
    )
    rows, validation = conversations(arm, size, seed, teacher, tokenizer)
    trainer = DistillationTrainer(
        model,
        teacher if arm == "distilled" else None,
        args=arguments,
        train_dataset=encode_rows(tokenizer, rows),
        eval_dataset=encode_rows(tokenizer, validation),
        processing_class=tokenizer,
        optimizers=muon(model, steps=steps, learning_rate=trial.get("learning_rate", 5e-3)),
    )
    trainer.train()
    shutil.rmtree(work)
    history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    if keep is not None:
        save_model(model, tokenizer, keep)
    return {
        "trial": trial,
        "parameters": count_parameters(model),
        "steps": steps,
        "best_validation": min(entry["eval_loss"] for entry in history),
        "curve": [[entry["step"], round(entry["eval_loss"], 4)] for entry in history],
        **measure(model.eval(), tokenizer, split),
    }


def conversations(arm: str, size: int, seed: int, teacher, tokenizer) -> tuple[list, list]:
    """To train and to validate on; the teacher may have written the desk's part."""
    if arm != "written":
        return front_desk(size, seed=100 + seed), front_desk(100, seed=2, split="development")
    parts = []
    for count, key, split in ((size, 100 + seed, "train"), (100, 2, "development")):
        visits = [Visit(f"{key}/{number}", split) for number in range(count)]
        serve(teacher.teacher, tokenizer, visits)
        parts.append([{"id": "", "messages": visit.messages} for visit in visits if visit.done])
    return parts[0], parts[1]


def measure(model, tokenizer, split: str) -> dict:
    """NLL, task success and calibration on the visitors of this split."""
    encoded = encode_rows(tokenizer, front_desk(200, seed=3, split=split))
    success = task_success(model, tokenizer, visits=VISITS, seed=4, split=split)
    low, high = success.interval()
    return {
        "nll": nll(model, encoded).per_token,
        "calibration_error": calibration_error(model, encoded).error,
        "success": success.rate,
        "low": low,
        "high": high,
        "successes": "".join("01"[won] for won in success.successes),
        "failures": dict(success.failures.most_common(5)),
    }
