import gzip
import hashlib
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from counterpoint import data
from counterpoint.data import MultiFashionMNIST, _cache
from counterpoint.errors import FileError, OptionError, UnknownNameError

SPLITS = ("train", "val", "test")
SOURCES = {
    "multi_mnist": ("MNIST", "MNIST"),
    "multi_fashion": ("FashionMNIST", "FashionMNIST"),
    "fashion_and_mnist": ("MNIST", "FashionMNIST"),
}
# SHA-256 of where the scans of the small set go, recorded when the generator was made: another value is another data
# set and needs an entry under Numerics in the changelog.
RECORDED = "4078052734a90140d9151532e6c19eb85f7bb046e6cd842ffb33b466515fc1b8"


def make(root, **options):
    return MultiFashionMNIST(root, **{"verify": False, "cache": None} | options)


def digest(made):
    total = hashlib.sha256()
    for split in SPLITS:
        for tensor in made.split(split).tensors.values():
            total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def joined(scans, source, *, test_only=False):
    parts = ["t10k"] if test_only else ["train", "t10k"]
    return tuple(np.concatenate([scans[source, part][which] for part in parts]) for which in (0, 1))


CASES = [(member, "all") for member in SOURCES] + [("multi_mnist", "test"), ("fashion_and_mnist", "test")]


@pytest.mark.parametrize(("member", "mnist_part"), CASES)
def test_images_and_labels_are_those_of_a_slow_loop(root, scans, member, mnist_part):
    made = make(root, member=member, mnist_part=mnist_part)
    both = [joined(scans, source, test_only=mnist_part == "test" and source == "MNIST") for source in SOURCES[member]]
    for split in SPLITS:
        pairs, samples = made.pairs[split], made.split(split)
        assert samples.tensors["image"].dtype == torch.uint8
        assert len(pairs) == len(samples)
        for n in range(0, len(samples), 3):
            slow = np.zeros((36, 36), np.uint8)
            for (images, _), index, (row, column) in (
                (both[0], pairs.first[n], pairs.first_offset[n]),
                (both[1], pairs.second[n], pairs.second_offset[n]),
            ):
                for r in range(28):
                    for c in range(28):
                        slow[row + r, column + c] = max(slow[row + r, column + c], images[index, r, c])
            np.testing.assert_array_equal(samples[n]["image"].numpy(), slow[None].astype(np.float32) / np.float32(255))
            assert samples[n]["top_left"] == both[0][1][pairs.first[n]]
            assert samples[n]["bottom_right"] == both[1][1][pairs.second[n]]


@pytest.mark.parametrize(("member", "mnist_part"), CASES)
def test_no_scan_is_in_two_splits(root, scans, member, mnist_part):
    made = make(root, member=member, mnist_part=mnist_part, num_train=2000, num_val=2000, num_test=2000)
    for source in set(SOURCES[member]):
        images, _ = joined(scans, source, test_only=mnist_part == "test" and source == "MNIST")
        used = {split: set() for split in SPLITS}
        for split in SPLITS:
            for own, chosen in zip(SOURCES[member], (made.pairs[split].first, made.pairs[split].second), strict=True):
                used[split] |= set(chosen.tolist()) if own == source else set()
            assert used[split] == set(made.scans[source][split].tolist())
        for one, other in combinations(SPLITS, 2):
            assert not used[one] & used[other]
            assert not {images[i].tobytes() for i in used[one]} & {images[i].tobytes() for i in used[other]}
        assert sum(map(len, used.values())) == len(images)


def test_scans_of_the_published_test_part_are_the_test_split(root):
    made = make(root)
    assert made.scans["MNIST"]["test"].tolist() == list(range(60, 84))
    assert made.scans["FashionMNIST"]["test"].tolist() == list(range(90, 102))


