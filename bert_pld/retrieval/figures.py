"""Figures of a ranking, by the definitions of trec_eval, with which BEIR reports them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from bert_pld.retrieval.data import Judgements


def dcg(scores: Sequence[float]) -> float:
    """Return the discounted gain of documents with these scores, the first one first; scores below 0 count as 0."""
    return math.fsum(max(score, 0) / math.log2(place + 2) for place, score in enumerate(scores))


def ranking_figures(rankings: Mapping[str, Sequence[str]], judgements: Judgements) -> dict[str, float]:
    """Return nDCG@10 and recall@100 times 100, the means over the queries of `judgements`.

    `rankings` has the ids of the first 100 documents of each query, the best first.
    """
    gains, recalls = [], []
    for query, answers in judgements.items():
        ranked = [answers.get(document, 0) for document in rankings[query]]
        best = sorted(answers.values(), reverse=True)
        gains.append(dcg(ranked[:10]) / dcg(best[:10]))
        recalls.append(sum(score > 0 for score in ranked[:100]) / sum(score > 0 for score in best))
    return {"ndcg@10": 100.0 * fmean(gains), "recall@100": 100.0 * fmean(recalls)}
