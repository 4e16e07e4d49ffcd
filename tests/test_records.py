"""The record codec agrees with TensorFlow's."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.shards import records

FEATURES = {"bytes": b"\xff\xd8payload", "empty": b"", "int": 1000, "negative": -1, "floats": np.array([0.5, -2.0])}


@pytest.mark.slow
def test_tensorflow_reads_what_we_encode() -> None:
    import tensorflow as tf

    parsed = tf.train.Example.FromString(records.encode_example(FEATURES)).features.feature
    assert parsed["bytes"].bytes_list.value == [b"\xff\xd8payload"]
    assert parsed["empty"].bytes_list.value == [b""]
    assert parsed["int"].int64_list.value == [1000]
    assert parsed["negative"].int64_list.value == [-1]
    assert parsed["floats"].float_list.value == [0.5, -2.0]


@pytest.mark.slow
def test_we_read_what_tensorflow_encodes() -> None:
    import tensorflow as tf

    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 300, b"second"])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[-3, 5])),
        "floats": tf.train.Feature(float_list=tf.train.FloatList(value=[1.0])),
        "nothing": tf.train.Feature(),
    }
    serialized = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    decoded = records.decode_example(memoryview(serialized))
    assert bytes(decoded["image"]) == b"x" * 300
    assert decoded["label"] == -3
    assert decoded["floats"] is None
    assert decoded["nothing"] is None


@pytest.mark.slow
def test_framing_equals_tensorflows(tmp_path: Path) -> None:
    import tensorflow as tf

    payloads = [b"", b"a", bytes(range(256)) * 50]
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert (tmp_path / "theirs").read_bytes() == b"".join(map(records.frame, payloads))


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_cut_example_is_refused_or_read_without_its_end(cut: int) -> None:
    serialized = records.encode_example({"label": 7, "image": b"0123456789abcdef"})
    with pytest.raises(ValueError, match="record"):
        records.decode_example(memoryview(serialized[:-cut]))
