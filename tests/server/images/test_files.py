"""What clients upload, in every shape that files come in, and what they download."""

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from server.images.decoding import Array, decode_image, decode_mask
from server.images.files import encode_image

LIMITS: dict[str, int] = {"max_pixels": 1 << 20, "max_side": 4096}
SEED = random.randrange(1 << 30)


def noise(*shape: int) -> Array:
    return np.random.default_rng(SEED).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> Array:
    """What JPEG keeps: a slope of each colour."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def file(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format=format, **options)
    return out.getvalue()


def decoded(data: bytes, **limits: int) -> Array:
    return decode_image(data, param="image", **{**LIMITS, **limits})


def mask_of(data: bytes, mode: Literal["auto", "alpha", "luminance"] = "auto") -> Array:
    levels = decode_mask(data, mode, max_pixels=1 << 20, max_side=4096)
    assert levels.shape[2] == 1
    return levels[..., 0]


def refused(data: bytes, *words: str, **limits: int) -> None:
    with pytest.raises(InvalidParameter) as caught:
        decoded(data, **limits)
    assert caught.value.param == "image"
    for word in words:
        assert word in caught.value.message


def chunk(kind: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file of raw rows, each with its filter byte, for what Pillow cannot write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (13, 1), (31, 47)])
@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_lossless_files_keep_every_byte(format: str, channels: int, size: tuple[int, int]) -> None:
    pixels = noise(*size, channels)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.array_equal(decoded(file(Image.fromarray(pixels), format, **options)), pixels), SEED


def test_jpeg_is_read() -> None:
    pixels = smooth(40, 61)
    read = decoded(file(Image.fromarray(pixels), "JPEG", quality=95))
    assert read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "0 bytes"),
        (b"hello", "not a picture"),
        (b"GIF89a", "GIF"),
        (b"BM" + bytes(60), "BMP"),
        (b"II*\0" + bytes(60), "TIFF"),
        (b"\0\0\0\x20ftypavif", "AVIF"),
        (b"<svg xmlns='x'/>", "SVG"),
        (b"\x89PNG\r\n\x1a\n", "truncated or broken"),
        (b"\xff\xd8\xff", "truncated or broken"),
        (b"RIFF\x04\0\0\0WEBP", "truncated or broken"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "truncated or broken"),
        (b"RIFF\x04\0\0\0WAVE", "not a picture"),
    ],
)
def test_other_files_are_refused_by_what_they_are(data: bytes, word: str) -> None:
    refused(data, word)


def test_a_file_that_only_pillow_could_read_is_refused() -> None:
    refused(file(Image.new("RGB", (4, 4)), "TIFF"), "TIFF")
    refused(file(Image.new("RGB", (4, 4)), "PPM"), "not a picture")


@pytest.mark.parametrize(
    "make",
    [
        lambda i: file(i),
        lambda i: file(i, "JPEG"),
        lambda i: file(i, "JPEG", progressive=True),
        lambda i: file(i, "WEBP"),
        lambda i: file(i, "WEBP", lossless=True),
    ],
    ids=["png", "jpeg", "progressive", "webp", "lossless-webp"],
)
def test_a_truncated_file_is_refused_or_had_lost_nothing(
    make: Callable[[Image.Image], bytes],
) -> None:
    whole = make(Image.fromarray(noise(24, 23, 3)))
    expected = decoded(whole)
    for length in range(0, len(whole), max(1, len(whole) // 100)):
        try:
            read = decoded(whole[:length])
        except InvalidParameter:
            continue
        assert np.array_equal(read, expected), (length, len(whole), SEED)
        assert length > len(whole) * 0.9, (length, len(whole), SEED)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_flipped_bytes_are_refused_or_read_but_nothing_else(format: str) -> None:
    whole = file(Image.fromarray(noise(24, 24, 4)).convert("RGB"), format)
    rng = random.Random(SEED)
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(rng.randrange(1, 8)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            read = decoded(bytes(broken))
        except InvalidParameter:
            continue
        assert read.shape[0] * read.shape[1] <= LIMITS["max_pixels"], SEED


def test_size_is_compared_before_anything_is_decoded() -> None:
    rows = bytes(1)  # a bomb's header; nothing of its pixels is there
    refused(png(20_000, 20_000, 8, 2, rows), "pixels", "scale it down")
    refused(png(2000, 2000, 8, 2, rows), "2000x2000", str(LIMITS["max_pixels"]))
    refused(png(5000, 1, 8, 2, rows), "5000x1", "4096")
    bomb = b"\0" + bytes(3 * 2000)
    refused(png(2000, 2000, 8, 2, bomb * 2000), "2000x2000")


def test_limits_are_inclusive() -> None:
    data = file(Image.new("RGB", (10, 20)))
    assert decoded(data, max_pixels=200, max_side=20).shape == (20, 10, 3)
    refused(data, max_pixels=199, max_side=20)
    refused(data, max_pixels=200, max_side=19)


def test_a_bomb_in_a_text_chunk_is_refused() -> None:
    text = b"Comment\0\0" + zlib.compress(bytes(1 << 27))
    refused(png(1, 1, 8, 0, b"\0\0", chunk(b"zTXt", text)), "truncated or broken")


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animated_files_are_refused(format: str) -> None:
    frames = [Image.fromarray(noise(8, 8, 3)), Image.new("RGB", (8, 8), "red")]
    data = file(frames[0], format, save_all=True, append_images=frames[1:], duration=50)
    refused(data, "animated")


def test_a_cameras_file_with_a_preview_is_its_first_picture() -> None:
    first, second = Image.fromarray(smooth(16, 16)), Image.new("RGB", (8, 8), "red")
    data = file(first, "MPO", save_all=True, append_images=[second])
    assert decoded(data).shape == (16, 16, 3)


def test_cmyk_becomes_rgb() -> None:
    cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    read = decoded(file(cmyk, "JPEG", quality=100))
    assert read.shape == (8, 8, 3)
    assert read[..., 0].min() > 240 and read[..., 1:].max() < 15


def test_palettes_with_and_without_transparency() -> None:
    palette = noise(4, 3)
    image = Image.fromarray(noise(9, 7) % 4, "L").convert("P")
    indices = np.asarray(image)
    image.putpalette(palette.tobytes())
    plain = decoded(file(image))
    assert plain.shape == (9, 7, 3) and np.array_equal(plain, palette[indices]), SEED
    one = decoded(file(image, transparency=2))
    assert np.array_equal(one[..., 3], np.where(indices == 2, 0, 255)), SEED
    alphas = np.array([0, 100, 200, 255], np.uint8)
    many = decoded(file(image, transparency=alphas.tobytes()))
    assert np.array_equal(many, np.dstack([palette[indices], alphas[indices]])), SEED


def test_grey_with_alpha() -> None:
    grey, alpha = noise(5, 6), noise(6, 5).T
    data = file(Image.merge("LA", [Image.fromarray(grey), Image.fromarray(alpha.copy())]))
    assert np.array_equal(decoded(data), np.dstack([grey, grey, grey, alpha])), SEED


@pytest.mark.parametrize(("depth", "step"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_few_bit_greys_and_their_transparent_level(depth: int, step: int) -> None:
    key = (1 << depth) - 1
    row = bytes([0, key << (8 - depth)])  # one pixel, filter byte first
    assert decoded(png(1, 1, depth, 0, row)).tolist() == [[[key * step] * 3]]
    marked = png(1, 1, depth, 0, row, chunk(b"tRNS", struct.pack(">H", key)))
    assert decoded(marked).tolist() == [[[key * step] * 3 + [0]]]
    other = png(1, 1, depth, 0, row, chunk(b"tRNS", struct.pack(">H", 0)))
    assert decoded(other)[0, 0, 3] == 255


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_files_become_8(colour: int, channels: int) -> None:
    values = np.random.default_rng(SEED).integers(0, 1 << 16, (5, 6, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    read = decoded(png(6, 5, 16, colour, rows))
    if channels <= 2:
        values = values[..., [0, 0, 0, *range(1, channels)]]
    assert read.shape == values.shape
    assert np.abs(read.astype(float) - values / 257).max() <= 1, SEED


def test_transparent_levels_of_16_bit_files() -> None:
    grey = b"\0" + struct.pack(">HH", 300, 301)
    read = decoded(png(2, 1, 16, 0, grey, chunk(b"tRNS", struct.pack(">H", 300))))
    assert read[0, :, 3].tolist() == [0, 255]
    rgb = b"\0" + struct.pack(">6H", 5000, 6000, 7000, 5000, 6000, 9000)
    key = chunk(b"tRNS", struct.pack(">HHH", 5000, 6000, 7000))
    assert decoded(png(2, 1, 16, 2, rgb, key))[0, :, 3].tolist() == [0, 255]


def test_the_transparent_colour_of_rgb() -> None:
    pixels = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    data = file(Image.fromarray(pixels), transparency=(1, 2, 3))
    assert decoded(data)[0, :, 3].tolist() == [0, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_exif_rotation_is_applied_to_images_and_masks(format: str, orientation: int) -> None:
    pixels = noise(5, 9, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    data = file(image, format, exif=exif, **options)
    upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    if orientation in upright:
        image = image.transpose(upright[orientation])
    assert np.array_equal(decoded(data), np.asarray(image)), SEED
    assert np.array_equal(mask_of(data, "alpha"), 255 - np.asarray(image)[..., 3]), SEED


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0" + b"\xff" * 40, b"Exif\0\0junk"])
def test_broken_exif_does_not_matter(exif: bytes) -> None:
    assert decoded(file(Image.fromarray(smooth(8, 9)), "JPEG", exif=exif)).shape == (8, 9, 3)


def test_unknown_orientations_are_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    assert decoded(file(Image.new("RGB", (3, 5)), exif=exif)).shape == (5, 3, 3)


def wide_profile() -> bytes:
    """A matrix profile with primaries wider than sRGB's: its red is not a red of sRGB."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for name, xyz in ((b"rXYZ", (0.6097, 0.3111, 0.0195)), (b"gXYZ", (0.2053, 0.6257, 0.0609))):
        at = profile.index(name)
        offset = struct.unpack(">I", profile[at + 4 : at + 8])[0] + 8
        profile[offset : offset + 12] = b"".join(struct.pack(">i", round(v * 65536)) for v in xyz)
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be"))


