"""A `model` block follows the model whose weights a run starts from."""

import pytest

from bert_pld.config import ConfigError, FollowedModel, ModelConfig, load_config

SMALL = {"preset": None, "hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}


def follow(followed, is_run=True, **blocks):
    values = {"train_batch_size": 8, **blocks}
    return load_config(values, follows=FollowedModel("runs/first", followed, is_run))


def test_run_of_ours_gives_the_sizes_that_the_json_leaves_out():
    first = ModelConfig(**SMALL, normalization="post", layer_norm_eps=1e-5, hidden_dropout=0.0, vocab_size=48)
    second = follow(first).model
    assert (second.hidden_size, second.num_layers, second.normalization) == (64, 3, "post")
    assert (second.layer_norm_eps, second.vocab_size) == (1e-5, 48)
    assert second.hidden_dropout == 0.1  # a dropout belongs to a run, not to the weights
    assert follow(first, is_run=False).model.hidden_dropout == 0.0


def test_keys_and_preset_of_the_json_stand_beside_a_run_of_ours():
    second = follow(ModelConfig(**SMALL), model={"preset": "mini", "num_layers": 5}).model
    assert (second.preset, second.hidden_size, second.num_layers) == ("mini", 256, 5)
    assert second.initializer_range == 0.0625


def test_preset_of_the_same_size_agrees_and_another_is_an_error():
    mini = load_config({"train_batch_size": 8, "model": {"preset": "mini"}}).model
    assert follow(mini, is_run=False, model={"preset": "mini"}).model.hidden_size == 256
    with pytest.raises(ConfigError, match=r"model.preset: 'tiny' has \w+ \d+; runs/first, .* give preset null"):
        follow(mini, is_run=False, model={"preset": "tiny"})


def test_positions_grow_only_where_the_json_says_nothing():
    first = ModelConfig(**SMALL, max_position_embeddings=64)
    run = follow(first, data={"seq_length": 96})
    assert run.model.max_position_embeddings == 96
    assert run.notices == ("model.max_position_embeddings: 96, for data.seq_length; the weights are for 64",)
    with pytest.raises(ConfigError, match=r"data.seq_length: 96; must be at most model.max_position_embeddings \(80\)"):
        follow(first, data={"seq_length": 96}, model={"max_position_embeddings": 80})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"family": "roberta"}, "normalization: 'pre'; must be 'post' for family 'roberta'"),
        ({"family": "electra", "normalization": "post", "hidden_act": "gelu_tanh"}, "hidden_act: 'gelu_tanh'; must be"),
        ({"family": "distilbert", "normalization": "post"}, "type_vocab_size: 2; must be 0 for family 'distilbert'"),
        ({"type_vocab_size": 0}, "type_vocab_size: 0; must be 0 for family 'distilbert' and >= 1 otherwise"),
        ({"embedding_size": 32}, "embedding_size: 32; only family 'electra' has it"),
        ({"family": "bart"}, "family: 'bart'; must be one of 'roberta'"),
        ({"vocab_size": 64, "exported_vocab_size": 65}, "exported_vocab_size: 65; must be at most vocab_size"),
    ],
)
def test_model_that_could_not_be_exported_is_refused(model, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"train_batch_size": 8, "model": model})
