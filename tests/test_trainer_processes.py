"""Two processes on a CPU, started by `accelerate launch`, do what one does: losses and weights."""

import sys

import pytest
import tiny
import torch
from trainers import assert_same_run, assert_same_weights, run_here, two_epochs

torch.set_num_threads(1)

# How a step of four conversations is cut in each of two processes, and further options. The last
# step of an epoch has one conversation, so one process, or all but one micro-batch, has none.
CASES = {
    "one batch": ({"batch_size": 2}, {}),
    "micro-batches": ({"batch_size": 1, "accumulate": 2}, {}),
    "buckets": ({"batch_size": 2}, {"bucket_by_length": True}),
    "teacher alone": ({"batch_size": 1, "accumulate": 2}, {"alpha": 1.0}),
    "on policy": ({"batch_size": 1, "accumulate": 2}, {"lmbda": 0.5, "max_reply_tokens": 9}),
    "labels alone": ({"batch_size": 2}, {"alpha": 0.0, "label_smoothing_factor": 0.1}),
}
SAVES = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}


def continued(folder, **cut):
    """Two epochs that stop after the fourth step, and go on from its checkpoint."""
    two_epochs(folder, max_steps=4, **cut, **SAVES)
    return two_epochs(folder, resume=True, **cut, **SAVES)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """What two processes did in every case. Starting them takes most of the time: 20 s."""
    folder = tmp_path_factory.mktemp("two")
    # With --cpu the command starts one process, unless MPI is there; --multi_gpu is what starts
    # several, and use_cpu in the trainer's arguments is what keeps them on the CPU, with gloo.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    for option in ("num_processes=2", "num_machines=1", "main_process_port=0", "dynamo_backend=no"):
        launch.append(f"--{option}")
    run_here([*launch, "two_processes.py", str(folder)], check=True)
    saved = torch.load(folder / "saved.pt")
    assert saved["processes"] == 2
    return saved["found"]


@pytest.mark.slow  # starts two more Python processes
@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(tmp_path, saved, name):
    alone = two_epochs(tmp_path, **CASES[name][1])
    assert_same_run(*saved[name], alone)


@pytest.mark.slow
def test_two_processes_go_on_from_a_checkpoint(tmp_path, saved):
    log, weights = saved["resumed"]
    alone = two_epochs(tmp_path)
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(weights, alone)
    expected = alone.predict(tiny.encoded(7)).predictions  # one for each conversation, in order
    assert saved["predicted"] == pytest.approx(expected.tolist(), rel=1e-6)
