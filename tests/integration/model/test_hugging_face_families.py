"""Each family's stock class and our model: the same logits, loss, gradients, optimizer steps and export."""

import dataclasses

import pytest
import torch
from hugging_face_models import ENTRIES, STOCK, make_stock
from imported_models import from_hugging_face
from token_logits import token_logits

from bert_pld.model import make_model, use_backend
from bert_pld.model.hugging_face import FAMILIES, family_named, to_hugging_face
from bert_pld.model.hugging_face.conversion import import_state

SEQ = 17


def make_ours(theirs, backend="reference"):
    config, state = from_hugging_face(theirs.config, theirs.state_dict())
    ours = make_model(config)
    ours.load_state_dict(state)
    use_backend(ours, backend, "cpu")
    return ours.train(theirs.training)


def make_batch(pad_id, padded, seed=11):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([SEQ, 9, 13]) if padded else torch.full((3,), SEQ)
    mask = torch.arange(SEQ)[None, :] < lengths[:, None]
    input_ids = torch.randint(5, ENTRIES, (3, SEQ), generator=generator).where(mask, torch.tensor(pad_id))
    labels = torch.full((3, SEQ), -100)
    for row, column in ((0, 2), (0, 16), (1, 5), (1, 8), (2, 1), (2, 12)):
        labels[row, column] = int(torch.randint(5, ENTRIES, (1,), generator=generator))
    return input_ids, mask, labels


def our_loss(ours, input_ids, mask, labels):
    # Segments where the model has one or none are ignored.
    types = torch.zeros_like(input_ids) if ours.config.type_vocab_size > 1 else torch.ones_like(input_ids)
    positions = (labels.flatten() != -100).nonzero().flatten()
    return ours(input_ids, types, None if mask.all() else mask, positions, labels.flatten()[positions])["loss"]


def our_gradients_of(theirs, config):
    """The gradients of a stock model, under our names."""
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    return import_state(gradients, config, family_named(theirs.config.model_type)).state


def test_every_family_has_a_case():
    assert {make_stock(case).config.model_type for case in STOCK} == set(FAMILIES)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("case", STOCK)
def test_logits_loss_and_every_gradient_equal_the_stock_class(case, backend, padded):
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("interpreted kernels only")
    theirs = make_stock(case).train()
    ours = make_ours(theirs, backend)
    input_ids, mask, labels = make_batch(theirs.config.pad_token_id, padded)
    output = theirs(input_ids, attention_mask=mask.long(), labels=labels)
    loss = our_loss(ours, input_ids, mask, labels)
    torch.testing.assert_close(loss, output.loss, atol=1e-5, rtol=0)
    with torch.no_grad():
        hidden_states = ours.encoder(input_ids, torch.zeros_like(input_ids), None if mask.all() else mask)
        logits = token_logits(ours, hidden_states)
    assert output.logits.abs().max() > 1
    torch.testing.assert_close(logits[mask], output.logits[mask], atol=1e-5, rtol=0)

    loss.backward()
    output.loss.backward()
    expected = our_gradients_of(theirs, ours.config)
    assert expected.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        # Softmax cancels a bias on the keys, so its gradient is rounding noise around 0.
        assert name.endswith("qkv_bias") or expected[name].abs().max() > 1e-4, name
        torch.testing.assert_close(
            parameter.grad, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("case", STOCK)
def test_five_optimizer_steps_equal_those_of_the_stock_class(case):
    theirs = make_stock(case).train()
    ours = make_ours(theirs)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-4, eps=1e-6, weight_decay=0.01) for m in (ours, theirs)]
    for step in range(5):
        input_ids, mask, labels = make_batch(theirs.config.pad_token_id, padded=True, seed=step)
        losses = our_loss(ours, input_ids, mask, labels), theirs(input_ids, mask.long(), labels=labels).loss
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    _, expected = from_hugging_face(theirs.config, theirs.state_dict())
    for name, tensor in ours.state_dict().items():
        if name.endswith("qkv_bias"):
            # Softmax cancels the keys' bias: its gradient is rounding noise, which Adam makes a step of.
            tensor, expected[name] = (bias.view(3, -1)[[0, 2]] for bias in (tensor, expected[name]))
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("case", STOCK)
def test_export_gives_the_imported_tensors_and_configuration_back(case):
    theirs = make_stock(case)
    ours = make_ours(theirs)
    config, state = to_hugging_face(ours.state_dict(), ours.config, pad_token_id=theirs.config.pad_token_id)
    saved = theirs.state_dict()
    assert saved.keys() - state.keys() == set(type(theirs)._tied_weights_keys)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in state.items())
    assert config.architectures == [type(theirs).__name__]
    assert {**config.to_dict(), "architectures": None} == {**theirs.config.to_dict(), "architectures": None}


def test_exported_vocabulary_has_its_own_size_and_position_offset_follows_the_pad_token():
    theirs = make_stock("roberta")
    ours = make_ours(theirs)
    config = dataclasses.replace(ours.config, exported_vocab_size=ENTRIES - 3)
    hf_config, state = to_hugging_face(ours.state_dict(), config, pad_token_id=3)
    assert (hf_config.vocab_size, hf_config.max_position_embeddings) == (ENTRIES - 3, 44)
    exported = type(theirs)(hf_config).eval()
    exported.load_state_dict(state, strict=False)
    input_ids, mask, _ = make_batch(1, padded=True)
    input_ids = input_ids.clamp(max=ENTRIES - 4)
    with torch.no_grad():
        expected = theirs(input_ids, mask.long()).logits[..., : ENTRIES - 3]
        logits = exported(input_ids.where(mask, torch.tensor(3)), mask.long()).logits
    torch.testing.assert_close(logits[mask], expected[mask], atol=1e-6, rtol=0)