@pytest.mark.parametrize(
    ("member", "mnist_part", "sizes"),
    [  # twice the scans of the smaller source in each split; a sixth of the training scans is for validation
        ("multi_mnist", "all", (100, 20, 48)),
        ("multi_fashion", "all", (150, 30, 24)),
        ("fashion_and_mnist", "all", (100, 20, 24)),
        ("multi_mnist", "test", (32, 8, 8)),
        ("fashion_and_mnist", "test", (32, 8, 8)),
    ],
)
def test_sizes(root, member, mnist_part, sizes):
    made = make(root, member=member, mnist_part=mnist_part)
    assert tuple(len(made.split(split)) for split in SPLITS) == sizes
    limited = make(root, member=member, mnist_part=mnist_part, num_train=9, num_val=4, num_test=3)
    assert tuple(len(limited.split(split)) for split in SPLITS) == (9, 4, 3)
    for split in SPLITS:
        for name, tensor in limited.split(split).tensors.items():
            assert torch.equal(tensor, made.split(split).tensors[name][: len(tensor)])


def test_classes_differ_within_one_source_only(root):
    for member, differ in (("multi_mnist", True), ("multi_fashion", True), ("fashion_and_mnist", False)):
        tensors = make(root, member=member, num_train=400).split("train").tensors
        assert bool(torch.all(tensors["top_left"] != tensors["bottom_right"])) == differ


def test_offsets_take_all_their_values(root):
    pairs = make(root, num_train=2000).pairs["train"]
    for offsets, low in ((pairs.first_offset, 0), (pairs.second_offset, 4)):
        assert np.unique(offsets, axis=0).tolist() == [[r + low, c + low] for r in range(5) for c in range(5)]


def test_same_seed_same_bytes_other_seed_other_pairs_same_scans(root):
    made, again, other = make(root), make(root), make(root, seed=1)
    assert digest(made) == digest(again) != digest(other)
    for source in ("MNIST", "FashionMNIST"):
        for split in SPLITS:
            np.testing.assert_array_equal(made.scans[source][split], other.scans[source][split])


def test_the_pairs_are_what_they_were(root):
    total = hashlib.sha256()
    for pairs in make(root, member="multi_fashion").pairs.values():
        for part in (pairs.first, pairs.second, pairs.first_offset, pairs.second_offset):
            total.update(part.astype("<i8").tobytes())
    assert total.hexdigest() == RECORDED


def test_packed_and_unpacked_files_give_the_same(write_root):
    assert digest(make(write_root("plain"))) == digest(make(write_root("packed", packed=True)))


@pytest.mark.parametrize("folder", ["{source}/raw", "{source}", "raw", "."])
def test_one_source_is_found_in_every_layout(write_root, root, folder):
    other = write_root("other", folder=folder)
    if folder in {"raw", "."}:  # both sources were written there; the last one stays, with all of its files
        made = make(other, member="multi_fashion")
        assert len(made.scans["FashionMNIST"]["train"]) == 75
        with pytest.raises(FileError, match="MNIST/raw/train-images-idx3-ubyte: missing"):
            make(other, member="fashion_and_mnist")
    else:
        assert digest(make(other)) == digest(make(root))
    assert digest(make(root / "FashionMNIST", member="multi_fashion")) == digest(make(root, member="multi_fashion"))


def test_files_of_two_folders_are_never_mixed(root):
    raw = root / "FashionMNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").rename(root / "FashionMNIST" / "train-labels-idx1-ubyte")
    with pytest.raises(FileError, match="raw/train-labels-idx1-ubyte: missing"):
        make(root, member="multi_fashion")


def _flip(content):
    return content[:500] + bytes([content[500] ^ 1]) + content[501:]


def _label(content):
    return content[:19] + b"\x0c" + content[20:]


def _smaller(content):  # 27 columns instead of 28
    return content[:12] + (27).to_bytes(4, "big") + content[16 : 16 + 60 * 28 * 27]


BAD = [
    ("MNIST", "train-images-idx3-ubyte", lambda content: content[:-1], "cut short"),
    ("MNIST", "train-images-idx3-ubyte", lambda content: content + b"\0", "longer"),
    ("MNIST", "train-images-idx3-ubyte", lambda content: gzip.compress(content)[:-100], "cannot be unpacked"),
    ("MNIST", "train-images-idx3-ubyte", lambda content: b"\0\0\x09" + content[3:], "begins with"),
    ("MNIST", "train-images-idx3-ubyte", _smaller, "images of 28 x 28 are expected, got 28 x 27"),
    ("FashionMNIST", "t10k-labels-idx1-ubyte", _label, "labels are 0 to 9, got 12 for item 11"),
    (
        "FashionMNIST",
        "t10k-labels-idx1-ubyte",
        lambda content: content[:4] + (11).to_bytes(4, "big") + content[8:-1],
        "11 labels, but 12 images",
    ),
    ("FashionMNIST", "train-labels-idx1-ubyte", lambda _: None, "missing; put train-labels-idx1-ubyte or train"),
]


