"""distillkit: make a dialogue language model small, by distillation first.

The library of the course Distilling Dialogue. Importing it is light: torch is imported by the rooms
that need it, for example `from distillkit.losses import distillation_loss`.
"""

__version__ = "0.1.0"
