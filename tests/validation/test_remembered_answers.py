"""What is remembered is believed only if it is whole, and is that model's."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from remerge.engines.scoring import Answered, Item, Scores, rows_path, write_likeliest, write_rows
from remerge.validation.remembered_answers import Memory, open_memory

ROWS = Item("rows", (5, 6, 7))
ANSWER = Item("answer", (5, 6), 4)
FOLLOWED = Item("followed", (5, 6, 8))
ITEMS = {0: ROWS, 1: ANSWER, 2: FOLLOWED}
GIVEN = {1: Answered(answer=(3, 1)), 2: Answered(followed=(-0.5, -1.25))}


def filled(root: Path) -> Path:
    """A model's folder with all three answered."""
    one = Memory(root).of({"side": "base"})
    write_rows(rows_path(one.place, ROWS), np.arange(12.0).reshape(3, 4))
    for number, answered in GIVEN.items():
        one.put(ITEMS[number], answered)
    return one.place


def known(root: Path, **identity: str) -> dict[int, Answered]:
    return Memory(root).of(identity or {"side": "base"}).known(ITEMS)


def test_all_is_known_again(tmp_path: Path) -> None:
    filled(tmp_path)
    assert known(tmp_path) == {0: Answered(), **GIVEN}


def test_of_another_model_nothing_is_known(tmp_path: Path) -> None:
    filled(tmp_path)
    assert known(tmp_path, side="artefact") == {}


def test_another_question_is_not_known(tmp_path: Path) -> None:
    filled(tmp_path)
    others = {
        0: Item("rows", (5, 6)),
        1: Item("answer", (5, 6), 5),
        2: Item("answer", (5, 6, 8)),
        3: Item("rows", (5, 67)),
    }
    assert Memory(tmp_path).of({"side": "base"}).known(others) == {}


def test_an_answer_cut_anywhere_is_asked_again_and_kept(tmp_path: Path) -> None:
    """Killed while the last line was written: it is not believed, and the next one is."""
    whole = (filled(tmp_path) / "answers.jsonl").read_bytes()
    last = whole.rstrip().rfind(b"\n") + 1
    for cut in range(last + 1, len(whole.rstrip())):
        root = tmp_path / str(cut)
        place = filled(root)
        (place / "answers.jsonl").write_bytes(whole[:cut])
        assert 2 not in known(root), whole[last:cut]
        assert known(root)[1] == GIVEN[1]
        Memory(root).of({"side": "base"}).put(FOLLOWED, GIVEN[2])
        assert known(root)[2] == GIVEN[2], whole[last:cut]


@pytest.mark.parametrize("how", ["cut", "empty", "a bit", "text", "of another length"])
def test_rows_that_are_not_whole_are_asked_again(tmp_path: Path, how: str) -> None:
    path = rows_path(filled(tmp_path), ROWS)
    content = bytearray(path.read_bytes())
    if how == "a bit":
        # Of the values themselves, which nothing but a checksum can tell.
        place = content.find(np.float32(-3.4401897).tobytes()[:2])
        assert place > 0
        content[place] ^= 1
    elif how == "of another length":
        write_rows(path, np.arange(8.0).reshape(2, 4))
        content = bytearray(path.read_bytes())
    path.write_bytes(
        {"cut": content[: len(content) // 2], "empty": b"", "text": b"{}"}.get(how, content)
    )
    assert 0 not in known(tmp_path)
    write_rows(path, np.arange(12.0).reshape(3, 4))
    assert 0 in known(tmp_path)


def test_rows_cut_anywhere(tmp_path: Path) -> None:
    path = rows_path(filled(tmp_path), ROWS)
    content = path.read_bytes()
    for cut in range(0, len(content), 7):
        path.write_bytes(content[:cut])
        assert 0 not in known(tmp_path), cut


def test_rows_of_the_likeliest_are_known(tmp_path: Path) -> None:
    path = rows_path(filled(tmp_path), ROWS)
    write_likeliest(path, [{1: -0.1, 2: -3.0, 7: -9.0}] * 3, ROWS.ids, 100)
    assert 0 in known(tmp_path)


def _write_over_and_over(place: str, number: int) -> None:
    one = Memory(Path(place)).of({"side": "base"})
    rows = np.full((3, 20_000), float(number))
    rows[:, 0] = 0
    for count in range(30):
        write_rows(rows_path(one.place, ROWS), rows)
        one.put(Item("answer", (number, count)), Answered(answer=(number, count)))
        one.keep_told({"texts": [str(number)] * 1000})


def test_two_at_the_same_time(tmp_path: Path) -> None:
    processes = [
        get_context("fork").Process(target=_write_over_and_over, args=(str(tmp_path), number))
        for number in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    one = Memory(tmp_path).of({"side": "base"})
    assert 0 in one.known({0: ROWS})
    asked = {2 * c + n: Item("answer", (n, c)) for n in range(2) for c in range(30)}
    assert {k: a.answer for k, a in one.known(asked).items()} == {
        k: i.ids for k, i in asked.items()
    }
    assert len(set(one.told["texts"])) == 1
    assert not list(one.place.glob("*.part"))


def test_more_prompts_than_a_process_may_open_files(tmp_path: Path) -> None:
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(128, most), most))
    try:
        paths = [tmp_path / f"{number}.npz" for number in range(300)]
        for number, path in enumerate(paths):
            write_rows(path, np.arange(4.0)[None] * number)
        scores = Scores.read(paths, tmp_path / "whole.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    assert scores.rows == 300
    assert np.allclose(np.exp(scores.values).sum(axis=1), 1, atol=1e-6)
    assert scores.shift is not None and scores.shift.shape == (300,)


def test_without_a_place_for_it_a_folder_that_goes_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    memory = open_memory(tmp_path / "work")
    assert memory.root == tmp_path / "work"
    memory.of({"side": "base"}).put(ANSWER, GIVEN[1])
    assert open_memory(tmp_path / "other", kept=False).root == tmp_path / "other"


def test_trimming_keeps_what_was_just_asked(tmp_path: Path) -> None:
    place = filled(tmp_path)
    old = Memory(tmp_path).of({"side": "old"}).place
    with (old / "large").open("wb") as stream:
        stream.truncate(5 * 2**30)
    os.utime(old, (0, 0))
    Memory(tmp_path).trim([place])
    assert place.is_dir()
    assert not old.exists()
    assert json.loads((place / "answers.jsonl").read_text().splitlines()[-1])


def test_many_readers_of_one_folder(tmp_path: Path) -> None:
    filled(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: known(tmp_path), range(20)))
    assert all(one == found[0] for one in found)
