"""Tries the GPU's JPEG decoder without TensorFlow: python -m kimagenet.diagnosis.decoding DEVICE SECONDS

It writes one line of JSON to stdout. It is a separate process because a decoder may end it, and because nvImageCodec's
warnings are switched on by an environment variable and go to the process's stderr.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from kimagenet.diagnosis.findings import Finding
from kimagenet.diagnosis.gpu_stack import judge_decoding
from kimagenet.diagnosis.trials import draw_shards
from pipelines.augment import AugmentSpec
from pipelines.loader import BatchSpec, LoaderOptions
from pipelines.loaders.dali.host_time import judge_host_decoding, mean_pixels
from pipelines.loaders.dali.standalone import measure, open_pipeline
from pipelines.system.processes import cpu_count
from pipelines.system.standard_streams import take_stdout

WARNINGS = {
    "DALI_NVIMGCODEC_LOG_LEVEL": "3"
}  # nvImageCodec then writes a line for each image that the GPU cannot decode
_PATIENCE = 120  # seconds that the process may take, besides the trial itself
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_BATCH = BatchSpec(64, 224)


def main() -> None:
    """The process."""
    device, seconds = sys.argv[1], float(sys.argv[2])
    out = take_stdout()
    with tempfile.TemporaryDirectory(prefix="kimagenet-decoding-") as folder:
        shards = draw_shards(Path(folder))
        options = LoaderOptions(cpu_count(), device=device)
        with open_pipeline(shards, _BATCH, AugmentSpec.train(), options, whole_images=True) as pipeline:
            rate = measure(pipeline, _BATCH.batch_size, seconds)
    pixels = mean_pixels(shards.sizes)
    found = {"images_per_second": rate.images_per_second, "cpu_ms": rate.dali_cpu_ms, "pixels": pixels}
    print(json.dumps(found), file=out, flush=True)


def trial(device: str, seconds: float) -> Iterator[Finding]:
    """Runs the process and judges what it found."""
    command = [sys.executable, "-m", "kimagenet.diagnosis.decoding", device, str(seconds)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | WARNINGS,
            timeout=_PATIENCE + seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("decoding", "wrong", f"the decoder gave no answer in {_PATIENCE + seconds:.0f} seconds")
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    if not done.stdout:
        last = next((line for line in reversed(lines) if "[INFO]" not in line), "no output")
        yield Finding("decoding", "wrong", f"the decoder's process {how_it_ended(done.returncode)}: {last}")
        return
    found = json.loads(done.stdout)
    problem = judge_host_decoding(found["cpu_ms"], found["pixels"])
    yield judge_decoding(found["images_per_second"], found["cpu_ms"], problem, decoder_warnings(lines))


def how_it_ended(code: int) -> str:
    """A process's exit code in words; negative for a signal."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def decoder_warnings(lines: list[str]) -> list[str]:
    """The lines of nvImageCodec's log that are warnings or errors, without the codes for colours."""
    plain = (_COLOUR.sub("", line) for line in lines)
    return [line for line in plain if "nvimgcodec" in line.lower() and ("[WARN" in line or "[ERROR" in line)]


if __name__ == "__main__":
    main()