def test_colours_become_srgb_by_the_files_profile() -> None:
    pixels = np.full((2, 2, 4), (60, 180, 60, 77), np.uint8)
    read = decoded(file(Image.fromarray(pixels), icc_profile=wide_profile()))
    assert read[0, 0, 0] < 40, "a green of a wider space is greener in sRGB"
    assert read[0, 0, 3] == 77
    grey = np.full((2, 2, 3), 128, np.uint8)
    near = decoded(file(Image.fromarray(grey), icc_profile=wide_profile())).astype(int)
    assert np.abs(near - 128).max() <= 25


def test_an_srgb_profile_changes_nothing_and_a_broken_one_is_ignored() -> None:
    pixels = noise(16, 16, 3)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"no profile", srgb[:200], wide_profile()[:300]):
        data = file(Image.fromarray(pixels), icc_profile=profile)
        assert np.array_equal(decoded(data), pixels), SEED
    variant = wide_profile().replace("Wide".encode("utf-16-be"), "sRGB".encode("utf-16-be"))
    data = file(Image.fromarray(pixels), icc_profile=variant)
    assert np.array_equal(decoded(data), pixels), "profiles of that name differ in rounding only"
    grey = file(Image.fromarray(pixels[..., 0]), icc_profile=wide_profile())
    assert np.array_equal(decoded(grey)[..., 0], pixels[..., 0]), "an RGB profile on grey"


