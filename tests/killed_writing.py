"""Run by test_sequence_level: writes, and dies as by `kill -9` in the middle of a batch."""

import os
import signal
import sys
from pathlib import Path

import torch
from test_sequence_level import write

from distillkit import sequence_level

if __name__ == "__main__":
    torch.set_num_threads(1)
    file, batches = Path(sys.argv[1]), int(sys.argv[2])
    note, seen = sequence_level._note, []

    def note_or_die(*args):
        seen.append(1)
        if len(seen) > 4 * batches + 2:
            with open(file, "ab") as lines:  # what a kill in the middle of a write leaves
                lines.write(b'{"messages": [{"role": "us')
            os.kill(os.getpid(), signal.SIGKILL)
        note(*args)

    sequence_level._note = note_or_die
    write(file)
