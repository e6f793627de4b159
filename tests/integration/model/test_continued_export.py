"""A run that started from a saved Hugging Face model is exported to the class that it came from."""

import json
import os
import sys

import torch
from begun_runs import begin, write_checkpoint
from hugging_face_models import ENTRIES, STOCK, save_stock
from runs import run_captured
from safetensors.torch import load_file

from bert_pld import export
from bert_pld.data.rows import ShardedRows

# Runs in a process that cannot import bert_pld or DeepSpeed.
READER = """
import sys

sys.modules.update(bert_pld=None, deepspeed=None)  # as if they were not installed
import torch, transformers
from safetensors.torch import save_file

input_ids = torch.tensor([[2, 10, 4, 12, 3], [2, 30, 31, 4, 3]])
for folder in sys.argv[1:]:
    model, loading = transformers.AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"], loading
    with torch.no_grad():
        save_file({"logits": model.eval()(input_ids).logits}, folder + ".outputs")
    filled = transformers.pipeline("fill-mask", folder)("w3 [MASK] w7", top_k=3)
    assert len(filled) == 3 and all(0 < entry["score"] < 1 and entry["token_str"] for entry in filled), filled
    print(type(model).__name__)
"""


def test_exports_fill_masks_in_the_class_they_came_from_with_its_logits(corpus, tmp_path):
    rows = ShardedRows(corpus, "train")
    input_ids = torch.tensor([[2, 10, 4, 12, 3], [2, 30, 31, 4, 3]])
    expected, folders = {}, {}
    for case in STOCK:
        # 67 entries are rounded up to 72 for training.
        theirs = save_stock(tmp_path / case, case, vocab_size=ENTRIES + 3)
        model, run, _ = begin(tmp_path / case, rows, model={"next_sentence_prediction": False})
        write_checkpoint(tmp_path / f"run_{case}", model, run, rows)
        folders[case] = tmp_path / f"exported_{case}"
        export.export_checkpoint(tmp_path / f"run_{case}", folders[case])
        saved = load_file(folders[case] / "model.safetensors")
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in saved.items())
        inputs = json.loads((folders[case] / "tokenizer_config.json").read_text())["model_input_names"]
        has_segments = getattr(theirs.config, "type_vocab_size", 0) > 1 and case != "modernbert"
        assert ("token_type_ids" in inputs) == has_segments
        expected[case] = theirs(input_ids).logits
    reader = tmp_path / "reader.py"
    reader.write_text(READER)
    environment = {"PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = run_captured([sys.executable, "-I", reader, *folders.values()], cwd=tmp_path, env=environment)
    assert done.stdout.split() == [f"{name}ForMaskedLM" for name, _ in STOCK.values()]
    for case, folder in folders.items():
        assert torch.equal(load_file(f"{folder}.outputs")["logits"], expected[case]), case
