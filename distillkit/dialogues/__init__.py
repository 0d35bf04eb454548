"""The front desk of an imaginary town, and real conversations in the same form. No torch here."""

from distillkit.dialogues.loading import Dialogues, load_dialogues
from distillkit.dialogues.visit import Visit, front_desk, play_desk, true_replies

__all__ = ["Dialogues", "Visit", "front_desk", "load_dialogues", "play_desk", "true_replies"]
