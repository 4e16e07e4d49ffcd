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
from kimagenet.diagnosis import decoding, findings, gpu_stack, libraries, trials
from kimagenet.diagnosis.findings import Finding
from pipelines.loader import Unavailable
from pipelines.loaders import dali
from pipelines.loaders.dali import native
from tests.helpers.programs import command, environment, run_program

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
    assert list(found) == [*("gpu", "training", "dali", "operator", "decoder", "auto", "loader tfdata", "loader dali")]
    states = {name: finding.state for name, finding in found.items() if finding.state != "fine"}
    assert states.items() <= {"gpu": "note", "operator": "note"}.items(), found
    assert "sees no GPU, and there is no NVIDIA driver" in found["gpu"].text or libraries.NVIDIA_DRIVER.exists()
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


@pytest.mark.parametrize(
    ("versions", "on_gpu", "state", "text"),
    [
        (("2.4.0", "0.9.0.20", "12.4.0.76"), True, "fine", "decodes regions of JPEGs on the host, or ends the process"),
        (("2.4.0", "0.9.0.20", "13.2.0.1"), True, "fine", "nvImageCodec 0.9.0.20, nvJPEG 13.2.0.1"),
        (("2.2.0", "0.8.0.1", "12.4.0.76"), True, "fine", "nvImageCodec 0.8.0.1, nvJPEG 12.4.0.76"),
        (("2.4.0", "0.9.0.20", "12.4.0.76"), False, "fine", "nvImageCodec 0.9.0.20, nvJPEG 12.4.0.76"),
        (("2.4.0", "0.8.0.1", "13.2.0.1"), True, "wrong", "DALI 2.4.0 needs nvImageCodec 0.9"),
        (("2.4.0", "0.10.0", "13.2.0.1"), False, "wrong", "DALI 2.4.0 needs nvImageCodec 0.9"),
        (("2.4.0", "0.9.0.20", ""), True, "note", "from a CUDA toolkit, or images are decoded on the host"),
        (("odd", "odd", "odd"), True, "fine", "nvImageCodec odd, nvJPEG odd"),
    ],
)
def test_pairs_of_decoders(versions: tuple[str, str, str], on_gpu: bool, state: str, text: str) -> None:
    found = gpu_stack.judge_decoder(*versions, on_gpu=on_gpu)
    assert (found.name, found.state) == ("decoder", state)
    assert found.text.startswith(f"nvImageCodec {versions[1] or 'missing'}, nvJPEG {versions[2] or 'missing'}")
    assert found.text.endswith(text) or text in found.text
    assert ("regions" in found.text) == ("regions" in text)
    assert bool(found.remedy) == (state != "fine")


@needs_dali
def test_the_decoders_versions_on_this_machine() -> None:
    nvimgcodec, nvjpeg = gpu_stack.decoder_versions()
    (found,) = libraries.decoder_loads(0.1)
    assert found.text == f"nvImageCodec {nvimgcodec}, nvJPEG {nvjpeg or 'missing'}"
    assert re.match(r"\d+\.\d+", nvimgcodec)


TF_BUILD = ["sm_60", "sm_70", "sm_80", "sm_89", "compute_90"]


@pytest.mark.parametrize(
    ("name", "capability", "built_for", "is_newer"),
    [
        ("T4", (7, 5), TF_BUILD, False),
        ("H100", (9, 0), TF_BUILD, False),
        ("B200", (10, 0), TF_BUILD, True),
        ("RTX 5090", (12, 0), TF_BUILD, True),
        ("RTX 5090", (12, 0), [*TF_BUILD, "sm_120a"], False),
        ("RTX 5090", (12, 0), [], False),  # a build that says nothing
    ],
)
def test_a_gpu_that_is_newer_than_tensorflow(
    name: str, capability: tuple[int, int], built_for: list[str], is_newer: bool
) -> None:
    found = gpu_stack.judge_gpu_age(name, capability, built_for)
    assert (found is not None) == is_newer
    if found:
        number = f"{capability[0]}.{capability[1]}"
        assert found.text.startswith(f"{name} (compute capability {number}) is newer than this TensorFlow (up to 9.0)")
        assert "XLA may crash" in found.text
        assert (found.state, found.remedy) == ("note", "train without XLA, or with a newer TensorFlow")


