"""Run by test_trainer_processes under `accelerate launch`: each case trained by all processes.

The first process saves what came out: the log and the weights of each case.
"""

import sys
from pathlib import Path

import tiny
import torch
from test_trainer_processes import CASES, continued
from trainers import two_epochs

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, found = Path(sys.argv[1]), {}
    for name, (cut, options) in CASES.items():
        trainer = two_epochs(folder / name, **cut, **options)
        found[name] = trainer.state.log_history, trainer.model.state_dict()
    trainer = continued(folder / "resumed", batch_size=2)
    found["resumed"] = trainer.state.log_history, trainer.model.state_dict()
    found["predicted"] = trainer.predict(tiny.encoded(7)).predictions.tolist()
    if trainer.args.process_index == 0:
        torch.save({"processes": trainer.args.world_size, "found": found}, folder / "saved.pt")
