"""An exported checkpoint is a stock Hugging Face model that loads without bert_pld."""

import json
import os
import signal
import sys

import pytest
import torch
from repository import REPOSITORY
from runs import run_captured
from safetensors.torch import load_file, save_file
from token_logits import token_logits

from bert_pld import cli, export
from bert_pld.checkpoint import format as checkpoints
from bert_pld.config import load_config
from bert_pld.model.bert import BertForPreTraining

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "a", "dog", "##s", ".", "ran"]

SIZES = {"preset": None, "hidden_size": 24, "num_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"max_position_embeddings": 32, "vocab_size": 16, "initializer_range": 0.3}
TRAINING = {"train_batch_size": 32, "data": {"seq_length": 16}, "training": {"max_steps": 2000}}

# Runs in a process that cannot import bert_pld or DeepSpeed.
READER = """
import sys

sys.modules.update(bert_pld=None, deepspeed=None)  # as if they were not installed
import torch, transformers
from safetensors.torch import save_file

for folder, auto_class in zip(sys.argv[1::2], sys.argv[2::2]):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model, loading = getattr(transformers, auto_class).from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    model.eval()
    pairs = ["The cat sat on the [MASK].", "dogs ran"], ["a dog", "the mat."]
    batch = tokenizer(*pairs, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**batch)
    saved = {name: batch[name].contiguous() for name in ("input_ids", "token_type_ids", "attention_mask")}
    if auto_class.endswith("PreTraining"):
        saved |= {"mlm": output.prediction_logits, "nsp": output.seq_relationship_logits}
    else:
        saved["mlm"] = output.logits
    save_file(saved, folder + ".outputs")
    filled = transformers.pipeline("fill-mask", folder)("The cat [MASK] on the mat.", top_k=3)
    assert len(filled) == 3 and all(0 < entry["score"] < 1 and entry["token_str"] for entry in filled), filled
    masked_lm = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    print(type(model).__name__, type(masked_lm).__name__, tokenizer.mask_token_id, tokenizer.model_max_length)
"""


def make_tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:5])
    return tokenizer


@pytest.fixture
def make_checkpoint(tmp_path):
    def make(normalization="pre", nsp=True, tokenizer=None, facts=None, drops=True):
        model = {**SIZES, "normalization": normalization, "next_sentence_prediction": nsp}
        pld = {"enabled": drops, "theta": 0.6, "gamma": 0.01}
        run = load_config({**TRAINING, "progressive_layer_drop": pld, "model": model})
        torch.manual_seed(7)
        model = BertForPreTraining(run.model).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        folder = tmp_path / f"run_{normalization}_{nsp}" / "checkpoints" / "step_00001500"
        folder.mkdir(parents=True)
        save_file(model.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(run.as_json()))
        (folder / "state.json").write_text(json.dumps({"step": 1500, "tokens": 750_000, **(facts or {})}))
        (tokenizer or make_tokenizer()).save(str(folder / "tokenizer.json"))
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        checkpoints.write_checksums(folder)
        return folder, model

    return make


def run_main(checkpoint, output_dir, *flags):
    arguments = ["--checkpoint", str(checkpoint), "--output_dir", str(output_dir), *flags]
    export.main(export.build_parser().parse_args(arguments))


def test_export_loads_without_bert_pld_and_gives_the_same_logits(make_checkpoint, tmp_path):
    kinds = {("pre", True): "MegatronBert", ("post", True): "Bert", ("pre", False): "MegatronBert"}
    models, arguments, printed = {}, [], []
    for (normalization, nsp), name in kinds.items():
        checkpoint, model = make_checkpoint(normalization, nsp)
        folder = tmp_path / f"exported_{normalization}_{nsp}"
        run_main(checkpoint.parent.parent, folder)
        head = "ForPreTraining" if nsp else "ForMaskedLM"
        models[folder] = model
        arguments += [str(folder), f"AutoModel{head}"]
        printed.append(f"{name}{head} {name}ForMaskedLM 4 32")
    reader = tmp_path / "reader.py"
    reader.write_text(READER)
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = run_captured([sys.executable, "-I", reader, *arguments], cwd=tmp_path, env=environment)
    assert result.stdout.splitlines() == printed
    for folder, model in models.items():
        assert_agrees(model, load_file(f"{folder}.outputs"))


def assert_agrees(model, theirs):
    mask = theirs["attention_mask"].bool()
    assert theirs["input_ids"][1].tolist() == [2, 11, 12, 14, 3, 5, 9, 13, 3, 0, 0, 0]
    assert theirs["token_type_ids"][1].tolist() == [0] * 5 + [1] * 4 + [0] * 3
    assert mask.sum(1).tolist() == [12, 9]
    with torch.no_grad():
        hidden_states = model.encoder(theirs["input_ids"], theirs["token_type_ids"], mask)
        ours = token_logits(model, hidden_states)
        torch.testing.assert_close(theirs["mlm"][mask], ours[mask], atol=1e-5, rtol=0)
        if model.nsp_head is not None:
            torch.testing.assert_close(theirs["nsp"], model.nsp_head(hidden_states[:, 0]), atol=1e-5, rtol=0)


