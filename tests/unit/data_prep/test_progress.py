from data_prep.progress import Progress


def test_line_says_share_documents_megabytes_and_time_left(capsys):
    with Progress("reading", 300_000_000, done_bytes=100_000_000) as progress:
        progress.advance(50_000_000, documents=4000)
    assert progress.line(progress.began + 20.0) == "reading: 50%, 200 documents/s, 2.5 MB/s, 01:00 left"
    assert capsys.readouterr().err == "reading: 300.0 MB\n"


def test_stage_without_documents_leaves_them_out(capsys):
    with Progress("near duplicates", 10_000_000) as progress:
        progress.advance(10_000_000)
    assert progress.line(progress.began + 5.0) == "near duplicates: 100%, 2.0 MB/s, 00:00 left"
