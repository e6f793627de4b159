"""Evaluation on held-out rows: all blocks run, unscaled, with the same masks every time."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import nn

from bert_pld.data.batches import MicroBatch


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[MicroBatch], device: torch.device) -> dict[str, float]:
    """Return the figures of a model or a DeepSpeed engine on all ranks' held-out rows; all ranks call it together.

    These are `eval_mlm_loss` in nats a masked token, `eval_mlm_accuracy`, and `eval_nsp_accuracy` (NaN without pairs).
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(5, dtype=torch.float64, device=device)
    for host_batch in batches:
        batch = host_batch.to(device)
        outputs = model(**batch.model_inputs(), mlm_denominator=1.0)
        labels = batch.next_sentence_labels
        totals[0] += outputs["mlm_loss"]
        totals[1] += outputs["mlm_correct"]
        totals[2] += batch.masked_tokens
        totals[3] += outputs["nsp_correct"]
        totals[4] += 0 if labels is None else (labels >= 0).sum()
    model.train(was_training)
    if dist.is_initialized():
        dist.all_reduce(totals)
    loss, correct, masked_tokens, nsp_correct, pairs = totals.tolist()
    return {
        "eval_mlm_loss": loss / max(masked_tokens, 1.0),
        "eval_mlm_accuracy": correct / max(masked_tokens, 1.0),
        "eval_nsp_accuracy": nsp_correct / pairs if pairs else float("nan"),
    }