@pytest.mark.parametrize(("source", "name", "change", "says"), BAD)
def test_a_bad_file_is_refused_and_reported_by_name(root, source, name, change, says):
    assert MultiFashionMNIST.problems(root, verify=False) == []
    path = root / source / "raw" / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        make(root)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert says in message
    assert "put " in message
    assert "\n" not in message
    (problem,) = MultiFashionMNIST.problems(root, verify=False)
    assert message.startswith(problem)


def test_files_that_are_not_the_published_ones_are_refused(root):
    with pytest.raises(FileError, match=r"altered: its SHA-256 is not the published one; .* or pass verify=False"):
        make(root, verify=True)
    problems = MultiFashionMNIST.problems(root)
    assert len(problems) == 8
    assert all("altered" in problem for problem in problems)
    assert len(MultiFashionMNIST.problems(root, member="multi_mnist", mnist_part="test")) == 2


def test_problems_are_told_file_by_file(root):
    (root / "MNIST" / "raw" / "train-images-idx3-ubyte").unlink()
    (root / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte").write_bytes(b"")
    missing, empty = MultiFashionMNIST.problems(root, verify=False)
    assert "train-images-idx3-ubyte: missing" in missing
    assert "t10k-labels-idx1-ubyte: an IDX file" in empty
    assert len(MultiFashionMNIST.problems(root / "nowhere", verify=False)) == 8


def test_test_digits_alone_are_offered_where_only_they_are_there(root):
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (root / "MNIST" / "raw" / name).unlink()
    with pytest.raises(FileError, match=r"missing; .* or pass mnist_part='test' to make do"):
        make(root)
    make(root, mnist_part="test")
    (root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileError, match=r"train-images-idx3-ubyte: missing") as caught:
        make(root)
    assert "mnist_part" not in str(caught.value)


def test_too_few_scans_and_one_class_are_refused(root, idx):
    raw = root / "MNIST" / "raw"
    (raw / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(60)))
    with pytest.raises(FileError, match="all scans of MNIST for train are of one class"):
        make(root, member="multi_mnist")
    make(root, member="fashion_and_mnist")
    (raw / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(5)))
    (raw / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((5, 28, 28))))
    with pytest.raises(FileError, match="5 images are too few for three splits; at least 6"):
        make(root, member="fashion_and_mnist", mnist_part="test")


