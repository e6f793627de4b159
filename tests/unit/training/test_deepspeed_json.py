"""DeepSpeed JSONs as people write them: each trains with what DeepSpeed would read, or is one line before the run."""

from __future__ import annotations

import json

import pytest
import torch
from set_up import disagreements, set_up, train_one_step, write_json

from bert_pld.config import ConfigError, load_config
from bert_pld.data.nvidia_rows import open_rows

MINIMAL = {"train_micro_batch_size_per_gpu": 8}
ON, OFF = {"enabled": True}, {"enabled": False}


pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def rows(corpus):
    return open_rows(corpus, "train")


def optimizer(kind="AdamW", **params):
    return {"optimizer": {"type": kind, "params": {"lr": 1e-3, **params}}}


def scheduler(kind="WarmupLR", **params):
    return {"scheduler": {"type": kind, "params": params}}


def zero(stage=2, **keys):
    return {"zero_optimization": {"stage": stage, **keys}}


def curriculum(**keys):
    return {"data_efficiency": {"enabled": True, "data_sampling": {"enabled": True, "curriculum_learning": keys}}}


CPU, NVME = {"device": "cpu", "pin_memory": True}, {"device": "nvme", "nvme_path": "/tmp"}
TRANSFORMERS = {
    "fp16": {"enabled": "auto", "loss_scale": 0, "loss_scale_window": 1000, "initial_scale_power": 16},
    "bf16": {"enabled": "auto"},
    "optimizer": {
        "type": "AdamW",
        "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
    },
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {
            "warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto",
        },
    },
    "zero_optimization": {
        "stage": 3,
        "offload_optimizer": CPU,
        "offload_param": CPU,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_max_reuse_distance": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 8,
    "wall_clock_breakdown": False,
}  # fmt: skip