def test_a_new_gpu_and_its_decoder_in_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks as a machine with a GPU would make them, with stubs for what TensorFlow and DALI see."""
    details = {"device_name": "RTX 5090", "compute_capability": (12, 0)}
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["gpu"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: {"cuda_compute_capabilities": TF_BUILD})
    assert [(found.name, found.state) for found in libraries.gpus()] == [("gpu", "fine"), ("gpu age", "note")]
    if DALI_PROBLEM:
        pytest.skip(f"no DALI: {DALI_PROBLEM}")
    monkeypatch.setattr(gpu_stack, "decoder_versions", lambda: ("0.9.0", "12.4.0"))
    monkeypatch.setattr(decoding, "trial", lambda device, seconds: iter([Finding("decoding", "fine", device)]))
    found = list(libraries.decoder_loads(0.1))
    assert [finding.name for finding in found] == ["decoder", "decoding"]
    assert found[0].text.endswith("kimagenet decodes whole images on a GPU, which works")
    assert found[1].text == "gpu"


@needs_dali
def test_decoding_on_the_host_is_a_finding() -> None:
    """The GPU's graph by CPU operators takes the time that a GPU's fallback takes."""
    (found,) = decoding.trial("cpu", 0.2)
    assert (found.name, found.state) == ("decoding", "note")
    assert "images are decoded on the host, not on the GPU: each image takes" in found.text
    assert found.figures["images_per_second"] > 0
    assert found.remedy == 'see docs/gpu.md, "Decoding on the host"'


def test_warnings_of_the_decoder_are_findings() -> None:
    lines = [
        "\x1b[0;32m[INFO] \x1b[0m[nvimgcodec] Registering extension",
        "\x1b[0;33m[WARNING] \x1b[0m[nvjpeg_hw_decoder] of nvimgcodec: ROI decode may be wrong",
        "[ERROR] [nvimgcodec] cannot decode",
        "[WARNING] of another library",
    ]
    warnings = decoding.decoder_warnings(lines)
    assert len(warnings) == 2
    found = gpu_stack.judge_decoding(5000.0, 0.1, "", warnings)
    assert found.state == "note"
    assert "nvImageCodec wrote 2 warnings, the first: [WARNING] [nvjpeg_hw_decoder]" in found.text
    assert gpu_stack.judge_decoding(5000.0, 0.1, "", []).text == "5,000 images/s, 0.10 ms of CPU time each"


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os.abort()", "the decoder's process was ended by SIGABRT: last words"),
        ("sys.exit(3)", "the decoder's process ended with exit code 3: last words"),
        ("time.sleep(99)", "the decoder gave no answer in 2 seconds"),
    ],
)
def test_a_decoder_that_ends_its_process_or_hangs_is_a_finding(
    end: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import os, sys, time; print('last words', file=sys.stderr, flush=True); {end}"
    real = subprocess.run
    monkeypatch.setattr(decoding, "_PATIENCE", 2)
    monkeypatch.setattr(decoding.subprocess, "run", lambda command, **rest: real([sys.executable, "-c", code], **rest))
    (found,) = decoding.trial("gpu", 0.0)
    assert (found.state, found.text) == ("wrong", text)


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
    monkeypatch.setattr(doctor, "find_all", lambda length, dataset: iter(found))
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


def test_python_without_docstrings_is_named_and_no_rebuilding_is_advised() -> None:
    done = run_program("dali_without_docstrings", env=environment(PYTHONOPTIMIZE="2"))
    if "is not installed" in done.stdout:
        pytest.skip("no DALI")
    cause, remedy = done.stdout.splitlines()
    assert cause.startswith("DALI needs docstrings, which Python leaves out: ")
    assert remedy == "run Python without -OO, and unset PYTHONOPTIMIZE"
