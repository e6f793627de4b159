"""Data sets of the Hub through `datasets`: from a folder, from a local HTTP server, and from the caches."""

import json
import os
import shutil
import subprocess
import sys
from unittest.mock import Mock

import h5py
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import SHA, HubServer
from made_up_corpus import digests, made_up_documents, read_source

from data_prep.sources import Source, hub, hub_loading

CARD = """---
configs:
- {config_name: en, data_files: [{split: train, path: en/train-*}, {split: validation, path: en/validation-*}]}
- {config_name: de, data_files: de/*.parquet}
---
"""
READ = """
import json, sys
from data_prep.sources import Source
answers = {}
for argument in sys.argv[1:]:
    try:
        source = Source.parse(argument)
        pieces = source.pieces()
        texts = [d.text for piece in pieces for d in source.kind.read_piece(piece)]
        answers[argument] = {"texts": texts, "paths": [piece.path for piece in pieces]}
    except (ValueError, OSError) as error:
        answers[argument] = {"error": str(error), "is_network": isinstance(error, OSError)}
print(json.dumps(answers))
"""
FILL_CACHES = """
import datasets, huggingface_hub
datasets.load_dataset("org/wiki", "en")
huggingface_hub.snapshot_download("org/wiki", repo_type="dataset")
"""
MISTAKES = {
    "hub=org/wiki": "has several configurations; select one, for example hub=org/wiki:en (available: en, de)",
    "hub=org/wiki:dee": "no configuration 'dee', for example hub=org/wiki:de (available: en, de)",
    "hub=org/wiki:en,split=test": "no split 'test' (splits: train, validation)",
    "hub=org/wiki:en,column=body": "no column 'body' (columns: id, url, text)",
    "hub=org/wiki:en,revision=v9": "Revision 'v9' doesn't exist",
    "hub=org/lines,column=body": "no column 'body' (columns: text)",
    "hub=org/absent": "Dataset 'org/absent' doesn't exist on the Hub or cannot be accessed",
    "hub=org/gated": "is a gated dataset on the Hub. You must be authenticated to access it.",
    "hub=org/script": "loading script, which 'datasets' no longer runs; try the Hub's own Parquet copy:",
    "hub=wikipedia": "no folder 'wikipedia' exists, and an id on the Hub has the form OWNER/NAME",
    "hub=./no/such": "no folder './no/such' exists",
}


def write_parquet(path, texts, row_group_size=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"id": [f"{path.name} {n}" for n in range(len(texts))], "url": ["x" * 999] * len(texts), "text": texts}
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size, use_dictionary=False)


@pytest.fixture(scope="module")
def texts():
    return made_up_documents(160, 5)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, texts):
    """`org/wiki`: three files of two splits and another configuration; `org/lines`: JSON; `org/script`; `org/gated`."""
    folder = tmp_path_factory.mktemp("hub")
    wiki = folder / "org" / "wiki"
    write_parquet(wiki / "en" / "train-00000-of-00002.parquet", texts[:80])
    write_parquet(wiki / "en" / "train-00001-of-00002.parquet", texts[80:])
    write_parquet(wiki / "en" / "validation-00000-of-00001.parquet", ["Held out."])
    write_parquet(wiki / "de" / "0.parquet", ["Deutsch."])
    (wiki / "README.md").write_text(CARD)
    lines = folder / "org" / "lines"
    lines.mkdir()
    for number, part in enumerate((texts[:50], texts[50:])):
        (lines / f"part_{number}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in part))
    copy = folder / "org" / "script" / "parquet_copy"
    write_parquet(copy / "plain" / "train" / "0000.parquet", ["a b .", "c .", "d"])
    write_parquet(copy / "other" / "train" / "0000.parquet", ["Other."])
    (copy.parent / "script.py").write_text("raise SystemExit\n")
    (folder / "org" / "gated").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(repositories):
    with HubServer(repositories) as running:
        yield running


@pytest.fixture(scope="module")
def caches(server, tmp_path_factory):
    """A home directory in which `org/wiki` was both prepared and downloaded."""
    home = tmp_path_factory.mktemp("caches")
    run(FILL_CACHES, home=home, server=server)
    return home


def run(code, *arguments, home, server=None, **environment):
    """Run Python in a separate process, with `server` as its Hub and its caches in `home`."""
    address = server.address if server else "http://127.0.0.1:9"
    patience = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "120")  # seconds
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": address, **patience, **environment}
    command = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def read(*arguments, **where):
    """Return for each source its texts and the paths of its pieces, or an error."""
    result = run(READ, *arguments, **where)
    assert result.stderr == "", "datasets or huggingface_hub wrote to the terminal"
    return json.loads(result.stdout)


