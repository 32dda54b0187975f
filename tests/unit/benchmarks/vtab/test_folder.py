"""The check of a folder: what is fine passes, and everything that is not is named with its line."""

import hashlib
import json
import shutil

import pytest

from benchmarks.vtab.__main__ import main
from benchmarks.vtab.dataset import find_recipes
from benchmarks.vtab.folder import Decoding, check_root, require_usable
from benchmarks.vtab.lists import Expected, FolderError, ListName, Problem, describe_problems
from core.catalog.recipes import DATASET_RECIPES, get_recipe
from core.errors import InvalidError

CIFAR, KITTI = get_recipe("vtab-cifar100"), get_recipe("vtab-kitti")
EXPECTED = Expected(train=24, val=8, train_val=32, test=20, num_classes=3)


def check(root, *recipes, expected=EXPECTED, decoding=Decoding.SAMPLE):
    return check_root(root, recipes or (CIFAR, KITTI), expected=expected, decoding=decoding)


def problems_of(root, **options):
    (dataset,) = check(root, CIFAR, **options)
    return [str(problem) for problem in dataset.problems]


def edit(path, number, new):
    lines = path.read_text().splitlines()
    lines[number - 1] = new
    path.write_text("\n".join(lines) + "\n")


class TestFine:
    def test_nothing_is_wrong(self, vtab_root):
        datasets = check(vtab_root, decoding=Decoding.ALL)
        require_usable(datasets)
        assert [dataset.problems for dataset in datasets] == [(), ()]
        assert [dataset.num_classes for dataset in datasets] == [3, 3]
        entries = datasets[0].lists[ListName.VAL].entries
        assert [(e.path, e.label, e.line) for e in entries[:2]] == [
            ("images/val200/000000.jpg", 0, 1),
            ("images/val200/000001.jpg", 1, 2),
        ]
        assert datasets[0].lists[ListName.VAL].labels().tolist() == [0, 1, 2, 0, 1, 2, 0, 1]

    def test_windows_line_ends_and_no_last_one(self, vtab_root):
        path = vtab_root / "cifar" / "val200.txt"
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n").rstrip())
        assert problems_of(vtab_root) == []

    def test_digest_is_of_the_lists_and_the_first_images(self, vtab_root):
        before, other = check(vtab_root)
        assert before.digest != other.digest
        described = before.describe()["train800"]
        folder = vtab_root / "cifar"
        for key, path in (
            ("list_sha256", "train800.txt"),
            ("first_image_sha256", "images/train800/000000.jpg"),
        ):
            assert described[key] == hashlib.sha256((folder / path).read_bytes()).hexdigest()
        second = folder / "images" / "test" / "000001.jpg"
        second.write_bytes((folder / "images" / "test" / "000004.jpg").read_bytes())
        assert check(vtab_root)[0].digest == before.digest
        first = folder / "images" / "test" / "000000.jpg"
        first.write_bytes(second.read_bytes())
        assert check(vtab_root)[0].digest != before.digest

    def test_digest_does_not_depend_on_the_place(self, vtab_root, tmp_path):
        copy = shutil.copytree(vtab_root, tmp_path / "elsewhere")
        assert check(copy)[0].digest == check(vtab_root)[0].digest


class TestSizes:
    def test_vtabs_own_are_the_default(self, vtab_root):
        found = problems_of(vtab_root, expected=Expected())
        assert "cifar/train800.txt: it has 24 lines, VTAB-1k has 800" in found
        assert "cifar/val200.txt: it has 8 lines, VTAB-1k has 200" in found
        assert "cifar/train800val200.txt: it has 32 lines, VTAB-1k has 1000" in found
        assert "cifar/test.txt: it has 20 lines, VTAB-1k has 10000" in found

    def test_missing_classes_are_a_warning(self, vtab_root):
        (dataset,) = check(vtab_root, CIFAR, expected=Expected(24, 8, 32, 20, num_classes=5))
        assert dataset.is_usable
        assert [str(problem) for problem in dataset.problems] == [
            "cifar/train800.txt: no image of classes 3, 4",
            "cifar/train800val200.txt: no image of classes 3, 4",
        ]

    def test_trainval_that_is_not_both_lists(self, vtab_root):
        path = vtab_root / "cifar" / "train800val200.txt"
        edit(path, 1, path.read_text().splitlines()[0][:-1] + "2")
        (dataset,) = check(vtab_root, CIFAR)
        assert dataset.is_usable
        (problem,) = dataset.problems
        assert str(problem) == (
            "cifar/train800val200.txt: it should hold the images of train800 and val200, but has "
            "other numbers of classes 0, 2"
        )


