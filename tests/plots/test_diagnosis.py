from __future__ import annotations

from pathlib import Path

from fogline.doctor.finding import Evidence, Finding, Remedy, Trial
from fogline.doctor.report import Rejected, Report


def trial(without: tuple[float, ...], with_it: tuple[float, ...], *, accepted: bool) -> Trial:
    return Trial("a remedy", "as it is", (0, 1, 2), "skill", with_it, without, 60, 180, accepted)


REPORT = Report(
    "faulty",
    findings=(
        Finding(
            "double_softmax",
            "serious",
            0.95,
            (Evidence("last operation", "softmax", "logits"),),
            "A second <softmax>.",
            trial((0.1, 0.2, 0.3), (0.8, 0.9, 0.85), accepted=True),
            Remedy("leave it out", "del model[-1]"),
        ),
    ),
    rejected=(
        Rejected("lr_too_low", trial((0.1, 0.2, 0.3), (0.1, 0.2, 0.2), accepted=False), "no gain"),
        Rejected("label_noise", None, "the labels agree"),
    ),
    control=0.2,
    healed=0.85,
    metric="skill",
    cost_steps=360,
    planned=600,
    notes=("a note",),
)


def test_every_seed_of_every_trial_is_a_line_from_as_it_is_to_the_remedy() -> None:
    change, before, after = REPORT.plot().data
    assert list(before.x) == [0.1, 0.2, 0.3, 0.1, 0.2, 0.3]
    assert list(after.x) == [0.8, 0.9, 0.85, 0.1, 0.2, 0.2]
    assert list(before.y) == list(after.y) == [0, 1, 2, 4, 5, 6]
    assert list(change.x[:6]) == [0.1, 0.8, None, 0.2, 0.9, None]
    figure = REPORT.plot(dark=True)
    assert figure.layout.yaxis.ticktext == ("double_softmax", "lr_too_low (no)")
    assert figure.layout.xaxis.title.text == "skill"


def test_nothing_tried_says_so() -> None:
    assert "No remedy was tried." in Report("healthy").plot().layout.annotations[0].text


def test_the_page_has_the_answer_the_cards_and_what_did_not_help(tmp_path: Path) -> None:
    page = REPORT.html(tmp_path / "new" / "doctor.html").read_text(encoding="utf-8")
    for said in (
        "One thing is wrong: double_softmax.",
        "Skill: as it is 0.2, with the remedies 0.85.",
        "A second &lt;softmax&gt;.",
        "del model[-1]",
        "the labels agree",
        "a note",
        "Cost: 360 steps, 0.60 times the run of 600.",
        'id="figure-0"',
    ):
        assert said in page
    assert "default-src 'none'" in page
    assert "fogline doctor" not in page  # it is what wrote the page
    healthy = (
        Report("healthy", planned=600, notes=("all is well",))
        .html(tmp_path / "healthy.html")
        .read_text(encoding="utf-8")
    )
    assert "Nothing is wrong" in healthy
    assert 'id="figure-0"' not in healthy