def build(source, output_dir, workers, **where):
    command = "import sys; from data_prep.__main__ import main; sys.exit(main(sys.argv[1:]))"
    flags = ["--vocab_size", "300", "--seq_length", "32", "--validation_fraction", "0.1", "--shard_rows", "50"]
    flags += ["--source", source, "--output_dir", str(output_dir), "--workers", str(workers)]
    run(command, "build", *flags, **where)
    return output_dir


def shard_digests(folder):
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".hdf5")}


def rows(folder):
    """Return the datasets of all shards without the attributes, which name the source."""
    content = {}
    for path in sorted(folder.glob("*.hdf5")):
        with h5py.File(path) as file:
            content |= {(path.name, name): file[name][()].tobytes() for name in file}
    return content


def test_folder_in_the_hub_layout_is_read_like_the_hub(repositories, texts):
    wiki = repositories / "org" / "wiki"
    assert [(d.text, d.id) for d in read_source(f"hub={wiki}:en")][80] == (texts[80], "train-00001-of-00002.parquet 0")
    assert [d.text for d in read_source(f"hub={wiki}:en")] == texts
    assert [d.text for d in read_source(f"hub={wiki}:de")] == ["Deutsch."]
    assert [d.text for d in read_source(f"hub={repositories}/org/lines")] == texts


def test_damaged_json_lines_are_an_error_that_says_in_which_file(tmp_path, texts):
    """`datasets` reads them, so a bad row cannot be left out; its own message names the row of a block only."""
    lines = [json.dumps({"text": text}) + "\n" for text in texts[:30]]
    (tmp_path / "train-0.jsonl").write_text("".join(lines))
    (tmp_path / "train-1.jsonl").write_text("".join([*lines[:20], "{broken\n", *lines[20:]]))
    source = Source.parse(f"hub={tmp_path}")
    first, second = source.pieces()
    assert [document.text for document in source.kind.read_piece(first)] == texts[:30]
    with pytest.raises(ValueError, match=rf"^hub={tmp_path} file 2 of 2: JSON parse error") as caught:
        list(source.kind.read_piece(second))
    assert "\n" not in str(caught.value)


def test_folder_stream_and_cache_give_the_same_shards_with_any_number_of_workers(
    server, repositories, caches, tmp_path
):
    files = build(f"parquet={repositories}/org/wiki/en/train-*", tmp_path / "files", 1, home=tmp_path / "empty")
    folder = build(f"hub={repositories}/org/wiki:en", tmp_path / "folder", 1, home=tmp_path / "empty")
    streamed = build("hub=org/wiki:en", tmp_path / "streamed", 2, home=tmp_path / "other", server=server)
    offline = build("hub=org/wiki:en", tmp_path / "offline", 3, home=caches, HF_HUB_OFFLINE="1")
    assert rows(files) == rows(folder) == rows(streamed)
    assert shard_digests(streamed) == shard_digests(offline)
    assert len(shard_digests(streamed)) > 8


def test_streaming_fetches_selected_columns_once_and_keeps_nothing_on_disk(server, texts, tmp_path):
    server.requests.clear()
    copy = "hub=org/script:plain,revision=refs/convert/parquet,join_rows=2"
    answers = read("hub=org/wiki:en", "hub=org/lines", copy, home=tmp_path, server=server)
    assert answers[copy]["texts"] == ["a b .\nc .", "d"]
    found = answers["hub=org/wiki:en"]
    assert found["texts"] == texts
    assert found["paths"][0] == f"hf://datasets/org/wiki@{SHA}/en/train-00000-of-00002.parquet"
    assert answers["hub=org/lines"] == {"texts": texts, "paths": ["org/lines"] * 2}
    size = sum(map(len, texts))
    footers = 2 * 2 * (64 << 10)  # when the files are listed, and when they are read
    assert 0.2 * size < server.sent(".parquet") < 1.2 * size + footers
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size > 1000] == []


