"""Our model and Hugging Face's classes give the same logits, losses and gradients, converted in either direction."""

import pytest
import torch
import transformers
from imported_models import from_hugging_face
from token_logits import token_logits

from bert_pld.config import ModelConfig
from bert_pld.model.bert import BertForPreTraining
from bert_pld.model.hugging_face import to_hugging_face

BATCH, SEQ, VOCABULARY = 3, 17, 48
TIED = {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
CLASSES = {
    ("pre", True): transformers.MegatronBertForPreTraining,
    ("pre", False): transformers.MegatronBertForMaskedLM,
    ("post", True): transformers.BertForPreTraining,
    ("post", False): transformers.BertForMaskedLM,
}


def make_config(normalization, nsp=True, **changes):
    sizes = {"hidden_size": 32, "num_layers": 3, "num_attention_heads": 4, "intermediate_size": 80}
    sizes |= {"max_position_embeddings": 24, "vocab_size": VOCABULARY, "initializer_range": 0.2}
    options = {"normalization": normalization, "next_sentence_prediction": nsp}
    return ModelConfig(
        **{"preset": None, "hidden_dropout": 0.0, "attention_dropout": 0.0, **sizes, **options, **changes}
    )


def make_model(config):
    """All parameters are random, LayerNorm weights and biases too, so that a swapped or missing one is detected."""
    torch.manual_seed(3)
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def load_theirs(model):
    hf_config, hf_state = to_hugging_face(model.state_dict(), model.config)
    theirs = CLASSES[model.config.normalization, bool(model.config.next_sentence_prediction)](hf_config).eval()
    report = theirs.load_state_dict(hf_state, strict=False)
    assert set(report.missing_keys) == TIED
    assert report.unexpected_keys == []
    assert hf_config.architectures == [type(theirs).__name__]
    return theirs


def make_batch():
    generator = torch.Generator().manual_seed(11)
    lengths = torch.tensor([SEQ, 9, 13])
    attention_mask = torch.arange(SEQ)[None, :] < lengths[:, None]
    input_ids = torch.randint(5, VOCABULARY, (BATCH, SEQ), generator=generator) * attention_mask
    token_type_ids = ((torch.arange(SEQ)[None, :] >= lengths[:, None] // 2) & attention_mask).long()
    labels = torch.full((BATCH, SEQ), -100)
    for row, column in ((0, 2), (0, 16), (1, 5), (1, 8), (2, 1), (2, 12)):
        labels[row, column] = int(torch.randint(5, VOCABULARY, (1,), generator=generator))
    return input_ids, token_type_ids, attention_mask, labels, torch.tensor([0, 1, 1])


def our_logits(model, input_ids, token_type_ids, attention_mask):
    hidden_states = model.encoder(input_ids, token_type_ids, attention_mask)
    mlm = token_logits(model, hidden_states)
    return mlm, None if model.nsp_head is None else model.nsp_head(hidden_states[:, 0])


def assert_same_logits(ours, theirs):
    input_ids, token_type_ids, attention_mask, *_ = make_batch()
    with torch.no_grad():
        mlm, nsp = our_logits(ours, input_ids, token_type_ids, attention_mask)
        output = theirs(input_ids, attention_mask=attention_mask.long(), token_type_ids=token_type_ids)
    expected = output.logits if nsp is None else output.prediction_logits
    assert expected.abs().max() > 1
    torch.testing.assert_close(mlm[attention_mask], expected[attention_mask], atol=1e-5, rtol=0)
    if nsp is not None:
        torch.testing.assert_close(nsp, output.seq_relationship_logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
@pytest.mark.parametrize(("normalization", "nsp"), CLASSES)
def test_logits_equal_hugging_face(normalization, nsp, activation):
    ours = make_model(make_config(normalization, nsp, hidden_act=activation))
    assert_same_logits(ours, load_theirs(ours))


@pytest.mark.parametrize(("normalization", "nsp"), CLASSES)
def test_hugging_face_model_converts_to_ours(normalization, nsp):
    torch.manual_seed(5)
    source = make_config(normalization, nsp, hidden_act="gelu_tanh", hidden_dropout=0.3, layer_norm_eps=1e-6)
    theirs = load_theirs(make_model(source))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    config, state = from_hugging_face(theirs.config, theirs.state_dict())
    assert config == source
    ours = BertForPreTraining(config).eval()
    ours.load_state_dict(state)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("normalization", ["pre", "post"])
def test_training_gradients_equal_hugging_face(normalization):
    ours = make_model(make_config(normalization)).train()
    theirs = load_theirs(ours).train()
    input_ids, token_type_ids, attention_mask, labels, next_sentence = make_batch()
    positions = (labels.flatten() != -100).nonzero().flatten()
    losses = ours(input_ids, token_type_ids, attention_mask, positions, labels.flatten()[positions], next_sentence)
    losses["loss"].backward()
    output = theirs(
        input_ids,
        attention_mask=attention_mask.long(),
        token_type_ids=token_type_ids,
        labels=labels,
        next_sentence_label=next_sentence,
    )
    output.loss.backward()
    torch.testing.assert_close(losses["loss"], output.loss, atol=1e-5, rtol=0)

    our_gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    _, expected = from_hugging_face(
        theirs.config, {name: parameter.grad for name, parameter in theirs.named_parameters()}
    )
    assert our_gradients.keys() == expected.keys()
    for name, gradient in our_gradients.items():
        # Softmax cancels a bias on the keys, so its gradient is rounding noise around 0.
        assert name.endswith("qkv_bias") or gradient.abs().max() > 1e-4, name
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_conversion_there_and_back_is_exact():
    ours = make_model(make_config("pre"))
    hf_config, hf_state = to_hugging_face(ours.state_dict(), ours.config, pad_token_id=4)
    assert hf_config.pad_token_id == 4
    config, state = from_hugging_face(hf_config, hf_state)
    assert config == ours.config
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_unsupported_model_or_state_dict_is_rejected():
    ours = make_model(make_config("post"))
    hf_config, hf_state = to_hugging_face(ours.state_dict(), ours.config)
    with pytest.raises(ValueError, match="encoder.blocks.2.ffn_down_bias .* is missing"):
        to_hugging_face({k: v for k, v in ours.state_dict().items() if "2.ffn_down_bias" not in k}, ours.config)
    with pytest.raises(ValueError, match=r"cls.predictions.bias: shape \[47\]; must be \[48\]"):
        from_hugging_face(hf_config, {**hf_state, "cls.predictions.bias": torch.zeros(47)})
    with pytest.raises(ValueError, match="decoder must be tied"):
        from_hugging_face(hf_config, {**hf_state, "cls.predictions.decoder.weight": torch.zeros(VOCABULARY, 32)})
    with pytest.raises(ValueError, match="unexpected bert.adapter"):
        from_hugging_face(hf_config, {**hf_state, "bert.adapter": torch.zeros(1)})
    with pytest.raises(ValueError, match="hidden_act: 'relu'; must be one of gelu"):
        from_hugging_face(transformers.BertConfig(hidden_act="relu"), hf_state)
    with pytest.raises(ValueError, match="'gpt2': must be one of bert, megatron-bert, roberta"):
        from_hugging_face(transformers.GPT2Config(), hf_state)
