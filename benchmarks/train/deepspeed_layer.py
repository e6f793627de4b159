"""DeepSpeed's `DeepSpeedTransformerLayer` (CUDA kernels, fp32 and fp16) in place of our model's blocks.

`python -m benchmarks.train.deepspeed_layer JSON` builds one layer and runs it once. The benchmark first does this in a
separate process: if the kernels cannot be built or crash, only that process is lost, not the measurement.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import cpp_extension

from benchmarks.options import DTYPES
from bert_pld.config import ModelConfig
from bert_pld.model.block import SwitchableBlock

_KERNEL_DTYPES = ("fp32", "fp16")
_BUILD_SECONDS = 400
_REPORTED_LINES = 40
_MASKED_SCORE = -10_000.0
_PARAMETERS = {
    "attn_qkvw": "qkv_weight", "attn_qkvb": "qkv_bias",
    "attn_ow": "attention_output_weight", "attn_ob": "attention_output_bias",
    "inter_w": "ffn_up_weight", "inter_b": "ffn_up_bias",
    "output_w": "ffn_down_weight", "output_b": "ffn_down_bias",
}  # fmt: skip


class DeepSpeedBlock(nn.Module):
    """A DeepSpeed layer with the weights of one of our blocks and the call of our encoder; it takes no gate."""

    def __init__(self, block: SwitchableBlock, rows: int, dtype: str) -> None:
        super().__init__()
        from deepspeed.ops.transformer import DeepSpeedTransformerConfig, DeepSpeedTransformerLayer

        config = block.config
        settings = DeepSpeedTransformerConfig(
            batch_size=rows, seed=0, fp16=dtype == "fp16", pre_layer_norm=config.normalization == "pre",
            hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
            heads=config.num_attention_heads, num_hidden_layers=config.num_layers,
            attn_dropout_ratio=config.attention_dropout, hidden_dropout_ratio=config.hidden_dropout,
            initializer_range=config.initializer_range, layer_norm_eps=config.layer_norm_eps, adjust_init_range=False,
        )  # fmt: skip
        with contextlib.redirect_stdout(sys.stderr):  # the layer prints its configuration
            self.layer = DeepSpeedTransformerLayer(settings)
        # DeepSpeed's `norm` comes first in pre-norm and last in post-norm, its `attn_n` the other way round.
        norms = ("norm_{}", "attn_n{}") if config.normalization == "pre" else ("attn_n{}", "norm_{}")
        names = dict(_PARAMETERS)
        for deepspeed_norm, our_norm in zip(norms, ("attention_norm", "ffn_norm"), strict=True):
            names |= {deepspeed_norm.format("w"): f"{our_norm}_weight", deepspeed_norm.format("b"): f"{our_norm}_bias"}
        with torch.no_grad():
            for deepspeed_name, our_name in names.items():
                getattr(self.layer, deepspeed_name).copy_(getattr(block, our_name))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, scale: float) -> Tensor:
        """[B, S, H] hidden states and bool [B, S] mask (or None) → [B, S, H]."""
        assert scale == 1.0, "DeepSpeed's kernels take no gate"
        scores = hidden_states.new_zeros(hidden_states.shape[0], 1, 1, hidden_states.shape[1])
        if attention_mask is not None:
            scores = scores.masked_fill(~attention_mask[:, None, None, :], _MASKED_SCORE)
        return self.layer(hidden_states.contiguous(), scores)


def use_deepspeed_blocks(model: nn.Module, rows: int, seq: int, dtype: str, device: torch.device) -> None:
    """Replace the blocks of `model`'s encoder by DeepSpeed's layers, after `check_can_run`."""
    check_can_run(model.config, rows, seq, dtype, device)
    blocks = [DeepSpeedBlock(block, rows, dtype) for block in model.encoder.blocks]
    model.encoder.blocks = nn.ModuleList(blocks)
    model.encoder.run_chosen = None  # the layers have no part that could run on some tokens only


def check_can_run(config: ModelConfig, rows: int, seq: int, dtype: str, device: torch.device) -> None:
    """Try one layer in another process; raise ValueError if it fails, with the end of its output on stderr."""
    if device.type != "cuda":
        raise ValueError(f"requires an NVIDIA GPU, and the device is {device.type}")
    if dtype not in _KERNEL_DTYPES:
        raise ValueError(f"its kernels support {' and '.join(_KERNEL_DTYPES)} only, not {dtype}")
    if cpp_extension.CUDA_HOME is None:
        raise ValueError("must be built with nvcc, but no CUDA toolkit was found on PATH or in CUDA_HOME")
    trial = json.dumps({"model": dataclasses.asdict(config), "rows": rows, "seq": seq, "dtype": dtype})
    command = [sys.executable, "-m", __name__, trial]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"building and running one layer took more than {_BUILD_SECONDS} s") from None
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()
        print("\n".join(["DeepSpeedTransformerLayer:", *lines[-_REPORTED_LINES:]]), file=sys.stderr)
        raise ValueError(f"one layer could not be built and run: {reason_in(lines, done.returncode)}")


def reason_in(lines: list[str], code: int) -> str:
    """The most telling line of a failed process's output: the compiler's first error, or else the last exception."""
    compiler = [line for line in lines if re.search(r"\berror: ", line)]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    chosen = (compiler[:1] or raised[-1:] or [line for line in lines if line.strip()][-1:] or ["no output"])[0]
    return f"{chosen.strip()[:200]} (exit code {code})"


def _run_once(trial: dict[str, Any]) -> None:
    """Run forward and backward of one layer on random data; its values must be finite."""
    config, dtype = ModelConfig(**trial["model"]), trial["dtype"]
    device = torch.device("cuda")
    torch.manual_seed(0)
    block = SwitchableBlock(config)
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, mean=float("norm_weight" in name), std=0.02)
    layer = DeepSpeedBlock(block, trial["rows"], dtype).to(device, DTYPES[dtype]).train()
    shape = (trial["rows"], trial["seq"], config.hidden_size)
    hidden_states = torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True)
    output = layer(hidden_states, None, 1.0)
    output.backward(torch.randn_like(output))
    torch.cuda.synchronize()
    for name, tensor in (("output", output), ("gradient", hidden_states.grad), ("weight", layer.layer.inter_w.grad)):
        if tensor is None or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name}: not finite")


if __name__ == "__main__":
    _run_once(json.loads(sys.argv[1]))
