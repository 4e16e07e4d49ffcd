"""What stopped processes left is named by the doctor and by the next export."""

from pathlib import Path

import pytest

from kimagenet import doctor, export
from kimagenet.diagnosis import findings
from kimagenet.diagnosis.findings import Finding
from pipelines.building.check import check_shards
from pipelines.building.leftovers import find_leftovers
from pipelines.errors import UserError
from pipelines.system.files import folders_of_killed
from tests.helpers import faults


def test_the_doctor_names_the_files_that_check_shards_names(
    tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = faults.copy_dataset(tiny_dataset, tmp_path / "shards")
    monkeypatch.setattr(findings, "installed", lambda: iter(()))
    first = next(doctor.find_all(0.05, dataset))
    assert (first.name, first.state) == ("leftovers", "fine")
    (dataset / ".build").mkdir()
    (dataset / ".build" / "train-00000-of-00003.json").write_bytes(bytes(1000))
    (dataset / ".train-00001-of-00003.19103.tmp").write_bytes(bytes(2000))
    (dataset / ".build.123.tmp").mkdir()
    found: Finding = next(doctor.find_all(0.05, dataset))
    named = [path.name for path in find_leftovers(dataset)]
    assert sorted(named) == [".build", ".build.123.tmp", ".train-00001-of-00003.19103.tmp"]
    assert {fault.file for fault in check_shards(dataset, decode=False).faults} == set(named)
    assert found.state == "note"
    assert all(name in found.text for name in named)
    assert "build_index" in found.remedy


def test_what_a_killed_export_left_beside_the_new_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".ex.99999.tmp", ".ex.1.x.tmp", ".other.99999.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".ex.7.tmp").touch()  # a file of something else
    assert folders_of_killed(tmp_path / "ex") == [tmp_path / ".ex.99999.tmp"]

    def stop() -> None:
        raise UserError("stopped before TensorFlow is imported")

    monkeypatch.setattr("kimagenet.export.cli.import_tensorflow", stop)
    (tmp_path / "model.keras").touch()
    export.main([str(tmp_path / "model.keras"), f"--output={tmp_path / 'ex'}"])
    assert f"{tmp_path / '.ex.99999.tmp'}: a stopped export left it; remove it" in capsys.readouterr().err
