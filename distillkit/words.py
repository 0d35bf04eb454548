"""What figures and widgets write themselves, in one table: a translation changes this and no code.

Titles are the callers'.
"""

WORDS = {
    # figures
    "steps": "training step",
    "nll": "NLL (nats per assistant token)",
    "conversations": "training conversations",
    "success": "task success (share of visitors)",
    "confidence": "confidence (probability of the likeliest token)",
    "accuracy": "accuracy (share of tokens predicted right)",
    "calibrated": "perfectly calibrated",
    "calibration": "{name} (ECE {error:.3f})",
    "probability": "probability of the next token",
    "kl": "KL {value:.3f}",
    "pull": "pull on the student's logit",
    "pull_teacher": "teacher's term",
    "pull_labels": "label's term",
    "pull_sum": "both",
    "bytes": "memory (GB, logarithmic)",
    "predicted": "predicted: bytes / bandwidth (ms per token)",
    "measured": "measured (ms per token)",
    "as_predicted": "as predicted",
    "tokens_per_step": "conversations in one step, a token of each",
    "throughput": "tokens per second",
    "bound": "bound of bytes and operations",
    "cost_bytes": "MB on disk, tokenizer and configuration included",
    "cost_milliseconds": "ms a turn (median)",
    "served": "visits served",
    # the chat
    "user": "visitor",
    "assistant": "desk",
    "tool": "tool",
    "say": "You say",
    "placeholder": "type, then press Enter",
    "anew": "New conversation",
    "latency": "{tokens} tokens; first after {first:.0f} ms, all after {all:.0f} ms",
    "messages": "{count} messages, median {median:.0f} ms each",
    "visit_served": "The visitor got all that was asked for.",
    "not_served": "The visitor was not served: {why}.",
    "open_call": "(nothing runs the model's tools here)",
    # the microscope
    "turn": "Turn",
    "token": "Token",
    "so_far": "so far: …{text}▮",
    # sliders, by the names of what they set
    "T": "T",
    "alpha": "α",
}