class TestCache:
    def test_the_second_time_it_is_read_and_equal(self, root, tmp_path, monkeypatch):
        cache = tmp_path / "deep" / "cache"
        made = make(root, cache=cache)
        (file,) = cache.iterdir()
        monkeypatch.setattr(MultiFashionMNIST, "_make", None)  # would fail if it were made again
        again = make(root, cache=str(cache))
        assert digest(made) == digest(again) == digest_of_file(file)
        assert [path.name for path in cache.iterdir()] == [file.name]

    @pytest.mark.parametrize(
        "options", [{"seed": 1}, {"member": "multi_fashion"}, {"num_train": 8}, {"mnist_part": "test"}]
    )
    def test_other_options_are_other_files(self, root, tmp_path, options):
        make(root, cache=tmp_path / "c")
        assert digest(make(root, cache=tmp_path / "c", **options)) == digest(make(root, **options))
        assert len(list((tmp_path / "c").iterdir())) == 2

    def test_other_sources_are_other_files(self, root, tmp_path):
        make(root, cache=tmp_path / "c")
        path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
        path.write_bytes(_flip(path.read_bytes()))
        assert digest(make(root, cache=tmp_path / "c")) == digest(make(root))
        assert len(list((tmp_path / "c").iterdir())) == 2

    @pytest.mark.parametrize(
        "damage",
        [
            lambda _: b"",
            lambda content: content[: len(content) // 2],
            lambda content: content[:-1],
            lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:],
            lambda content: b"\x93NUMPY" + content[6:],
        ],
    )
    def test_a_damaged_file_is_refused(self, root, tmp_path, damage):
        make(root, cache=tmp_path / "c")
        (file,) = (tmp_path / "c").iterdir()
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(FileError, match=r"cache file.*delete it, it is made anew") as caught:
            make(root, cache=tmp_path / "c")
        assert str(file) in str(caught.value)
        file.unlink()
        assert digest(make(root, cache=tmp_path / "c")) == digest(make(root))

    @pytest.mark.parametrize("name", ["x_train", "y_test", "key", "sha256"])
    def test_a_well_formed_but_altered_file_is_refused(self, root, tmp_path, name):
        make(root, cache=tmp_path / "c")
        (file,) = (tmp_path / "c").iterdir()
        with np.load(file) as archive:
            arrays = dict(archive)
        if arrays[name].dtype.kind == "U":
            arrays[name] = np.array(str(arrays[name])[:-1])
        else:
            arrays[name].flat[7] ^= 1
        np.savez(file, **arrays)
        with pytest.raises(FileError, match="altered cache file"):
            make(root, cache=tmp_path / "c")
        np.save(tmp_path / "array.npy", arrays[name])
        file.write_bytes((tmp_path / "array.npy").read_bytes())
        with pytest.raises(FileError, match="cache file"):
            make(root, cache=tmp_path / "c")

    def test_a_folder_that_cannot_be_written_is_refused(self, root, tmp_path, monkeypatch):
        blocked = tmp_path / "blocked"
        blocked.write_text("a file where the folder should be")
        with pytest.raises(FileError, match=r"the cache cannot be read \(Not a directory\).*cache=None"):
            make(root, cache=blocked)
        monkeypatch.setattr(_cache, "load", lambda *_: None)  # nothing to read, and then nowhere to write
        with pytest.raises(FileError, match=r"the cache cannot be written .*cache=None"):
            make(root, cache=blocked)

        def full(*_args, **_options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(FileError, match=r"No space left on device.*cache=None"):
            make(root, cache=tmp_path / "c")
        assert list((tmp_path / "c").iterdir()) == []  # not half a file, under no name

    def test_the_default_folder_is_the_users(self, root, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        make(root, cache="default")
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        make(root, cache="default")
        (one,) = (tmp_path / "xdg" / "counterpoint").iterdir()
        (other,) = (tmp_path / "home" / ".cache" / "counterpoint").iterdir()
        assert one.name == other.name


def digest_of_file(file):
    total = hashlib.sha256()
    with np.load(file) as arrays:
        for split in SPLITS:
            total.update(arrays[f"x_{split}"].tobytes())
            for column in range(2):
                total.update(arrays[f"y_{split}"][:, column].astype(np.int64).tobytes())
    return total.hexdigest()


def test_bad_options_are_refused_with_the_nearest(root):
    for options, says in (
        ({"member": "multi_mnits"}, "did you mean multi_mnist"),
        ({"member": "fashion_mnist"}, "did you mean fashion_and_mnist"),
        ({"mnist_part": "tset"}, "did you mean test"),
        ({"member": "multi_fashion", "mnist_part": "test"}, "takes nothing from MNIST"),
        ({"num_train": 0}, "MultiFashionMNIST: num_train"),
        ({"num_val": 1.5}, "MultiFashionMNIST: num_val"),
        ({"num_test": -3}, "MultiFashionMNIST: num_test"),
        ({"seed": -1}, "MultiFashionMNIST: seed"),
    ):
        with pytest.raises(OptionError, match=says):
            make(root, **options)
    with pytest.raises(OptionError, match="did you mean multi_mnist"):
        MultiFashionMNIST.problems(root, member="multi_mnits")
    with pytest.raises(OptionError, match="did you mean member"):
        data.create("multi_fashion_mnist", root=root, membr="multi_mnist")
    with pytest.raises(UnknownNameError, match="did you mean test"):
        make(root).split("tests")


def test_nothing_is_printed(root, tmp_path, capfd):
    make(root, cache=tmp_path / "c")
    make(root, cache=tmp_path / "c")
    assert capfd.readouterr() == ("", "")


def test_batches_are_floats_and_options_are_kept(root):
    made = make(root, seed=3, num_val=6)
    assert (made.root, made.member, made.mnist_part, made.seed, made.num_train, made.num_val) == (
        root,
        "fashion_and_mnist",
        "all",
        3,
        None,
        6,
    )
    (batch,) = DataLoader(made.split("val"), 6, collate_fn=data.TensorSplit.collate)
    assert batch["image"].shape == (6, *made.input_shape) == (6, 1, 36, 36)
    assert batch["image"].dtype == torch.float32
    assert 0.9 < batch["image"].max() <= 1.0
    assert [(task.name, task.num_outputs) for task in made.tasks] == [("top_left", 10), ("bottom_right", 10)]
    assert batch["top_left"].dtype == torch.int64


@pytest.mark.data
class TestRealData:
    def test_files_are_the_published_ones(self, data_root):
        problems = MultiFashionMNIST.problems(data_root)
        here = (data_root / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").is_file()
        assert len(problems) == (0 if here else 2)
        assert all("MNIST/raw/train-" in problem and "missing" in problem for problem in problems)

    @pytest.mark.parametrize(
        ("member", "mnist_part", "sizes"),
        [
            ("multi_fashion", "all", (100_000, 20_000, 20_000)),
            ("fashion_and_mnist", "test", (13_336, 3_332, 3_332)),
            ("multi_mnist", "test", (13_336, 3_332, 3_332)),
        ],
    )
    def test_sizes_and_content(self, data_root, member, mnist_part, sizes):
        made = MultiFashionMNIST(data_root, member=member, mnist_part=mnist_part, cache=None)
        assert tuple(len(made.split(split)) for split in SPLITS) == sizes
        for split in SPLITS:
            tensors = made.split(split).tensors
            assert tensors["image"].shape == (len(made.pairs[split]), 1, 36, 36)
            for name in ("top_left", "bottom_right"):
                shares = torch.bincount(tensors[name], minlength=10) / len(made.pairs[split])
                assert torch.all((shares - 0.1).abs() < 0.025)  # MNIST's own classes are 8.9 to 11.4 per cent
        for source in set(SOURCES[member]):
            scans = list(made.scans[source].values())
            assert len(np.unique(np.concatenate(scans))) == sum(map(len, scans))

    def test_an_altered_file_and_the_other_sources_file_are_found(self, data_root, tmp_path):
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
            (raw / name).write_bytes(gzip.decompress((data_root / "MNIST" / "raw" / f"{name}.gz").read_bytes()))
        options = {"member": "multi_mnist", "mnist_part": "test"}
        assert MultiFashionMNIST.problems(tmp_path, **options) == []
        images = raw / "t10k-images-idx3-ubyte"
        images.write_bytes(_flip(images.read_bytes()))
        with pytest.raises(FileError, match="t10k-images-idx3-ubyte: altered"):
            MultiFashionMNIST(tmp_path, cache=None, **options)
        images.write_bytes((data_root / "FashionMNIST" / "raw" / f"{images.name}.gz").read_bytes())
        with pytest.raises(FileError, match="this is FashionMNIST's file; put MNIST's file there"):
            MultiFashionMNIST(tmp_path, cache=None, **options)

    def test_torchvision_reads_the_same_scans(self, data_root, tmp_path):
        datasets = pytest.importorskip("torchvision.datasets")
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in ("train", "t10k"):  # torchvision wants all files to be there; the training part is not read
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
                content = gzip.decompress((data_root / "MNIST" / "raw" / f"t10k-{kind}.gz").read_bytes())
                (raw / f"{part}-{kind}").write_bytes(content)
        theirs = datasets.MNIST(str(tmp_path), train=False)
        made = MultiFashionMNIST(data_root, member="multi_mnist", mnist_part="test", cache=None)
        pairs = made.pairs["val"]
        for n in range(50):
            row, column = pairs.first_offset[n]
            alone = torch.zeros(36, 36, dtype=torch.uint8)
            alone[row : row + 28, column : column + 28] = theirs.data[pairs.first[n]]
            row, column = pairs.second_offset[n]
            other = torch.zeros(36, 36, dtype=torch.uint8)
            other[row : row + 28, column : column + 28] = theirs.data[pairs.second[n]]
            assert torch.equal(made.split("val").tensors["image"][n, 0], torch.maximum(alone, other))
            assert made.split("val")[n]["top_left"] == theirs.targets[pairs.first[n]]
