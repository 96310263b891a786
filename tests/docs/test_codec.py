"""docs/codec.md: its table names every codec for updates, and `alignfed codec list` says what was measured."""

import re

import pytest

from schemas.codec import CODECS, UPDATE_CODECS


@pytest.fixture
def measured(docs):
    """Codec, step where it has one, and how many times smaller than fp32, of every row that the benchmark wrote."""
    text = (docs / "codec.md").read_text(encoding="utf-8")
    part = text.partition("<!-- measured: codecs -->")[2].partition("<!-- end -->")[0]
    rows = re.findall(r"^\| [^|]+ \| (\w+)(?:, step (\d))? \| [\d,]+ \| ([\d.]+)x \|", part, flags=re.MULTILINE)
    return [(codec, int(step or 1), float(ratio)) for codec, step, ratio in rows]


def test_every_codec_for_updates_was_measured(measured):
    assert {codec for codec, _, _ in measured} == set(UPDATE_CODECS)


@pytest.mark.parametrize("codec", UPDATE_CODECS)
def test_the_usual_ratio_lies_among_those_that_were_measured(codec, measured):
    ratios = [ratio for name, step, ratio in measured if name == codec and step == 1]
    assert min(ratios) * 0.95 <= CODECS[codec].typical_ratio <= max(ratios) * 1.05
