"""The doctor on good and on broken machines: its findings, their remedies, its exit code."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kimagenet import doctor
from kimagenet.diagnosis import findings, libraries, trials
from kimagenet.diagnosis.findings import Finding
from pipelines.loader import Unavailable
from pipelines.loaders import dali
from pipelines.loaders.dali import native
from tests.helpers.programs import command

DALI_PROBLEM = dali.unavailable("cpu")
needs_dali = pytest.mark.skipif(DALI_PROBLEM is not None, reason=f"no DALI: {DALI_PROBLEM}")


def hide(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == hidden else real(name, *rest))


@needs_dali
def test_nothing_is_wrong_without_a_gpu() -> None:
    """Every check, unchanged, in this process."""
    found = {f.name: f for name, check in libraries.checks(0.05).items() for f in libraries.guarded(name, check)}
    assert list(found) == ["gpu", "training", "dali", "operator", "auto", "loader tfdata", "loader dali"]
    states = {name: finding.state for name, finding in found.items() if finding.state != "fine"}
    assert states.items() <= {"gpu": "note", "operator": "note"}.items(), found
    assert "sees none, and there is no NVIDIA driver" in found["gpu"].text or libraries.NVIDIA_DRIVER.exists()
    assert found["auto"].text == "--loader auto takes dali on the cpu, since DALI loads"
    assert 0 < found["loader dali"].figures["mean_difference"] < 1
    assert all(found[f"loader {name}"].figures["images_per_second"] > 0 for name in ("tfdata", "dali"))


@pytest.mark.parametrize(
    ("module", "package"),
    [("nvidia.dali", "nvidia-dali-cuda120"), ("nvidia.dali_tf_plugin", "nvidia-dali-tf-plugin-cuda120")],
)
def test_without_dali(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if module == "nvidia.dali_tf_plugin" and DALI_PROBLEM:
        pytest.skip(f"no DALI: {DALI_PROBLEM}")
    hide(monkeypatch, module)
    (found,) = libraries.dali_loads()
    assert (found.state, found.text) == ("note", f"package {package} is not installed; reading goes through tf.data")
    assert re.match(r"`pip install .*nvidia-dali-tf-plugin-cuda120.*`$", found.remedy)
    (auto,) = libraries.auto()
    assert auto.text == f"--loader auto takes tfdata, since package {package} is not installed"


@needs_dali
def test_a_plugin_of_another_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DALI's own loading code is given a library that cannot be loaded, as one with other symbols cannot."""
    from nvidia.dali_tf_plugin import dali_tf_plugin

    stub = tmp_path / "libdali_tf_current.so"
    stub.write_bytes(b"of another TensorFlow")
    monkeypatch.setattr(dali_tf_plugin, "_dali_tf_module", None)
    monkeypatch.setattr(dali_tf_plugin.glob, "glob", lambda _: [str(stub)])
    monkeypatch.delitem(sys.modules, "nvidia.dali.plugin.tf")
    (found,) = libraries.dali_loads()
    wanted = f"DALI's TF plugin was built for another TensorFlow than {tf.__version__}; reading goes through tf.data"
    assert (found.state, found.text) == ("wrong", wanted)
    assert found.remedy.startswith("`pip install setuptools wheel packaging`")
    assert "--force-reinstall" in found.remedy
    (auto,) = libraries.auto()
    assert auto.text.startswith("--loader auto takes tfdata, since DALI's TF plugin was built for another TensorFlow")


def test_a_driver_without_a_gpu_in_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "NVIDIA_DRIVER", tmp_path)
    (found,) = libraries.gpus()
    assert found.state == "wrong"
    assert "tensorflow[and-cuda]" in found.remedy
    monkeypatch.setattr(libraries, "NVIDIA_DRIVER", tmp_path / "none")
    (found,) = libraries.gpus()
    assert (found.state, found.figures) == ("note", {"tensorflow_gpus": 0})


@pytest.mark.parametrize(
    ("seen", "state", "text", "remedy"),
    [
        ((2, 12000, 11000), "fine", "DALI finds NPP and cuFFT", ""),
        ((1, -1, 11000), "wrong", "does not find NPP", "`pip install nvidia-npp-cu12`"),
        ((1, -1, -1), "wrong", "NPP and cuFFT", "`pip install nvidia-npp-cu12 nvidia-cufft-cu12`"),
        ((0, -1, -1), "wrong", "DALI does not", "nvidia-smi"),
    ],
)
def test_libraries_of_dali_on_a_gpu(seen: tuple[int, int, int], state: str, text: str, remedy: str) -> None:
    (found,) = libraries.dali_libraries(*seen)
    assert found.state == state
    assert text in found.text
    assert remedy in found.remedy


