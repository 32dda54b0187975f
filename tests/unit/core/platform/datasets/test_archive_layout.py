"""Which folders are classes and splits, and what is said when it cannot be told."""

import pytest

from core.platform.datasets.archive import ArchiveError
from core.platform.datasets.archive.entries import Member
from core.platform.datasets.archive.layout import read_layout, read_pictures
from core.types import Split


def members(*names: str) -> list[Member]:
    return [
        Member(index, name.rstrip("/"), 1, is_folder=name.endswith("/"))
        for index, name in enumerate(names)
    ]


def placed(*names: str) -> list[tuple[Split | None, str]]:
    return [(e.split, e.class_name) for e in read_layout(members(*names)).entries]


class TestClasses:
    def test_plain_class_folders(self) -> None:
        assert placed("cat/1.jpg", "dog/x/y/2.jpg") == [(None, "cat"), (None, "dog")]

    def test_one_wrapper_is_stripped(self) -> None:
        assert placed("my set/cat/1.jpg", "my set/dog/2.jpg") == [(None, "cat"), (None, "dog")]

    def test_any_number_of_wrappers_is_stripped(self) -> None:
        assert placed("a/b/c/cat/1.jpg", "a/b/c/dog/x/2.jpg") == [(None, "cat"), (None, "dog")]
        assert placed("a/b/train/cat/1.jpg", "a/b/train/dog/1.jpg") == [
            (Split.TRAIN, "cat"),
            (Split.TRAIN, "dog"),
        ]

    def test_a_class_may_be_called_like_a_split(self) -> None:
        assert placed("train/1.jpg", "car/1.jpg") == [(None, "train"), (None, "car")]

    def test_files_that_are_no_images_make_no_class(self) -> None:
        layout = read_layout(members("a/1.jpg", "b/1.jpg", "notes/1.txt", "labels.csv"))
        assert layout.classes == ("a", "b")
        assert layout.ignored_files == 2

    def test_a_nested_archive_is_not_opened(self) -> None:
        layout = read_layout(members("a/1.jpg", "b/1.jpg", "a/more.zip"))
        assert len(layout.entries) == 2
        assert layout.ignored_files == 1

    def test_images_of_foreign_formats_are_listed(self) -> None:
        # They are reported when decoded: leaving them out in silence would hide the loss.
        assert len(read_layout(members("a/1.gif", "b/1.TIFF")).entries) == 2

    def test_folders_without_images_are_told(self) -> None:
        flat = members("w/", "w/a/", "w/a/1.jpg", "w/b/1.jpg", "w/void/", "w/a/deeper/")
        assert read_layout(flat).empty_classes == ("void",)
        split = members("train/a/1.jpg", "train/b/1.jpg", "train/void/", "other/void2/")
        assert read_layout(split).empty_classes == ("void",)


class TestSplits:
    @pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
    def test_names_of_validation(self, name: str) -> None:
        found = placed("train/a/1.jpg", "train/b/1.jpg", f"{name}/a/2.jpg")
        assert found[2] == (Split.VAL, "a")

    def test_names_of_training_and_test(self) -> None:
        found = placed("Training/a/1.jpg", "Training/b/1.jpg", "Testing/a/2.jpg")
        assert found == [(Split.TRAIN, "a"), (Split.TRAIN, "b"), (Split.TEST, "a")]

    def test_train_alone_is_a_split_folder(self) -> None:
        assert placed("train/a/1.jpg", "train/b/1.jpg") == [(Split.TRAIN, "a"), (Split.TRAIN, "b")]

    def test_inside_a_wrapper(self) -> None:
        found = placed("w/train/a/1.jpg", "w/train/b/1.jpg", "w/test/b/s/1.jpg")
        assert found[2] == (Split.TEST, "b")


REFUSED = [
    ("archive_empty", []),
    ("no_images", ["a/1.txt", "b/2.csv"]),
    ("no_images", ["a/", "b/"]),
    ("no_images", ["a/.hidden.jpg", "__MACOSX/b/1.jpg"]),
    ("images_outside_class_folders", ["1.jpg", "a/1.jpg"]),
    ("images_outside_class_folders", ["w/a/1.jpg", "w/1.jpg"]),
    ("images_outside_class_folders", ["train/1.jpg", "test/1.jpg"]),
    ("too_few_classes", ["cat/1.jpg", "cat/2.jpg"]),
    ("too_few_classes", ["w1/w2/1.jpg", "w1/w2/2.jpg"]),
    ("too_few_classes", ["w1/w2/w3/1.jpg", "w1/w2/w3/2.jpg"]),
    ("images_outside_class_folders", ["w1/w2/a/1.jpg", "w1/w2/1.jpg"]),
    ("images_outside_class_folders", ["w1/w2/a/1.jpg", "w1/1.jpg"]),
    ("too_few_classes", ["train/a/1.jpg", "test/a/2.jpg"]),
    ("mixed_layout", ["train/a/1.jpg", "train/b/1.jpg", "c/1.jpg"]),
    ("no_train_split", ["val/a/1.jpg", "test/b/1.jpg"]),
    ("split_label_mismatch", ["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"]),
    ("split_label_mismatch", ["train/a/1.jpg", "train/b/1.jpg", "val/B/2.jpg"]),
    ("duplicate_name", ["a/1.jpg", "b/1.jpg", "a/1.jpg"]),
    ("duplicate_name", ["a/x.jpg", "b/1.jpg", "a/X.jpg"]),
    ("duplicate_name", ["a/1.jpg", "b/caf\u00e9.jpg", "b/cafe\u0301.jpg"]),
]


@pytest.mark.parametrize(("code", "names"), REFUSED)
def test_refused_layouts(code: str, names: list[str]) -> None:
    with pytest.raises(ArchiveError) as caught:
        read_layout(members(*names))
    assert caught.value.code == code


def test_the_message_names_the_member_and_the_way_out() -> None:
    with pytest.raises(
        ArchiveError, match=r"'lost\.jpg' lies in no class folder.*class/image\.jpg"
    ):
        read_layout(members("a/1.jpg", "b/1.jpg", "lost.jpg"))


class TestPictures:
    """What has no labels: batch predictions."""

    def test_images_in_any_folders_keep_their_order(self) -> None:
        layout = read_pictures(members("z/1.jpg", "2.png", "a/b/c/3.gif", "notes.txt", "empty/"))
        assert [(e.name, e.index) for e in layout.entries] == [
            ("z/1.jpg", 0),
            ("2.png", 1),
            ("a/b/c/3.gif", 2),
        ]
        assert (layout.classes, layout.has_splits, layout.ignored_files) == ((), False, 1)

    def test_one_folder_or_none_will_do(self) -> None:
        assert len(read_pictures(members("1.jpg")).entries) == 1
        assert len(read_pictures(members("only/1.jpg", "only/2.jpg")).entries) == 2

    @pytest.mark.parametrize(
        ("names", "code"),
        [
            ((), "archive_empty"),
            (("a/",), "no_images"),
            (("readme.txt", ".hidden.png", "__MACOSX/1.jpg"), "no_images"),
            (("1.jpg", "1.JPG"), "duplicate_name"),
        ],
    )
    def test_what_is_refused(self, names: tuple[str, ...], code: str) -> None:
        with pytest.raises(ArchiveError) as caught:
            read_pictures(members(*names))
        assert caught.value.code == code
