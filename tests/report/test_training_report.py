"""The page of a run: self-contained, honest about what it was measured on, clear when it cannot."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from megabase.errors import OutputError, ReportError
from megabase.genome.files import write_whole
from megabase.report import run_page
from megabase.report.run_page import _build_run_page, _read_evaluation, _read_run, write_run_page
from megabase.report.style import document, figure

Record = dict[str, Any]


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out where only the words matter: it takes most of the time."""
    for name in ("draw_learning_curve", "draw_context_curve", "draw_baselines"):
        monkeypatch.setattr(run_page, name, lambda *_, **__: None)


def page_of(run: Path, evaluation: Record | None) -> str:
    return _build_run_page(_read_run(run), evaluation)


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<(style|title)>.*?</\1>|<[^>]+>", " ", page, flags=re.S).split())


class Outline(HTMLParser):
    """Collects what a page refers to, and checks that its tags close."""

    void = frozenset({"meta", "img", "source", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "srcset", "href", "data")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_asks_no_host(run_folder: Path, evaluation: Record) -> None:
    page = page_of(run_folder, evaluation)
    outline = Outline(page)
    assert outline.open == []
    assert outline.references
    assert all(r.startswith("data:image/svg+xml;base64,") for r in outline.references)
    assert "script" not in outline.tags
    assert "url(" not in page
    assert "default-src 'none'" in page
    for reference in outline.references:
        svg = base64.b64decode(reference.split(",", 1)[1]).decode()
        ET.fromstring(svg)
        assert not re.search(r'(href|src)="(?!#)', svg)


@pytest.mark.usefixtures("no_drawing")
def test_every_picture_comes_light_and_dark_wide_and_narrow(
    run_folder: Path, evaluation: Record
) -> None:
    page = page_of(run_folder, evaluation)
    assert page.count("<picture>") == 3
    assert page.count("<source") == 9
    assert page.count('alt="') == 3


def test_page_tells_the_facts_of_the_run(run_folder: Path, evaluation: Record) -> None:
    text = text_of(page_of(run_folder, evaluation))
    for fact in (
        "HyenaDNA on human chr20",
        "On 4,999,988 held-out bases",
        "2,073",
        "13.1 M",
        "53,025,520 bases: chr20:1-45,000,000, chr20:55,000,001-63,025,520",
        "step-00000200",
        "torch 2.13.0",
        "0123456789ab",
        "soft-masked",
        "No base of these regions lies in the training regions.",
        "saves 0.0802",
    ):
        assert fact in text


@pytest.mark.usefixtures("no_drawing")
def test_stages_of_the_warm_up_are_listed_with_their_cost(
    run_folder: Path, evaluation: Record
) -> None:
    text = text_of(page_of(run_folder, evaluation))
    assert "3 1,024 7.86 M 48 s 3.612" in text


@pytest.mark.parametrize(
    ("margin", "verdict"),
    [
        (
            0.01,
            "That is better than the best baseline, a Markov model of order 12 with fitted rates",
        ),
        (0.001, "That is level with the best baseline"),
        (-0.001, "That is level with the best baseline"),
        (-0.01, "That is worse than the best baseline"),
    ],
)
@pytest.mark.usefixtures("no_drawing")
def test_verdict_follows_the_paired_difference(
    run_folder: Path, evaluation: Record, margin: float, verdict: str
) -> None:
    evaluation["baselines"][-1]["margin_nats"] = margin
    assert verdict in text_of(page_of(run_folder, evaluation))


@pytest.mark.usefixtures("no_drawing")
def test_training_regions_are_never_called_held_out(run_folder: Path, evaluation: Record) -> None:
    evaluation["train_overlap"] = 1_000
    text = text_of(page_of(run_folder, evaluation))
    assert "On 4,999,988 bases, not all of them held out," in text
    assert "1,000 of 5,000,000 bases lie in the training regions" in text


@pytest.mark.usefixtures("no_drawing")
def test_another_genome_is_said(run_folder: Path, evaluation: Record) -> None:
    evaluation["genome_checksum"] = "cd" * 32
    text = text_of(page_of(run_folder, evaluation))
    assert "is not the one trained on" in text


@pytest.mark.usefixtures("no_drawing")
def test_context_that_does_not_help_is_said(run_folder: Path, evaluation: Record) -> None:
    evaluation["context"][-1]["saved_nats"] = 0.0003
    assert "no measurable difference" in text_of(page_of(run_folder, evaluation))
    evaluation["context"][-1]["saved_nats"] = -0.03
    assert "costs 0.0433" in text_of(page_of(run_folder, evaluation))


@pytest.mark.usefixtures("no_drawing")
def test_page_without_evaluation_says_so(run_folder: Path) -> None:
    page = page_of(run_folder, None)
    assert "has not been evaluated on held-out DNA yet" in text_of(page)
    assert page.count("<picture>") == 1


def test_a_run_on_labels_shows_its_metrics_and_no_perplexity(run_folder: Path) -> None:
    split = {"source": "/data/train.csv", "rows": 400, "bases": 32_000}
    data = {"kind": "classes", "classes": ["no", "yes"], "train": split, "test": split}
    (run_folder / "data.json").write_text(json.dumps(data))
    result: Record = {"rows": {"train": 400, "test": 400}, "valid": {}, "monitor": "none",
                      "test": {"accuracy": 0.99, "mcc": None}}  # fmt: skip
    (run_folder / "result.json").write_text(json.dumps(result))
    text = text_of(page_of(run_folder, None))
    for fact in (
        "HyenaDNA on train.csv",
        "On 400 test sequences: accuracy 0.9900. No baseline was trained beside it",
        "metric test (400) accuracy 0.9900 mcc -",
        "classes no, yes training 400 sequences, 32,000 bases: train.csv",
    ):
        assert fact in text
    assert "erplexity" not in text
    with pytest.raises(ReportError, match="on labeled sequences, which have no evaluation"):
        write_run_page(run_folder, evaluation="evaluation.json")


@pytest.mark.usefixtures("no_drawing")
def test_page_without_baselines_or_curve(run_folder: Path, evaluation: Record) -> None:
    evaluation["baselines"], evaluation["context"] = evaluation["baselines"][:1], []
    page = page_of(run_folder, evaluation)
    assert page.count("<picture>") == 1
    assert "No Markov model was trained beside it" in text_of(page)


@pytest.mark.usefixtures("no_drawing")
def test_names_cannot_break_the_page(run_folder: Path, evaluation: Record) -> None:
    data = json.loads((run_folder / "data.json").read_text())
    data["genome"]["name"] = "<script>alert(1)</script>&"
    (run_folder / "data.json").write_text(json.dumps(data))
    outline = Outline(page_of(run_folder, evaluation))
    assert "script" not in outline.tags


@pytest.mark.usefixtures("no_drawing")
def test_files_are_found_written_and_never_overwritten_unasked(run_folder: Path) -> None:
    page = write_run_page(run_folder)
    assert page == run_folder / "report.html"
    assert "4,999,988" in page.read_text()
    with pytest.raises(OutputError, match=r"report\.html exists"):
        write_run_page(run_folder)
    page.write_text("old")
    write_run_page(run_folder, overwrite=True)
    assert page.read_text().startswith("<!doctype html>")
    assert not list(run_folder.glob(".*"))


def test_training_parameters_come_from_the_optimizer(run_folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    state = run_folder / "best" / "training_state"
    state.mkdir()
    moments = {"w::exp_avg": np.zeros((3, 5), np.float32), "w::exp_avg_sq": np.zeros((3, 5)),
               "b::exp_avg": np.zeros(2, np.float32), "w::step": np.zeros(())}  # fmt: skip
    save_file(moments, state / "optimizer.safetensors")
    assert _read_run(run_folder).parameters == 17
    save_file({**moments, "m::momentum_buffer": np.zeros((4, 4))}, state / "optimizer.safetensors")
    assert _read_run(run_folder).parameters == 33


def test_line_cut_short_by_a_kill_is_passed_over(run_folder: Path) -> None:
    path = run_folder / "metrics.jsonl"
    path.write_text(path.read_text() + '{"kind": "tra')
    assert _read_run(run_folder).of_kind("train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", None, "is not a run folder: it has no metrics.jsonl"),
        ("metrics.jsonl", "", "holds no training step yet"),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl, line 1 is not a JSON record"),
        ("config.yaml", "a: [", r"config\.yaml cannot be read"),
        ("data.json", "{", r"data\.json cannot be read"),
        ("data.json", "[]", "expected a JSON object, found list"),
        ("data.json", "{}", r"holds no result\.json yet; finish the run"),
    ],
)
def test_broken_run_folders_are_named(
    run_folder: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (run_folder / name).unlink()
    else:
        (run_folder / name).write_text(content)
    with pytest.raises(ReportError, match=message):
        _read_run(run_folder)


def test_runs_that_trained_no_model_are_told_so(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="there is no such run folder"):
        write_run_page(tmp_path / "nowhere")
    (run_folder / "prompt").mkdir()  # of a soft prompt
    with pytest.raises(ReportError, match=r"trained no model.*result\.json"):
        write_run_page(run_folder)
    (run_folder / "prompt").rmdir()
    (run_folder / "metrics.jsonl").unlink()  # of demonstrations alone
    (run_folder / "result.json").write_text("{}")
    with pytest.raises(ReportError, match=r"trained no model.*result\.json"):
        write_run_page(run_folder)


def test_run_without_checkpoint_is_named(run_folder: Path) -> None:
    (run_folder / "best").unlink()
    (run_folder / "last").unlink()
    with pytest.raises(ReportError, match="holds no checkpoint yet"):
        _read_run(run_folder)


def test_what_is_no_evaluation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"kind": "benchmark"}')
    with pytest.raises(ReportError, match="is not an evaluation"):
        _read_evaluation(tmp_path / "x.json")


def test_page_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_whole(tmp_path / "none" / "x.html", "text", False)
    assert list(tmp_path.iterdir()) == []


def test_alternative_text_is_escaped() -> None:
    page = document("t", [figure(lambda figure, theme, size: None, 'a "quoted" <b>', "c & d")])
    assert 'alt="a &quot;quoted&quot; &lt;b&gt;"' in page
    assert "c &amp; d" in page
