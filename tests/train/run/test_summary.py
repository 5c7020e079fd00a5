"""A run has a place for its result before it begins."""

from __future__ import annotations

import pytest

from prompteol_jax.errors import CannotWrite, IsAFolder
from train import contrastive
from train.align import command as align
from train.align.config import AlignConfig
from train.config import TrainConfig


@pytest.mark.parametrize(
    ("run", "kind"),
    [(contrastive.run, TrainConfig), (align.run, AlignConfig)],
    ids=["contrastive", "align"],
)
@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (".", IsAFolder, "expected a file to write, found a folder"),
        ("taken/result.json", CannotWrite, "could not be written"),
    ],
    ids=["folder", "below-a-file"],
)
def test_a_result_that_cannot_be_written_is_refused_before_the_run(
    run, kind, file, error, message, tmp_path
):
    (tmp_path / "taken").write_text("")
    with pytest.raises(error, match=message):
        run(kind(json=tmp_path / file, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
