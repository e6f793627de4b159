"""Write the sentences of sources as the build splits them: `python -m benchmarks.data.extract OUTPUT SOURCE…`.

The output has one sentence a line and a blank line after each document.
"""

from __future__ import annotations

import sys

from data_prep.sources import KINDS, Source
from data_prep.text.clean import clean_text, drop_reason
from data_prep.text.sentences import split_sentences


def main(output: str, *sources: str) -> None:
    """Write the sentences of all documents that a build keeps."""
    with open(output, "w", encoding="utf-8") as sentences:
        for source in sources:
            for piece in Source.parse(source).pieces():
                for document in KINDS[piece.kind].read_piece(piece):
                    text = clean_text(document.text)
                    if not document.dropped and not drop_reason(text):
                        sentences.write("\n".join([*split_sentences(text), "", ""]))


if __name__ == "__main__":
    main(*sys.argv[1:])
