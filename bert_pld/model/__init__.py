"""BERT and ModernBERT with switchable blocks: embeddings → gated blocks → heads, and Hugging Face's classes.

The backend that `use_backend` chooses is kept in the modules' attributes alone: `run` of the encoder, its blocks and
its final LayerNorm, `linear` of the blocks, `graphs` of the encoder, and `cross_entropy_sum` of the masked-LM head.
"""

from __future__ import annotations

import functools

from bert_pld.config import ModelConfig
from bert_pld.kernels import select_backend
from bert_pld.kernels.fp8_linear import check_fp8, fp8_linear
from bert_pld.model.bert import BertForPreTraining
from bert_pld.model.modern import ModernBertForPreTraining

__all__ = ["BertForPreTraining", "ModernBertForPreTraining", "make_model", "use_backend"]

_MOST_GRAPHS = 64


def make_model(config: ModelConfig) -> BertForPreTraining:
    """Make a new model of the configuration's architecture."""
    return {"bert": BertForPreTraining, "modernbert": ModernBertForPreTraining}[config.architecture](config)


def allow_graphs() -> None:
    """Let torch.compile keep enough graphs of one block's code; beyond its limit it runs eagerly.

    A graph is for one kind of block, with or without padding, on whole sequences or on some tokens, and with or without
    gradients.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_GRAPHS)


def use_backend(model: BertForPreTraining, name: str, device_type: str) -> None:
    """Make a newly constructed model run with a backend, which `bert_pld.kernels.select_backend` chooses or rejects."""
    encoder = model.encoder
    backend = select_backend(name, device_type, model.config.hidden_size)
    if backend == "compiled":
        allow_graphs()
        for block in encoder.blocks:
            # θ changes at every step: with a static scale each value would be compiled again.
            block.compile(dynamic=True)
    elif backend == "triton":
        # Imported here, because only this backend requires the package triton.
        from bert_pld.kernels.linear_cross_entropy import linear_cross_entropy_sum
        from bert_pld.model import fused, modern_fused

        {"bert": fused.install, "modernbert": modern_fused.install}[model.architecture](encoder)
        model.mlm_head.cross_entropy_sum = linear_cross_entropy_sum
    if model.config.cuda_graphs:
        if device_type != "cuda" or backend != "triton":
            raise ValueError(
                "model.cuda_graphs: true needs an NVIDIA GPU and model.kernels 'triton';"
                f" the device is {device_type}, the kernels are {backend!r}"
            )
        from bert_pld.model.block_graph import CudaRecorder
        from bert_pld.model.graphs import BlockGraphs

        encoder.graphs = BlockGraphs(CudaRecorder)
    if model.config.fp8:
        check_fp8(device_type, backend, model.config.hidden_size, model.config.intermediate_size)
        product = fp8_linear
        if backend == "triton":
            from bert_pld.kernels.fp8_rounding import round_matrix

            product = functools.partial(fp8_linear, rounding=round_matrix)
        for block in encoder.blocks:
            block.linear = product
