"""Verification with videos: labeled files, and torchvision's own networks and transforms on the same frames."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torchvision import models
from torchvision.transforms._presets import VideoClassification

from convatlas.data.readers.media import VIDEOS
from convatlas.errors import DataError
from convatlas.inference import upstream
from convatlas.inference.labeled_files import list_labeled_files
from convatlas.inference.upstream import transform_of
from convatlas.inference.verify import verify
from convatlas.models.catalog import CATALOG
from convatlas.weights.build import build
from convatlas.weights.pretrained import find_weights
from upstream import scramble
from video_files import moving_square, write_frames, write_video

pytest.importorskip("av")

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "video_clips"
NETWORKS = ["r3d_18", "mc3_18", "r2plus1d_18"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of two classes in folders, and outside of them."""
    place = tmp_path_factory.mktemp("videos")
    for name, step in {"left/a.mp4": -2, "right/b.mkv": 2}.items():
        (place / name).parent.mkdir()
        write_video(place / name, moving_square(36, 30, 40, step=step), rate=30)
    write_frames(place / "right" / "c", moving_square(40, 30, 40))
    return place


def test_videos_are_listed_by_table_and_by_folder(folder: Path, tmp_path: Path) -> None:
    by_folder = list_labeled_files(folder, VIDEOS)
    assert [file.relative_to(folder).as_posix() for file in by_folder.files] == ["left/a.mp4", "right/b.mkv", "right/c"]
    assert (by_folder.labels, by_folder.classes) == ((0, 1, 1), ("left", "right"))
    shutil.copytree(folder, tmp_path / "videos")
    table = tmp_path / "labels.csv"
    table.write_text("file,label,seen by\nright/c#fps=10,right,x\nleft/a.mp4,left,x\n")
    by_name = list_labeled_files(tmp_path, VIDEOS)
    assert by_name.files == (tmp_path / "videos" / "right" / "c#fps=10", tmp_path / "videos" / "left" / "a.mp4")
    assert (by_name.labels, by_name.classes) == ((1, 0), ("left", "right"))
    table.write_text("file,index\nright/c,7\n")
    assert list_labeled_files(tmp_path, VIDEOS).labels == (7,)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,label\na.mp4,left", "a.mp4: no such file, but line 2"),
        ("file,label\nleft/a.mp4,", "line 2: label must be the name of a class, got ''"),
        ("file,name\nleft/a.mp4,x", "must have the columns file and index, or file and label, got file, name"),
        ("file,label\n", "lists no videos"),
    ],
)
def test_tables_that_cannot_be_meant_are_one_line(folder: Path, text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "left").symlink_to(folder / "left")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        list_labeled_files(tmp_path, VIDEOS)


def test_a_network_for_clips_is_measured_on_videos(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(build("r3d_18_small", classes=2).state_dict(), tmp_path / "x.pth")
    result = verify("r3d_18_small", folder, file=tmp_path / "x.pth")
    assert (result.accuracy.n, result.noun, result.upstream) == (3, "video", None)
    assert "frames resized to 73 x 98 px (height x width) (bilinear, not antialiased)" in result.protocol
    assert "5 evenly spaced clips of 16 frames at 15 per second" in result.protocol
    (tmp_path / "images" / "left").mkdir(parents=True)
    with pytest.raises(DataError, match="or a folder of videos for each class; it has neither"):
        verify("r3d_18_small", tmp_path / "images", file=tmp_path / "x.pth")


def test_inputs_are_those_of_torchvision_up_to_rounding(folder: Path) -> None:
    steps = CATALOG["r3d_18"].preprocessing
    preset = VideoClassification(crop_size=(112, 112), resize_size=(128, 171), mean=steps.mean, std=steps.std)
    for file in list_labeled_files(folder, VIDEOS).files:
        clips = upstream._read_clips(file, steps)
        assert [tuple(clip.shape) for clip in clips] == [(16, 3, 30, 40)] * 5
        inputs = transform_of(steps)(file)
        assert (inputs - torch.stack([preset(clip) for clip in clips])).abs().max() <= 5e-7


@pytest.mark.slow
@pytest.mark.skipif(not CLIPS.is_dir(), reason="the shared clips are not here")
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_on_real_clips_are_those_of_torchvision(name: str, tmp_path: Path) -> None:
    """The same inputs give the same outputs to the bit; from the videos on, they are equal up to rounding."""
    theirs = models.get_model(name, weights=None)
    scramble(theirs)
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(CLIPS / "high_jump.mp4", videos)
    (videos / "labels.csv").write_text("file,label\nhigh_jump.mp4,high jump\n")
    weights = f"{name}@torchvision:KINETICS400_V1"
    theirs, transform = upstream.build_upstream(find_weights(weights), tmp_path / "x.pth")
    ours = build(name, weights=tmp_path / "x.pth").eval()
    with torch.inference_mode():
        inputs = transform(videos / "high_jump.mp4")[1:3]
        assert torch.equal(ours(inputs), theirs(inputs))
    result = verify(weights, videos, file=tmp_path / "x.pth")
    assert result.upstream is not None
    assert (result.upstream.library, result.upstream.num_same_top5) == ("torchvision", 1)
    assert result.upstream.max_difference < 1e-4
    assert result.upstream.accuracy == result.accuracy
    assert any("in the same order for 1 of 1 video; " in note for note in result.notes())
