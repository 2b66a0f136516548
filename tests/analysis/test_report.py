"""The report page: one file, well formed, with the figures of the functions that it calls."""

import html.parser
import re
import xml.etree.ElementTree as ET

import jax
import numpy as np
import pytest

import jqz
from jqz.analysis import figures, report, sqnr

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.standard_normal((3, 3, 4, 8)).astype(np.float32), "bias": np.zeros(8, np.float32)},
    "head": {"kernel": RNG.standard_normal((64, 10)).astype(np.float32)},
}
PARAMS["head"]["kernel"][2, 3] = 15.0
POLICY = jqz.Policy({"**/kernel": jqz.Symmetric(bits=4)})


LINKS = ("src", "href", "xlink:href")


class Page(html.parser.HTMLParser):
    """Tags that are open, cells of the table, and whatever a browser would load."""

    def __init__(self):
        super().__init__()
        self.open, self.rows, self.loads, self.text = [], [], [], ""

    def handle_starttag(self, tag, attributes):
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.loads += [v for k, v in attributes if k in LINKS and not v.startswith(("#", "data:"))]
        assert tag not in ("script", "link", "img", "iframe")

    def handle_startendtag(self, tag, attributes):
        self.loads += [v for k, v in attributes if k in LINKS and not v.startswith(("#", "data:"))]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def text():
    scores = figures.sensitivities([[1.0], [0.1]], ["conv", "head"], ["4 bits"], "nats by weight")
    return report(PARAMS, POLICY, title="A <small> model", drawings=[("Sensitivity", scores)])


def test_the_page_stands_alone_and_says_what_was_measured(text):
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert "A <small> model" in page.text
    assert "url(http" not in text
    assert "@import" not in text
    head, conv, last, foot = page.rows
    assert head[:3] == ["weight", "shape", "scheme"]
    assert conv[:3] == ["conv/kernel", "3 x 3 x 4 x 8", "Symmetric(bits=4)"]
    assert last[0] == "head/kernel"
    stored = 3 * 3 * 4 * 8 // 2 + 4, 64 * 5 + 4
    assert [conv[4], last[4]] == [f"{n:,}" for n in stored]
    assert foot[4] == f"{jqz.size_bytes(jqz.quantize(PARAMS, POLICY)):,}"
    assert conv[6] == f"{sqnr(PARAMS['conv']['kernel'], jqz.Symmetric(bits=4)).measured_db:.1f}"
    assert conv[8] == str(len(np.unique(jqz.quantize(PARAMS["conv"]["kernel"], jqz.Symmetric(bits=4)).codes)))
    assert "2 of 3 tensors" in page.text


def test_the_weight_with_an_outlier_is_marked_and_shown(text):
    page = Page()
    page.feed(text)
    assert page.rows[2][6].endswith("▲")
    assert not page.rows[1][6].endswith("▲")
    assert "Values of head/kernel" in page.text
    (policy,) = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert eval(html.unescape(policy), {"jqz": jqz, **vars(jqz)}) == POLICY


def test_svgs_are_well_formed_and_share_no_ids(text):
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 3
    ids = []
    for drawing in drawings:
        root = ET.fromstring(drawing)
        mine = {element.get("id") for element in root.iter() if element.get("id")}
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing))
        assert used <= mine
        assert "weight" in "".join(root.itertext())  # text stays text
        ids.append(mine)
    assert not ids[0] & ids[1] | ids[1] & ids[2] | ids[0] & ids[2]


def test_a_tree_that_nothing_selects():
    text = report({"bias": jax.numpy.zeros(3)}, lambda path, leaf: None)
    assert "0 of 1 tensors" in text
    assert "<svg" not in text
