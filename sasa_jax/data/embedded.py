"""Preparing the data sets that need no network: made from what scikit-learn ships."""

import contextlib
import io
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging

from sasa_jax.data.catalog import FILE_FORMAT, OWN_DATASETS, DatasetError
from sasa_jax.data.digit_scenes import DigitScenes
from sasa_jax.data.digits import Digits

_BUILDERS = dict(zip(OWN_DATASETS, (Digits, DigitScenes), strict=True))


def prepare_embedded(name: str, data_dir: Path) -> None:
    """Write the data set under `data_dir/name`; safe if several processes do it at once.

    Args:
      name: one of catalog.OWN_DATASETS.
      data_dir: made if absent.

    Raises:
      DatasetError: the folder cannot be written.
    """
    builder = _BUILDERS[name](data_dir=data_dir, file_format=FILE_FORMAT)
    quiet = io.StringIO()
    try:
        # Seconds of work do not deserve TFDS's progress bars.
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False)
            )
    except OSError as error:
        # TFDS writes into a folder of its own and renames it, which fails for the second of two
        # processes: the first one's files are then complete.
        if not (Path(builder.data_dir) / "dataset_info.json").is_file():
            raise DatasetError(
                f"{name} cannot be prepared in {builder.data_dir}: {error}. Name a data_dir that "
                "can be written."
            ) from error
    logging.info("Prepared %s in %s", name, builder.data_dir)
