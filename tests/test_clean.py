"""Each kind of image file is kept byte for byte, encoded again, or rejected with a reason.

The environment variable FUZZ_EXAMPLES sets how many JPEGs of each kind are damaged (for example 100000).
"""

import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.building import clean
from pipelines.building.clean import ImageRejected, check_image, clean_image
from pipelines.building.jpeg_end import has_end
from pipelines.building.metadata import without_metadata
from pipelines.shards.jpeg import JpegHeader, read_header
from pipelines.system.pillow import without_limit_and_warnings
from tests.helpers.data import photo
from tests.helpers.fuzz import mutate
from tests.helpers.jpegs import JPEGS

WIDTH, HEIGHT = 60, 40
DAMAGES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
EXIF_ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return photo(np.random.default_rng(1), 1, HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def original(picture: Image.Image) -> bytes:
    return encode(picture, "JPEG", quality=90)


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[EXIF_ORIENTATION] = orientation
    return data


def distance(encoded: bytes, expected: Image.Image) -> float:
    """Mean difference in grey levels."""
    found = Image.open(io.BytesIO(encoded))
    assert (found.format, found.mode, found.size) == ("JPEG", "RGB", expected.size)
    return float(np.abs(np.asarray(found, float) - np.asarray(expected, float)).mean())


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 2}),
        ("RGB", {"exif": exif(1)}),
        ("L", {}),
        ("L", {"progressive": True}),
    ],
)
def test_good_jpegs_stay_byte_for_byte(picture: Image.Image, mode: str, options: dict) -> None:
    data = encode(picture.convert(mode), "JPEG", **options)
    image = clean_image(data)
    assert (image.encoded, image.height, image.width, image.reencoded) == (data, HEIGHT, WIDTH, "")


def test_a_jpeg_followed_by_more_pictures_is_kept(picture: Image.Image) -> None:
    data = encode(picture, "MPO", save_all=True, append_images=[picture])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert clean_image(data).encoded == data


def test_one_pixel_is_an_image() -> None:
    data = encode(Image.new("RGB", (1, 1), (200, 30, 30)), "JPEG")
    assert clean_image(data).encoded == data


REENCODED: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG": lambda image: encode(image, "PNG"),
    "PNG with alpha": lambda image: encode(Image.merge("RGBA", (*image.split(), image.getchannel(0))), "PNG"),
    "WEBP": lambda image: encode(image, "WEBP", lossless=True),
    "BMP": lambda image: encode(image, "BMP"),
    "TIFF": lambda image: encode(image, "TIFF"),
    "4-component JPEG": lambda image: encode(image.convert("CMYK"), "JPEG", quality=95),
    "JPEG stored as RGB": lambda image: encode(image, "JPEG", quality=95, keep_rgb=True),
}


@pytest.mark.parametrize("kind", REENCODED)
def test_other_formats_become_rgb_jpegs(picture: Image.Image, kind: str) -> None:
    image = clean_image(REENCODED[kind](picture))
    with pytest.raises(ImageRejected, match="decoders may read it differently"):
        check_image(REENCODED[kind](picture))
    assert check_image(image.encoded) == (HEIGHT, WIDTH)
    assert image.reencoded == kind.split(" with")[0]
    assert (image.height, image.width) == (HEIGHT, WIDTH)
    assert distance(image.encoded, picture) < 3


