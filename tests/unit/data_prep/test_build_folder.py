"""How a later call goes on with the folder of an unfinished build, or replaces it."""

import dataclasses

from data_prep.build_folder import Markers, open_build_folder
from data_prep.plan import BuildArguments, BuildPlan
from data_prep.sources.kind import Piece

ARGUMENTS = BuildArguments(("text=text",), None, 300, False, (32, 64), "mlm", 0.1, 0, 64, "en")
COUNTS = {"documents": 1}


def plan_of(*tasks, **changes):
    """Return a plan whose reading tasks read one file each."""
    pieces = [[Piece("text", str(path), 0, 1)] for path in tasks]
    return BuildPlan(dataclasses.replace(ARGUMENTS, **changes), pieces, [0] * len(pieces))


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_interrupted_conversion_leaves_nothing_that_the_next_build_trusts(tmp_path):
    build_dir = tmp_path / ".build"
    for name in ("done/read_00000.json", "spool/00000.txt", "carried/spool/00000.txt", "tokenizer.json", "groups.json"):
        (build_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (build_dir / name).write_text("{}")
    plan = plan_of("a.txt")
    with open_build_folder(tmp_path, plan):
        assert files_in(tmp_path) == [".build/lock", ".build/plan.json"]
        assert BuildPlan.read(build_dir) == plan
        assert Markers(build_dir).read("read", 0) is None


def test_empty_folders_of_an_interrupted_build_do_not_hinder_the_next(tmp_path):
    for length in (32, 128):
        (tmp_path / f"seq_{length}").mkdir()
    with open_build_folder(tmp_path, plan_of("a.txt")):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".build", "seq_32", "seq_64"]
