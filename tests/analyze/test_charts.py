"""Charts: values where they belong, in SVG that stands alone."""

import xml.etree.ElementTree as ElementTree

import pytest

from rlvr_decode.charts import Chart, Series, svg
from rlvr_decode.charts.png import save

LINE = Series(name="a<b", x=[0, 1, 2], y=[0.2, 0.4, 0.3], low=[0.1, 0.3, 0.2], high=[0.3, 0.5, 0.4])
STEPS = Series(name="counts", x=[0, 1, 2], y=[0.0, 10.0], steps=True)


def chart(*series, **settings):
    return Chart(title="T & t", x_label="x", y_label="y", series=series, **settings)


def test_an_svg_is_well_formed_and_points_follow_their_values():
    root = ElementTree.fromstring(svg.render(chart(LINE)))
    circles = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter("circle")]
    (x0, y0), (x1, y1), (x2, y2) = circles
    assert x2 - x1 == pytest.approx(x1 - x0, abs=0.2)
    # y points down, and 0.3 lies halfway between 0.2 and 0.4.
    assert y1 < y2 < y0 and y2 == pytest.approx((y0 + y1) / 2, abs=0.2)
    titles = [title.text for title in root.iter("title")]
    assert titles[1] == "a<b: 1, 0.400 [0.300, 0.500]"
    assert len(list(root.iter("polygon"))) == 1


def test_log_axes_leave_out_what_has_no_logarithm():
    root = ElementTree.fromstring(svg.render(chart(LINE, log_x=True)))
    assert len(list(root.iter("circle"))) == 2
    root = ElementTree.fromstring(svg.render(chart(STEPS, log_y=True)))
    [outline] = [p.get("points").split() for p in root.iter("polyline")]
    heights = [float(point.split(",")[1]) for point in outline]
    assert heights[0] == svg.HEIGHT - svg.BOTTOM > heights[-1]


def test_ticks_are_round_and_inside():
    root = ElementTree.fromstring(svg.render(chart(Series(name="s", x=[3, 90], y=[1e-4, 2e-4]))))
    texts = [text.text for text in root.iter("text")]
    assert {"20", "40", "60", "80"} <= set(texts)


def test_a_series_with_points_missing_is_refused():
    with pytest.raises(ValueError, match="s: 1 of y for 2 points"):
        Series(name="s", x=[1, 2], y=[1])
    with pytest.raises(ValueError, match="s: 1 of low for 2 points"):
        Series(name="s", x=[1, 2], y=[1, 2], low=[1])
    with pytest.raises(ValueError, match="a chart needs a value it can show"):
        svg.render(chart(Series(name="s", x=[-1.0], y=[1.0]), log_x=True))


def test_a_png_has_every_chart(tmp_path):
    from matplotlib.image import imread

    save([chart(LINE), chart(STEPS, log_y=True), chart(LINE)], tmp_path / "three.png")
    drawn = imread(tmp_path / "three.png")[..., :3]
    height, width = (size // 2 for size in drawn.shape[:2])
    inked = [
        (drawn[top : top + height, left : left + width] < 0.5).mean()
        for top in (0, height)
        for left in (0, width)
    ]
    assert all(share > 0.005 for share in inked[:3]) and inked[3] == 0
