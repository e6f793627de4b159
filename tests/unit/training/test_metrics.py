"""The metrics `tflops` and `mfu`: the FLOPs of the heads, and the peak rates of GPUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.batches import MicroBatch
from bert_pld.pld.gates import BlockGate, Gates
from bert_pld.training.metrics import Metrics, peak_tflops_of

LENGTHS = np.array([32, 20, 8, 6])


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def counted_flops(folder, gates=None, **options):
    """The FLOPs of one micro-batch of 4 rows with 66 tokens, of which 5 are masked, and the configuration."""
    model = {"preset": "tiny", "vocab_size": 512, "next_sentence_prediction": True}
    run = load_config(
        {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4, "model": model, "data": {"seq_length": 32}}
    )
    positions, zeros = torch.tensor([1, 33, 40, 97, 98]), torch.zeros(4, 32).long()
    batch = MicroBatch(
        input_ids=zeros,
        token_type_ids=zeros,
        attention_mask=torch.arange(32) < torch.from_numpy(LENGTHS)[:, None],
        masked_positions=positions,
        masked_labels=positions,
        next_sentence_labels=zeros[:, 0],
        tokens=int(LENGTHS.sum()),
        rows=4,
        row_indices=np.arange(4),
        lengths=LENGTHS,
    )
    metrics = Metrics(folder, run, torch.device("cpu"), **options)
    losses = dict.fromkeys(("loss", "mlm_loss", "nsp_loss"), torch.zeros(()))
    metrics.add_micro_batch(batch, losses, gates, step=1)
    return metrics.state()["since_record"]["flops"], run


def test_heads_count_the_masked_tokens_of_the_batch(one_rank, tmp_path):
    counted, run = counted_flops(tmp_path, leaves_padding_out=True)
    flops = ModelFlops(run.model, 32, mask_probability=0.0)
    hidden = run.model.hidden_size
    heads = 4 * flops.heads_per_sequence + 5 * 6 * (hidden * hidden + hidden * 512)
    assert counted == run.model.num_layers * flops.block(LENGTHS) + heads


@pytest.mark.parametrize("zero_gradients", [True, False])
def test_eager_block_before_a_dropped_one_that_needs_zero_gradients_counts_all_tokens(
    one_rank, tmp_path, zero_gradients
):
    """`Encoder.encode_chosen` gives the last block that runs its rows only where no dropped one follows on no rows."""
    last = BlockGate(keep=False, scale=2.0, keep_probability=0.5, zero_gradient_when_dropped=zero_gradients)
    gates = Gates((BlockGate(keep=True, scale=1.0, keep_probability=1.0), last), theta=0.5, kept_blocks=1.0)
    whole, run = counted_flops(tmp_path, gates)
    fewer, _ = counted_flops(tmp_path, gates, chooses_rows=True)
    hidden = run.model.hidden_size
    left_out = 0 if zero_gradients else 6 * 9 * hidden**2 * (4 * 32 - 5 - 4)
    assert whole - fewer == left_out


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GB200", 2500),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_peak_of_a_gpu_is_that_of_its_own_data_sheet(name, tflops):
    assert peak_tflops_of(name) == tflops
