"""What is sent in place of an image, in every protocol: told in its own form, never a 5xx."""

import io
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.integration.inference.conftest import MAX_IMAGE_BYTES
from tests.integration.inference.protocols import SENDERS, SINGLE, check_refusal
from tests.integration.inference.published import draw


def _save(image: Image.Image, encoding: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, encoding, **options)
    return buffer.getvalue()


def _animation() -> bytes:
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in range(250)]
    return _save(frames[0], "GIF", save_all=True, append_images=frames[1:])


_BAD = {
    "text": b"hello " * 300,
    "zeros": bytes(1000),
    "truncated jpeg": draw(1, encoding="JPEG", size=(128, 128))[:-2000],
    "truncated png": draw(1)[:-400],
    "20 000 x 20 000 png": _save(Image.new("1", (20_000, 20_000)), "PNG"),
    "1 x 60 000": _save(Image.new("L", (1, 60_000)), "PNG"),
    "one pixel": draw(1, size=(1, 1)),
    "animated gif": _animation(),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00",
    "tiff": _save(Image.new("RGB", (32, 32)), "TIFF"),
}


@pytest.mark.parametrize("protocol", SENDERS)
@pytest.mark.parametrize("case", _BAD)
def test_it_is_refused_and_named(client: httpx.Client, protocol: str, case: str) -> None:
    answer = SENDERS[protocol](client, [draw(1), _BAD[case]])
    sentence = check_refusal(answer, 422)
    if protocol not in SINGLE:
        assert "1" in sentence.partition(":")[0], "the second image is named, by its index"


@pytest.mark.parametrize("protocol", SENDERS)
def test_an_image_over_the_limit_is_413(client: httpx.Client, protocol: str) -> None:
    big = draw(1, encoding="BMP", size=(300, 300))
    assert len(big) > MAX_IMAGE_BYTES
    check_refusal(SENDERS[protocol](client, [big]), 413)


@pytest.mark.parametrize("protocol", sorted(SENDERS.keys() - SINGLE))
def test_too_many_images_are_413(client: httpx.Client, protocol: str) -> None:
    sentence = check_refusal(SENDERS[protocol](client, [b"x"] * 65), 413)
    assert "at most 64 images" in sentence


@pytest.mark.parametrize("protocol", SENDERS)
def test_an_empty_image_is_422(client: httpx.Client, protocol: str) -> None:
    check_refusal(SENDERS[protocol](client, [b""]), 422)


def _turned() -> tuple[bytes, bytes]:
    upright = Image.open(io.BytesIO(draw(9, size=(64, 48))))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to look at it
    return _save(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif), draw(
        9, size=(64, 48)
    )


def _flattened_frames() -> tuple[bytes, bytes]:
    frames = [Image.new("RGB", (64, 64), (shade, 40, 200)) for shade in (10, 120, 240)]
    animated = _save(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return animated, _save(frames[0], "PNG")


def _grey() -> tuple[bytes, bytes]:
    values = np.random.default_rng(2).integers(0, 256, (64, 64), dtype=np.uint8)
    image = Image.fromarray(values)
    return _save(image, "PNG"), _save(image.convert("RGB"), "PNG")


def _broken_exif() -> tuple[bytes, bytes]:
    image = Image.open(io.BytesIO(draw(4)))
    broken = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    return _save(image, "WEBP", lossless=True, exif=broken), draw(4)


_SAME = {
    "exif turned": _turned,
    "animated webp": _flattened_frames,
    "grey": _grey,
    "broken exif": _broken_exif,
}


@pytest.mark.parametrize("protocol", SENDERS)
@pytest.mark.parametrize("case", _SAME)
def test_odd_images_count_as_what_one_sees(client: httpx.Client, protocol: str, case: str) -> None:
    odd, plain = _SAME[case]()
    answers = [SENDERS[protocol](client, [image]) for image in (odd, plain)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].content == answers[1].content


@pytest.mark.parametrize("protocol", SENDERS)
@pytest.mark.parametrize("mode", ["CMYK", "P", "I;16", "LA", "1"])
def test_other_modes_are_converted(client: httpx.Client, protocol: str, mode: str) -> None:
    encoding = "JPEG" if mode == "CMYK" else "PNG"
    image = _save(Image.new(mode, (64, 64)), encoding)
    assert SENDERS[protocol](client, [image]).status_code == 200


def test_bad_neighbours_harm_nobody(client: httpx.Client) -> None:
    good = draw(7)
    before = SENDERS["raw"](client, [good]).json()
    answers: dict[int, httpx.Response] = {}
    names = sorted(SENDERS)

    def send(turn: int) -> None:
        if turn % 2:
            answers[turn] = SENDERS["raw"](client, [good])
        else:
            bad = list(_BAD.values())[turn % len(_BAD)]
            answers[turn] = SENDERS[names[turn % len(names)]](client, [bad])

    threads = [threading.Thread(target=send, args=(turn,)) for turn in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn, answer in answers.items():
        if turn % 2 == 0:
            check_refusal(answer, 422)
        else:
            assert answer.status_code == 200
            after = answer.json()
            assert [one["label"] for one in after] == [one["label"] for one in before]
            for one, other in zip(after, before, strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-5)