def test_ycck_becomes_what_pillow_reads(picture: Image.Image) -> None:
    """A CMYK JPEG with an Adobe marker for YCCK."""
    data = bytearray(encode(picture.convert("CMYK"), "JPEG", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    image = clean_image(bytes(data))
    assert image.reencoded == "4-component JPEG"
    assert distance(image.encoded, Image.open(io.BytesIO(data)).convert("RGB")) < 3


def test_a_palette_costs_a_few_levels_more(picture: Image.Image) -> None:
    animated = encode(picture.quantize(256), "GIF", save_all=True, append_images=[Image.new("L", picture.size)])
    image = clean_image(animated)  # the first frame
    assert image.reencoded == "GIF"
    assert distance(image.encoded, picture) < 12


def test_sixteen_bits_lose_the_low_byte() -> None:
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).astype(np.uint16)
    image = clean_image(encode(Image.fromarray(grey), "PNG"))
    assert distance(image.encoded, Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")) < 2


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_is_applied_and_gone(picture: Image.Image, orientation: int) -> None:
    """The file has the pixels turned the other way, so applying the orientation gives the upright picture."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = encode(picture.transpose(undo[orientation]), "JPEG", quality=95, exif=exif(orientation))
    image = clean_image(stored)
    assert image.reencoded == f"EXIF orientation {orientation}"
    assert (image.height, image.width) == (HEIGHT, WIDTH)
    assert distance(image.encoded, picture) < 3
    assert not Image.open(io.BytesIO(image.encoded)).getexif()


def test_an_invalid_orientation_changes_nothing(picture: Image.Image) -> None:
    data = encode(picture, "JPEG", exif=exif(77))
    assert clean_image(data).encoded == data


def test_a_colour_profile_changes_nothing(picture: Image.Image) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(picture, "JPEG", icc_profile=profile)
    assert clean_image(data).encoded == data


REJECTED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "the file is empty"),
    "text": (lambda data: b"no image at all\n", "not an image"),
    "random": (lambda data: np.random.default_rng(0).bytes(5000), "not an image"),
    "half": (lambda data: data[: len(data) // 2], "(?i)truncated|without end marker"),
    "ten bytes short": (lambda data: data[:-10], "truncated|without end marker"),
    "header only": (lambda data: data[:30], "(?i)truncated"),
    "EPS": (lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not an image"),
}


@pytest.mark.parametrize("damage", REJECTED)
def test_what_cannot_be_decoded_is_rejected(original: bytes, damage: str) -> None:
    spoil, reason = REJECTED[damage]
    for judge in (clean_image, check_image):
        with pytest.raises(ImageRejected, match=reason):
            judge(spoil(original))


def decodes(data: bytes) -> bool:
    """Whether a full decode succeeds, and our reader accepts the header."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        return bool(read_header(data))
    except Exception:
        return False


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("kind", JPEGS)
def test_an_eighth_of_the_size_gives_the_verdict_of_all_pixels(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image, kind: str
) -> None:
    mode, options = JPEGS[kind]
    good = encode(picture.convert(mode), "JPEG", quality=90, **options)
    monkeypatch.setattr(clean, "MOST_PIXELS", 1 << 20)  # or damaged sizes take long
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(DAMAGES):
        data = mutate(rng, good, good)
        try:
            stored = clean_image(data)
        except ImageRejected:
            stored = None
            # Without an end marker pixels may be missing, see tests/test_jpeg_end.py.
            assert not has_end(data) or not (decodes(data) or decodes(without_metadata(data))), data.hex()
        else:
            assert decodes(stored.encoded), data.hex()
            assert stored.reencoded or stored.encoded in (data, without_metadata(data))
        verdicts.add(bool(stored))
    assert verdicts == {True, False}


def test_chroma_that_cannot_be_upsampled_is_rejected(picture: Image.Image) -> None:
    """Chroma with two samples for three of luma. All coefficients are good, and a grey image could be decoded."""
    data = bytearray(encode(picture, "JPEG", subsampling="4:4:4"))
    frame = data.index(b"\xff\xc0")
    data[frame + 11], data[frame + 14] = 0x31, 0x21
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (1, 1))
        image.load()
    assert not decodes(bytes(data))
    with pytest.raises(ImageRejected, match="broken data stream"):
        clean_image(bytes(data))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bombs_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch, picture: Image.Image, kind: str
) -> None:
    data = encode(picture, kind)
    monkeypatch.setattr(clean, "MOST_PIXELS", WIDTH * HEIGHT - 1)
    with pytest.raises(ImageRejected, match=f"{WIDTH * HEIGHT:,} pixels are too many; the limit is"):
        clean_image(data)
    monkeypatch.setattr(clean, "MOST_PIXELS", WIDTH * HEIGHT)
    assert clean_image(data).height == HEIGHT


