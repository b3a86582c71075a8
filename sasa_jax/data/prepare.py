"""Prepare a TFDS data set as array_record files: the one step that may need TensorFlow.

    python -m sasa_jax.data.prepare imagenet2012 --data_dir D --manual_dir M

Checks everything that can be checked before the hours begin: the name, whether it is prepared
already, TensorFlow, the files that must be fetched by hand, and the disk space.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from sasa_jax.data.builders import wrong_format
from sasa_jax.data.catalog import (
    FILE_FORMAT,
    OWN_DATASETS,
    DatasetError,
    DatasetName,
    check_known,
    find_prepared,
    manual_instructions,
    prepare_command,
    resolve_data_dir,
)
from sasa_jax.data.embedded import prepare_embedded

GIB = 2**30
# What TFDS reads from manual_dir; of the others it tells only in prose what it wants.
MANUAL_FILES = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
# Bytes of records written per second, one core: ImageNet-sized JPEGs, measured. Estimates only.
RECORDS_PER_SECOND = 25e6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, 0 also where nothing was left to do."""
    parser = argparse.ArgumentParser(
        prog="python -m sasa_jax.data.prepare",
        description="Prepare a TFDS data set for training: checks first, then writes array_record "
        "files, which are read without TensorFlow.",
        epilog="ImageNet: register at https://image-net.org/download-images, put "
        f"{' and '.join(MANUAL_FILES['imagenet2012'])} (144 GiB) into M, have as much space free "
        "in D, and run: python -m sasa_jax.data.prepare imagenet2012 --data_dir D --manual_dir M",
    )
    parser.add_argument("name", help=f"TFDS name, e.g. coco/2017; {', '.join(OWN_DATASETS)}")
    parser.add_argument(
        "--data_dir", help="where data sets are kept [$TFDS_DATA_DIR or ~/tensorflow_datasets]"
    )
    parser.add_argument(
        "--manual_dir",
        help="files that TFDS cannot download, where it needs any [DATA_DIR/downloads/manual]",
    )
    options = parser.parse_args(arguments)
    data_dir = resolve_data_dir(options.data_dir)
    manual_dir = data_dir / "downloads" / "manual"
    if options.manual_dir:
        manual_dir = Path(options.manual_dir).expanduser().absolute()
    try:
        prepare(DatasetName.parse(options.name), data_dir, manual_dir)
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(name: DatasetName, data_dir: Path, manual_dir: Path) -> None:
    """Check, then prepare, telling on stdout; DatasetError where a check or TFDS itself fails."""
    check_known(name.name)
    path = find_prepared(name, data_dir)
    if path:
        _report_prepared(name, data_dir, path)
        return
    start = time.monotonic()
    if name.name in OWN_DATASETS:
        prepare_embedded(name.name, data_dir)
    else:
        _check_tensorflow(name)
        builder = _builder(name, data_dir)
        _check_manual_files(builder, name, data_dir, manual_dir)
        _check_space(builder, name, data_dir, manual_dir)
        _run(builder, name, manual_dir)
    path = find_prepared(name, data_dir)
    if path is None:
        raise DatasetError(f"{name} is still missing under {data_dir} after preparing it.")
    minutes = (time.monotonic() - start) / 60
    print(f"Prepared {name} in {minutes:.1f} minutes: {path}")
    _print_splits(path)


def _report_prepared(name: DatasetName, data_dir: Path, path: Path) -> None:
    info = tfds.builder_from_directory(path).info
    formats = {file_format.value for file_format in info.available_file_formats()}
    if FILE_FORMAT not in formats:
        raise wrong_format(name, data_dir, path, formats)
    print(f"{name} is already prepared, nothing to do: {path}")
    _print_splits(path)


def _print_splits(path: Path) -> None:
    for name, split in tfds.builder_from_directory(path).info.splits.items():
        print(f"  {name}: {split.num_examples:,} examples, {split.num_bytes / GIB:.2f} GiB")


def _check_tensorflow(name: DatasetName) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise DatasetError(
            f"preparing {name} needs TensorFlow (reading and training do not), and it is not "
            "installed in this Python. Install it with: pip install 'sasa_jax[data]'"
        )


def _builder(name: DatasetName, data_dir: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(str(name), data_dir=data_dir, file_format=FILE_FORMAT)
    except (ValueError, AssertionError) as error:
        raise DatasetError(f"TFDS has no {name}: {_one_line(error)}") from error


def _check_manual_files(
    builder: tfds.core.DatasetBuilder, name: DatasetName, data_dir: Path, manual_dir: Path
) -> None:
    instructions = manual_instructions(name.name)
    if not instructions:
        return
    wanted = MANUAL_FILES.get(name.name, ())
    missing = [file for file in wanted if not (manual_dir / file).is_file()]
    if missing or not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        what = f"lacks {' and '.join(missing)}" if missing else "is absent or empty"
        raise DatasetError(
            f"{name} cannot be downloaded automatically, and {manual_dir} {what}. TFDS says: "
            f"{instructions} Then run: {prepare_command(name, data_dir)}"
        )
    originals = {
        url.rsplit("/", 1)[-1]: int(info.size) for url, info in (builder.url_infos or {}).items()
    }
    for file in wanted:
        size = (manual_dir / file).stat().st_size
        if size != originals.get(file, size):
            print(
                f"Note: {file} has {size:,} bytes, the original {originals[file]:,}: a subset or "
                "an incomplete download. What it holds will be prepared."
            )


def _check_space(
    builder: tfds.core.DatasetBuilder, name: DatasetName, data_dir: Path, manual_dir: Path
) -> None:
    """Compare free space with a generous estimate, and say how long it will take."""
    download = 0
    if manual_instructions(name.name):
        files = MANUAL_FILES.get(name.name)
        paths = [manual_dir / f for f in files] if files else list(manual_dir.rglob("*"))
        records = sum(path.stat().st_size for path in paths if path.is_file())
        needed = 1.05 * records
        what = f"records about as large as the files in {manual_dir}"
    else:
        download = records = sum(int(info.size) for info in (builder.url_infos or {}).values())
        # The archives, their unpacked files, and the records.
        needed = 3.0 * download
        what = f"{download / GIB:.2f} GiB of downloads, unpacked, and the records"
    if not needed:
        print("TFDS does not tell the size of this data set: disk space is not checked.")
        return
    existing = next(p for p in (data_dir, *data_dir.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DatasetError(
            f"{name} needs about {needed / GIB:.2f} GiB in {data_dir} ({what}), and "
            f"{free / GIB:.2f} GiB are free there. Free some, or name another --data_dir."
        )
    print(
        f"{name}: needs about {needed / GIB:.2f} GiB in {data_dir} ({what}); {free / GIB:.0f} GiB "
        f"are free. Expected time: {_duration(records / RECORDS_PER_SECOND)}"
        + (" and the download." if download else "."),
        flush=True,
    )


def _run(builder: tfds.core.DatasetBuilder, name: DatasetName, manual_dir: Path) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    manual = manual_dir if manual_instructions(name.name) else None
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
        )
    # Whatever went wrong inside TFDS, the user is to read one paragraph and not its traceback.
    except Exception as error:
        raise DatasetError(
            f"TFDS failed to prepare {name}: {type(error).__name__}: {_one_line(error)} Nothing "
            "half-written is left; downloads are kept, so the same command goes on from there."
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:1000]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return "about a minute"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


if __name__ == "__main__":
    sys.exit(main())
