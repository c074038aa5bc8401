import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from counterpoint._files import read_json, write_atomically
from counterpoint.errors import FileError
from counterpoint.training import RunFolder
from counterpoint.training.run_folder import (
    first_difference,
    load_checkpoint,
    read_finished,
    read_records,
    read_yaml,
)


def test_a_folder_of_another_configuration_is_refused_and_untouched(tmp_path):
    RunFolder(tmp_path, {"optimizer": {"lr": 0.1}, "seed": 0}).close()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileError, match=r"another configuration \(optimizer.lr is 0.1 there and 0.2 now\)"):
        RunFolder(tmp_path, {"optimizer": {"lr": 0.2}, "seed": 0})
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_the_same_configuration_is_accepted_with_tuples_for_lists(tmp_path):
    RunFolder(tmp_path, {"tasks": ("a", "b")}).close()
    RunFolder(tmp_path, {"tasks": ["a", "b"]}).close()


def test_a_folder_in_use_is_refused(tmp_path):
    with RunFolder(tmp_path, {}), pytest.raises(FileError, match="in use by another process"):
        RunFolder(tmp_path, {})
    RunFolder(tmp_path, {}).close()


def test_the_lock_of_a_dead_process_is_gone(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_lock_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == 7
    RunFolder(tmp_path, {}).close()


def _lock_and_die(path):
    folder = RunFolder(path, {})
    (folder.path / "result.json.tmp").write_text("half")
    os._exit(7)


def test_temporary_files_of_a_dead_process_are_removed(tmp_path):
    RunFolder(tmp_path, {}).close()
    (tmp_path / "checkpoints").mkdir()
    for name in (".result.json.99.tmp", "checkpoints/last.99.tmp"):
        (tmp_path / name).write_text("half")
    RunFolder(tmp_path, {}).close()
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/run.*cannot be written .*choose a folder"):
        RunFolder(tmp_path / "file" / "run", {})


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_atomically(path, b"old")

    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match="No space left on device"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@given(cut=st.floats(0, 1))
def test_no_part_of_a_checkpoint_is_read_as_whole(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "last.pt"
    torch.save({"weight": torch.arange(100.0)}, path)
    content = path.read_bytes()
    assert torch.equal(load_checkpoint(path)["weight"], torch.arange(100.0))
    path.write_bytes(content[: int(cut * (len(content) - 1))])
    with pytest.raises(FileError, match=r"last\.pt: cut short or damaged"):
        load_checkpoint(path)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(FileError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "list.pt")
    torch.save({"f": os.path.join}, tmp_path / "last.pt")
    with pytest.raises(FileError, match="not a checkpoint of this program"):
        load_checkpoint(tmp_path / "last.pt")
    assert load_checkpoint(tmp_path / "none.pt") is None


def test_a_cut_last_record_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert list(read_records(path)) == [{"a": 1}, {"a": 2}]
    path.write_text('{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(FileError, match=r"metrics\.jsonl:2: not valid JSON"):
        list(read_records(path))


def test_not_a_number_becomes_null(tmp_path):
    with RunFolder(tmp_path, {}) as folder:
        folder.append({"loss": float("nan"), "nested": [float("inf"), 1.5]})
        folder.write_json("result.json", {"value": float("nan")})
        assert folder.result == {"value": None}
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"loss": None, "nested": [None, 1.5]}


def test_a_damaged_json_file_is_named(tmp_path):
    (tmp_path / "result.json").write_text('{"a": ')
    with pytest.raises(FileError, match=r"result\.json: not valid JSON"):
        read_json(tmp_path / "result.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\n\tb: 2\n", r"run\.yaml, line 2, column 1: .*no tabs"),
        (b"data:\n\tname: digits\n", r"run\.yaml, line 2, column 1: .*no tabs"),
        (b"a: [1, 2\nb: 3\n", r"run\.yaml, line 2, column 2: "),
        (b"\xff\xfe\x00", r"run\.yaml: not a text file"),
    ],
)
def test_bad_yaml_gets_one_line_with_the_place(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(FileError, match=message) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_first_difference_finds_missing_keys():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None
    assert first_difference({"a": {}}, {"a": {"b": 1}}) == "a.b is 1 there and None now"
    assert first_difference({"a": {"c": 2}}, {"a": {}}) == "a.c is None there and 2 now"


RESULT = {"selection": "last", "selected_epoch": 2, "val": {}, "test": {}, "epochs": 2, "num_backward": 4}
TIMING = {"train_seconds": 1.0, "step_ms": 2.0, "peak_memory_mb": 3.0}


def finish(path):
    with RunFolder(path, {"a": 1}) as folder:
        for epoch in (1, 2):
            folder.append({"kind": "conflict"})
            folder.append({"kind": "epoch", "epoch": epoch})
        folder.write_json("timing.json", TIMING)
        folder.write_json("result.json", RESULT)


def test_a_finished_run_is_read_whole(tmp_path):
    finish(tmp_path)
    finished = read_finished(tmp_path)
    assert (finished.result, finished.timing) == (RESULT, TIMING)
    assert [record["kind"] for record in finished.records] == ["conflict", "epoch"] * 2


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("timing.json", None, "timing.json: missing"),
        ("timing.json", "{}", "timing.json: not whole"),
        ("timing.json", "{", "timing.json: not valid JSON"),
        ("result.json", "[]", "result.json: not whole"),
        ("result.json", "{}", "result.json: not whole"),
        ("metrics.jsonl", None, "metrics.jsonl: has 0 epochs, result.json counts 2"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 1}\n{"kind": "ep', "has 1 epochs, result.json counts 2"),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 2}\n{"kind": "epoch", "epoch": 2}\n', "has 2 epochs"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl:1: no record"),
    ],
)
def test_a_finished_run_that_misses_something_is_not_read(tmp_path, name, spoil, message):
    finish(tmp_path)
    (tmp_path / name).unlink() if spoil is None else (tmp_path / name).write_text(spoil)
    with pytest.raises(FileError, match=message) as caught:
        read_finished(tmp_path)
    assert "delete" in str(caught.value)


def test_a_result_whose_configuration_is_gone_is_nobodys(tmp_path):
    finish(tmp_path)
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(FileError, match=r"config\.yaml: missing, but result\.json is there"):
        RunFolder(tmp_path, {"a": 2})
    assert not (tmp_path / "config.yaml").exists()


def test_an_empty_configuration_is_damage_and_no_other_configuration(tmp_path):
    finish(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(FileError, match=r"config\.yaml: damaged, it holds no configuration"):
        RunFolder(tmp_path, {"a": 1})


def test_a_file_system_that_lets_nothing_be_removed_either(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(FileError, match=r"a\.json: cannot be written \(Read-only file system\)"):
            write_atomically(tmp_path / "a.json", b"x")


def test_a_full_disk_is_named_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    with RunFolder(tmp_path, {}) as folder:
        folder.save_checkpoint("last", {"epoch": 1})

        def full(*_):
            raise RuntimeError("unexpected pos 128 vs 24")  # what torch.save says then

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(FileError, match=r"last\.pt: cannot be written .*is the disk full"):
            folder.save_checkpoint("last", {"epoch": 2})
        assert folder.load_checkpoint("last") == {"epoch": 1}
        assert not list(tmp_path.rglob("*.tmp"))


def test_what_is_written_through_a_link_is_where_it_leads(tmp_path):
    (tmp_path / "there.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "there.json")
    write_atomically(tmp_path / "link.json", b"new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "there.json").read_text() == "new"