WORKS = {
    "minimal": {},
    "transformers_zero3": TRANSFORMERS,
    "bf16_on": {"bf16": ON},
    "bf16_auto": {"bf16": {"enabled": "auto"}},
    "bf16_quoted_true": {"bf16": {"enabled": "true"}, **zero(1)},
    "bf16_quoted_false": {"bf16": {"enabled": "False"}},
    "bf16_one": {"bf16": {"enabled": 1}, **zero(1)},
    "bf16_old_name": {"bfloat16": ON, **zero(1)},
    "bf16_old_name_beside": {"bf16": OFF, "bfloat16": ON},
    "bf16_null": {"bf16": None},
    "bf16_enabled_null": {"bf16": {"enabled": None}},
    "fp16_off": {"fp16": OFF},
    "fp16_quoted_false": {"fp16": {"enabled": "false"}},
    "fp16_auto": {"fp16": {"enabled": "auto"}},
    "fp16_null": {"fp16": None},
    "fp16_settings_alone": {"fp16": {"loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2}},
    "fp16_auto_bf16_on": {"fp16": {"enabled": "auto"}, "bf16": ON, **zero(1)},
    "amp_off": {"amp": {"enabled": False, "opt_level": "O1"}},
    "amp_null": {"amp": None},
    "amp_quoted_off": {"amp": {"enabled": "false"}},
    "nebula_off": {"nebula": OFF},
    "curriculum_off": {"curriculum_learning": OFF},
    "eigenvalue_off": {"eigenvalue": OFF},
    "elasticity_off": {"elasticity": OFF},
    "compression_empty": {"compression_training": {}},
    "sparse_gradients_false": {"sparse_gradients": False},
    "adamw": optimizer(),
    "adam": optimizer("Adam"),
    "adam_lower_case": optimizer("adam"),
    "adam_torch": optimizer("Adam", torch_adam=True, adam_w_mode=False),
    "adam_no_bias_correction": optimizer("Adam", bias_correction=False),
    "muon": optimizer("Muon"),
    "muon_auto": optimizer("Muon", muon_lr="auto", momentum="auto"),
    "sgd": optimizer("SGD", momentum=0.9),
    "lr_auto": optimizer(lr="auto"),
    "betas_auto": optimizer(betas="auto", eps="auto", weight_decay="auto"),
    "optimizer_null": {"optimizer": None},
    "optimizer_params_null": {"optimizer": {"type": "AdamW", "params": None}},
    "optimizer_without_params": {"optimizer": {"type": "AdamW"}},
    "optimizer_fusion": {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}, "legacy_fusion": False}},
    "scheduler_null": {"scheduler": None},
    "warmup": scheduler(warmup_num_steps=5),
    "warmup_whole_float": scheduler(warmup_num_steps=1e1),
    "warmup_auto": scheduler(warmup_min_lr="auto", warmup_max_lr="auto", warmup_num_steps="auto"),
    "warmup_decay": scheduler("WarmupDecayLR", total_num_steps="auto", warmup_num_steps=5, warmup_type="linear"),
    "warmup_cosine": scheduler("WarmupCosineLR", total_num_steps="auto", warmup_min_ratio="auto", cos_min_ratio="auto"),
    "one_cycle": scheduler("OneCycle", cycle_min_lr=1e-4, cycle_max_lr=1e-3),
    "range_test": scheduler("LRRangeTest", lr_range_test_min_lr=1e-4),
    "paper": scheduler("WarmupExpDecayLR", warmup_num_steps="auto"),
    "torch_step": {**scheduler("StepLR", step_size=10, gamma=0.5), **zero(1)},
    "torch_cosine": {**scheduler("CosineAnnealingLR", T_max=100), **zero(2)},
    "zero_null": {"zero_optimization": None},
    "zero_empty": {"zero_optimization": {}},
    "zero_true": {"zero_optimization": True},
    "zero_false": {"zero_optimization": False},
    "zero_stage_whole_float": zero(1.0),
    "zero_buckets": zero(2, reduce_bucket_size=5e8, allgather_bucket_size=2e8, overlap_comm=True),
    "zero_bucket_auto": zero(2, reduce_bucket_size="auto"),
    "zero_overlap_auto": zero(2, overlap_comm="auto"),
    "zero3": zero(3, stage3_param_persistence_threshold="auto"),
    "offload_1": zero(1, offload_optimizer=CPU),
    "offload_2": zero(2, offload_optimizer=CPU),
    "offload_3": zero(3, offload_optimizer=CPU, offload_param=CPU),
    "offload_param_nvme": zero(3, offload_param=NVME),
    "offload_none": zero(2, offload_optimizer={"device": "none"}),
    "offload_null": zero(2, offload_optimizer=None),
    "offload_old": zero(2, cpu_offload=True),
    "offload_old_false": zero(2, cpu_offload=False),
    "offload_old_quoted": zero(2, cpu_offload="true"),
    "offload_muon": {**zero(1, offload_optimizer=CPU), **optimizer("Muon")},
    "offload_bf16": {**zero(2, offload_optimizer=CPU), "bf16": ON},
    "clipping_auto": {"gradient_clipping": "auto"},
    "clipping_zero": {"gradient_clipping": 0},
    "prescale": {"prescale_gradients": True, "gradient_predivide_factor": 8},
    "prescale_quoted": {"prescale_gradients": "false"},
    "batch_all_three": {"train_batch_size": 16, "gradient_accumulation_steps": 2},
    "batch_auto": {"train_batch_size": "auto", "gradient_accumulation_steps": "auto"},
    "batch_whole_float": {"train_micro_batch_size_per_gpu": 8.0},
    "print_null": {"steps_per_print": None},
    "print_auto": {"steps_per_print": "auto"},
    "tensorboard_null": {"tensorboard": None},
    "tensorboard_quoted_off": {"tensorboard": {"enabled": "False", "output_path": "", "job_name": "x"}},
    "csv_on": {"csv_monitor": {"enabled": True, "output_path": "", "job_name": "x"}},
    "wandb_off": {"wandb": {"enabled": False, "project": "x"}},
    "communication_type": {"communication_data_type": "fp32"},
    "flops_profiler_off": {"flops_profiler": {"enabled": False, "profile_step": 1}},
    "activation_checkpointing": {"activation_checkpointing": {"partition_activations": False}},
    "comms_logger_off": {"comms_logger": {"enabled": False, "verbose": False}},
    "aio": {"aio": {"block_size": 1048576, "queue_depth": 8, "thread_count": 1}},
    "checkpoint": {"checkpoint": {"tag_validation": "WARN"}},
    "data_types": {**zero(1), "bf16": ON, "data_types": {"grad_accum_dtype": "fp32"}},
    "param_dtype": {**zero(1), "bf16": ON, "data_types": {"param_dtype": "bf16"}},
    "data_efficiency_off": {"data_efficiency": OFF},
    "data_efficiency_null": {"data_efficiency": None},
    "tensor_parallel_one": {"tensor_parallel": {"autotp_size": 1}},
    "timers": {"timers": {"throughput": {"enabled": True, "synchronized": False}}},
    "our_blocks_null": {"progressive_layer_drop": None, "training": None},
}

