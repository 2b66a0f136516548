"""The page of ``jqz report``: its policy, its figures, and how it looks in a browser."""

import html
import itertools
import json
import re
import shutil
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest

import jqz
from jqz import cli

RNG = np.random.default_rng(2)
TREE = {
    "stem": {"kernel": RNG.standard_t(3, (9, 8)).astype(np.float32), "bias": np.ones(8, np.float32)},
    "body": {"kernel": RNG.normal(size=(8, 40)).astype(np.float32)},
    "head": {"kernel": RNG.laplace(size=(40, 10)).astype(np.float16)},
}
KERNELS = {name: part["kernel"] for name, part in TREE.items()}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "net.safetensors"
    jqz.files.safetensors.write(path, TREE)
    return str(path)


def page_of(capsys, *arguments):
    """What the command says, and the page that it writes."""
    assert cli.main(["report", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert not err
    facts = json.loads(out)
    with open(facts["file"], encoding="utf-8") as file:
        return facts, file.read()


def policy_in(page):
    (text,) = re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
    return eval(html.unescape(text), {"jqz": jqz, **vars(jqz)})


def noise(kernel, bits):
    """noise / signal of a kernel, rounded to the nearest multiple of a step for each output channel."""
    w = kernel.astype(np.float64)
    step = np.abs(w).max(0) / (2 ** (bits - 1) - 1)
    return np.sum((np.rint(w / step) * step - w) ** 2) / np.sum(w**2)


def test_the_policy_is_the_best_of_all_with_so_few_bits(source, tmp_path, capsys):
    facts, page = page_of(capsys, source, "-o", str(tmp_path / "page.html"), "--bits", "3.5")
    policy = policy_in(page)
    bits = {path.split("/")[0]: scheme.bits for path, scheme in policy.rules}

    def total(bits):
        return sum(noise(KERNELS[name], bits[name]) for name in KERNELS)

    def average(bits):
        return sum(bits[name] * KERNELS[name].size for name in KERNELS) / sum(k.size for k in KERNELS.values())

    every = (dict(zip(KERNELS, some, strict=True)) for some in itertools.product(range(2, 9), repeat=3))
    best = min(total(some) for some in every if average(some) <= 3.5)
    assert total(bits) == pytest.approx(best, rel=1e-3)
    assert facts["average_bits"] == pytest.approx(average(bits))
    assert facts["bytes"] == jqz.size_bytes(jqz.quantize(TREE, policy))
    assert (facts["tensors"], facts["quantized"]) == (4, 3)
    assert page.count("<svg") == 4


def test_a_policy_of_ones_own(source, tmp_path, capsys):
    arguments = source, "-o", str(tmp_path / "page.html"), "--policy", "head/*=None", "--policy", "Symmetric(bits=4)"
    facts, page = page_of(capsys, *arguments)
    assert policy_in(page) == jqz.Policy({"head/*": None, "**": jqz.Symmetric(bits=4)})
    assert (facts["quantized"], facts["average_bits"], page.count("<svg")) == (2, None, 2)


def test_codes_are_shown_as_they_are(tmp_path, capsys):
    path, policy = tmp_path / "codes.safetensors", jqz.Policy({"stem/kernel": jqz.PowerOfTwo(bits=4)})
    jqz.save(path, jqz.quantize(TREE, policy))
    facts, page = page_of(capsys, str(path), "-o", str(tmp_path / "page.html"))
    assert (facts["quantized"], facts["bytes"]) == (1, jqz.size_bytes(jqz.quantize(TREE, policy)))
    assert "Values of stem/kernel, the largest weight" in page
    (row,) = re.findall(r"<tbody><tr>(.*?)</tr></tbody>", page)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row)
    assert cells[:3] == ["stem/kernel", "9 x 8", html.escape(repr(jqz.PowerOfTwo(bits=4)))]
    assert cells[6:8] == ["", ""]  # what was lost, the file does not tell


def test_mistakes_are_a_line_and_leave_an_old_page_alone(source, tmp_path, capsys, monkeypatch):
    old = tmp_path / "page.html"
    old.write_text("old")
    for wrong, why in (("--bits=1", "Raise the limit"), ("--policy=Symmetrical(bits=4)", "Symmetric")):
        assert cli.main(["report", source, "-o", str(old), wrong]) == 2
        err = capsys.readouterr().err
        assert why in err
        assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["report", source, "-o", str(old)]) == 1
    assert "pip install 'jqz[plot]'" in capsys.readouterr().err
    assert old.read_text() == "old"


def seen(page, folder):
    """The page as Chromium draws it: (height, width) from 0, black, to 1.

    No Python package brings a browser, so a machine may have none; ``.ci/run`` installs one.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("there is no Chromium: install one to see how the page looks")
    source, shot = folder / "page.html", folder / "shot.png"
    source.write_text(page, encoding="utf-8")
    quiet = (
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-sync",
        "--no-first-run",
        "--hide-scrollbars",
    )
    subprocess.run(
        [browser, "--headless", "--no-sandbox", *quiet, f"--user-data-dir={folder / 'profile'}",
         "--window-size=1300,3000", f"--screenshot={shot}", source.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return matplotlib.image.imread(shot)[..., :3].mean(-1)


def test_a_browser_draws_all_of_it(source, tmp_path, capsys):
    _, page = page_of(capsys, source, "-o", str(tmp_path / "out.html"))
    whole = seen(page, tmp_path)
    without = seen(page.replace("</style>", "svg { visibility: hidden; }</style>"), tmp_path)
    assert whole.shape == without.shape == (3000, 1300)
    assert (without[:120] < 0.5).any()  # the title
    assert (whole[:, :16] > 0.99).all()  # margins: nothing runs out of the page
    assert (whole[:, -16:] > 0.99).all()
    assert (whole[-50:] > 0.99).all()
    drawn = np.flatnonzero((np.abs(whole - without) > 0.3).any(1))
    bands = np.split(drawn, np.flatnonzero(np.diff(drawn) > 40) + 1)
    assert len(bands) >= page.count("<svg") == 4
    assert all(len(band) > 60 for band in bands)


def test_the_page_replaces_no_weights(source, capsys):
    assert cli.main(["report", source, "-o", source]) == 2
    assert "the page would replace" in capsys.readouterr().err
    assert jqz.files.safetensors.read(source).keys() == TREE.keys()


def test_bytes_of_what_jax_has_no_numbers_for(tmp_path, capsys):
    path = str(tmp_path / "net.npz")
    jqz.files.npz.write(path, {"w": np.ones((8, 8), np.float32), "n": np.arange(4)})
    facts = page_of(capsys, path, "-o", str(tmp_path / "page.html"), "--policy", "Symmetric(4)")[0]
    assert (facts["bytes_before"], facts["bytes"]) == (8 * 8 * 4 + 32, 8 * 8 // 2 + 4 + 32)
