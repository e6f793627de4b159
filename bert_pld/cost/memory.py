"""Estimate of the device memory that a training step needs on one rank.

Parameters, gradients and optimizer states are exact up to DeepSpeed's buffers. Activations are the tensors that the
operations of `bert_pld.kernels.reference` keep for backward, with an attention kernel that does not store its weights.
With `kernels: "triton"` dropout masks and fp32 logits are left out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from bert_pld.config import RunConfig
from bert_pld.cost.flops import parameter_count, parameter_tensors

_MASTER_BYTES = 4
# fp32 values that an optimizer keeps for each parameter, by its JSON name in lower case; all others keep two, as Adam.
_MOMENTS = {"sgd": 0, "adagrad": 1, "asgd": 1, "lion": 1, "rmsprop": 1}
_ONE_MORE = ("amsgrad", "centered", "momentum")
"""Options that give such an optimizer one more value for each parameter."""


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Memory of one rank, in bytes."""

    parameters_bytes: float
    gradients_bytes: float
    """Also those that CUDA graphs write, beside the ones that the optimizer reads."""
    optimizer_bytes: float
    """Moments and, if there is one, the fp32 master copy; 0 if ZeRO-Offload keeps them on the host."""
    optimizer_offloaded: bool
    block_activation_bytes: float
    """Activations that one block keeps for backward."""
    block_input_bytes: float
    """Input of one block, which is all that a checkpointed block keeps."""
    head_activation_bytes: float
    """Activations of the embeddings and the MLM head."""
    num_layers: int
    activation_checkpointing: bool
    """Whether `total_bytes` counts checkpointed activations."""

    def activation_bytes_at_depth(self, depth: float) -> float:
        """Return the activations of a forward that executes `depth` blocks."""
        return depth * self.block_activation_bytes + self.head_activation_bytes

    @property
    def activation_bytes(self) -> float:
        """Activations of a forward that executes all blocks."""
        return self.activation_bytes_at_depth(self.num_layers)

    @property
    def activation_bytes_checkpointed(self) -> float:
        """Activations of a forward with all blocks, each recomputed in backward."""
        return self.num_layers * self.block_input_bytes + self.block_activation_bytes + self.head_activation_bytes

    @property
    def total_bytes(self) -> float:
        """Total memory at full depth."""
        activations = self.activation_bytes_checkpointed if self.activation_checkpointing else self.activation_bytes
        return self.parameters_bytes + self.gradients_bytes + self.optimizer_bytes + activations

    def as_json(self) -> dict[str, Any]:
        """Return all fields and sums, in JSON's types."""
        sums = ("activation_bytes", "activation_bytes_checkpointed", "total_bytes")
        return {**dataclasses.asdict(self), **{name: getattr(self, name) for name in sums}}


def estimate_memory(run: RunConfig, micro_batch_size: int, world_size: int) -> MemoryEstimate:
    """Estimate a training step's memory on one rank.

    ZeRO-1 partitions the optimizer's states over the ranks, ZeRO-2 also the gradients, ZeRO-3 also the parameters
    (Rajbhandari et al., arXiv:1910.02054). The model's `vocab_size` and `next_sentence_prediction` must be resolved.
    """
    model, stage = run.model, run.zero_stage
    count = parameter_count(model)
    element = 4 if run.precision == "fp32" else 2
    share = [1.0 / world_size if stage >= needed else 1.0 for needed in (1, 2, 3)]
    # In fp32 runs ZeRO keeps a separate fp32 copy of its partition too.
    master = _MASTER_BYTES if element == 2 or stage >= 1 else 0
    moments = _moments(run)
    offloads = run.offload_device() != "none"

    tokens = micro_batch_size * run.data.seq_length
    masked = tokens * run.data.greatest_mask_probability
    hidden = model.hidden_size
    # Logits in the model's precision, logits in fp32 and their gradient; transform, GELU and LayerNorm of the head.
    logits = (model.vocab_size or 0) * (element + (0 if model.kernels == "triton" else 8))
    head = masked * (logits + 5 * hidden * element)
    return MemoryEstimate(
        parameters_bytes=count * element * share[2],
        gradients_bytes=element * (count * share[1] + _captured_gradients(run)),
        optimizer_bytes=0.0 if offloads else (count * master + 4 * moments) * share[0],
        optimizer_offloaded=offloads,
        block_activation_bytes=float(tokens * _block_bytes_per_token(run, element)),
        block_input_bytes=float(tokens * hidden * element),
        head_activation_bytes=head + tokens * hidden * (element + math.ceil(model.hidden_dropout)),
        num_layers=model.num_layers,
        activation_checkpointing=model.activation_checkpointing,
    )


def _captured_gradients(run: RunConfig) -> int:
    """Return how many gradients stay in the memory of CUDA graphs: those of all blocks but the last."""
    if not run.model.cuda_graphs:
        return 0
    last = run.model.num_layers - 1
    return sum(t.elements for t in parameter_tensors(run.model) if t.block is not None and t.block < last)


def _moments(run: RunConfig) -> int:
    """Return the number of fp32 values that the optimizer keeps beside the weights."""
    optimizer = run.deepspeed.get("optimizer", {})
    kind, count = str(optimizer.get("type", "")).lower(), parameter_count(run.model)
    if kind == "muon":  # One for the blocks' matrices, two for everything else.
        matrices = (t.elements for t in parameter_tensors(run.model) if t.is_matrix and t.block is not None)
        return 2 * count - sum(matrices)
    options = optimizer.get("params", {})
    return count * (_MOMENTS.get(kind, 2) + sum(bool(options.get(name)) for name in _ONE_MORE))


def _block_bytes_per_token(run: RunConfig, element: int) -> float:
    """Return the bytes that a block keeps per token.

    H wide: inputs and outputs of two LayerNorms, q, k, v, and attention's output; with rotary positions also q and k
    before the rotation's end. I wide: input and output of GELU; with a gate also the gate and the product.
    """
    model = run.model
    rotated, gated = (2, 2) if model.feed_forward_matrices == 3 else (0, 0)
    wide = (8 + rotated) * model.hidden_size + (2 + gated) * model.intermediate_size
    stores_masks = model.hidden_dropout and model.kernels != "triton"
    dropout_masks = 2 * model.hidden_size if stores_masks else 0
    # In FP8 the inputs of the four products: only attention's output is needed in the model's precision too.
    narrow = (2 * model.hidden_size + model.intermediate_size) * (1 - element) + model.hidden_size if model.fp8 else 0
    return element * wide + narrow + dropout_masks + 4 * model.num_attention_heads