REFUSED = {
    "fp16_true": ({"fp16": True}, "fp16: must be an object, is True"),
    "fp16_word": ({"fp16": "auto"}, "fp16: must be an object, is 'auto'"),
    "fp16_list": ({"fp16": [1]}, r"fp16: must be an object, is \[1\]"),
    "fp16_enabled_word": ({"fp16": {"enabled": "maybe"}}, "fp16.enabled: 'maybe'; must be true or false"),
    "fp16_enabled_number": ({"bf16": {"enabled": 2}}, "bf16.enabled: 2; must be true or false"),
    "fp16_unknown_key": ({"fp16": {"enable": True}}, "fp16.enable: unknown key, did you mean 'enabled'.*; valid: "),
    "fp16_scale": ({"fp16": {"loss_scale": -1}}, "fp16.loss_scale: -1; must be a number >= 0"),
    "fp16_on_a_cpu": ({"fp16": ON}, "fp16.enabled: true, but this machine has no GPU"),
    "both_on": ({"fp16": ON, "bf16": ON}, "fp16.enabled and bf16.enabled: both true; enable one"),
    "fp16_auto_bf16_off": ({"fp16": {"enabled": "auto"}, "bf16": OFF}, "fp16.enabled: 'auto' with bf16 off; must be"),
    "bf16_true": ({"bf16": True}, "bf16: must be an object"),
    "amp": ({"amp": {"enabled": True}}, "amp: DeepSpeed has removed it; use bf16 or fp16"),
    "amp_without_enabled": ({"amp": {"opt_level": "O1"}}, "amp: DeepSpeed has removed it"),
    "nebula": ({"nebula": ON}, "nebula: DeepSpeed has removed it; leave it out: checkpoints are written in the back"),
    "curriculum": ({"curriculum_learning": ON}, "curriculum_learning: .*; train short sequences first"),
    "compression": ({"compression_training": {"weight_quantization": {}}}, "compression_training: .*compress the exp"),
    "quantize": ({"quantize_training": ON}, "quantize_training: .*quantize the exported model"),
    "eigenvalue": ({"eigenvalue": ON}, "eigenvalue: DeepSpeed has removed it"),
    "sparse_attention": ({"sparse_attention": {"mode": "fixed"}}, "sparse_attention: DeepSpeed has removed it"),
    "sparse_gradients": ({"sparse_gradients": True}, "sparse_gradients: DeepSpeed has removed it"),
    "elasticity": ({"elasticity": ON}, "elasticity: .*give the batch sizes"),
    "graph_harvesting": ({"graph_harvesting": True}, "graph_harvesting: .*use model.kernels"),
    "mics": (zero(3, mics_shard_size=2), "zero_optimization.mics_shard_size: .*zero_hpz_partition_size"),
    "loco": (zero(3, zeropp_loco_param={}), "zero_optimization.zeropp_loco_param: DeepSpeed has removed it"),
    "optimizer_word": ({"optimizer": "AdamW"}, "optimizer: must be an object, is 'AdamW'"),
    "optimizer_true": ({"optimizer": True}, "optimizer: must be an object"),
    "optimizer_empty": ({"optimizer": {}}, "optimizer.type: missing; give its name, such as AdamW"),
    "optimizer_notype": ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.type: missing"),
    "optimizer_type_number": ({"optimizer": {"type": 3}}, "optimizer.type: 3; must be a word"),
    "optimizer_type_auto": ({"optimizer": {"type": "auto"}}, "optimizer.type: 'auto' has no rule here"),
    "optimizer_unknown": (optimizer("AdamX"), "optimizer.type: 'AdamX' is unknown, did you mean 'Adam"),
    "optimizer_onebit": (optimizer("OneBitAdam"), "OneBitAdam is not supported, because checkpoints cannot hold"),
    "optimizer_zeroone": (optimizer("ZeroOneAdam"), "ZeroOneAdam is not supported"),
    "optimizer_lamb": (optimizer("Lamb"), "DeepSpeed's Lamb requires a GPU"),
    "optimizer_key": ({"optimizer": {"type": "AdamW", "param": {}}}, "optimizer.param: unknown key, did you mean 'par"),
    "optimizer_params_list": ({"optimizer": {"type": "AdamW", "params": [1]}}, "optimizer.params: must be an object"),
    "optimizer_params_unknown": (optimizer(momentun=0.9), "optimizer.params.momentun: unknown key for AdamW"),
    "optimizer_max_grad_norm": (optimizer(max_grad_norm=1), "max_grad_norm: unknown key.*use gradient_clipping"),
    "lr_word": (optimizer(lr="1e-3"), "optimizer.params.lr: '1e-3'; must be a number, without quotes"),
    "lr_null": (optimizer(lr=None), "optimizer.params.lr: None; must be a number"),
    "lr_negative": (optimizer(lr=-1e-3), "optimizer.params.lr: -0.001; must be >= 0"),
    "lr_list": (optimizer(lr=[1e-3, {}]), "optimizer.params.lr: .*must be a number"),
    "lr_true": (optimizer(lr=True), "optimizer.params.lr: True; must be a number"),
    "betas_short": (optimizer(betas=[0.9]), r"optimizer.params.betas: \[0.9\]; must be two numbers in \[0, 1\)"),
    "betas_number": (optimizer(betas=0.9), "optimizer.params.betas: 0.9; must be two numbers"),
    "betas_one": (optimizer(betas=[0.9, 1.0]), r"betas: \[0.9, 1.0\]; must be two numbers in \[0, 1\)"),
    "betas_words": (optimizer(betas=["0.9", "0.99"]), "optimizer.params.betas: .*must be two numbers"),
    "eps_word": (optimizer(eps="small"), "optimizer.params.eps: 'small'; must be a number"),
    "weight_decay_word": (optimizer(weight_decay="0.01"), "optimizer.params.weight_decay: '0.01'; must be a number"),
    "amsgrad_word": (optimizer(amsgrad="no"), "optimizer.params.amsgrad: 'no'; must be true or false"),
    "sgd_betas": (optimizer("SGD", betas=[0.9, 0.99]), "optimizer.params.betas: unknown key for SGD"),
    "sgd_nesterov": (optimizer("SGD", nesterov=True), "optimizer.params: Nesterov momentum requires"),
    "muon_momentum": (optimizer("Muon", momentum=1.5), "optimizer.params.momentum: 1.5; must be in"),
    "scheduler_word": ({"scheduler": "WarmupLR"}, "scheduler: must be an object, is 'WarmupLR'"),
    "scheduler_notype": ({"scheduler": {"params": {}}}, "scheduler.type: missing; give its name, such as WarmupLR"),
    "scheduler_unknown": (scheduler("WarmupLr"), "scheduler.type: 'WarmupLr' is unknown, did you mean 'WarmupLR'"),
    "scheduler_lambda": (scheduler("LambdaLR"), "scheduler.type: 'LambdaLR' is unknown"),
    "scheduler_badkey": (scheduler(warmup_steps=5), "warmup_steps: unknown key for WarmupLR, did you mean 'warmup_num"),
    "scheduler_missing": (scheduler("WarmupDecayLR"), "scheduler.params.total_num_steps: missing; WarmupDecayLR needs"),
    "scheduler_cycle": (scheduler("OneCycle", cycle_min_lr=1e-4), "scheduler.params.cycle_max_lr: missing"),
    "scheduler_steps_word": (scheduler(warmup_num_steps="5"), "warmup_num_steps: '5'; must be a number"),
    "scheduler_steps_zero": (scheduler(warmup_num_steps=0), "warmup_num_steps: 0; must be an integer >= 1"),
    "scheduler_steps_half": (scheduler(warmup_num_steps=2.5), "warmup_num_steps: 2.5; must be an integer >= 1"),
    "scheduler_type_of_warmup": (scheduler(warmup_type="exp"), "warmup_type: 'exp'; must be one of log, linear"),
    "scheduler_auto": (scheduler(warmup_type="auto"), "scheduler.params.warmup_type: 'auto' has no rule here"),
    "scheduler_rates": (scheduler(warmup_max_lr=[1, 2, 3, 4]), "scheduler|expected"),
    "paper_rate": (scheduler("WarmupExpDecayLR", decay_rate=2), "decay_rate in"),
    "zero_word": ({"zero_optimization": "auto"}, "zero_optimization: must be an object"),
    "zero_stage_4": (zero(4), "zero_optimization.stage: 4; must be 0, 1, 2 or 3"),
    "zero_stage_word": (zero("2"), "zero_optimization.stage: '2'; must be 0, 1, 2 or 3"),
    "zero_stage_true": (zero(True), "zero_optimization.stage: True; must be 0, 1, 2 or 3"),
    "zero_stage_auto": (zero("auto"), "zero_optimization.stage: 'auto'; must be 0, 1, 2 or 3"),
    "zero_unknown": (zero(2, overlap_com=True), "overlap_com: unknown key, did you mean 'overlap_comm'.*valid: "),
    "zero_bucket_word": (zero(2, reduce_bucket_size="big"), "zero_optimization.reduce_bucket_size: 'big'; "),
    "zero_bucket_negative": (zero(2, reduce_bucket_size=-1), "zero_optimization.reduce_bucket_size: -1; "),
    "offload_true": (zero(2, offload_optimizer=True), "offload_optimizer: must be an object, is True"),
    "offload_device": (zero(2, offload_optimizer={"device": "gpu"}), "device: 'gpu'; must be one of none, cpu, nvme"),
    "offload_nvme_2": (zero(2, offload_optimizer=NVME), "offload_optimizer.device: nvme at stage 2; needs .*stage 3"),
    "offload_nvme_path": (zero(3, offload_optimizer={"device": "nvme"}), "offload_optimizer.nvme_path: missing; give"),
    "offload_nvme_type": (zero(3, offload_optimizer={**NVME, "nvme_path": 5}), "offload_optimizer.nvme_path: 5; input"),
    "offload_nvme_blocks": (
        {**zero(3, offload_optimizer=NVME), "aio": {"block_size": 1000}},
        "aio.block_size: 1000; must be an integer, a multiple of 1024",
    ),
    "offload_nvme_queue": (
        {**zero(3, offload_optimizer=NVME), "aio": {"queue_depth": 0}},
        "aio.queue_depth: 0; must be an integer, at least 1",
    ),
    "aio_in_zero": (zero(3, aio={"queue_depth": 8}), "zero_optimization.aio: must stand beside zero_optimization"),
    "offload_nvme_buffers": (
        zero(3, offload_optimizer={**NVME, "pipeline_read": True, "buffer_count": 4}),
        "offload_optimizer.buffer_count: 4; must be at least 8",
    ),
    "offload_param_nvme": (zero(3, offload_param={**NVME, "max_in_cpu": 9}), "max_in_cpu: 9; must be at least [0-9]+,"),
    "offload_param_2": (zero(2, offload_param=CPU), "offload_param.device: cpu at stage 2; needs .*stage 3"),
    "offload_0": (zero(0, offload_optimizer=CPU), "offload_optimizer.device: cpu at stage 0; needs"),
    "offload_twice": (zero(2, cpu_offload=True, offload_optimizer=CPU), "cpu_offload: given beside offload_optimizer"),
    "offload_part": (zero(3, offload_optimizer={**CPU, "ratio": 0}), "offload_optimizer.ratio: 0; must be 1, because"),
    "offload_super": (
        zero(3, offload_optimizer={**CPU, "super_offload": True}),
        "offload_optimizer.super_offload: true; pretraining does not support it; checkpoints cannot",
    ),
    "zenflow": (
        zero(2, offload_optimizer=CPU, zenflow={"topk_ratio": 0.1}),
        "zenflow: {.*}; pretraining does not support it; checkpoints cannot hold the gradients",
    ),
    "offload_ratio": (zero(3, offload_optimizer={**CPU, "ratio": 2}), "offload_optimizer.ratio: 2; "),
    "clipping_negative": ({"gradient_clipping": -1}, "gradient_clipping: -1; must be a number >= 0"),
    "clipping_word": ({"gradient_clipping": "1.0"}, "gradient_clipping: '1.0'; must be a number >= 0"),
    "clipping_true": ({"gradient_clipping": True}, "gradient_clipping: True; must be a number >= 0"),
    "predivide_zero": ({"gradient_predivide_factor": 0}, "gradient_predivide_factor: 0; must be a number > 0"),
    "prescale_word": ({"prescale_gradients": "maybe"}, "prescale_gradients: 'maybe'; must be true or false"),
    "print_zero": ({"steps_per_print": 0}, "steps_per_print: 0; must be an integer >= 1"),
    "communication_type": ({"communication_data_type": "int8"}, "communication_data_type: 'int8'; must be one of"),
    "batch_word": ({"train_batch_size": "8"}, "train_batch_size: '8'; must be an integer >= 1"),
    "batch_list": ({"train_batch_size": [8]}, r"train_batch_size: \[8\]; must be an integer >= 1"),
    "batch_half": ({"train_batch_size": 8.5}, "train_batch_size: 8.5; must be an integer >= 1"),
    "batch_product": ({"train_batch_size": 12}, "train_batch_size: 12; must be train_micro_batch_size_per_gpu"),
    "batch_nothing": ({"train_micro_batch_size_per_gpu": "auto"}, "auto; give at least one, such as --set"),
    "tensorboard_true": ({"tensorboard": True}, "tensorboard: must be an object"),
    "tensorboard_unknown": ({"tensorboard": {"enabled": True, "dir": "x"}}, "tensorboard.dir: unknown key"),
    "tensorboard_number": ({"tensorboard": {"enabled": True, "job_name": 3}}, "tensorboard.job_name: 3; "),
    "random_ltd": (
        {"data_efficiency": {"enabled": True, "data_routing": {"enabled": True, "random_ltd": {"enabled": True}}}},
        "data_routing.random_ltd.enabled: true; pretraining does not support it; use progressive_layer_drop",
    ),
    "data_efficiency_true": ({"data_efficiency": True}, "data_efficiency: must be an object"),
    "data_efficiency_half": (curriculum(enabled=True), "data_sampling.curriculum_learning.enabled: true; pretraining"),
    "data_efficiency_word": (curriculum(enabled="yes please"), "curriculum_learning.enabled: 'yes please'; must be"),
    "autocast": ({"torch_autocast": {"enabled": True, "dtype": "bf16"}}, "torch_autocast.enabled: true; .*use bf16"),
    "deepcompile": ({"compile": {"deepcompile": True}}, "compile.deepcompile: true; .*use model.kernels"),
    "tensor_parallel": ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size: 2; pretraining"),
    "sequence_parallel": ({"sequence_parallel_size": 2}, "sequence_parallel_size: 2; pretraining does not support it"),
    "param_dtype": ({"data_types": {"param_dtype": "bf16"}}, "param_dtype: bf16; the precision is fp32, by fp16"),
    "accumulation_type": ({"data_types": {"grad_accum_dtype": "int8"}}, "NotImplementedError: unsupported mix"),
    "managed": ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation: false; must be true"),
    "leaf_module": (zero(3, leaf_module=3), "leaf_module"),
    "checkpoint_word": ({"checkpoint": {"tag_validation": "loud"}}, "invalid tag_validation value of LOUD"),
    "nan": ('{"train_micro_batch_size_per_gpu": 8, "gradient_clipping": NaN}', "NaN is not a number of JSON"),
    "huge": ({"gradient_clipping": 10**400}, "gradient_clipping: .*must be a number of at most"),
    "syntax": ('{"train_batch_size": 8 "fp16": {}}', r"not valid JSON \(Expecting ',' .*line 1 column 24"),
    "syntax_after_comment": ('{ // size\n "train_batch_size": 8 ]\n', r"not valid JSON \(.*line 2|not valid JSON"),
    "truncated": ('{"train_micro_batch_size_per_gpu": 8,\n "fp16": {', "not valid JSON .*line 2"),
    "twice": ('{"train_batch_size": 8, "train_batch_size": 4}', "duplicate key 'train_batch_size'"),
    "twice_with_comment": ('{"a": 1, // x\n "a": 2}', "duplicate key 'a'"),
    "empty": ("", "the file is empty"),
    "list": ("[]", "must be a JSON object, is a list"),
    "deep": ('{"fp16": ' * 100_000, "nested too deeply"),
    "digits": ('{"train_batch_size": ' + "9" * 6000 + "}", "a number has too many digits"),
}  # fmt: skip

