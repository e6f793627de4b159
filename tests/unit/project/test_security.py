"""Security: no links out of a data directory, no code from data, no user input in a shell, no secrets on disk."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from repository import REPOSITORY, tracked
from runs import VOCABULARY, small_config, write_corpus
from static_shards import make_static_rows, write_static_corpus, write_static_shard

from bert_pld import pretrain
from bert_pld.config import load_config
from bert_pld.data.nvidia_format import find_shards, read_header
from bert_pld.data.nvidia_rows import open_rows
from bert_pld.data.rows import ShardedRows, resolve_data_dir
from bert_pld.data.shards import Manifest, Shard
from bert_pld.data.tokenizer import bert_tokenizer
from bert_pld.files import without_secrets
from data_prep.__main__ import main as data_prep

SHARD = "train_00000.hdf5"
EXECUTES_CODE = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "dill.load", "dill.loads"}
EXECUTES_CODE |= {"marshal.loads", "shelve.open", "joblib.load", "yaml.load", "yaml.unsafe_load", "pandas.read_pickle"}


@pytest.fixture
def data_dir(tmp_path):
    return write_corpus(tmp_path / "data", train_rows=8, validation_rows=2)


@pytest.mark.parametrize("name", ["/etc/passwd", "../train_00000.hdf5", "sub/train.hdf5", "..", "", "a\\b", 7])
def test_manifest_with_a_file_in_another_directory_is_refused(data_dir, name):
    payload = json.loads((data_dir / "manifest.json").read_text())
    payload["splits"]["train"][0]["file"] = name
    (data_dir / "manifest.json").write_text(json.dumps(payload))
    with pytest.raises(ValueError, match="must be a name without a directory"):
        Manifest.read(data_dir)


@pytest.mark.parametrize("name", [SHARD, "tokenizer.json", "vocab.txt", "manifest.json"])
def test_symlink_to_outside_the_data_directory_is_refused(data_dir, tmp_path, name):
    (data_dir / name).rename(tmp_path / name)
    (data_dir / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: symlink to .*, outside its directory"):
        ShardedRows(data_dir, "train")


def test_symlinks_within_the_data_directory_and_to_it_are_followed(data_dir, tmp_path):
    (data_dir / SHARD).rename(data_dir / "blob")
    (data_dir / SHARD).symlink_to("blob")
    (tmp_path / "elsewhere").symlink_to(data_dir)
    assert len(ShardedRows(tmp_path / "elsewhere", "train").read(np.arange(8))["length"]) == 8


def test_symlinks_to_outside_are_refused_for_static_shards_and_seq_directories(data_dir, tmp_path):
    lengths = tmp_path / "lengths"
    lengths.mkdir()
    (lengths / "seq_32").symlink_to(data_dir)
    with pytest.raises(ValueError, match="seq_32: symlink to .*, outside its directory"):
        resolve_data_dir(lengths, 32)
    (lengths / "bert_training_0.hdf5").symlink_to(data_dir / SHARD)
    with pytest.raises(ValueError, match="hdf5: symlink to .*, outside its directory"):
        find_shards(lengths)


def test_links_are_followed_where_the_user_allows_it(data_dir, tmp_path, capsys):
    """Of a corpus whose files are links into another file system."""
    bert_tokenizer(VOCABULARY, cased=False).save(str(data_dir / "tokenizer.json"))
    lengths = tmp_path / "lengths"
    lengths.mkdir()
    (lengths / "seq_32").symlink_to(data_dir)
    for path in list(data_dir.iterdir()):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
    with pytest.raises(ValueError, match=r"seq_32: symlink .*; replace it with a copy, or add --follow_links if you"):
        resolve_data_dir(lengths, 32)
    folder = resolve_data_dir(lengths, 32, follow_links=True)
    with pytest.raises(ValueError, match="outside its directory"):
        open_rows(folder, "train")
    assert len(open_rows(folder, "train", follow_links=True).read(np.arange(8))["length"]) == 8
    assert data_prep(["verify", str(folder)]) == 1
    assert "--follow_links" in capsys.readouterr().err
    assert data_prep(["verify", str(folder), "--follow_links"]) == 0
    options = pretrain.build_parser().parse_args(
        ["--deepspeed_config=x", "--data_dir=x", "--output_dir=x", "--set", "training.seed=3", "--follow_links"]
    )
    assert load_config(small_config(), options.set).data.follow_links
    assert not load_config(small_config()).data.follow_links


def test_links_of_static_shards_are_followed_where_the_user_allows_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BERT_PLD_CACHE", str(tmp_path / "cache"))
    write_static_corpus(tmp_path / "flat", train=(5,))
    for folder in ("training", "test"):
        (tmp_path / "corpus" / folder).mkdir(parents=True)
        name = f"books_{folder}_0.hdf5"
        (tmp_path / "corpus" / folder / name).symlink_to(tmp_path / "flat" / name)
    (tmp_path / "corpus" / "vocab.txt").write_bytes((tmp_path / "flat" / "vocab.txt").read_bytes())
    with pytest.raises(ValueError, match="books_.*_0.hdf5: symlink to .*, outside its directory"):
        open_rows(tmp_path / "corpus", "train")
    assert len(open_rows(tmp_path / "corpus", "train", follow_links=True)) == 5
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "training").symlink_to(tmp_path / "corpus" / "training")
    with pytest.raises(ValueError, match="whole/training: symlink to .*, outside its directory"):
        find_shards(tmp_path / "whole")


def _replace(path: Path, name: str, how: str) -> None:
    """Replace dataset `name` by one that refers to another file or needs a plugin."""
    other = path.with_name("other.h5")
    with h5py.File(path, "r+") as file:
        column = file[name][:]
        del file[name]
        if how == "external link":
            file[name] = h5py.ExternalLink(str(other), "/column")
        elif how == "soft link":
            file["column"] = column
            file[name] = h5py.SoftLink("/column")
        elif how == "external storage":
            raw = path.with_name("raw")
            raw.write_bytes(column.tobytes())
            file.create_dataset(name, column.shape, column.dtype, external=[(str(raw), 0, column.nbytes)])
        elif how == "virtual dataset":
            layout = h5py.VirtualLayout(column.shape, column.dtype)
            layout[:] = h5py.VirtualSource(str(other), "column", column.shape)
            file.create_virtual_dataset(name, layout)
        else:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_chunk(column.shape)
            properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)  # Zstandard, a plugin
            space = h5py.h5s.create_simple(column.shape)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(column.dtype), space, properties)
    with h5py.File(other, "w") as file:
        file["column"] = column


@pytest.mark.parametrize("how", ["external link", "soft link", "external storage", "virtual dataset", "filter plugin"])
def test_dataset_in_another_file_or_with_a_plugin_filter_is_refused(data_dir, tmp_path, how):
    expected = "needs the HDF5 filter 32015" if how == "filter plugin" else "must be (a dataset of|in) this"
    static = tmp_path / "bert_training_0.hdf5"
    write_static_shard(static, make_static_rows(np.random.default_rng(0), 4)[0])
    for path, name, read in [(data_dir / SHARD, "length", Shard), (static, "masked_lm_ids", read_header)]:
        read(path)
        _replace(path, name, how)
        with pytest.raises(ValueError, match=expected):
            read(path)


def calls_of(path: Path) -> list[tuple[str, ast.Call]]:
    """Return all calls in a file, each with the dotted name of its function."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [(ast.unparse(node.func), node) for node in nodes]