def test_masks_by_alpha_and_by_luminance() -> None:
    pixels = noise(6, 7, 4)
    data = file(Image.fromarray(pixels))
    assert np.array_equal(mask_of(data, "alpha"), 255 - pixels[..., 3]), SEED
    assert np.array_equal(mask_of(data, "auto"), 255 - pixels[..., 3]), SEED
    on_black = Image.new("RGB", (7, 6))
    on_black.paste(Image.fromarray(pixels).convert("RGB"), mask=Image.fromarray(pixels[..., 3]))
    expected = np.asarray(on_black.convert("L")).astype(int)
    assert np.abs(mask_of(data, "luminance") - expected).max() <= 1, SEED
    grey = noise(6, 7)
    for mode in ("luminance", "auto"):
        assert np.array_equal(mask_of(file(Image.fromarray(grey)), mode), grey), SEED
    jpeg = file(Image.new("L", (8, 8), 255), "JPEG")
    assert mask_of(jpeg).min() == 255
    bits = noise(6, 7) > 127
    assert np.array_equal(mask_of(file(Image.fromarray(bits))), np.where(bits, 255, 0)), SEED


def test_a_mask_that_marks_nothing_either_way_is_told_both() -> None:
    opaque = Image.new("RGBA", (4, 4), (0, 0, 0, 255))
    with pytest.raises(InvalidParameter, match="no transparent or white pixels"):
        mask_of(file(opaque))


def test_an_opaque_alpha_channel_means_luminance_only_in_auto() -> None:
    pixels = np.full((4, 4, 4), 255, np.uint8)
    pixels[:2, :, :3] = 0
    data = file(Image.fromarray(pixels))
    assert np.array_equal(mask_of(data, "auto"), pixels[..., 0])
    with pytest.raises(InvalidParameter, match=r"empty.*transparent"):
        mask_of(data, "alpha")


