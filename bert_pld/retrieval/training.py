"""Contrastive fine-tuning and ranking, both by sentence-transformers.

The mean of the encoder's last hidden states is a text's vector, and the cosine of two vectors their similarity. In
training, a query's answer must be the nearest of all the answers in its batch (`MultipleNegativesRankingLoss`). Without
it, an encoder that has only filled in masks ranks badly.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from typing import Any

import torch

from bert_pld.retrieval.data import RetrievalData
from bert_pld.retrieval.figures import ranking_figures

_RANKED = 100


@dataclasses.dataclass(frozen=True)
class RetrievalSettings:
    """The settings that all fine-tunings of a command share; they are part of a result's conditions."""

    epochs: int = 1
    """0: only evaluate."""
    batch_size: int = 64
    """Pairs in a batch: each query has one answer and `batch_size` − 1 others to tell it from."""
    max_seq_length: int = 128
    warmup_share: float = 0.1
    precision: str = "fp32"

    def check(self) -> None:
        """Raise a ValueError that names the option that is out of range, or cannot run here."""
        for name, least in (("epochs", 0), ("batch_size", 2), ("max_seq_length", 8)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: must be >= {least}")
        if self.precision == "fp16" and not torch.cuda.is_available():
            raise ValueError("--precision fp16: requires a GPU; must be fp32 or bf16 here")


def load_text_encoder(folder: str, max_seq_length: int, seed: int) -> Any:
    """Return a transformers folder as a SentenceTransformer with mean pooling, new layers by the seed."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    torch.manual_seed(seed)
    # transformers lists the pretraining heads, which are not used here.
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model = SentenceTransformer(folder, device="cuda" if torch.cuda.is_available() else "cpu")
    finally:
        logging.set_verbosity(before)
    model.max_seq_length = max_seq_length
    return model


def training_arguments(folder: str, settings: RetrievalSettings, learning_rate: float, seed: int) -> Any:
    """Return the arguments of sentence-transformers' trainer, which writes to a folder, for one GPU at most."""
    from sentence_transformers import SentenceTransformerTrainingArguments
    from sentence_transformers.training_args import BatchSamplers

    class ForOneGpu(SentenceTransformerTrainingArguments):
        # With several visible GPUs, the trainer would give each of them a whole batch (DataParallel).
        @property
        def n_gpu(self) -> int:
            return min(super().n_gpu, 1)

    return ForOneGpu(
        output_dir=folder,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_share,
        seed=seed,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        # The same text twice in a batch would be a wrong answer to its own query.
        batch_sampler=BatchSamplers.NO_DUPLICATES,
        save_strategy="no",
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        logging_steps=50,
    )


def train_on_pairs(
    model: Any, data: RetrievalData, settings: RetrievalSettings, learning_rate: float, seed: int
) -> int:
    """Fine-tune on the training pairs; return the number of steps."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    queries, answers = zip(*data.training_pairs(), strict=True)
    pairs = Dataset.from_dict({"query": list(queries), "answer": list(answers)})
    with tempfile.TemporaryDirectory(prefix="bert_pld_") as folder:
        arguments = training_arguments(folder, settings, learning_rate, seed)
        trainer = SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=pairs, loss=MultipleNegativesRankingLoss(model)
        )
        trainer.train()
    return int(trainer.state.global_step)


def evaluate_rankings(model: Any, data: RetrievalData, split: str, batch_size: int) -> dict[str, float]:
    """Rank all documents for each query of a split and return the figures.

    As in BEIR, the document with the query's own id is taken out of the ranking.
    """
    from sentence_transformers.util import semantic_search

    judgements, documents = data.evaluated(split), list(data.documents)
    options = {"batch_size": batch_size, "convert_to_tensor": True, "show_progress_bar": False}
    of_documents = model.encode([data.documents[one] for one in documents], **options)
    of_queries = model.encode([data.queries[query] for query in judgements], **options)
    rankings = {}
    for query, hits in zip(judgements, semantic_search(of_queries, of_documents, top_k=_RANKED + 1), strict=True):
        ranked = [documents[int(hit["corpus_id"])] for hit in hits]
        rankings[query] = [document for document in ranked if document != query][:_RANKED]
    return ranking_figures(rankings, judgements)
