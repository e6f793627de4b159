from data_prep.progress import StageProgress


def test_line_shows_share_documents_speed_and_time_left(capsys):
    with StageProgress("reading", 300_000_000, done_bytes=100_000_000) as progress:
        progress.start_t -= 20.0
        progress.advance(50_000_000, documents=4000)
        assert str(progress) == "reading: 50% of 300M, 200 documents/s, 2.50MB/s, 01:00 left"
    assert capsys.readouterr().err == "reading: 33% of 300M\n"


def test_line_is_printed_at_most_every_ten_seconds(capsys):
    with StageProgress("near duplicates", 10_000_000) as progress:
        progress.advance(1_000_000)
        progress.start_t -= 20.0
        progress.last_print_t -= 10.0
        progress.advance(9_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "near duplicates: 0% of 10.0M"
    assert lines[1:] == ["near duplicates: 100% of 10.0M, 500kB/s, 00:00 left"]
