import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lissome.report.curves import curves, exponent


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_the_exponent_of_a_power_is_found(power, factor):
    assert exponent([(n, factor * n**power) for n in (1024, 2048, 8192, 65536)]) == pytest.approx(power, abs=1e-6)


def test_one_size_has_no_exponent():
    with pytest.raises(ValueError, match="two different sizes"):
        exponent([(5, 1), (5, 2)])


def test_the_picture_is_well_formed_and_every_point_lies_inside():
    text = curves(
        "time <of> a call", "tokens", "ms", {"dense & slow": [(1024, 1), (4096, 16)], "ours": [(1024, 1), (4096, 4.0)], "same": [(1024, 2), (4096, 4.0)]}
    )
    root = ElementTree.fromstring(text)
    space = {"s": "http://www.w3.org/2000/svg"}
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.findall("s:circle", space)]
    assert len(dots) == 6 and all(0 < x < 560 and 0 < y < 340 for x, y in dots)
    names = {text.text: float(text.get("y")) for text in root.findall("s:text", space) if text.text in ("dense & slow", "ours", "same")}
    assert abs(names["ours"] - names["same"]) >= 13
    assert "4k" in [one.text for one in root.findall("s:text", space)]