TEXTS = {
    "comments": '{ // sequences\n "train_micro_batch_size_per_gpu": 8 # more\n /* end */ }',
    "trailing_comma": '{"train_micro_batch_size_per_gpu": 8, "fp16": {"enabled": false,},}',
    "byte_order_mark": '\ufeff{"train_micro_batch_size_per_gpu": 8}',
    "python_s_false": '{"train_micro_batch_size_per_gpu": 8, "bf16": {"enabled": False\n}}',
    "without_commas": '{\n"train_micro_batch_size_per_gpu": 8\n"fp16": {"enabled": false}\n}',
}


def content(changes):
    return changes if isinstance(changes, str) else {**MINIMAL, **changes}


@pytest.mark.parametrize("name", WORKS)
def test_json_trains_as_deepspeed_reads_it(name, rows, tmp_path):
    path = write_json(tmp_path / "ds.json", content(WORKS[name]))
    config, engine = set_up(path, rows, tmp_path)
    assert disagreements(config, engine) == []
    assert 3.0 < train_one_step(config, engine, rows) < 6.0


@pytest.mark.parametrize("name", TEXTS)
def test_json_is_read_like_deepspeed_s_hjson(name, tmp_path):
    config = load_config(write_json(tmp_path / "ds.json", TEXTS[name]))
    assert config.deepspeed["train_micro_batch_size_per_gpu"] == 8
    assert config.precision == "fp32"


