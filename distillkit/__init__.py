"""distillkit: make a dialogue language model small, by distillation first.

The library of the course Distilling Dialogue. Importing it is light: torch is imported by the rooms
that need it, for example `from distillkit.losses import distillation_loss`.
"""

import logging

__version__ = "0.1.0"

# transformers imports torchao wherever it is installed, and that warns, with paths of your machine,
# of kernels for other machines and of a change in torch to come. Neither is for a reader.
logging.getLogger("torchao").addFilter(
    lambda record: "Could not load this library" not in record.getMessage()
)
logging.getLogger("torch.utils._pytree").addFilter(
    lambda record: "as an opaque value type" not in record.getMessage()
)