def test_offline_reads_the_caches_without_any_request(server, caches, texts, tmp_path):
    prepared, downloaded = tmp_path / "prepared", tmp_path / "downloaded"
    shutil.copytree(caches / "datasets", prepared / "datasets")
    shutil.copytree(caches / "hub", downloaded / "hub", symlinks=True)
    server.requests.clear()
    arguments = ["hub=org/wiki:en", "hub=org/wiki:en,split=validation", "hub=org/wiki:de"]
    answers = read(*arguments, home=prepared, server=server, HF_HUB_OFFLINE="1")
    assert answers[arguments[0]]["texts"] == texts
    assert answers[arguments[0]]["paths"][0].endswith(".arrow")
    assert answers[arguments[1]]["texts"] == ["Held out."]
    assert "Available configs in the cache: ['en']" in answers[arguments[2]]["error"]
    arguments = [f"hub=org/wiki:en,revision={SHA}", "hub=org/wiki:en", "hub=org/wiki:de", "hub=org/lines"]
    answers = read(*arguments, home=downloaded, server=server, HF_DATASETS_OFFLINE="1")
    assert answers[arguments[0]]["texts"] == answers[arguments[1]]["texts"] == texts
    assert answers[arguments[2]]["texts"] == ["Deutsch."]
    error = answers[arguments[3]]["error"]
    assert error.startswith("hub=org/lines: not in the local cache, and HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids")
    assert error.endswith("hf download --repo-type dataset org/lines")
    assert server.requests == []


def test_offline_with_an_incomplete_download_is_an_error(caches, tmp_path):
    shutil.copytree(caches / "hub", tmp_path / "hub", symlinks=True)
    snapshot = tmp_path / "hub" / "datasets--org--wiki" / "snapshots" / SHA
    (snapshot / "en" / "train-00000-of-00002.parquet").unlink()
    (snapshot / "de" / "0.parquet").unlink()
    answers = read("hub=org/wiki:en", "hub=org/wiki:de", home=tmp_path, HF_HUB_OFFLINE="1")
    assert "the local cache holds 1 of 2 files; download it again" in answers["hub=org/wiki:en"]["error"]
    assert "the download in the local cache is incomplete" in answers["hub=org/wiki:de"]["error"]


@pytest.fixture(scope="module")
def mistakes(server, tmp_path_factory):
    return read(*MISTAKES, home=tmp_path_factory.mktemp("mistakes"), server=server)


@pytest.mark.parametrize("argument", MISTAKES)
def test_unavailable_data_set_is_an_error_of_one_line(mistakes, argument):
    found = mistakes[argument]
    assert found["error"].startswith(argument)
    assert MISTAKES[argument] in found["error"]
    assert "\n" not in found["error"]
    assert not found["is_network"]


def test_missing_network_raises_os_error(monkeypatch):
    import datasets

    refuse = Mock(side_effect=ConnectionError("Couldn't reach 'org/wiki' on the Hub (LocalEntryNotFoundError)"))
    monkeypatch.setattr(datasets, "load_dataset_builder", refuse)
    message = "hub=org/wiki:en: the Hub cannot be reached; HF_HUB_OFFLINE=1 reads the local cache"
    with pytest.raises(OSError, match=message):
        hub.list_pieces("org/wiki:en")


def test_lost_connection_raises_os_error_so_that_the_build_can_be_resumed(monkeypatch):
    """A ValueError would be a mistake in the input, for which a build may be discarded."""
    monkeypatch.setattr(hub, "open_data_file", Mock(side_effect=ConnectionError("connection reset")))
    piece = hub.Piece("hub", "hf://datasets/org/wiki@main/en/0.parquet", 0, 9, "{}")
    with pytest.raises(OSError, match=r"the Hub cannot be reached \(connection reset\); HF_HUB_OFFLINE=1 reads"):
        list(hub.read_piece(piece))


def test_long_list_of_names_is_shortened():
    assert hub_loading.shortened([str(n) for n in range(400)]).endswith(", 10, 11 and 388 more")


def test_sources_do_not_import_datasets_or_pyarrow_until_they_are_used():
    code = "import sys, data_prep.sources; print(sorted({'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