@pytest.mark.parametrize("name", REFUSED)
def test_mistake_in_a_deepspeed_json_is_one_line(name, rows, tmp_path):
    changes, message = REFUSED[name]
    if name == "fp16_on_a_cpu" and torch.cuda.is_available():
        pytest.skip("this machine can train in fp16")
    path = write_json(tmp_path / "ds.json", content(changes))
    with pytest.raises(ConfigError, match=message) as error:
        set_up(path, rows, tmp_path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"bf16": {"enabled": "auto"}}, "bf16"),
        ({"fp16": {"enabled": "auto"}}, "bf16"),
        ({"fp16": {"enabled": "auto"}, "bf16": {"enabled": "auto"}}, "bf16"),
        ({"fp16": ON, "bf16": {"enabled": "auto"}}, "fp16"),
        ({"fp16": OFF, "bf16": {"enabled": "auto"}}, "bf16"),
        ({"bfloat16": {"enabled": "True"}}, "bf16"),
        ({"fp16": {"enabled": "1"}}, "fp16"),
        ({"fp16": {"enabled": "off"}}, "fp32"),
    ],
)
def test_precision_is_one_for_all_commands_and_what_deepspeed_gets(changes, precision):
    config = load_config(changes)
    assert config.precision == precision
    enabled = {name: config.deepspeed.get(name, {}).get("enabled", False) for name in ("fp16", "bf16")}
    assert enabled == {"fp16": precision == "fp16", "bf16": precision == "bf16"}
    assert load_config(json.loads(json.dumps(config.as_json()))) == config


