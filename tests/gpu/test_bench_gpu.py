"""The command behind benchmarks/gpu.md, tiny and on the CPU: its parts, its page, and what it says where it cannot."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu
import psutil
import pytest
import torch
from gpu_parts import chips, results, shapes, tables
from gpu_parts.measure import Bench
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[2]


def bench_of(part, folder, until=float("inf")):
    return Bench(part, "tiny", torch.device("cpu"), results.Results(folder, ""), until=until, repeats=1)


def test_the_page_in_the_tree_is_what_the_command_makes_of_the_results_there():
    folder = ROOT / "benchmarks"
    assert (folder / "gpu.md").read_text() == results.render(results.read(folder), "real")
    measured = [line for line in results.read(folder) if line["kind"] == "machine"]
    assert all(chips.peak_flops(line["chip"]) or line.get("cuda") for line in measured), "a CPU's figures are there"


def test_what_nobody_has_measured_says_so():
    page = results.render([], "real")
    for table in tables.TABLES:
        for key in table.rows["real"]:
            assert f"| {' | '.join([*key, *['not run'] * len(table.columns)])} |" in page


def test_results_are_read_back_and_the_last_of_a_row_counts(tmp_path):
    written = results.Results(tmp_path, "")
    key = ("auto", "8")
    written.machine("teacher", {"chip": "NVIDIA H200", "size": "real"})
    written.row("service", key, {"bare_s": 2.0})
    written.row("service", key, {"bare_s": 1.5, "service_s": 2.0, "ratio": 0.75, "backend_s": None})
    written.skipped("service", ("auto", "1"), "out of memory")
    results.Results(tmp_path, "after a change").row("service", key, {"bare_s": 1.0})
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"kind": "ro')  # as a crash leaves it
    page = results.write_page(tmp_path, "real").read_text()
    before, after = page.split("## after a change\n")
    assert "| auto | 8 | 1.500 | not run | 2.000 | 0.75x |" in before
    assert "| auto | 1 | not run: out of memory | not run | not run | not run |" in before
    assert "| auto | 8 | 1.000 | not run | not run | not run |" in after
    assert "NVIDIA H200" in before
    (tmp_path / "gpu.jsonl").write_text('{"kind": "ro\n{}\n')
    with pytest.raises(ValueError, match=r"line 1.*remove the line"):
        results.read(tmp_path)


def test_what_follows_a_line_that_a_crash_cut_off_is_a_line_of_its_own(tmp_path):
    results.Results(tmp_path, "").row("service", ("auto", "1"), {"bare_s": 1.0})
    with (tmp_path / "gpu.jsonl").open("a") as file:
        file.write('{"label": "", "kind": "ro')
    results.Results(tmp_path, "").row("service", ("auto", "8"), {"bare_s": 2.0})
    assert [line["values"]["bare_s"] for line in results.read(tmp_path)] == [1.0, 2.0]


def test_a_section_has_the_figures_of_one_machine_alone(tmp_path):
    """What another chip, or another version, measured of a part before is not under the name of the last one."""
    written = results.Results(tmp_path, "")
    for chip, seconds in (("NVIDIA H100", 3.0), ("NVIDIA H200", 2.0)):
        for part in ("teacher", "update") if seconds == 3 else ("teacher",):
            written.machine(part, {"chip": chip, "size": "real", "date": chip})
        written.row("service", ("auto", "1" if seconds == 3 else "8"), {"bare_s": seconds})
        written.row("update", ("LoRA", "1024"), {"seconds": 7.0})
    page = results.render(results.read(tmp_path), "real")
    assert "| auto | 1 | not run | not run | not run | not run |" in page
    assert "| auto | 8 | 2.000 |" in page
    assert "| LoRA | 1024 | 7.00 |" in page, "of a part that the other machine alone measured"
    rows = results.measured_rows(results.read(tmp_path), "", "teacher")
    assert rows == {("service", ("auto", "8")): {"bare_s": 2.0}}


def test_what_was_measured_before_is_neither_measured_nor_written_again(tmp_path):
    written = results.Results(tmp_path, "")
    written.machine("generation", {"chip": "a", "size": "tiny"})
    written.row("generation", ("12", "1"), {"tokens_s": 5.0, "step_ms": 1.0})
    written.row("generation", ("12", "4"), {"tokens_s": 6.0, "step_ms": 1.0})
    written.skipped("generation", ("12", "4"), "out of time")
    bench = bench_of("generation", tmp_path)
    bench = Bench(
        "generation", "tiny", bench.device, bench.results, until=float("inf"),
        done=results.measured_rows(results.read(tmp_path), "", "generation"),
    )  # fmt: skip
    assert bench.left("generation") == [("12", "4")]
    assert bench.row("generation", ("12", "1"), lambda: pytest.fail("measured again"))
    bench.skip_all("the rest")
    page = results.render(results.read(tmp_path), "tiny")
    assert "| 12 | 1 | 5 | 1.0 | not run |" in page
    assert "| 12 | 4 | not run: the rest |" in page
    bench.together(("generation", ("12", "1")), ("generation", ("12", "4")))
    assert len(bench.left("generation")) == 2, "of what one measurement fills nothing is left alone"


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H200", 989.4), ("NVIDIA H100 80GB HBM3", 989.4), ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA L40S", 362.05), ("NVIDIA B200", 2250.0),
        ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None), ("NVIDIA GH200 480GB", None),
        ("NVIDIA L40", None), ("Tesla T4", None), ("", None),
    ],
)  # fmt: skip
def test_a_share_is_of_the_peak_of_a_known_chip_alone(name, teraflops):
    assert chips.peak_flops(name) == (None if teraflops is None else teraflops * 1e12)


def test_the_operations_of_a_forward_pass_are_those_that_torch_counts():
    config = shapes.teacher_config("tiny")
    config._attn_implementation = "eager"
    model = shapes.random_model(shapes.AutoModelForCausalLM, config, torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.arange(24)[None], use_cache=False)
    rotary = 2 * 24 * config.head_dim // 2  # the angles, an outer product of torch's
    expected = chips.forward_flops(config, tokens=24, pairs=24 * 24, scored=24)
    assert counter.get_total_flops() == pytest.approx(expected, abs=rotary)
    assert chips.causal_pairs(4) == 1 + 2 + 3 + 4
    assert chips.causal_pairs(2, before=5) == 6 + 7


def test_a_measurement_that_fails_is_written_with_its_reason_and_the_next_one_runs(tmp_path, capsys):
    bench = bench_of("generation", tmp_path)

    def fail(error):
        raise error

    bench.row("generation", ("a", "1"), lambda: fail(torch.OutOfMemoryError("CUDA out of memory")))
    bench.row("generation", ("b", "1"), lambda: fail(ValueError("left | right\nsecond line")))
    assert bench.row("generation", ("c", "1"), lambda: {"tokens_s": 5.0, "peak_gib": None})
    bench.until = time.monotonic() - 1
    assert not bench.row("generation", ("d", "1"), lambda: {"tokens_s": 5.0})
    lines = results.read(tmp_path)
    assert [line.get("reason") for line in lines] == [
        "out of memory", "ValueError: left / right", None, "out of time",
    ]  # fmt: skip
    assert "generation c, 1: tokens/s 5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [(torch.OutOfMemoryError("no room"), 0, "out of memory"), (KeyError("weights"), 1, "KeyError: 'weights'")],
)
def test_what_ends_a_part_is_the_reason_of_the_rows_that_are_left(tmp_path, capfd, error, status, reason):
    def measure(bench):
        bench.row("generation", ("12", "1"), lambda: {"tokens_s": 5.0})
        raise error

    assert gpu.measured(bench_of("generation", tmp_path), measure) == status
    page = results.render(results.read(tmp_path), "tiny")
    rows = sum(len(table.rows["tiny"]) for table in tables.TABLES if table.part == "generation")
    assert page.count(f"not run: {reason}") == rows - 1
    assert "| 12 | 1 | 5 | not run | not run |" in page
    assert ("Traceback" in capfd.readouterr().err) == (status == 1)


def test_without_a_gpu_nothing_is_measured_and_nothing_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["teacher", "--out", str(tmp_path)]) == gpu.NO_DEVICE
    assert "sees no CUDA device: nothing is measured" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    for wrong, message in ((["--device", "cpu"], "needs --out FOLDER"), (["trainer"], "there is no part 'trainer'")):
        with pytest.raises(SystemExit):
            gpu.main(wrong)
        assert message in capsys.readouterr().err


def test_the_time_that_lanes_share_is_counted_once(tmp_path):
    from gpu_parts.step import lanes

    rows = [("generate", 0, 4), ("teacher", 2, 3), ("teacher", 2.5, 6), ("optimise", 6, 9)]
    spans = [{"step": step, "lane": lane, "start": a, "end": b} for step in (1, 2) for lane, a, b in rows]
    (tmp_path / "timeline.jsonl").write_text("".join(json.dumps(span) + "\n" for span in spans))
    metrics = [{"step": step, "time/step": 9.0, "time/score_wait": 2.0} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    found = lanes(tmp_path)
    assert {name: found[name] for name in ("generate", "teacher", "optimise", "teacher beside generate", "step")} == {
        "generate": 4, "teacher": 4, "optimise": 3, "teacher beside generate": 2, "step": 9,
    }  # fmt: skip


def test_a_step_of_the_shipped_config_is_reckoned_from_what_was_measured():
    from gpu_parts.generation import of_config
    from gpu_parts.measure import SkippedError

    speeds = {("300", "40"): 900.0, ("4096", "40"): 400.0, ("4096", "128"): 1.0}
    values = of_config("vold_qwen2.5vl_3b", speeds)
    assert values == {"rollouts": 1280, "tokens": 8192, "hours": 1280 * 8192 / 400 / 3600}
    with pytest.raises(SkippedError, match="its batch of 40 was not measured"):
        of_config("vold_qwen2.5vl_3b", {("300", "8"): 100.0})


def test_the_parts_of_the_trainer_measure_at_tiny_size(tmp_path):
    from gpu_parts import update
    from vold_trainer.processes.ranks import Ranks, make_accelerator

    torch.set_num_threads(1)
    update.measure_setting(bench_of("update", tmp_path), "weights", tmp_path / "student", Ranks(make_accelerator()))
    (line,) = results.read(tmp_path)
    assert line["values"]["seconds"] > 0
    assert line["values"]["peak_share"] is None
    assert line["values"]["check_gib"] > 0


SKIPPED = {
    "teacher": {},
    "update": {("update", ("weights, recomputed, Liger", "24")): "student.liger needs a CUDA device"},
    "generation": {("configs", ("vold_qwen2.5vl_3b",)): "the student is not of the config's size"},
    "step": {("step_setting", ("peak, GiB",)): ""},
}
"""The rows that a tiny run on a CPU cannot measure, by part, and how their reasons begin."""


@pytest.mark.slow
@pytest.mark.parametrize("part", tables.PARTS)
def test_every_part_runs_at_tiny_size(part, tmp_path):
    """The command as it is typed: every row is measured, or says why not."""
    options = [part, "--size", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    program = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = results.read(tmp_path)
    assert [line["part"] for line in lines if line["kind"] == "machine"] == [part]
    assert any(line["kind"] == "text" for line in lines) == (part != "step"), "a profile"
    reasons = {}
    for table in tables.TABLES:
        for key in table.rows["tiny"] if table.part == part else ():
            line = [one for one in lines if one.get("table") == table.name and tuple(one["key"]) == key][-1:]
            if not line or line[0]["kind"] == "skipped":
                reasons[table.name, key] = line[0]["reason"] if line else ""
    assert reasons.keys() == SKIPPED[part].keys(), reasons
    for place, reason in SKIPPED[part].items():
        assert reasons[place].startswith(reason)


@pytest.mark.slow
def test_a_part_that_was_killed_goes_on_with_what_is_left(tmp_path):
    options = ["teacher", "--size", "tiny", "--device", "cpu", "--out", str(tmp_path)]
    program = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as run:
        for line in run.stdout:
            if "scoring auto, 24, 3, sampled token" in line:
                run.kill()
                break
    before = results.measured_rows(results.read(tmp_path), "", "teacher")
    assert 4 <= len(before) < sum(len(table.rows["tiny"]) for table in tables.TABLES if table.part == "teacher")
    done = subprocess.run([*program, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(before)} rows were measured before" in done.stdout
    lines = results.read(tmp_path)
    after = results.measured_rows(lines, "", "teacher")
    assert before.items() <= after.items(), "what was there is there, with its values"
    times = [(line["table"], tuple(line["key"])) for line in lines if line["kind"] == "row"]
    assert len(times) == len(set(times)) == len(after)
    rows = {(table.name, key) for table in tables.TABLES if table.part == "teacher" for key in table.rows["tiny"]}
    assert after.keys() == rows
    again = subprocess.run([*program, "--resume"], capture_output=True, text=True, check=False)
    assert "0 are left" in again.stdout


def test_readme_and_docs_claim_nothing_of_a_chip():
    """What a chip was seen to do stands in benchmarks/gpu.md alone."""
    chip = re.compile(r"\b(H100|H200|GH200|A100|B200|L40S?|RTX ?\d{4}|4090)\b")
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"):
        found = chip.search(page.read_text())
        assert found is None, f"{page.name}: {found}"


KILLED = """
import os, sys
from pathlib import Path
import torch
from gpu_parts import results, shapes
from gpu_parts.measure import Bench
from gpu_parts.teacher import serving
folder = Path(sys.argv[1])
bench = Bench("teacher", "tiny", torch.device("cpu"), results.Results(folder, ""), until=float("inf"), repeats=1)
with serving(bench, shapes.teacher_folder("tiny", folder), "auto"):
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_a_benchmark_that_is_killed_leaves_no_service(tmp_path):
    """Its service would hold the device's memory."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, cwd=ROOT / "benchmarks", check=False, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -9, killed.stderr

    def left() -> list[psutil.Process]:
        return [
            each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or ())
        ]

    assert not psutil.wait_procs(left(), timeout=60)[1]
