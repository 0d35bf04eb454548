"""The main job on real conversations: MultiWOZ and STAR, teacher → student, against labels alone.

    python experiments/04_real_dialogues.py --data FOLDER [--seeds 0 1 2]

A small teacher is trained from scratch, then each student twice from the same random weights: on
the labels, and on the labels and the teacher (see real.py for the data and the measures). A run
that stands in ``experiments/results/04_real_dialogues.json`` is not made again.
"""

from real import record_arms

ARMS = {"labels": {"alpha": 0.0}, "distilled": {"alpha": 0.9, "temperature": 1.0}}

if __name__ == "__main__":
    record_arms("04_real_dialogues.json", ARMS, __doc__)