class TestBadLines:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("images/test/000001.jpg", "is not 'images/<split>/<name>.jpg <label>'"),
            ("images/test/000001.jpg 1.0", "the label '1.0' is not a whole number from 0"),
            ("images/test/000001.jpg -1", "the label '-1' is not a whole number from 0"),
            ("images/test/000001.jpg ²", "the label '²' is not a whole number from 0"),
            ("", "is not 'images/<split>/<name>.jpg <label>'"),
            ("images/test/000001.jpg 3", "label 3 is out of range: vtab-cifar100 has 3 classes"),
            ("images/test/999999.jpg 1", "images/test/999999.jpg is not there"),
            ("../kitti/images/test/000001.jpg 1", "leaves the dataset's folder or is absolute"),
            ("images/../../../etc/passwd 1", "leaves the dataset's folder or is absolute"),
            ("/etc/passwd 1", "leaves the dataset's folder or is absolute"),
            ("images\\test\\000001.jpg 1", "leaves the dataset's folder or is absolute"),
            ("images/test/000003.jpg 0", "images/test/000003.jpg is on line 4 already"),
        ],
    )
    def test_is_named_with_its_number(self, vtab_root, line, message):
        number = 7 if "already" in message else 2
        edit(vtab_root / "cifar" / "test.txt", number, line)
        (dataset,) = check(vtab_root, CIFAR)
        assert not dataset.is_usable
        (problem,) = (p for p in dataset.problems if p.line == number)
        assert str(problem).startswith(f"cifar/test.txt:{number}: ")
        assert message in problem.message

    def test_not_utf8(self, vtab_root):
        path = vtab_root / "cifar" / "test.txt"
        path.write_bytes(path.read_bytes().replace(b"000002", b"00\xff002"))
        assert problems_of(vtab_root) == ["cifar/test.txt:3: is not UTF-8"]

    def test_a_training_image_that_is_tested(self, vtab_root):
        edit(vtab_root / "cifar" / "train800.txt", 3, "images/test/000002.jpg 2")
        assert "cifar/train800.txt:3: images/test/000002.jpg is a test image as well" in (
            problems_of(vtab_root)
        )


class TestBadFiles:
    def test_missing_list(self, vtab_root):
        (vtab_root / "cifar" / "val200.txt").unlink()
        assert problems_of(vtab_root) == ["cifar/val200.txt: the list is missing"]

    def test_missing_image_folder_is_cut_short(self, vtab_root):
        shutil.rmtree(vtab_root / "cifar" / "images" / "test")
        (dataset,) = check(vtab_root, CIFAR)
        assert len(dataset.problems) == 20
        lines = describe_problems(dataset.problems)
        assert lines[0] == "cifar/test.txt:1: images/test/000000.jpg is not there"
        assert lines[-1] == "cifar/test.txt: and 12 more problems like these"

    @pytest.mark.parametrize(
        "content", [b"", b"no image", b"\xff\xd8\xff\xe0 cut short"], ids=["empty", "text", "cut"]
    )
    def test_undecodable_image(self, vtab_root, content):
        folder = vtab_root / "cifar"
        (folder / "images" / "val200" / "000005.jpg").write_bytes(content)
        (problem,) = problems_of(vtab_root, decoding=Decoding.ALL)
        assert problem.startswith("cifar/val200.txt:6: images/val200/000005.jpg: ")
        assert problems_of(vtab_root, decoding=Decoding.NONE) == []

    def test_the_sample_has_the_first_and_the_last(self, vtab_root):
        folder = vtab_root / "cifar" / "images" / "test"
        for name in ("000000.jpg", "000019.jpg"):
            (folder / name).write_bytes(b"no image")
        found = problems_of(vtab_root)
        assert [line.split(": ")[0] for line in found] == ["cifar/test.txt:1", "cifar/test.txt:20"]

    def test_a_link_out_of_the_folder(self, vtab_root, tmp_path):
        image = vtab_root / "cifar" / "images" / "test" / "000004.jpg"
        secret = tmp_path / "secret.jpg"
        image.rename(secret)
        image.symlink_to(secret)
        assert problems_of(vtab_root) == [
            "cifar/test.txt:5: images/test/000004.jpg is a link that leaves the dataset's folder"
        ]

    def test_a_linked_image_folder_that_leaves(self, vtab_root, tmp_path):
        images = vtab_root / "cifar" / "images" / "val200"
        images.rename(tmp_path / "moved")
        images.symlink_to(tmp_path / "moved")
        assert len(problems_of(vtab_root)) == 8

    def test_a_linked_dataset_is_fine(self, vtab_root, tmp_path):
        (vtab_root / "cifar").rename(tmp_path / "moved")
        (vtab_root / "cifar").symlink_to(tmp_path / "moved")
        assert problems_of(vtab_root) == []


