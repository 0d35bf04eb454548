"""Chapter 07's methods on real conversations: MultiWOZ and STAR, the teacher of chapter 04.

    python experiments/07_real_dialogues.py --data FOLDER [--arms reverse_kl] [--seeds 0 1 2]

Each arm has the steps, the rate and the size of `04_real_dialogues.py`, whose `labels` and
`distilled` are the arms to compare with; nothing is tuned. There is no visitor to serve here, so on
policy the student answers one turn of a true conversation. The student of the teacher's text reads
one reply in a row, so it gets four times the rows in a batch. A run that stands in
``experiments/results/07_real_dialogues.json`` is not made again.
"""

from real import STUDENT, record_arms

SOFT = {"alpha": 0.9, "temperature": 1.0}
SPEAKING = {"lmbda": 0.5, "off_policy_steps": STUDENT["steps"] // 2}
ARMS = {
    "reverse_kl": SOFT | {"divergence": "reverse_kl"},
    "on_policy": SOFT | {"divergence": "jensen_shannon:0.5"} | SPEAKING,
    "written": {"alpha": 0.0, "batch_size": 4 * STUDENT["batch_size"], "written": True},
    "skew_kl": SOFT | {"divergence": "skew_kl:0.1"},
}

if __name__ == "__main__":
    record_arms("07_real_dialogues.json", ARMS, __doc__)
