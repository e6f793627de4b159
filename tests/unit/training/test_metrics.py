"""The metrics `tflops` and `mfu`: the FLOPs of the heads, and the peak rates of GPUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bert_pld.config import load_config
from bert_pld.cost.flops import ModelFlops
from bert_pld.data.batches import MicroBatch
from bert_pld.training.metrics import Metrics, peak_tflops_of


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_heads_count_the_masked_tokens_of_the_batch(one_rank, tmp_path):
    model = {"preset": "tiny", "vocab_size": 512, "next_sentence_prediction": True}
    run = load_config(
        {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4, "model": model, "data": {"seq_length": 32}}
    )
    lengths, positions, zeros = np.array([32, 20, 8, 6]), torch.tensor([1, 33, 40, 97, 98]), torch.zeros(4, 32).long()
    batch = MicroBatch(
        input_ids=zeros,
        token_type_ids=zeros,
        attention_mask=torch.arange(32) < torch.from_numpy(lengths)[:, None],
        masked_positions=positions,
        masked_labels=positions,
        next_sentence_labels=zeros[:, 0],
        tokens=int(lengths.sum()),
        rows=4,
        row_indices=np.arange(4),
        lengths=lengths,
    )
    metrics = Metrics(tmp_path, run, torch.device("cpu"), leaves_padding_out=True)
    losses = dict.fromkeys(("loss", "mlm_loss", "nsp_loss"), torch.zeros(()))
    metrics.add_micro_batch(batch, losses, None, step=1)
    flops = ModelFlops(run.model, 32, mask_probability=0.0)
    hidden = run.model.hidden_size
    heads = 4 * flops.heads_per_sequence + 5 * 6 * (hidden * hidden + hidden * 512)
    assert metrics.state()["since_record"]["flops"] == run.model.num_layers * flops.block(lengths) + heads


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
