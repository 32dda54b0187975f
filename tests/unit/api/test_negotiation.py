import pytest

from api.negotiation import choose_media_type

OFFERED = ("application/json", "image/png")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        (" , ", "application/json"),
        ("*/*", "application/json"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/png"),
        ("image/*;q=0.9, application/json;q=0.8", "image/png"),
        ("image/*;q=0.8, application/json;q=0.9", "application/json"),
        ("image/png;q=0, image/*;q=1, */*;q=0.1", "application/json"),  # the most specific decides
        ("*/*;q=0.1, image/png;q=0.2", "image/png"),
        ("image/png; q=much", "application/json"),
        ("image/png;level=1;q=0.4, application/json;q=0.3", "image/png"),
        ("image/png;q=7, application/json", "application/json"),  # out of range counts as 1
        ("text/html", "application/json"),
    ],
)
def test_the_best_liked_offer_is_taken(accept, chosen):
    assert choose_media_type(accept, OFFERED) == chosen
