"""Run by test_saving: trains, and while it saves a checkpoint dies as by `kill -9`."""

import os
import signal
import sys

import torch
from test_saving import resumable_trainer

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, last_step = sys.argv[1], int(sys.argv[2])
    trainer = resumable_trainer(folder)
    save = trainer._save_optimizer_and_scheduler

    def save_or_die(output_dir):
        if trainer.state.global_step >= last_step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(output_dir)

    trainer._save_optimizer_and_scheduler = save_or_die
    trainer.train()
