"""The JSON and the Python of docs/migrating.md run, in the order of the page."""

import json
import re
import subprocess
import sys
from pathlib import Path

from repository import REPOSITORY, blocks_of
from runs import clean_environment, free_port

from bert_pld.config import load_config, resolve_batch_sizes

PAGE = Path(REPOSITORY) / "docs" / "migrating.md"
# DeepSpeed would compile its shared-memory collectives first, for a minute.
PRELUDE = 'import deepspeed\n\ndeepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False'
CHECKS = """
assert dropper.schedule.theta(0) == 1.0 > dropper.theta == dropper.schedule.theta(20)
assert loss.isfinite() and held_out.isfinite()
seen = []
model.layers[-1].layer.register_forward_hook(lambda *_: seen.append(1))
for _ in range(24):
    engine.train()
    before = engine.global_steps
    engine.layer_dropper.schedule = bert_pld.pld.Schedule(6, 0.5, temporal="constant")
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
print(f"last block ran {len(seen)} of 24\\n", end="", flush=True)  # in one write: two ranks share the output
with torch.no_grad():
    whole = engine.module.eval()(input_ids=ids).logits
    for index, layer in enumerate(model.layers):
        gpt2.transformer.h[index] = layer.layer
    assert torch.allclose(whole, gpt2(input_ids=ids).logits, atol=1e-5)
torch.distributed.destroy_process_group()
"""


def test_json_of_the_page_is_a_valid_configuration():
    (text,) = blocks_of(PAGE, "json")
    run = load_config(json.loads(text))
    assert run.progressive_layer_drop.enabled
    assert run.progressive_layer_drop.theta == 0.5
    assert run.progressive_layer_drop.gamma == 0.001
    (command,) = (block for block in blocks_of(PAGE, "bash") if "bert_pld.pretrain" in block)
    ranks = int(re.search(r"--num_gpus (\d+)", command)[1])
    assert resolve_batch_sizes(run.deepspeed, ranks) == (32, 16, 32 // 16 // ranks)


def test_python_of_the_page_trains_on_two_ranks(tmp_path):
    config = json.loads(blocks_of(PAGE, "json")[0])
    # DeepSpeed would compile its own Adam first, for a minute.
    config["optimizer"]["params"] = {"lr": 1e-3, "weight_decay": 0.01, "torch_adam": True}
    (tmp_path / "ds.json").write_text(json.dumps(config))
    (tmp_path / "page.py").write_text("\n\n".join([PRELUDE, *blocks_of(PAGE, "python"), CHECKS]), encoding="utf-8")
    deepspeed = Path(sys.executable).with_name("deepspeed")
    ran = subprocess.run(
        [deepspeed, "--num_gpus", "2", "--master_port", str(free_port()), "page.py"],
        cwd=tmp_path,
        env={**clean_environment(), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    kept = re.findall(r"the last micro-batch ran (\d) of 6 blocks, loss ([\d.]+)", ran.stdout)
    assert len(kept) == 2
    assert kept[0][0] == kept[1][0]  # both ranks drew the same gates
    assert all(float(loss) < 4.0 for _, loss in kept)  # from ln 256 = 5.5
    times = [int(found) for found in re.findall(r"last block ran (\d+) of 24", ran.stdout)]
    assert len(times) == 2
    assert times[0] == times[1]
    assert 5 <= times[0] <= 19  # binomial, p = 1/2, within 2.9 deviations
