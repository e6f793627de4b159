"""Encoders of transformers: the sequence lengths that they have positions for, and classifiers on top of them."""

from __future__ import annotations

import pytest
import torch
from finetune_runs import write_tokenizer
from hugging_face_models import save_stock
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
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

from bert_pld.finetuning.encoder import check_positions, load_encoder
from bert_pld.glue.tasks import TASKS

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


FAMILIES = ["bert", "roberta", "distilbert", "electra", "modernbert"]
TASK_MODELS = {"sequences": AutoModelForSequenceClassification, "tokens": AutoModelForTokenClassification}


def classifier(folder, seed=3):
    """Return the classifier of RTE on a saved model, which gets a tokenizer."""
    write_tokenizer(folder)
    return load_encoder(str(folder), 16).classifier(TASKS["RTE"], seed)


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module", params=FAMILIES)
def pretrained(request, tmp_path_factory):
    """The folder of a saved model of each family, with a tokenizer; no test changes it."""
    folder = tmp_path_factory.mktemp(request.param)
    save_stock(folder, request.param)
    write_tokenizer(folder)
    return folder


def test_classifier_on_a_pretrained_model_is_that_of_transformers_by_the_seed(pretrained):
    found = load_encoder(str(pretrained), 16).classifier(TASKS["RTE"], 3)
    torch.manual_seed(3)
    assert_same_weights(found, AutoModelForSequenceClassification.from_pretrained(pretrained, num_labels=2))


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("kind", TASK_MODELS)
def test_classifier_on_a_model_of_another_task_is_that_on_its_encoder_alone(pretrained, kind, labels, tmp_path):
    other = TASK_MODELS[kind].from_pretrained(pretrained, num_labels=labels)
    other.save_pretrained(tmp_path / "other")
    other.base_model.save_pretrained(tmp_path / "alone")
    assert_same_weights(classifier(tmp_path / "other"), classifier(tmp_path / "alone"))


def test_pretrained_head_of_modernbert_is_kept_and_its_classifier_is_new(tmp_path):
    pretrained = save_stock(tmp_path, "modernbert")
    first, second = (classifier(tmp_path, seed) for seed in (3, 4))
    assert torch.equal(first.head.dense.weight, pretrained.head.dense.weight)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)


def test_weights_of_another_shape_than_the_configuration_are_one_line(tmp_path):
    config = save_stock(tmp_path, "bert").config
    config.intermediate_size = 96
    config.save_pretrained(tmp_path)
    name = "bert.encoder.layer.0.intermediate.dense.bias"
    message = rf"^--model .*: {name} has shape \(48,\) in the weights, \(96,\) by config.json$"
    with pytest.raises(ValueError, match=message):
        classifier(tmp_path)
