"""A frozen teacher that thinks about each conversation once."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class RememberingTeacher(nn.Module):
    """Keeps the last hidden states of every conversation it has met; only its head runs again.

    For a few thousand short conversations this is what a cache on disk is for a corpus: exact, and
    the teacher's layers cost nothing from the second epoch on. Each conversation is read alone: in
    a batch the last digits depend on its neighbours, and a run could not be made twice.
    """

    def __init__(self, teacher: PreTrainedModel):
        super().__init__()
        self.teacher = teacher
        self.config = teacher.config
        self.seen: dict[tuple[int, ...], torch.Tensor] = {}
        self.full = False  # what comes from now on is read, and not kept

    def get_output_embeddings(self) -> nn.Module:
        return self.teacher.get_output_embeddings()

    def forward(self, input_ids, **_) -> CausalLMOutput:
        """Logits of conversations that are padded on the right, with a token that is only that."""
        lengths = (input_ids != self.config.pad_token_id).sum(1).tolist()
        keys = [tuple(ids[:n]) for ids, n in zip(input_ids.tolist(), lengths, strict=True)]
        states = nn.utils.rnn.pad_sequence([self._read(key) for key in keys], batch_first=True)
        missing = input_ids.shape[1] - states.shape[1]
        states = nn.functional.pad(states, (0, 0, 0, missing))
        return CausalLMOutput(logits=self.get_output_embeddings()(states))

    def _read(self, key: tuple[int, ...]) -> torch.Tensor:
        if key in self.seen:
            return self.seen[key]
        hidden = self.teacher.model(torch.tensor([key]), use_cache=False).last_hidden_state
        if not self.full:
            self.seen[key] = hidden.squeeze(0)
        return hidden.squeeze(0)
