"""Encoders of transformers: the sequence lengths that they have positions for, and classifiers on top of them."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    CamembertConfig,
    CamembertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLNetConfig,
)

from bert_pld.finetuning.encoder import check_positions

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize(
    ("config", "model", "longest"),
    [
        (BertConfig, BertModel, 24),
        (RobertaConfig, RobertaModel, 22),
        (XLMRobertaConfig, XLMRobertaModel, 22),
        (CamembertConfig, CamembertModel, 22),
        (MPNetConfig, MPNetModel, 22),
    ],
)
def test_longest_sequence_is_the_longest_that_the_model_runs_on(config, model, longest):
    of_24_positions = config(**SIZES, max_position_embeddings=24)
    encoder = model(of_24_positions).eval()
    check_positions(of_24_positions, longest)
    assert encoder(torch.full((1, longest), 7)).last_hidden_state.shape == (1, longest, 16)
    message = f"--max_seq_length {longest + 1}: must be at most {longest}, the model's positions"
    with pytest.raises(ValueError, match=message):
        check_positions(of_24_positions, longest + 1)
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, longest + 1), 7))


def test_relative_positions_do_not_limit_the_length():
    check_positions(XLNetConfig(), 4096)
