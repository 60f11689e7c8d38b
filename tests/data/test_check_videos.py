"""The check of videos reports each fault, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from convatlas.cli.app import app
from convatlas.data.check import check_data
from convatlas.data.data_report import DataReport
from convatlas.data.decode.display_video import display_video
from convatlas.data.inspect_videos import DEFAULT_SAMPLING, CheckedVideo
from convatlas.errors import DataError
from convatlas.models.catalog import CATALOG
from video_files import moving_square, set_display_matrix, write_frames, write_gif, write_sound, write_video

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Videos of 1.2 s: 3 to train and 2 for val in each of two classes."""
    seed = iter(range(100))
    for split, count in (("train", 3), ("val", 2)):
        for label in ("jump", "run"):
            for i in range(count):
                frames = moving_square(12, 32, 40, seed=next(seed))
                write_video(tmp_path / "films" / split / label / f"{i}.mp4", frames, rate=10)
    return tmp_path / "films"


def run(data: object, **options: object) -> DataReport:
    return check_data(data, progress=False, **options)  # type: ignore[arg-type]


def kinds(report: DataReport) -> dict[str, tuple[str, int]]:
    """Return {kind: (severity, count)} of the findings."""
    return {each.kind: (each.severity, each.count) for each in report.findings}


def test_good_videos_have_no_findings(films: Path) -> None:
    report = run(films)
    assert (report.findings, report.noun, report.counts) == ((), "video", {"train": [3, 3], "val": [2, 2]})
    assert (report.modes, report.sizes) == ({"h264": 10}, ((40, 32),) * 3)
    assert report.videos["train"].seconds == pytest.approx(7.2, abs=0.01)
    assert report.image_lines()[-2:] == [
        "train: 6 videos, 7.20 s; 1.20 s to 1.20 s, median 1.20 s; 10 frames per second",
        "val: 4 videos, 4.80 s; 1.20 s to 1.20 s, median 1.20 s; 10 frames per second",
    ]
    assert repr(report).startswith("films: 10 videos, 2 classes")


def test_the_default_clip_is_that_of_the_catalog() -> None:
    steps = CATALOG["r3d_18"].preprocessing
    assert steps.sampling is not None
    assert (steps.sampling.frames, steps.sampling.rate) == (DEFAULT_SAMPLING.frames, DEFAULT_SAMPLING.rate)


def test_every_fault_is_found(films: Path) -> None:
    train = films / "train"
    frames = moving_square(12, 32, 40, seed=50)
    write_video(train / "run" / "short.mp4", frames[:8], rate=10)
    write_video(train / "run" / "uneven.mkv", frames, times=[0.1 * i + (0.05 if i % 2 else 0) for i in range(12)])
    set_display_matrix(write_video(train / "jump" / "phone.mp4", frames[::-1], rate=10), rotation=90)
    write_sound(train / "jump" / "sound.mp4")
    (train / "jump" / "cut.mp4").write_bytes((train / "jump" / "0.mp4").read_bytes()[:300])
    shutil.copy(train / "jump" / "1.mp4", films / "val" / "run" / "copy.mp4")
    (train / "run" / "notes.txt").touch()
    report = run(films, group_pattern=r"(\d)\.mp4")
    assert kinds(report) == {
        "unreadable_videos": ("error", 2), "leaks": ("error", 1), "split_groups": ("error", 2),
        "short_videos": ("warning", 1), "label_conflicts": ("warning", 1), "duplicates": ("warning", 1),
        "rotated_videos": ("note", 1), "variable_rates": ("note", 1), "ignored_files": ("note", 1),
        "remark": ("note", 1),
    }  # fmt: skip
    texts = [finding.text + finding.fix for finding in report.findings]
    assert not [text for text in texts if "image" in text]
    assert report.findings[0].text == "2 videos are unreadable, more than 1% of 16"
    assert {Path(video.name).name for video in report.unreadable} == {"sound.mp4", "cut.mp4"}
    plain = report.to_plain()
    assert plain["videos"]["train"] | {"seconds": 0, "highest_rate": 0, "longest": 0} == {
        "videos": 9, "seconds": 0, "shortest": pytest.approx(0.8), "median": pytest.approx(1.2), "longest": 0,
        "lowest_rate": pytest.approx(10, rel=0.05), "highest_rate": 0, "variable_rates": 1, "short": 1,
    }  # fmt: skip
    json.dumps(plain)