def test_the_operator_and_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libraries.cpu_operator(None).state == "fine"
    found = libraries.cpu_operator(
        Unavailable("there is no C++ compiler", "install g++, or name a C++17 compiler in CXX")
    )
    assert (found.state, found.remedy) == ("note", "install g++, or name a C++17 compiler in CXX")
    assert native.available() == (native.unavailable() is None)


def test_pixels_and_losses_that_are_wrong() -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3))
    assert trials.judge("dali", 9.0, images + 0.5 / 127.5, images).state == "fine"
    wrong = trials.judge("dali", 9.0, images[:, :, ::-1], images)
    assert (wrong.state, wrong.figures["images_per_second"]) == ("wrong", 9.0)
    assert "--loader tfdata" in wrong.remedy
    assert trials.judge("dali", 9.0, np.full_like(images, np.nan), images).state == "wrong"
    assert trials.judge_training("the CPU", 9.0, [2.0, 1.0]).state == "fine"
    for last in (2.0, 3.0, float("nan")):
        assert trials.judge_training("the CPU", 9.0, [2.0, last]).state == "wrong"


def test_versions() -> None:
    has = {"numpy": np.__version__, "tensorflow": tf.__version__}
    good = [f"numpy>={has['numpy']}", "nvidia-dali-cuda990>=1; extra == 'dali'", "no-such-linter; extra == 'dev'"]
    assert findings.packages(good) == Finding("packages", "fine", f"numpy {has['numpy']}")
    found = findings.packages([*good, "tensorflow<1", "no-such-package>=2"])
    assert found.text == f"tensorflow is {has['tensorflow']}, not <1; no-such-package is missing, not >=2"
    assert (found.state, found.remedy) == ("wrong", "`pip install 'tensorflow<1' 'no-such-package>=2'`")
    found = findings.packages(["numpy<1; extra == 'gpu'", "tensorflow[and-cuda]<1; extra == 'gpu'"])
    assert found.state == "wrong"  # what is installed of an extra has to fit
    assert [finding.state for finding in findings.installed()] == ["fine", "fine"]


def test_a_check_that_raises_is_a_finding() -> None:
    def check():
        yield Finding("a", "fine", "")
        raise RuntimeError("broken\nin two lines")

    assert [(f.name, f.state, f.text) for f in libraries.guarded("x", check)] == [
        ("a", "fine", ""),
        ("x", "wrong", "RuntimeError: broken"),
    ]
    with pytest.raises(ValueError, match="not one of"):
        Finding("a", "good", "")


@pytest.mark.parametrize(
    ("end", "text"),
    [("abort", "was ended by SIGABRT: last words"), ("3", "ended with exit code 3: last")],
)
def test_a_library_that_ends_the_process_is_a_finding(end: str, text: str) -> None:
    first = Finding("gpu", "fine", "x", figures={"a": 1.5})
    lines = [json.dumps(line) for line in ({"begins": "gpu"}, vars(first), {"begins": "dali"})]
    program = command("broken_checks", end, "\n".join(lines))
    with tempfile.TemporaryFile("w+") as notes:
        process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=notes, text=True)
        found = list(doctor.follow(process, notes))
    assert found[0] == first
    assert (found[1].name, found[1].state) == ("dali", "wrong")
    assert text in found[1].text


@pytest.mark.parametrize(
    ("findings", "flags", "code", "last"),
    [
        ([("gpu", "note"), ("dali", "fine")], [], 0, "nothing is wrong"),
        ([("gpu", "note"), ("dali", "note")], ["--require", "gpu", "dali"], 1, "wrong: gpu, dali"),
        ([("gpu", "note"), ("dali", "wrong")], [], 1, "wrong: dali"),
    ],
)
def test_one_screen_a_file_and_an_exit_code(
    findings: list[tuple[str, str]],
    flags: list[str],
    code: int,
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "x.json"
    found = [Finding(name, state, f"about {name}", f"do {name}", {"n": 1.0}) for name, state in findings]
    monkeypatch.setattr(doctor, "find_all", lambda length: iter(found))
    assert doctor.main([*flags, f"--json={output}"]) == code
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last
    assert lines[0].split() == [lines[0].split()[0], "gpu", "about", "gpu"]
    assert lines[1].split() == ["→", "do", "gpu"]
    written = json.loads(output.read_text())
    assert (written["version"], written["fine"]) == (1, code == 0)
    assert written["findings"][1] | {"state": ""} == vars(found[1]) | {"state": ""}
    assert doctor.main(["--json=/no/folder/x.json"]) == 2
    assert capsys.readouterr().err.startswith("error: /no/folder/x.json: cannot be written")
