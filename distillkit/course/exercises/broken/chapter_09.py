"""Broken functions of chapter 09."""

import torch


def int8_linear(inputs_TI, codes_OI, scales_O, bias_O):
    scale = inputs_TI.abs().max().clamp(min=1e-8) / 127
    x_TI = (inputs_TI / scale).to(torch.int8)
    y_TO = x_TI @ codes_OI.T
    return y_TO * scale * scales_O + bias_O