def test_copies_are_equal_by_their_frames_and_parts_are_not(tmp_path: Path) -> None:
    frames = moving_square(24, 32, 40)
    write_video(tmp_path / "a.mkv", frames, rate=10)
    write_frames(tmp_path / "frames", frames)
    write_gif(tmp_path / "a.gif", frames)
    rows = ["a.mkv,a,0,1.2", "a.mkv,b,1.2,2.4", "a.mkv,a,,", "frames,b,,", "a.gif,b,,"]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,start,end", *(f"{row}" for row in rows)]))
    (tmp_path / "list2.csv").write_text("file,label,start,end,fps\nframes,a,,,10\na.gif,b,,,\n")
    parts = run(tmp_path / "list.csv")
    assert parts.duplicates == ()
    assert sorted(video.seconds for video in parts.images if isinstance(video, CheckedVideo)) == pytest.approx(
        [0.96, 1.2, 1.2, 2.4, 2.4], abs=0.01
    )
    same = run(tmp_path / "list2.csv")
    assert (len(same.duplicates), len(same.label_conflicts)) == (1, 1)


def test_classes_of_left_and_right_are_told(tmp_path: Path) -> None:
    for label in ("turn_left", "turn_right", "Left Arm", "Right Arm", "bright", "blight"):
        write_video(tmp_path / label / "1.mp4", moving_square(20, 16, 24, seed=len(label)), rate=10)
    report = run(tmp_path)
    (finding,) = [each for each in report.findings if each.kind == "mirrored_classes"]
    assert (finding.severity, finding.count) == ("warning", 2)
    assert "--set flip=false" in finding.fix


def test_arrays_and_tasks(films: Path) -> None:
    x = np.stack([moving_square(20, 16, 16, seed=i) for i in range(4)])
    report = run((np.concatenate([x, x[:1]]), [0, 1, 0, 1, 1]))
    assert (len(report.duplicates), len(report.label_conflicts), report.in_memory) == (1, 1, True)
    assert report.image_lines()[-1] == "train: 5 videos"
    assert run(films, task="video").counts == {"train": [3, 3], "val": [2, 2]}
    with pytest.raises(DataError, match=r"task must be one of .*got 'clips'"):
        run(films, task="clips")
    report = run(films, task="classify")
    assert "contains videos, and a network that reads images" in report.findings[0].text


def test_the_command_prints_the_videos_and_draws_strips(films: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    (films / "train" / "run" / "bad.mp4").write_bytes(b"bad")
    result = CliRunner().invoke(app, ["data", "check", str(films), "--task", "video", "--sheet", str(sheet)])
    assert result.exit_code == 1
    assert "codecs: h264 (10)" in result.output
    assert "error: 1 video is unreadable" in result.output
    assert sheet.stat().st_size > 1000
    strip = display_video(str(films / "train" / "run" / "0.mp4"))
    assert strip is not None
    assert strip.shape == (32, 6 * 40 + 5 * 2, 3)
    assert display_video(str(films / "train" / "run" / "bad.mp4")) is None
    assert display_video(f"{films / 'train' / 'run' / '0.mp4'}#t=0.1,0.10001") is None
    plain = CliRunner().invoke(app, ["data", "check", str(films), "--json"])
    assert json.loads(plain.stdout)["unreadable"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "odd_clips").is_dir(), reason="needs the shared data")
def test_each_odd_clip_is_read_or_unreadable_as_described(tmp_path: Path) -> None:
    for label in ("odd_clips", "video_clips"):
        (tmp_path / label).symlink_to(SHARED / label)
    report = run(tmp_path)
    described = json.loads((SHARED / "odd_clips" / "clips.json").read_text())["clips"]
    videos = {Path(video.name).name: video for video in report.images if isinstance(video, CheckedVideo)}
    assert len(described) == 30
    for clip in described:
        video = videos[clip["file"]]
        damaged = not clip["video_streams"] or clip["decode_error"] or clip["open_error"]
        assert bool(video.unreadable) == bool(damaged), (clip["file"], video.unreadable)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "gestures_ego").is_dir(), reason="needs the shared data")
def test_gestures_are_measured_as_their_table_says() -> None:
    report = run(SHARED / "gestures_ego")
    lines = (SHARED / "gestures_ego" / "labels.csv").read_text().splitlines()
    columns = lines[0].split(",")
    rows = {line.split(",")[0]: dict(zip(columns, line.split(","), strict=True)) for line in lines[1:]}
    assert (report.has_errors, kinds(report)["mirrored_classes"]) == (False, ("warning", 1))
    for video in report.images:
        assert isinstance(video, CheckedVideo)
        row = rows["/".join(Path(video.name).parts[-2:])]
        assert video.variable_rate == (row["vfr"] == "yes")
        assert video.seconds == pytest.approx(float(row["seconds"]), abs=0.1)