def test_auto_is_resolved_from_the_run_and_said():
    sizes = {"model": {"preset": "mini"}, "training": {"max_steps": 5000}}
    config = load_config({**TRANSFORMERS, **sizes})
    assert config.deepspeed["optimizer"]["params"] == {
        "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01,
    }  # fmt: skip
    assert config.deepspeed["scheduler"]["params"] == {
        "warmup_min_lr": 0.0, "warmup_max_lr": 1e-3, "warmup_num_steps": 100, "total_num_steps": 5000,
    }  # fmt: skip
    zero_block = config.deepspeed["zero_optimization"]
    assert (zero_block["reduce_bucket_size"], zero_block["stage3_prefetch_bucket_size"]) == (65536, 58982)
    assert zero_block["stage3_param_persistence_threshold"] == 2560
    assert config.deepspeed["gradient_clipping"] == 1.0
    assert "optimizer.params.lr 'auto': 0.001" in config.notices
    assert "precision 'auto': bf16" in config.notices


@pytest.mark.parametrize(
    ("params", "peak"),
    [
        ({"adam_lr": 3e-4, "muon_lr": 0.02}, 3e-4),
        ({"lr": 0.02, "adam_lr": 3e-4}, 3e-4),
        ({"lr": 2e-3, "muon_lr": 0.02}, 2e-3),
        ({"lr": "auto"}, 1e-3),
    ],
)
def test_automatic_peak_is_adamw_s_rate_of_muon_s_two(params, peak):
    schedule = scheduler(warmup_max_lr="auto", warmup_num_steps=10, total_num_steps=100)
    config = load_config({**MINIMAL, **schedule, "optimizer": {"type": "Muon", "params": params}})
    assert config.deepspeed["scheduler"]["params"]["warmup_max_lr"] == peak


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"gradient_cliping": 1.0},
            "gradient_cliping: unknown key, which DeepSpeed ignores, did you mean 'gradient_cl",
        ),
        ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
        ({"my_note": "x"}, "my_note: unknown key, which DeepSpeed ignores"),
        (
            {"data_types": {"grad_acum_dtype": "fp32"}},
            "data_types.grad_acum_dtype: unknown key, did you mean 'grad_accum",
        ),
    ],
)
def test_key_that_deepspeed_ignores_is_a_warning_with_the_nearest_known_key(changes, warning):
    (found,) = load_config({**MINIMAL, **changes}).warnings
    assert warning in found


def test_keys_with_an_effect_give_no_warning():
    assert [load_config({**MINIMAL, **changes}).warnings for changes in WORKS.values()] == [()] * len(WORKS)