class TestRoot:
    def test_all_problems_at_once(self, vtab_root):
        edit(vtab_root / "cifar" / "test.txt", 2, "images/test/000001.jpg 9")
        (vtab_root / "kitti" / "val200.txt").unlink()
        with pytest.raises(FolderError) as caught:
            require_usable(check(vtab_root))
        assert isinstance(caught.value, InvalidError)
        assert "cifar/test.txt:2: label 9" in caught.value.message
        assert "kitti/val200.txt: the list is missing" in caught.value.message

    def test_warnings_are_not_fatal(self):
        assert str(Problem("a/b.txt", "odd", 3, is_fatal=False)) == "a/b.txt:3: odd"

    def test_missing_datasets_are_listed_with_the_way_out(self, vtab_root):
        datasets = check(vtab_root, *DATASET_RECIPES.values())
        messages = [str(p) for each in datasets for p in each.problems]
        assert len(messages) == 18
        assert messages[0].endswith(
            "17 of 19 datasets are missing; to use those that are there: --datasets cifar100 kitti"
        )
        assert "oxford_iiit_pet: the folder is missing" in messages

    def test_no_root(self, tmp_path):
        with pytest.raises(FolderError, match="there is no such folder"):
            check(tmp_path / "nowhere")

    def test_one_level_too_high(self, vtab_root):
        with pytest.raises(FolderError, match=f"did you mean {vtab_root}"):
            check(vtab_root.parent)


class TestNames:
    def test_by_code_name_folder_or_recipe(self):
        found = find_recipes(["kitti", "vtab-dtd", "oxford_iiit_pet", "cifar", "cifar100"])
        assert [recipe.name for recipe in found] == [
            "vtab-cifar100",
            "vtab-dtd",
            "vtab-pets",
            "vtab-kitti",
        ]
        assert find_recipes(None) == list(DATASET_RECIPES.values())

    def test_unknown(self):
        with pytest.raises(InvalidError, match=r"'imagenet'.*allowed: cifar100, caltech101"):
            find_recipes(["imagenet"])


class TestCommand:
    def test_good_and_bad(self, vtab_root, capsys):
        arguments = ["check", str(vtab_root), "--datasets", "cifar", "kitti"]
        assert main(arguments, expected=EXPECTED) == 0
        assert capsys.readouterr().out.count(" ok ") == 2
        edit(vtab_root / "cifar" / "test.txt", 2, "images/test/000001.jpg 9")
        assert main(arguments, expected=EXPECTED) == 2
        out = capsys.readouterr().out
        assert "cifar100              NOT USABLE" in out
        assert "cifar/test.txt:2: label 9 is out of range" in out

    def test_json(self, vtab_root, capsys):
        arguments = ["check", str(vtab_root), "--datasets", "kitti", "--json"]
        assert main(arguments, expected=EXPECTED) == 0
        (described,) = json.loads(capsys.readouterr().out)
        assert described["dataset"] == "vtab-kitti"
        assert described["digest"] == check(vtab_root)[1].digest
        assert described["lists"]["test"]["lines"] == 20

    def test_a_real_folder_of_another_size_is_refused(self, vtab_root, capsys, tmp_path):
        out = tmp_path / "results.jsonl"
        arguments = ["run", str(vtab_root), "--datasets", "cifar", "--out", str(out)]
        assert main(arguments) == 2
        assert "it has 24 lines, VTAB-1k has 800" in capsys.readouterr().err
        assert not out.exists()