def test_masks_that_mark_nothing_are_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"empty.*white"):
        mask_of(file(Image.new("L", (4, 4))))
    with pytest.raises(InvalidParameter, match="no alpha channel") as caught:
        mask_of(file(Image.new("RGB", (4, 4), "white")), "alpha")
    assert caught.value.param == "mask"
    with pytest.raises(InvalidParameter, match="truncated or broken"):
        mask_of(file(Image.fromarray(noise(40, 40)))[:500])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("format", ["png", "webp"])
def test_what_is_written_without_loss_is_read_back(
    format: Literal["png", "webp"], channels: int
) -> None:
    pixels = noise(17, 9, channels)
    pixels[:5, :, 3:] = 0
    data = encode_image(
        Pixels(width=9, height=17, channels=channels, data=pixels.tobytes()), format
    )
    expected = np.repeat(pixels, 3, axis=2) if channels == 1 else pixels
    assert np.array_equal(decoded(data), expected), SEED


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_compression_trades_quality_for_size(format: Literal["jpeg", "webp"]) -> None:
    pixels = noise(64, 64, 3)
    source = Pixels(width=64, height=64, channels=3, data=pixels.tobytes())
    files = [encode_image(source, format, level) for level in (0, 40, 90, 100)]
    errors = [np.abs(decoded(data).astype(int) - pixels).mean() for data in files]
    assert [len(f) for f in files] == sorted(len(f) for f in files), SEED
    assert errors == sorted(errors, reverse=True), SEED


def test_jpeg_lays_transparency_over_the_background() -> None:
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[8:, :, 3] = 255
    source = Pixels(width=16, height=16, channels=4, data=pixels.tobytes())
    on_white = decoded(encode_image(source, "jpeg"))
    assert on_white[:7].min() > 250 and on_white[9:].max() < 5
    on_red = decoded(encode_image(source, "jpeg", background=(255, 0, 0)))
    assert on_red[0, 0, 0] > 250 and on_red[0, 0, 1:].max() < 5
    half = Pixels(width=16, height=16, channels=4, data=bytes([0, 0, 0, 128]) * 256)
    assert abs(int(decoded(encode_image(half, "jpeg"))[0, 0, 0]) - 127) <= 2


def test_a_format_that_cannot_hold_the_size_says_so() -> None:
    wide = Pixels(width=16_384, height=1, channels=3, data=bytes(3 * 16_384))
    with pytest.raises(InvalidParameter, match="16383") as caught:
        encode_image(wide, "webp")
    assert caught.value.param == "output_format"
    assert encode_image(wide, "png")


METADATA = {
    "prompt": "ein roter Kreis über \U0001f7e6, (large:1.2)",
    "negative_prompt": "blue\nsquare",
    "num_inference_steps": 20,
    "scheduler": "dpmpp_2m_karras",
    "guidance_scale": 4.5,
    "seed": 2**40,
    "size": "64x64",
    "model": "tiny, one",
    "outpaint": {"left": 3},
}
TEXT = (
    "ein roter Kreis über \U0001f7e6, (large:1.2)\nNegative prompt: blue\nsquare\n"
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, "
    'Seed: 1099511627776, Size: 64x64, Model: "tiny, one"'
)
SMALL = Pixels(width=2, height=2, channels=3, data=bytes(12))


def test_png_metadata_can_be_read_and_sent_again() -> None:
    with Image.open(io.BytesIO(encode_image(SMALL, "png", metadata=METADATA))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert json.loads(image.text["tandem"]) == METADATA
        assert image.text["parameters"] == TEXT
    with Image.open(io.BytesIO(encode_image(SMALL, "png"))) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert not image.text


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_exif_metadata_can_be_read_and_sent_again(format: Literal["jpeg", "webp"]) -> None:
    with Image.open(io.BytesIO(encode_image(SMALL, format, metadata=METADATA))) as image:
        exif = image.getexif()
    assert json.loads(exif[0x010E]) == METADATA
    comment = exif.get_ifd(0x8769)[0x9286]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT
    with Image.open(io.BytesIO(encode_image(SMALL, format))) as image:
        assert not dict(image.getexif())


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("prompt", ["", "a\0b", "\ud800 half", "x" * 100_000, "ÿ" * 40_000])
def test_odd_prompts_are_written(format: Literal["png", "jpeg", "webp"], prompt: str) -> None:
    data = encode_image(SMALL, format, 50, {"prompt": prompt, "seed": 1})
    assert decoded(data).shape == (2, 2, 3)
    if format == "png":
        with Image.open(io.BytesIO(data)) as image:
            assert json.loads(image.info["tandem"])["prompt"] == prompt
            assert "\0" not in image.info["parameters"]
