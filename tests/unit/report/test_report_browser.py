"""The page in a real browser: no errors, no network access, figures, selectors and keyboard work."""

import re

import pytest
from browser import BINARY, browser
from report_runs import ablation, summary, write_run
from vold_trainer.report import build_report
from vold_trainer.report.stats import ema

pytestmark = pytest.mark.skipif(BINARY is None, reason="no Chromium on this machine; install it to open the report")


def test_page_in_a_browser(tmp_path):
    lengths = {"grpo": 20, "vold": 24}
    runs = [write_run(tmp_path / name, name, steps=n, missing=name == "vold") for name, n in lengths.items()]
    out = build_report(runs, tmp_path / "report.html", title="t", summary=summary(), ablation=ablation())
    profile = tmp_path / "profile"
    profile.mkdir()
    with browser(profile) as page:
        page.open(out, width=420, height=900, scheme="dark")
        page.wait_for("document.querySelectorAll('#stages .main-svg').length > 0")
        assert page.evaluate("document.documentElement.scrollWidth") == 420

        visible = "[...document.querySelectorAll('#rollouts .item')].filter((item) => !item.hidden)"
        choose = "(name, value) => {{ const s = document.querySelector(`#rollouts [data-filter=${{name}}]`); "
        choose += "s.value = value; s.dispatchEvent(new Event('change')); return {0}.map((i) => i.dataset[name]); }}"
        choose = choose.format(visible)
        steps = page.evaluate(f"{visible}.map((item) => item.dataset.step)")
        assert set(steps) == {"19", "23"}, "the last step of each run is shown first"
        assert set(page.evaluate(f"({choose})('step', '1')")) == {"1"}
        assert set(page.evaluate(f"({choose})('outcome', 'wrong')")) == {"wrong"}
        assert page.evaluate(f"({choose})('outcome', 'unverified')") == []
        assert page.evaluate("document.querySelector('#rollouts .nothing').hidden") is False
        assert page.evaluate("document.querySelector('#rollouts .shown').textContent").startswith("0 of ")
        page.evaluate(f"({choose})('outcome', '')")

        token = f"{visible}[0].querySelector('.tok')"
        page.evaluate(f"{token}.focus()")
        assert "student" in page.evaluate("document.getElementById('tip').textContent")
        for kind in ("keyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
        assert page.evaluate(f"document.activeElement === {token}.nextElementSibling")

        page.evaluate("document.activeElement.blur()")
        assert page.evaluate("document.getElementById('tip').hidden")
        page.evaluate(f"{token}.scrollIntoView({{ behavior: 'instant', block: 'center' }})")
        page.wait_for("new Promise((done) => setTimeout(() => done(true), 200))")  # the scroll has hidden the tip
        x, y = page.evaluate(
            f"(() => {{ const box = {token}.nextElementSibling.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        page.wait_for("!document.getElementById('tip').hidden")
        tip = page.evaluate("document.getElementById('tip').textContent")
        assert tip == page.evaluate(f"{token}.nextElementSibling.ariaLabel")
        assert re.search(r"student \S+ · teacher \S+ · (difference \S+|no score)", tip)

        shown = "[...document.querySelectorAll('#timeline [data-choice]')].findIndex((choice) => !choice.hidden)"
        assert page.evaluate(shown) == 0
        page.evaluate(
            "(() => { const s = document.querySelector('#timeline [data-switch]');"
            " s.value = '1'; s.dispatchEvent(new Event('change')); s.scrollIntoView(); })()"
        )
        assert page.evaluate(shown) == 1
        page.wait_for("document.querySelector('#timeline [data-choice=\"1\"] .main-svg') !== null")
        assert page.evaluate("document.querySelectorAll('#glance .compare tbody tr').length") >= 8
        page.evaluate("document.querySelector('#curves').scrollIntoView()")
        curve = "[...document.querySelectorAll('#curves .chart')].find((c) => c.ariaLabel === 'Reward')"
        page.wait_for(f"{curve}.querySelector('.main-svg') !== null")
        both = f"{curve}.data.slice(0, 2).map((trace) => trace.y)"
        raw, smooth = page.evaluate(both)
        assert raw != smooth
        slide = (
            "((value) => {{ const s = document.querySelector('[data-smooth]'); s.value = value;"
            " s.dispatchEvent(new Event('input'));"
            " return document.querySelector('[data-smooth-says]').textContent; }})({})"
        )
        assert page.evaluate(slide.format(0)) == "off"
        assert page.evaluate(both) == [raw, pytest.approx(raw)]
        assert page.evaluate(slide.format(3)) == "10 points"
        assert page.evaluate(both) == [raw, pytest.approx(ema(raw, 10))]
        page.evaluate(
            "(() => { const s = document.querySelector('[data-along]');"
            " s.value = 'time'; s.dispatchEvent(new Event('change')); })()"
        )
        assert page.evaluate(f"{curve}.data[1].x[1]") == pytest.approx(0.65 * 2 / 60, abs=1e-3)
        assert page.evaluate(f"{curve}.layout.xaxis.title.text") == "minutes"
        shown = f"{curve}.data.filter((t) => t.meta && t.visible === true).map((t) => t.meta.run)"
        chip = "(() => { document.querySelector('[data-chip=\"1\"]').click(); })()"
        assert set(page.evaluate(shown)) == {0, 1}
        page.evaluate(chip)
        assert set(page.evaluate(shown)) == {0}
        page.evaluate(chip)
        assert set(page.evaluate(shown)) == {0, 1}
        titles = page.evaluate("[...document.querySelectorAll('#curves h3')].map((title) => title.textContent)")
        assert {"Top-k overlap", "Entropy gap", "Missing scores", "Distance to the teacher (k2)"} <= set(titles)
        assert page.evaluate("[...document.querySelectorAll('#rollouts img')].every((i) => i.src.startsWith('data:'))")
        assert page.evaluate("document.querySelectorAll('#rollouts .pictures img').length") > 0
        assert page.evaluate("document.documentElement.scrollWidth") == 420
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
