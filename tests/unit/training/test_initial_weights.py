"""A new run starts from a saved Hugging Face model: its weights, its configuration, and what is new."""

import dataclasses
import json

import pytest
import torch
from begun_runs import begin
from hugging_face_models import ENTRIES, STOCK, save_stock, word_pieces
from runs import VOCABULARY, write_corpus
from safetensors.torch import load_file, save_file
from token_logits import token_logits

from bert_pld.data.rows import ShardedRows
from bert_pld.model.hugging_face import to_hugging_face
from bert_pld.training.initial_weights import open_initial_weights


@pytest.fixture(scope="module")
def rows(corpus):
    return ShardedRows(corpus, "train")


def logits_of(model, input_ids, positions=16):
    input_ids = input_ids[:, :positions]
    with torch.no_grad():
        hidden_states = model.encoder(input_ids, torch.zeros_like(input_ids))
        return token_logits(model, hidden_states)


def some_ids(seed=0, entries=ENTRIES, length=16):
    return torch.randint(5, entries, (2, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", STOCK)
def test_saved_model_of_each_family_gives_its_logits_and_comes_back_bit_for_bit(case, rows, tmp_path):
    theirs = save_stock(tmp_path, case, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1  # beside an index
    model, _, notes = begin(tmp_path, rows)
    input_ids = some_ids()
    torch.testing.assert_close(logits_of(model, input_ids), theirs(input_ids).logits.detach(), atol=1e-5, rtol=0)
    assert ("new: nsp_head" in notes) == (case in ("bert", "megatron-bert"))
    hf_config, state = to_hugging_face(model.state_dict(), model.config)
    saved = theirs.state_dict()
    shared = [name for name in state if not name.startswith(("cls.seq_relationship", "bert.pooler"))]
    assert all(torch.equal(state[name], saved[name]) for name in shared)
    assert saved.keys() - set(shared) == set(type(theirs)._tied_weights_keys)
    assert hf_config.model_type == theirs.config.model_type


@pytest.mark.parametrize("case", ["bert", "roberta", "distilbert", "electra-small"])
def test_bare_model_gets_new_heads(case, rows, tmp_path):
    theirs = save_stock(tmp_path, case, "Model")
    model, _, notes = begin(tmp_path, rows)
    input_ids = some_ids()
    with torch.no_grad():
        hidden_states = model.encoder(input_ids, torch.zeros_like(input_ids))
        torch.testing.assert_close(hidden_states, theirs(input_ids).last_hidden_state, atol=1e-5, rtol=0)
    # BertModel has a pooler, which the NSP head goes on with.
    new = "new: mlm_head, mlm_head.norm, mlm_head.transform"
    assert notes.splitlines()[1] == (f"{new}, nsp_head.classifier" if case == "bert" else new)
    assert ("not used: roberta.pooler.dense" in notes) == (case == "roberta")


def test_heads_for_other_tasks_are_not_used(rows, tmp_path):
    save_stock(tmp_path, "bert", "ForSequenceClassification")
    model, _, notes = begin(tmp_path, rows, model={"next_sentence_prediction": False})
    assert "not used: bert.pooler.dense, classifier" in notes
    assert model.nsp_head is None


def test_next_sentence_head_is_taken_over_where_the_data_has_pairs(rows, tmp_path):
    theirs = save_stock(tmp_path, "bert", "ForPreTraining")
    model, _, notes = begin(tmp_path, rows)
    assert torch.equal(model.nsp_head.classifier.weight, theirs.cls.seq_relationship.weight)
    assert notes == f"initialized from {tmp_path} (bert)"


def test_old_names_a_missing_class_and_half_precision_are_read(rows, tmp_path):
    theirs = save_stock(tmp_path)
    rewrite_config(tmp_path, architectures=None)
    state = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for present, former in old.items():
        state = {name.replace(present, former): tensor for name, tensor in state.items()}
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]
    save_file(
        {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, tmp_path / "model.safetensors"
    )
    model, *_ = begin(tmp_path, rows)
    norm = theirs.bert.embeddings.LayerNorm.weight
    assert torch.equal(model.encoder.embeddings.norm.weight, norm.half().float())
    assert model.state_dict()["encoder.embeddings.norm.weight"].dtype == torch.float32


def test_vocabulary_is_rounded_up_without_changing_the_loss_and_exported_at_its_own_size(rows, tmp_path):
    theirs = save_stock(tmp_path, vocab_size=ENTRIES + 3)
    model, *_ = begin(tmp_path, rows)
    assert (model.config.vocab_size, model.config.exported_vocab_size) == (ENTRIES + 8, ENTRIES + 3)
    input_ids = some_ids()
    labels = some_ids(1)
    types, positions = torch.zeros_like(input_ids), torch.arange(input_ids.numel())
    loss = model(input_ids, types, None, positions, labels.flatten())["mlm_loss"]
    torch.testing.assert_close(loss, theirs(input_ids, labels=labels).loss.detach(), atol=1e-5, rtol=0)
    hf_config, state = to_hugging_face(model.state_dict(), model.config)
    assert hf_config.vocab_size == ENTRIES + 3
    assert torch.equal(state["bert.embeddings.word_embeddings.weight"], theirs.bert.embeddings.word_embeddings.weight)
    exact, *_ = begin(tmp_path, rows, model={"vocab_size": ENTRIES + 3})
    assert len(exact.mlm_head.bias) == ENTRIES + 3


@pytest.mark.parametrize("case", ["bert", "roberta", "modernbert"])
def test_positions_grow_for_longer_sequences(case, tmp_path_factory, tmp_path):
    theirs = save_stock(tmp_path, case)
    offset = 1 if case == "roberta" else 0
    own = theirs.config.max_position_embeddings - offset
    long = ShardedRows(write_corpus(tmp_path_factory.mktemp("long"), seq_length=64), "train")
    model, _, notes = begin(tmp_path, long, data={"seq_length": 64})
    assert model.config.max_position_embeddings == 64
    assert f"model.max_position_embeddings: 64, for data.seq_length; the weights are for {own}" in notes
    input_ids = some_ids(length=64)
    torch.testing.assert_close(
        logits_of(model, input_ids), theirs(input_ids[:, :16]).logits.detach(), atol=1e-5, rtol=0
    )
    if case != "modernbert":
        assert f"positions {own + 1} to 64 start as copies of the first ones" in notes
        table = model.encoder.embeddings.position.weight
        assert torch.equal(table[offset + own :], table[offset : offset + 64 - own])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"hidden_size": 64}, "model.hidden_size: 64; {folder}, whose weights the run starts from, has 32; leave"),
        (
            {"normalization": "pre"},
            "model.normalization: 'pre'; {folder}, whose weights the run starts from, has 'post'",
        ),
        ({"preset": "mini"}, "model.preset: 'mini' has "),
        ({"max_position_embeddings": 16}, "model.max_position_embeddings: 16; {folder}, whose"),
        ({"vocab_size": 56}, "model.vocab_size: 56; {folder}, whose"),
        ({"family": "electra"}, "model.family: 'electra'; {folder}, whose"),
        ({"architecture": "modernbert"}, "model.architecture: 'modernbert'; {folder}, whose"),
        ({"hiden_size": 32}, "model.hiden_size: unknown key, did you mean 'hidden_size'?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_key_of_the_json_that_contradicts_the_model_is_named(model, message, rows, tmp_path):
    save_stock(tmp_path)
    with pytest.raises(ValueError, match=r"configuration: model") as raised:
        begin(tmp_path, rows, model=model)
    assert message.format(folder=tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_keys_that_agree_or_say_how_a_model_runs_are_accepted(rows, tmp_path):
    save_stock(tmp_path)
    keys = {"hidden_size": 32, "normalization": "post", "hidden_dropout": 0.3, "kernels": "reference", "preset": None}
    model, *_ = begin(tmp_path, rows, model=keys)
    assert (model.config.hidden_dropout, model.config.attention_dropout) == (0.3, 0.0)
    # The configuration that a run saves is accepted again.
    again, *_ = begin(tmp_path, rows, model=dataclasses.asdict(model.config))
    assert again.config == model.config


def test_next_sentence_head_of_a_family_without_one_is_refused(rows, tmp_path):
    save_stock(tmp_path, "roberta")
    with pytest.raises(ValueError, match="model.next_sentence_prediction: True; .* has False"):
        begin(tmp_path, rows, model={"next_sentence_prediction": True})


def rewrite_config(folder, **changes):
    content = {**json.loads((folder / "config.json").read_text()), **changes}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def only_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def index_to_elsewhere(folder):
    no_weights(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')


def adapter(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "bert.adapter.weight": torch.ones(2)}, folder / "model.safetensors")


def part_missing(folder):
    state = load_file(folder / "model.safetensors")
    state.pop("bert.encoder.layer.1.output.dense.bias")
    save_file(state, folder / "model.safetensors")


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def slow_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "CanineTokenizer"}')


BAD = {
    "pickle": (
        only_pickle,
        "only in pytorch_model.bin, a pickle, .* where you trust it: python -c .*import BertForMaskedLM as Model",
    ),
    "decoder": (
        lambda f: rewrite_config(f, model_type="gpt2"),
        "model type 'gpt2': must be one of bert, megatron-bert",
    ),
    "decoder_class": (lambda f: rewrite_config(f, architectures=["BertLMHeadModel"]), "BertLMHeadModel is a decoder"),
    "is_decoder": (lambda f: rewrite_config(f, is_decoder=True), "is_decoder: true; must be false"),
    "no_model_type": (lambda f: rewrite_config(f, model_type=None), "model type None: must be one of bert"),
    "no_class": (lambda f: rewrite_config(f, architectures=["a; rm b"]), r"architectures: \['a; rm b'\]; must name"),
    "bad_size": (lambda f: rewrite_config(f, hidden_size="wide"), "config.json: .*hidden_size"),
    "odd_heads": (lambda f: rewrite_config(f, num_attention_heads=5), "hidden_size"),
    "other_size": (lambda f: rewrite_config(f, hidden_size=64), r"shape \[64, 32\]; must be \[64, 64\]"),
    "untied": (lambda f: rewrite_config(f, tie_word_embeddings=False), "tie_word_embeddings: false; must be true"),
    "activation": (lambda f: rewrite_config(f, hidden_act="relu"), "hidden_act: 'relu'; must be one of gelu"),
    "config_not_json": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "truncated": (truncated, "model.safetensors: cannot be read, truncated or damaged"),
    "no_weights": (no_weights, "has no model.safetensors and no model.safetensors.index.json"),
    "elsewhere": (index_to_elsewhere, "other.safetensors is missing; must be a safetensors file beside it"),
    "adapter": (adapter, "unexpected bert.adapter.weight"),
    "part_missing": (part_missing, "bert.encoder.layer.1.output.dense.bias .* is missing"),
    "no_tokenizer": (no_tokenizer, "load a tokenizer|no fast tokenizer|holds no tokenizer, only a model"),
    "slow_tokenizer": (slow_tokenizer, "CanineTokenizer is no fast tokenizer; required is one that the library"),
    "other_tokenizer": (
        lambda f: word_pieces(VOCABULARY[::-1]).save(str(f / "tokenizer.json")),
        r"its vocabulary \(64 entries\) differs from that of .* build the data with --tokenizer .*--new_vocabulary",
    ),
    "large_tokenizer": (
        lambda f: word_pieces([*VOCABULARY, "more"]).save(str(f / "tokenizer.json")),
        "its tokenizer has 65 entries, its model 64",
    ),
}


@pytest.mark.parametrize(("damage", "message"), BAD.values(), ids=BAD)
def test_directory_that_cannot_be_trained_is_refused_in_one_line(damage, message, rows, tmp_path):
    save_stock(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        begin(tmp_path, rows)
    assert "\n" not in str(raised.value)
    assert str(tmp_path) in str(raised.value)


def test_new_vocabulary_needs_old_weights():
    with pytest.raises(ValueError, match="--new_vocabulary: needs --initialize_from"):
        open_initial_weights(None, True)


def test_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a run, a checkpoint, or a saved Hugging Face model"):
        open_initial_weights(str(tmp_path), False)


def test_hub_id_is_downloaded_where_there_is_a_network(rows, tmp_path, monkeypatch):
    save_stock(tmp_path)
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(tmp_path))
    assert "initialized from lab/encoder (bert)" in begin("lab/encoder", rows)[2]
    assert asked == ["lab/encoder"]


def test_hub_id_without_safetensors_is_refused_with_the_commands_that_fetch_and_convert_them(tmp_path, monkeypatch):
    """Without a network, the copy does not tell whether the Hub has safetensors."""
    save_stock(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ValueError, match="lab/encoder: its copy on this machine has no safetensors") as raised:
        open_initial_weights("lab/encoder", False)
    message = str(raised.value)
    assert "\n" not in message
    assert str(tmp_path) not in message
    assert "hf download lab/encoder" in message
    assert "kind.from_pretrained('lab/encoder').save_pretrained('encoder')" in message


def test_hub_id_without_a_network_is_one_line(monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    message = "^--initialize_from lab/encoder: no such directory, and the .* Hub does not give .*; without a network"
    with pytest.raises(ValueError, match=message) as raised:
        open_initial_weights("lab/encoder", False)
    assert "\n" not in str(raised.value)


def test_path_that_does_not_exist_is_not_asked_of_the_hub():
    with pytest.raises(ValueError, match="^--initialize_from /nowhere/at/all: does not exist$"):
        open_initial_weights("/nowhere/at/all", False)
