"""A dataset's folder as an archive that the service reads: `{train,val,test}/<label>/<n>.jpg`."""

import zipfile
from pathlib import Path, PurePosixPath

from benchmarks.vtab.dataset import Dataset
from benchmarks.vtab.lists import ListName
from benchmarks.vtab.watch import StopSignal
from core.ml.data.atomic import replace_file

#: The splits that the service knows; train800val200 has no place among them.
SPLITS = {"train": ListName.TRAIN, "val": ListName.VAL, "test": ListName.TEST}
_CHECK_EVERY = 500


def write_archive(dataset: Dataset, path: Path, stop: StopSignal) -> None:
    """Write the images of train800, val200 and test as a zip.

    The same folder gives the same bytes: an upload that is repeated is recognised by them. Class
    folders are labels with leading zeros, so that their order is the labels'.

    Raises:
        TrainingStoppedError: that was asked for; nothing half-made is left.
    """
    digits = len(str(dataset.num_classes - 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for split, name in SPLITS.items():
            for index, entry in enumerate(dataset.lists[name].entries):
                if index % _CHECK_EVERY == 0:
                    stop.check()
                suffix = PurePosixPath(entry.path).suffix
                member = zipfile.ZipInfo(
                    f"{split}/{entry.label:0{digits}d}/{index:06d}{suffix}", (1980, 1, 1, 0, 0, 0)
                )
                archive.writestr(member, (dataset.folder / entry.path).read_bytes())
