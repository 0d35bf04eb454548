"""One student of the front desk: the four ways to train it, and how it is measured.

Every student starts from random weights of its seed, sees the conversations of its seed, and is
judged at its own best validation checkpoint: the labels' NLL on development visitors; for the
student of teacher-written text, the NLL of teacher-written development text. Training stops where
that has not improved for ``PATIENCE`` evaluations.
"""

import shutil
import tempfile
from hashlib import sha256
from pathlib import Path

from arguments import at_its_best, run_arguments
from recording import served
from remembering import RememberingTeacher
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase

from distillkit.chat import encode_rows
from distillkit.dialogues import Visit, front_desk
from distillkit.evaluation import calibration_error, nll, serve, task_success
from distillkit.models import build_model, count_parameters
from distillkit.optimizers import muon
from distillkit.training import DistillationTrainer

STEPS, BATCH_SIZE = 1200, 8  # the most optimizer steps, and conversations in each
EVALUATIONS, PATIENCE = 10, 3
VALIDATION = 60  # development conversations
LEARNING_RATE = 5e-3
VISITS, TEST = 1000, 200  # visitors to serve, and conversations to score, in test worlds


class Classroom:
    """What all students of one teacher share: it, its tokenizer, and what it has written."""

    def __init__(self, teacher: RememberingTeacher, tokenizer: PreTrainedTokenizerBase):
        self.teacher, self.tokenizer = teacher, tokenizer
        self._written: dict[tuple, tuple[list[dict], int]] = {}  # and how many visitors were met

    def key(self, arm: str) -> dict[str, str]:
        """What a run of this arm depends on beside its own settings: the teacher, if it has one."""
        if arm not in ("written", "distilled"):
            return {}
        digest = sha256()
        for weights in self.teacher.parameters():
            digest.update(weights.detach().numpy().tobytes())
        return {"teacher": digest.hexdigest()[:12]}

    def next_seed(self) -> None:
        """Forget what belongs to the conversations of the last seed."""
        self.teacher.seen.clear()
        self._written.clear()

    def train(
        self,
        arm: str,
        size: int,
        seed: int,
        trial: dict,
        *,
        shape: str = "student",
        steps: int | None = None,
    ) -> tuple:
        """Train one student of this arm on ``size`` conversations, for at most ``steps``.

        Returns the student at its best step, and what its training gave.
        """
        model = build_model(shape, self.tokenizer, seed=seed)
        steps = steps or STEPS
        passes = trial.get("epochs", steps * BATCH_SIZE)  # over the data, at most
        steps = min(steps, passes * size // BATCH_SIZE)
        work = Path(tempfile.mkdtemp(prefix="fair-fight-"))
        arguments = run_arguments(
            work,
            trial,
            steps=steps,
            batch_size=BATCH_SIZE,
            seed=seed,
            **at_its_best(steps // EVALUATIONS, 2 * BATCH_SIZE),
        )
        rows, validation = self.conversations(arm, size, seed)
        trainer = DistillationTrainer(
            model,
            self.teacher if arm == "distilled" else None,
            args=arguments,
            train_dataset=encode_rows(self.tokenizer, rows),
            eval_dataset=encode_rows(self.tokenizer, validation),
            processing_class=self.tokenizer,
            callbacks=[EarlyStoppingCallback(PATIENCE)],
            optimizers=muon(
                model, steps=steps, learning_rate=trial.get("learning_rate", LEARNING_RATE)
            ),
        )
        trainer.train()
        shutil.rmtree(work)
        history = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        return model.eval(), {
            "trial": trial,
            "parameters": count_parameters(model),
            "steps": steps,
            "best_validation": min(entry["eval_loss"] for entry in history),
            "curve": [[entry["step"], round(entry["eval_loss"], 4)] for entry in history],
        }

    def conversations(self, arm: str, size: int, seed: int) -> tuple[list, list]:
        """To train and to validate on; the teacher may have written the desk's part."""
        if arm == "written":
            return (
                self._by_the_teacher(size, 100 + seed, "train"),
                self._by_the_teacher(VALIDATION, 2, "development"),
            )
        return front_desk(size, seed=100 + seed), front_desk(
            VALIDATION, seed=2, split="development"
        )

    def _by_the_teacher(self, count: int, seed: int, split: str) -> list[dict]:
        """Visits that the teacher has served to their end.

        The visitors are those of ``front_desk(…, seed=seed, split=split)``. A visit breaks off
        where the desk makes a mistake; it is left out, and the next visitor takes its place.
        """
        rows, met = self._written.get((seed, split), ([], 0))
        while len(rows) < count:
            missing = count - len(rows)
            visits = [Visit(f"{seed}/{number}", split) for number in range(met, met + missing)]
            serve(self.teacher.teacher, self.tokenizer, visits)
            rows += [{"id": "", "messages": visit.messages} for visit in visits if visit.success]
            met += missing
        self._written[seed, split] = rows, met
        return rows[:count]

    def measure(self, model) -> dict:
        """NLL, calibration and task success in worlds whose names nobody has seen."""
        encoded = encode_rows(self.tokenizer, front_desk(TEST, seed=3, split="test"))
        success = task_success(model, self.tokenizer, visits=VISITS, seed=4)
        return {
            "nll": nll(model, encoded).per_token,
            "calibration_error": calibration_error(model, encoded).error,
            **served(success),
        }