def faults_of(path: Path) -> list[str]:
    """Return the forbidden calls and arguments in a file."""
    found = []
    for name, call in calls_of(path):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name in EXECUTES_CODE or (name == "torch.load" and given.get("weights_only") != "True"):
            found.append(name)
        found += [f"{k}=…" for k in ("shell", "allow_pickle", "trust_remote_code") if given.get(k, "False") != "False"]
    return found


def test_no_code_is_loaded_from_data_and_no_shell_is_started():
    for path in tracked("bert_pld/*.py", "data_prep/*.py", "benchmarks/*.py", "scripts/*.py"):
        assert not faults_of(path), path


def test_scan_finds_every_forbidden_call(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("torch.load(p)\nnp.load(p, allow_pickle=True)\nrun(c, shell=True)\npickle.loads(b)\neval(s)\n")
    assert sorted(faults_of(bad)) == ["allow_pickle=…", "eval", "pickle.loads", "shell=…", "torch.load"]


def test_shell_scripts_quote_arguments_and_evaluate_none():
    for path in {*tracked("scripts/*.sh"), *tracked("scripts/slurm/*")}:
        code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
        assert not re.findall(r"(?:^|[;&|]\s*|\s)eval\s|(?:ba)?sh -c", code), path
        assert not re.findall(r'(?<!")\$@|(?<!")\$\{(?:OUTPUT_DIR|DATA_DIR|CONFIG|MODEL)\}', code), f"{path}: unquoted"


def test_secrets_and_nothing_else_are_left_out_of_saved_configurations():
    config = small_config(
        comet={"enabled": False, "api_key": "S3CRET", "workspace": "w"},
        wandb={"enabled": False, "project": "https://user:S3CRET@host/p", "apiKey": "S3CRET"},
        custom={"list": [{"auth_token": "S3CRET", "token_count": 3}], "password": "S3CRET"},
    )
    saved = load_config(config).as_json()
    assert "S3CRET" not in json.dumps(saved)
    assert saved["comet"] == {"enabled": False, "workspace": "w"}
    assert saved["wandb"] == {"enabled": False, "project": "https://host/p"}
    assert saved["custom"] == {"list": [{"token_count": 3}]}
    assert load_config(saved).as_json() == saved
    assert load_config(config).deepspeed["comet"]["api_key"] == "S3CRET", "the monitor still gets its key"
    for path in sorted((REPOSITORY / "configs").glob("*.json")):
        values = json.loads(path.read_text())
        assert without_secrets(values) == values, path
