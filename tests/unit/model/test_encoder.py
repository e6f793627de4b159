"""The eager encoder computes hidden states where a loss looks, and leaves out what only other tokens need."""

import pytest
import torch
from modern_model import make_modern
from tiny_model import ROWS, SEQ, drawn_gates, fixed_gates, make_batch, make_model

from bert_pld.kernels import reference_attention
from bert_pld.pld import BlockGate

ZERO_GRADIENT = BlockGate(keep=False, scale=1.0, keep_probability=0.5, zero_gradient_when_dropped=True)
GATES = {
    "no gates": None,
    "last block dropped": fixed_gates([1, 1, 1, 0], scale=1.5),
    "last block runs on no rows": [*fixed_gates([1, 1, 1], scale=1.5), ZERO_GRADIENT],
    "all dropped": fixed_gates([0, 0, 0, 0], scale=1.5),
    "sample": drawn_gates("sample", 0, 4, padded=True),
    "token": drawn_gates("token", 0, 4, padded=True),
}
MODELS = {
    "pre": lambda: make_model(normalization="pre"),
    "post": lambda: make_model(normalization="post"),
    "modernbert": lambda: make_modern(num_layers=4),
}


def count_rows(model):
    """Return a list that gets, for each matrix product of a block, the number of rows of its left factor."""
    rows = []
    for block in model.encoder.blocks:
        product = block.linear

        def counted(values, *parameters, product=product):
            rows.append(values.numel() // values.shape[-1])
            return product(values, *parameters)

        block.linear = counted
    return rows


@pytest.mark.parametrize("gates", GATES.values(), ids=GATES)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_chosen_hidden_states_are_those_of_all_tokens(model, gates):
    model = model().eval()
    batch = make_batch()
    inputs = [batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")] + [gates, None, None]
    with torch.set_grad_enabled(gates is not None and gates[-1] is ZERO_GRADIENT):
        every, layout = model.encoder.encode(*inputs)
        for positions in (batch["masked_positions"], torch.tensor([0, 3, 3]), torch.tensor([], dtype=torch.int64)):
            chosen = model.encoder.encode_chosen(positions, True, *inputs)
            assert torch.allclose(chosen, every[torch.cat([positions, layout.first_rows])], atol=1e-6)


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_last_block_computes_only_the_masked_tokens_after_attention(model):
    model = model()
    rows = count_rows(model)
    batch = make_batch()
    masked, every = batch["masked_positions"].numel(), batch["input_ids"].numel()
    model(**{**batch, "next_sentence_labels": None})["loss"].backward()
    assert rows == [every] * (4 * model.config.num_layers - 3) + [masked] * 3


def test_first_token_is_computed_too_if_sentence_pairs_are_predicted():
    model = make_model()
    rows = count_rows(model)
    batch = make_batch()
    model(**batch, gates=fixed_gates([1, 1, 0, 0]))["loss"].backward()
    assert rows == [ROWS * SEQ] * 5 + [batch["masked_positions"].numel() + ROWS] * 3


@pytest.mark.parametrize("longest", [4, 1000], ids=["long rows", "short rows"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_mask_of_integers_is_a_mask_and_no_document_numbers(model, longest, monkeypatch):
    """Attention takes int64 for document numbers; in rows above the limit it would split the rows by them."""
    monkeypatch.setattr(reference_attention, "_LONGEST_MASKED_ROW", longest)
    model, batch = model().eval(), make_batch()
    ids, types, mask = batch["input_ids"], batch["token_type_ids"], batch["attention_mask"]
    for integers in (mask.long(), mask.int(), 3 * mask.long()):
        assert torch.equal(model.encoder(ids, types, integers), model.encoder(ids, types, mask))
        chosen = [
            model.encoder.encode_chosen(batch["masked_positions"], True, ids, types, own, None, None, None)
            for own in (integers, mask)
        ]
        assert torch.equal(*chosen)
    with pytest.raises(TypeError, match=r"^attention_mask: torch.float32; must be bool or integers, 1 for a token$"):
        model.encoder(ids, types, mask.float())
