"""A run's JSON: DeepSpeed's keys, checked and with a value for each "auto", and our four blocks as dataclasses."""

from bert_pld.config.batch_sizes import resolve_batch_sizes
from bert_pld.config.blocks import DataConfig, ProgressiveLayerDropConfig, TrainingConfig
from bert_pld.config.deepspeed import AUTO, BATCH_KEYS, MONITOR_BLOCKS
from bert_pld.config.errors import ConfigError
from bert_pld.config.file import find_config, read_json
from bert_pld.config.following import FollowedModel
from bert_pld.config.model import ModelConfig, rounded_vocabulary
from bert_pld.config.run import OUR_BLOCKS, RunConfig, apply_override, load_config

__all__ = ["AUTO", "BATCH_KEYS", "MONITOR_BLOCKS", "OUR_BLOCKS", "ConfigError", "DataConfig", "ModelConfig"]
__all__ += ["ProgressiveLayerDropConfig", "RunConfig", "TrainingConfig", "apply_override", "find_config", "load_config"]
__all__ += ["FollowedModel", "read_json", "resolve_batch_sizes", "rounded_vocabulary"]