def test_model_card_describes_the_training_run(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint(facts={"data_source": "text=corpus/*.txt"})
    run_main(checkpoint, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    for text in (
        "`MegatronBertForPreTraining`",
        "1,500 of 2,000 optimizer steps, 48,000 samples, 750,000 tokens",
        "text=corpus/*.txt",
        "θ → 0.6, γ = 0.01",
        "2 blocks × 24, 3 heads",
        "AutoModelForPreTraining.from_pretrained",
        "predict masked tokens, and whether one sentence follows another.",
        "Blocks were dropped in training only",
    ):
        assert text in card
    assert sorted(p.name for p in (tmp_path / "exported").iterdir()) == sorted(export.EXPORTED_FILES)


def test_model_card_counts_the_tokens_since_the_last_record(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint(facts={"since_record": {"tokens": 4_500.0}})
    run_main(checkpoint, tmp_path / "exported")
    assert "48,000 samples, 754,500 tokens" in (tmp_path / "exported" / "README.md").read_text()
    (checkpoint / "state.json").write_text('{"step": 1500, "tokens": 750000, "since_record": {"tokens": "many"}}')
    with pytest.raises(ValueError, match="since_record: tokens: 'many'; must be a number"):
        checkpoints.load_state(checkpoint)


def test_model_card_of_a_run_without_layer_dropping_does_not_say_that_blocks_were_dropped(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint(nsp=False, drops=False)
    run_main(checkpoint, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "pretrained to predict masked tokens. It is a stock class of transformers.\n" in card
    assert "no layer dropping" in card
    assert "were dropped" not in card


def test_model_card_of_a_branch_counts_the_samples_of_both_runs(make_checkpoint, tmp_path):
    """The branch left another run after 1,000 steps of 128 samples, and has batches of 32."""
    checkpoint, _ = make_checkpoint(facts={"origin": {"step": 1000, "samples": 128_000, "position": 0}})
    run_main(checkpoint, tmp_path / "exported")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "1,500 of 2,000 optimizer steps, 144,000 samples, 750,000 tokens" in card


def test_fill_mask_script_fills_an_export_s_masks_and_rejects_other_input(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint()
    run_main(checkpoint, tmp_path / "model")

    def fill(*arguments):
        script = REPOSITORY / "scripts" / "fill_mask.py"
        return run_captured([sys.executable, script, *arguments], expect=None, cwd=tmp_path)

    done = fill(tmp_path / "model", "The cat [MASK] on the mat.", "A [MASK].")
    sentence, guesses = done.stdout.splitlines()[:2]
    assert (done.returncode, sentence, len(done.stdout.splitlines())) == (0, "The cat [MASK] on the mat.", 4)
    assert len(guesses.split(", ")) == 5
    for arguments, message in (
        ((tmp_path / "none", "a [MASK]"), "none: has no config.json; must be a folder written by bert_pld.export"),
        ((tmp_path / "model", "a [MASK]", "the cat"), "'the cat': contains [MASK] 0 times; must contain it once"),
    ):
        done = fill(*arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert message in done.stderr


def test_output_dir_with_other_files_is_rejected_and_an_earlier_export_is_replaced(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint()
    target = tmp_path / "exported"
    run_main(checkpoint, target)
    (target / "README.md").write_text("old")
    run_main(checkpoint, target)
    assert (target / "README.md").read_text() != "old"
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"contains thesis.txt, which no export wrote"):
        run_main(checkpoint, target)
    run_main(checkpoint, target, "--overwrite")
    assert (target / "thesis.txt").read_text() == "precious"


def test_killed_export_is_repeated_and_leaves_nothing(make_checkpoint, tmp_path):
    checkpoint, _ = make_checkpoint()
    target = tmp_path / "exported"
    code = """
import os, signal, sys
from bert_pld import export
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
export.export_checkpoint(*map(export.Path, sys.argv[1:]))
"""
    run_captured([sys.executable, "-c", code, checkpoint, target], expect=-signal.SIGKILL)
    assert [path.is_dir() for path in target.iterdir()] == [True]
    run_main(checkpoint, target)
    assert {path.name for path in target.iterdir()} <= {*export.EXPORTED_FILES}


def test_tokenizer_with_more_entries_than_the_model_is_rejected(make_checkpoint, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(10)])
    checkpoint, _ = make_checkpoint(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"tokenizer.json: 25 entries; must be at most the model's 16"):
        run_main(checkpoint, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_user_error_is_one_line_and_exit_code_1(tmp_path, capsys):
    arguments = ["--checkpoint", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.run(export.main, export.build_parser(), arguments)
    assert stopped.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "no checkpoint found" in captured.err


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        export.build_parser().parse_args(["--help"])
    assert stopped.value.code == 0
    assert "example:\n  python -m bert_pld.export --checkpoint" in capsys.readouterr().out