def test_pillows_limit_does_not_count_and_stays(monkeypatch: pytest.MonkeyPatch, picture: Image.Image) -> None:
    """A photo of a phone can have 108 million pixels, and of 200 million more than twice Pillow's limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 3)
    assert clean_image(encode(picture, "JPEG"), short_side=16).encoded
    assert Image.MAX_IMAGE_PIXELS == WIDTH * HEIGHT // 3


def test_threads_leave_pillows_settings_as_they_were(monkeypatch: pytest.MonkeyPatch, picture: Image.Image) -> None:
    """`predict` opens images in several threads. One that ends must not change what another one still needs."""
    limit, data = WIDTH * HEIGHT // 3, encode(picture, "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    filters = list(warnings.filters)
    first, second = without_limit_and_warnings(), without_limit_and_warnings()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with Image.open(io.BytesIO(data)) as image:  # three times the limit
        image.load()
    second.__exit__(None, None, None)
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(lambda _: clean_image(data), range(400)))) == 400
    assert limit == Image.MAX_IMAGE_PIXELS
    assert list(warnings.filters) == filters


def test_floats_are_rejected() -> None:
    data = encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF")
    with pytest.raises(ImageRejected, match="floating-point samples"):
        clean_image(data)


@pytest.mark.parametrize(("width", "height", "expected"), [(60, 40, (30, 20)), (41, 97, (20, 47)), (50, 20, (50, 20))])
def test_short_side(width: int, height: int, expected: tuple[int, int]) -> None:
    picture = photo(np.random.default_rng(2), 2, height, width)
    data = encode(picture, "JPEG", quality=95)
    image = clean_image(data, short_side=20)
    assert (image.width, image.height) == expected
    if expected == (width, height):
        assert image.encoded == data
    else:
        assert image.reencoded == "shrunk"
        shrunk = picture.resize(expected, Image.Resampling.LANCZOS)
        same_chroma = Image.open(io.BytesIO(encode(shrunk, "JPEG", quality=95, subsampling="4:2:0")))
        assert distance(image.encoded, same_chroma.convert("RGB")) < 4


def test_quality_applies_to_images_that_are_encoded_again(picture: Image.Image, original: bytes) -> None:
    png = encode(picture, "PNG")
    assert len(clean_image(png, quality=50).encoded) < len(clean_image(png, quality=95).encoded)
    assert clean_image(original, quality=50).encoded == original


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_header(picture: Image.Image, mode: str, options: dict) -> None:
    expected = JpegHeader(2 if options else 0, 8, HEIGHT, WIDTH, len(mode))
    assert read_header(encode(picture.convert(mode), "JPEG", exif=exif(3), comment=b"\xff" * 40, **options)) == expected


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\x89PNG....", b"\xff\xd8\x00\x00\x00\x00", b"\xff\xd8" + b"\xff" * 50]
)
def test_no_header(data: bytes) -> None:
    with pytest.raises(ValueError, match="JPEG"):
        read_header(data)


def test_a_jpeg_of_another_process_is_encoded_again(picture: Image.Image) -> None:
    """SOF1, extended sequential: with 8 bits it decodes like a baseline JPEG, but not every decoder accepts it."""
    data = bytearray(encode(picture, "JPEG", quality=95))
    frame = data.index(b"\xff\xc0")
    data[frame + 1] = 0xC1
    image = clean_image(bytes(data))
    assert image.reencoded == "JPEG of process 1, 8 bits"
    assert distance(image.encoded, picture) < 3
