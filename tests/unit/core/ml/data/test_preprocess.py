"""From encoded bytes to pixels: formats, conversions, orientation, and what is refused."""

import io
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from core.ml.data.preprocess import (
    Conversion,
    ImageError,
    decode_image,
    preprocess,
    read_image,
    resize_image,
)

ORIENTATION_TAG = 0x0112
#: How a camera stores an upright scene under each EXIF orientation.
AS_STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(data: bytes) -> npt.NDArray[np.uint8]:
    return decode_image(data)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png_of_size(width: int, height: int) -> bytes:
    """A grey PNG of any size in a few bytes for each row; its pixels are all zero."""
    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    body = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


class TestFormats:
    @pytest.mark.parametrize(
        ("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})]
    )
    def test_lossless_formats_keep_every_pixel(self, kind: str, options: dict[str, object]) -> None:
        image = picture()
        found = read_image(encoded(image, kind, **options))
        assert found.format == kind
        assert (found.width, found.height) == image.size
        assert not found.conversions
        np.testing.assert_array_equal(found.pixels, np.asarray(image))

    @pytest.mark.parametrize(
        "options",
        [{"quality": 30}, {"subsampling": 0}, {"progressive": True}, {"subsampling": 1}],
        ids=str,
    )
    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_every_jpeg_has_the_pixels_that_pillow_sees(
        self, mode: str, options: dict[str, object]
    ) -> None:
        data = encoded(picture(61, 47).convert(mode), "JPEG", **options)
        by_pillow = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(pixels_of(data), np.asarray(by_pillow))

    def test_a_jpeg_that_only_pillow_forgives_is_read(self) -> None:
        data = encoded(picture(61, 47), "JPEG")
        # Bytes between two markers: libjpeg warns, and Pillow lives with it.
        place = data.index(b"\xff\xdb")
        forgiven = data[:place] + b"\x00\x00" + data[place:]
        with pytest.raises(ValueError, match="xtraneous"):
            simplejpeg.decode_jpeg(forgiven, "RGB", strict=True)
        by_pillow = Image.open(io.BytesIO(data)).convert("RGB")
        np.testing.assert_array_equal(pixels_of(forgiven), np.asarray(by_pillow))

    def test_jpeg_is_read_as_pillow_reads_it(self) -> None:
        data = encoded(picture(), "JPEG", quality=90)
        expected = np.asarray(Image.open(io.BytesIO(data)))
        np.testing.assert_array_equal(pixels_of(data), expected)

    def test_a_jpeg_with_a_zip_behind_it_is_the_jpeg(self) -> None:
        data = encoded(picture(), "JPEG")
        np.testing.assert_array_equal(pixels_of(data + b"PK\x03\x04" + bytes(99)), pixels_of(data))

    @pytest.mark.parametrize("kind", ["GIF", "TIFF", "EPS", "PPM", "PDF", "ICO"])
    def test_other_formats_are_refused_whatever_their_name(self, kind: str) -> None:
        with pytest.raises(ImageError) as caught:
            decode_image(encoded(picture(), kind))
        assert caught.value.code == "unsupported_format"

    @pytest.mark.parametrize(
        "data", [b"", b"text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"BM is text"]
    )
    def test_what_is_no_image_is_refused(self, data: bytes) -> None:
        with pytest.raises(ImageError) as caught:
            decode_image(data)
        assert caught.value.code == "unsupported_format"

    def test_mpo_of_phones_is_a_jpeg(self) -> None:
        data = encoded(picture(), "MPO", save_all=True, append_images=[picture(8, 8)])
        found = read_image(data)
        assert (found.format, found.width, found.conversions) == ("JPEG", 24, frozenset())


class TestConversions:
    def test_grey_is_repeated(self) -> None:
        grey = picture().convert("L")
        expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
        np.testing.assert_array_equal(pixels_of(encoded(grey)), expected)

    def test_one_bit_is_black_and_white(self) -> None:
        data = encoded(picture().convert("1"))
        assert set(np.unique(pixels_of(data))) == {0, 255}

    def test_a_palette_is_looked_up(self) -> None:
        palette = picture().quantize(16)
        expected = np.asarray(palette.convert("RGB"))
        np.testing.assert_array_equal(pixels_of(encoded(palette)), expected)

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_transparency_lies_over_white(self, mode: str) -> None:
        image = picture().convert(mode)
        alpha = np.tile(np.linspace(0, 255, image.width).astype(np.uint8), (image.height, 1))
        image.putalpha(Image.fromarray(alpha))
        found = read_image(encoded(image))
        assert found.conversions == {Conversion.ALPHA}
        colour = np.asarray(image.convert("RGBA"), dtype=np.float64)
        weight = colour[:, :, 3:] / 255
        expected = colour[:, :, :3] * weight + 255 * (1 - weight)
        np.testing.assert_allclose(found.pixels, expected, atol=1)

    def test_a_palette_with_a_transparent_colour(self) -> None:
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putpixel((1, 1), 1)
        found = pixels_of(encoded(palette, transparency=0))
        assert found[0, 0].tolist() == [255, 255, 255]
        assert found[1, 1].tolist() == [40, 50, 60]

    def test_a_colour_key_is_transparency(self) -> None:
        image = Image.new("RGB", (4, 4), (1, 2, 3))
        image.putpixel((2, 2), (9, 8, 7))
        found = pixels_of(encoded(image, transparency=(1, 2, 3)))
        assert found[0, 0].tolist() == [255, 255, 255]
        assert found[2, 2].tolist() == [9, 8, 7]

    def test_cmyk_becomes_rgb(self) -> None:
        data = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG", quality=100)
        found = read_image(data)
        assert found.conversions == {Conversion.CMYK}
        np.testing.assert_allclose(found.pixels[8, 8], [0, 255, 255], atol=3)

    def test_sixteen_bit_grey_is_scaled_not_clipped(self) -> None:
        deep = np.linspace(0, 65_535, 64).astype(np.uint16).reshape(8, 8)
        found = read_image(encoded(Image.fromarray(deep)))
        assert found.conversions == {Conversion.DEEP}
        np.testing.assert_array_equal(found.pixels[:, :, 1], deep // 257)

    def test_sixteen_bit_colour_keeps_the_high_byte(self) -> None:
        samples = np.random.default_rng(1).integers(0, 65_536, (4, 5, 3)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in samples)
        header = struct.pack(">LLBBBBB", 5, 4, 16, 2, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
        data += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
        np.testing.assert_array_equal(pixels_of(data), samples >> 8)

    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_an_animation_is_its_first_frame(self, kind: str) -> None:
        frames = [picture(seed=seed) for seed in range(5)]
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        found = read_image(data)
        assert found.conversions == {Conversion.FIRST_FRAME}
        np.testing.assert_array_equal(found.pixels, np.asarray(frames[0]))

    def test_a_colour_profile_changes_nothing(self) -> None:
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        for icc_profile in (profile, b"broken"):
            data = encoded(picture(), icc_profile=icc_profile)
            np.testing.assert_array_equal(pixels_of(data), np.asarray(picture()))


class TestOrientation:
    @given(
        orientation=st.sampled_from(sorted(AS_STORED)),
        width=st.integers(2, 40),
        height=st.integers(2, 40),
        image_px=st.integers(4, 40),
        kind=st.sampled_from(["PNG", "WEBP"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_rotated_by_exif_equals_upright(
        self, orientation: int, width: int, height: int, image_px: int, kind: str
    ) -> None:
        upright = picture(width, height, seed=width)
        stored = upright.transpose(AS_STORED[orientation])
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = orientation
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        turned = encoded(stored, kind, exif=exif, **options)
        expected = preprocess(encoded(upright), image_px)
        np.testing.assert_array_equal(preprocess(turned, image_px), expected)
        by_pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(turned)))
        np.testing.assert_array_equal(pixels_of(turned), np.asarray(by_pillow.convert("RGB")))

    def test_is_reported_with_the_upright_size(self) -> None:
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = 6
        found = read_image(encoded(picture(24, 16), "JPEG", exif=exif))
        assert (found.width, found.height) == (16, 24)
        assert found.conversions == {Conversion.ROTATED}

    @pytest.mark.filterwarnings("ignore:.*EXIF")  # Pillow tells it to the log
    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0broken", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0"]
    )
    def test_broken_exif_means_upright(self, exif: bytes) -> None:
        data = encoded(picture(), "JPEG", exif=exif)
        np.testing.assert_array_equal(pixels_of(data), pixels_of(encoded(picture(), "JPEG")))

    @pytest.mark.parametrize("value", [0, 9, 65_535])
    def test_an_unknown_orientation_means_upright(self, value: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION_TAG] = value
        found = read_image(encoded(picture(), "JPEG", exif=exif))
        assert (found.width, found.height) == (24, 16)


class TestRefused:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
    @pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
    def test_a_cut_file(self, kind: str, part: float) -> None:
        data = encoded(picture(200, 200), kind)
        with pytest.raises(ImageError) as caught:
            decode_image(data[: int(len(data) * part)])
        assert caught.value.code in {"image_truncated", "image_undecodable"}

    def test_a_cut_jpeg_is_told_apart(self) -> None:
        data = encoded(picture(200, 200), "JPEG")
        with pytest.raises(ImageError) as caught:
            decode_image(data[: len(data) // 2])
        assert caught.value.code == "image_truncated"
        assert caught.value.message == f"{caught.value.cause}: {caught.value.hint}."

    def test_a_damaged_checksum(self) -> None:
        data = bytearray(encoded(picture()))
        data[data.index(b"IDAT") + 6] ^= 0xFF
        with pytest.raises(ImageError) as caught:
            decode_image(bytes(data))
        assert caught.value.code in {"image_truncated", "image_undecodable"}

    @pytest.mark.parametrize("side_px", [13_000, 20_000])
    def test_a_pixel_bomb_is_refused_before_it_is_decoded(self, side_px: int) -> None:
        with pytest.raises(ImageError) as caught:
            decode_image(png_of_size(side_px, side_px))
        assert caught.value.code == "pixel_bomb"

    def test_the_limit_on_pixels_is_exact(self) -> None:
        data = encoded(picture(10, 10))
        assert decode_image(data, max_pixels=100).shape == (10, 10, 3)
        with pytest.raises(ImageError) as caught:
            decode_image(data, max_pixels=99)
        assert caught.value.code == "pixel_bomb"

    @pytest.mark.parametrize("size", [(1, 60_000), (1, 1), (500, 1)])
    def test_sides_of_one_pixel(self, size: tuple[int, int]) -> None:
        with pytest.raises(ImageError) as caught:
            decode_image(png_of_size(*size))
        assert caught.value.code == "image_too_small"

    def test_sides_of_no_pixel(self) -> None:
        with pytest.raises(ImageError):
            decode_image(png_of_size(0, 10))

    def test_a_narrow_image_is_accepted(self) -> None:
        assert preprocess(png_of_size(2, 60_000), 8).shape == (8, 8, 3)

    @pytest.mark.filterwarnings("ignore")  # Pillow warns of damage that it can live with
    @given(
        kind=st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]),
        seed=st.integers(0, 2**32),
        flips=st.integers(1, 40),
    )
    @settings(max_examples=150, deadline=None)
    def test_any_damage_is_an_image_or_an_image_error(
        self, kind: str, seed: int, flips: int
    ) -> None:
        rng = random.Random(seed)
        data = bytearray(encoded(picture(40, 40), kind))
        for _ in range(flips):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            result = preprocess(bytes(data[: rng.randrange(len(data)) + 1]), 16)
        except ImageError as error:
            assert error.code  # noqa: PT017 - both outcomes are right
        else:
            assert result.shape == (16, 16, 3)


class TestResize:
    def test_does_not_keep_proportions_and_crops_nothing(self) -> None:
        halves = Image.new("RGB", (100, 20), (255, 0, 0))
        halves.paste((0, 0, 255), (50, 0, 100, 20))
        result = preprocess(encoded(halves), 10)
        assert result.shape == (10, 10, 3)
        assert result.dtype == np.uint8
        assert (result[:, :4] == (255, 0, 0)).all()
        assert (result[:, 6:] == (0, 0, 255)).all()

    def test_the_right_size_is_left_alone(self) -> None:
        pixels = np.asarray(picture(16, 16))
        np.testing.assert_array_equal(resize_image(pixels, 16), pixels)

    @pytest.mark.parametrize(
        "size", [(500, 375), (375, 500), (64, 64), (40, 30), (30, 300), (300, 30), (2, 9), (9, 2)]
    )
    @pytest.mark.parametrize("image_px", [16, 64, 224])
    def test_is_pillows_within_two_levels_in_a_few_pixels(
        self, size: tuple[int, int], image_px: int
    ) -> None:
        small = picture(size[0] // 8 + 2, size[1] // 8 + 2, seed=size[0])
        pixels = np.array(small.resize(size, Image.Resampling.BICUBIC))
        # The width first, which not every version of Pillow does by itself.
        wide = Image.fromarray(pixels).resize((image_px, size[1]), Image.Resampling.BICUBIC)
        expected = np.asarray(wide.resize((image_px, image_px), Image.Resampling.BICUBIC))
        difference = np.abs(resize_image(pixels, image_px).astype(int) - expected)
        assert difference.max() <= 2
        assert (difference > 0).mean() <= 0.03

    def test_the_first_version_is_pillows(self) -> None:
        pixels = np.array(picture(50, 37))
        expected = Image.fromarray(pixels).resize((24, 24), Image.Resampling.BICUBIC)
        found = resize_image(pixels, 24, version=1)
        np.testing.assert_array_equal(found, np.asarray(expected))
        assert (resize_image(pixels, 24, version=2) != found).any()

    def test_an_unknown_version_is_refused(self) -> None:
        with pytest.raises(ValueError, match="preprocessing 3"):
            resize_image(np.zeros((4, 4, 3), dtype=np.uint8), 8, version=3)

    def test_a_constant_stays_constant(self) -> None:
        result = preprocess(encoded(Image.new("RGB", (37, 91), (12, 34, 56))), 24)
        assert (result == (12, 34, 56)).all()

    def test_shrinking_averages_instead_of_skipping(self) -> None:
        stripes = np.zeros((64, 64, 3), dtype=np.uint8)
        stripes[:, ::2] = 255
        result = resize_image(stripes, 8)
        # Skipping would give 0 or 255; the border lacks the other half of its window.
        np.testing.assert_allclose(result, 127.5, atol=6)


def test_the_data_modules_load_no_platform() -> None:
    root = Path(__file__).parents[5]
    code = (
        "import sys, core.ml.data.preprocess, core.ml.data.splits, core.ml.data.cache, "
        "core.ml.data.manifest, core.ml.data.report; "
        "sys.exit(any(m in sys.modules for m in ('timm', 'pydantic', 'sqlalchemy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
