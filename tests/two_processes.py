"""Run by test_training in two processes: one step of plain gradient descent, saved by the first."""

import sys

import torch
from test_training import one_step

if __name__ == "__main__":
    torch.set_num_threads(1)
    student, trainer = one_step(sys.argv[1], batch_size=4, accumulate=1)
    if trainer.args.process_index == 0:
        saved = {"weights": student.state_dict(), "log": trainer.state.log_history}
        torch.save(saved, f"{sys.argv[1]}/saved.pt")
