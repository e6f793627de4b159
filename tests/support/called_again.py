"""A stand-in for CUDA graphs on a CPU: a capture is a function that is called again."""

from __future__ import annotations

import torch

from bert_pld.model.graphs import BlockGraphs


class CallingAgain:
    """Stands for `CudaRecorder`: repeats a body by calling it, and puts the results where the first ones were."""

    def __init__(self):
        self.replays = []
        """Number of replays of each capture: forward of each block, then backward of each, the last block first."""
        self.memory = []
        """Results of all captures."""

    def rehearse(self, body):
        body()

    def record(self, body):
        results = [one.detach().clone() for one in body()]
        number = len(self.replays)
        self.replays.append(0)
        self.memory += results

        def replay():
            self.replays[number] += 1
            for memory, value in zip(results, body(), strict=True):
                memory.copy_(value)

        return results, replay

    def poison(self):
        """Fill the memory of all graphs with NaN, to detect what a replay reads without having written it."""
        for one in self.memory:
            one.fill_(torch.nan)


def capture_blocks(model):
    """Let a model run its blocks as graphs; return their recorder."""
    recorder = CallingAgain()
    model.encoder.graphs = BlockGraphs(lambda: recorder)
    return recorder
