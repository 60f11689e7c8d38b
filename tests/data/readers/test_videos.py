"""Videos in folders, tables and memory: every file is read, or counted with the reason why it is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from convatlas.core.clips import ClipSampling
from convatlas.core.preprocessing import Preprocessing
from convatlas.data.decode.files import VIDEO_EXTENSIONS
from convatlas.data.open import open_data, open_for_evaluation, open_for_training
from convatlas.data.readers.video_files import is_frame_folder, list_videos
from convatlas.data.source import Source
from convatlas.errors import DataError
from video_files import moving_square, write_frames, write_gif, write_sound, write_video

STEPS = Preprocessing(resize=16, crop=16, sampling=ClipSampling(4, 10.0, clips=2)).for_channels(3)
CLASSES = ("swipe_left", "swipe_right")
SHARED = Path(__file__).parents[4] / "shared" / "data"


def touch(root: Path, names: Sequence[str]) -> Path:
    """Write files whose contents do not matter: nothing is decoded when data is opened."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"{number}".encode())
    return root


def still(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    return path


def names_of(source: Source, root: Path) -> dict[str, list[str]]:
    """Return the names of each split relative to a folder, sorted."""
    return {split: sorted(os.path.relpath(name, root) for name in part.names) for split, part in source.splits.items()}


@pytest.fixture(scope="module")
def encoded(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("encoded") / "film.mp4"
    return write_video(path, moving_square(12, 16, 24), rate=10).read_bytes()


# --- folders


def test_class_folders_of_films_are_videos_without_being_told(tmp_path: Path) -> None:
    root = touch(tmp_path, ["a/1.mp4", "a/below/2.MOV", "b/3.webm", "b/notes.txt", "b/sub.srt", "labels.csv"])
    source = open_data(root)
    assert (source.task.short_name, source.classes, source.channels) == ("video", ("a", "b"), 3)
    assert names_of(source, root) == {"train": ["a/1.mp4", "a/below/2.MOV", "b/3.webm"]}
    assert "2 files are not used: 1 .srt, 1 .txt" in source.remarks[0]


@pytest.mark.parametrize("suffix", sorted(VIDEO_EXTENSIONS))
def test_every_suffix_of_videos_is_a_video_and_never_an_image(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, [f"a/1{suffix.upper()}", "a/2.jpg", "b/3.jpg"])
    assert names_of(open_data(tmp_path), tmp_path) == {"train": ["a/2.jpg", "b/3.jpg"]}
    assert [Path(name).name for name in list_videos(tmp_path / "a")[0]] == [f"1{suffix.upper()}"]


def test_splits_and_an_evaluation_with_fewer_classes(tmp_path: Path) -> None:
    root = touch(tmp_path, [f"{split}/{c}/1.mp4" for split in ("train", "Val", "test") for c in CLASSES])
    assert set(open_for_training(root, val_share=0.2).splits) == {"train", "val", "test"}
    shutil.rmtree(root / "test" / CLASSES[0])
    with pytest.raises(DataError, match="test split lacks swipe_left"):
        open_for_training(root, val_share=0.2, reads="clips")
    assert open_for_evaluation(root, reads="clips").classes == CLASSES


def test_folders_of_frames_gifs_and_films_are_mixed(tmp_path: Path) -> None:
    frames = moving_square(3, 8, 8)
    write_frames(tmp_path / "a" / "run", frames)
    write_frames(tmp_path / "a" / "person" / "jump", frames, suffix=".webp")
    (tmp_path / "a" / "run" / "deeper").mkdir()
    still(tmp_path / "a" / "run" / "deeper" / "1.png")  # belongs to the video
    write_gif(tmp_path / "b" / "wave.gif", frames)
    touch(tmp_path, ["b/film.mp4"])
    Image.fromarray(frames[0]).save(
        tmp_path / "b" / "hop.png", save_all=True, append_images=[Image.fromarray(frames[1])], duration=100
    )
    Image.fromarray(frames[0]).save(
        tmp_path / "b" / "turn.webp", save_all=True, append_images=[Image.fromarray(frames[1])], duration=100
    )
    source = open_data(tmp_path, reads="clips")
    found = ["a/person/jump", "a/run", "b/film.mp4", "b/hop.png", "b/turn.webp", "b/wave.gif"]
    assert names_of(source, tmp_path) == {"train": found}
    assert [is_frame_folder(tmp_path / name) for name in found] == [True, True, False, False, False, False]
    assert not is_frame_folder(tmp_path / "a")
    assert not is_frame_folder(tmp_path / "b")


def test_images_beside_videos_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, ["a/1.mp4", "a/.hidden.mp4", "a/@eaDir/1.mp4", "b/2.mp4", "b/rec/3.mp4", "loose.mp4"])
    still(tmp_path / "a" / "poster.png")
    still(tmp_path / "b" / "rec" / "thumb.jpg")
    source = open_data(tmp_path, reads="clips")
    assert names_of(source, tmp_path) == {"train": ["a/1.mp4", "b/2.mp4", "b/rec/3.mp4"]}
    reasons = {reason: len(names) for reason, names in source.ignored.reasons.items()}
    assert reasons == {"images in no folder of frames": 2, "hidden": 1, "in @eaDir": 1, "in no class folder": 1}


def test_files_without_a_known_suffix_are_recognized_by_their_first_bytes(tmp_path: Path, encoded: bytes) -> None:
    touch(tmp_path, ["a/1.mp4", "b/2.mp4", "b/other", "b/3.mp4.part"])
    (tmp_path / "a" / "film").write_bytes(encoded)
    names = names_of(open_data(tmp_path), tmp_path)["train"]
    assert names == ["a/1.mp4", "a/film", "b/2.mp4"]


def test_a_link_that_leads_nowhere_is_an_unreadable_video(tmp_path: Path, encoded: bytes) -> None:
    for name in ("a/1.mp4", "b/2.mp4"):
        touch(tmp_path, [name]).joinpath(name).write_bytes(encoded)
    (tmp_path / "a" / "gone.mp4").symlink_to("nowhere.mp4")
    data = open_data(tmp_path).load(STEPS, max_unreadable=0.5)
    assert [each.reason for each in data.unreadable] == [f"{tmp_path}/a/gone.mp4: dangling link to nowhere.mp4"]


# --- images where clips are read, and the reverse


def test_the_wrong_kind_of_data_is_one_line_that_names_networks(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", ["a/1.mp4", "b/2.mp4"])
    (tmp_path / "list.csv").write_text("file,label\nvideos/a/1.mp4,a\nvideos/b/2.mp4,b\n")
    images = tmp_path / "images"
    for name in ("a/1.png", "b/2.png"):
        still(images / name)
    (tmp_path / "images.csv").write_text("file,label\nimages/a/1.png,a\nimages/b/2.png,b\n")
    arrays = np.zeros((4, 8, 8, 3), np.uint8), [0, 1, 0, 1]
    clips = np.zeros((4, 5, 8, 8, 3), np.uint8), [0, 1, 0, 1]
    for data in (videos, tmp_path / "list.csv", clips):
        with pytest.raises(DataError, match=r"contains videos.*reads images needs images; choose .* such as r3d_18"):
            open_for_training(data, val_share=0.2, reads="images")
    for data in (images, tmp_path / "images.csv", "digits", arrays):
        with pytest.raises(DataError, match=r"contains images.*reads clips needs videos; choose .* such as resnet18"):
            open_for_training(data, val_share=0.2, reads="clips")
    with pytest.raises(DataError, match="consists of images, and the task video needs videos"):
        open_data("digits").for_task("video")
    assert open_data(videos).for_task("video").task.name == "video classification"
    with pytest.raises(DataError, match=r"is for the task video .*, not for multi-label-video"):
        open_data(videos).for_task("multi-label-video")


# --- tables


def write_table(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_parts_of_one_file_are_videos_that_stay_together(tmp_path: Path) -> None:
    touch(tmp_path, ["film.mp4", "other.mp4"])
    rows = [f"film.mp4,{'ab'[i % 2]},{i},{i + 1}" for i in range(4)] + ["other.mp4,a,,", "other.mp4,b,2.5,"]
    table = write_table(tmp_path, "\n".join(["video,label,start,end", *rows]))
    source = open_data(table)
    film, other = tmp_path / "film.mp4", tmp_path / "other.mp4"
    expected = [f"{film}#t=0,1", f"{film}#t=1,2", f"{film}#t=2,3", f"{film}#t=3,4", f"{other}", f"{other}#t=2.5"]
    assert sorted(source.splits["train"].names) == expected
    assert source.notes == ("parts of one video stay in one split",)
    parts = source.with_val(val_share=0.5)
    assert {len({name.partition("#")[0] for name in part.names}) for part in parts.values()} == {1}


def test_frame_rates_are_those_of_folders_of_frames(tmp_path: Path) -> None:
    write_frames(tmp_path / "frames", moving_square(3, 8, 8))
    touch(tmp_path, ["film.mp4"])
    table = write_table(
        tmp_path, "path\tclass\tfps\tsplit\nframes\ta\t10\t\nfilm.mp4\tb\t24\t\nframes\ta\t\tval\n", "l.tsv"
    )
    source = open_data(table)
    assert sorted(source.splits["train"].names) == [f"{tmp_path}/film.mp4", f"{tmp_path}/frames#fps=10"]
    assert source.splits["val"].names == [f"{tmp_path}/frames"]


def test_multilabel_tables_and_fragments_in_cells(tmp_path: Path) -> None:
    touch(tmp_path, ["1.mp4", "2.mp4", "odd#t=1.mp4"])
    table = write_table(tmp_path, "file,labels\n1.mp4#t=1,a|b\n2.mp4,\nodd#t=1.mp4,b\n")
    source = open_data(table)
    assert source.task.short_name == "multi-label-video"
    assert [Path(name).name for name in sorted(source.splits["train"].names)] == ["1.mp4#t=1", "2.mp4", "odd#t=1.mp4"]
    one_hot = write_table(tmp_path, "file,start,end,run,jump\n1.mp4,0,1,1,0\n2.mp4,0,1,1,1\n", "hot.csv")
    assert open_data(one_hot).classes == ("run", "jump")


def test_names_with_blanks_dashes_and_fragments_are_found(tmp_path: Path) -> None:
    names = [" front.mp4", "back .mp4", "a b.mp4", "-dash.mp4", "take #1.mp4", "odd#t=1.mp4", "x,y.mp4"]
    touch(tmp_path, names)
    rows = [f'"{name}{time}",{label}' for name in names for time, label in (("", "a"), ("#t=0.5,1 ", "b"))]
    source = open_data(write_table(tmp_path, "\n".join(["file,label", *rows])))
    found = names_of(source, tmp_path)["train"]
    assert sorted(found) == sorted(f"{name}{time}" for name in names for time in ("", "#t=0.5,1"))
    groups = source.splits["train"].groups
    assert groups is not None
    assert len(groups.unique()) == len(names)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("1.mp4,a,x,2", "line 2: start must be a number >= 0, got 'x'"),
        ("1.mp4,a,-1,2", "line 2: start must be a number >= 0, got '-1'"),
        ("1.mp4,a,inf,", "line 2: start must be a number >= 0, got 'inf'"),
        ("1.mp4,a,2,2", "line 2: end must be > 2, the start, got 2"),
        ("1.mp4,a,,0", "line 2: end must be > 0, the start, got 0"),
        ('"1.mp4#t=1,2",a,1,', "has a time, #t=, and a start or end in its own column"),
        ('"1.mp4#t=2,1",a,,', "the end of the time must be > its start"),
        ("gone.mp4,a,1,2", "gone.mp4 does not exist"),
        ("still.png,a,,", "list.csv: contains images, and a network that reads clips needs videos"),
        ("2.mp4,a,0,1", "is in line 2 already; a part of a video has one row"),
    ],
)
def test_rows_that_cannot_be_used_name_their_line(tmp_path: Path, row: str, told: str) -> None:
    touch(tmp_path, ["1.mp4", "2.mp4"])
    still(tmp_path / "still.png")
    table = write_table(tmp_path, f"file,label,start,end\n{row}\n2.mp4,b,0,1\n")
    with pytest.raises(DataError) as error:
        open_data(table, reads="clips")
    assert told in str(error.value)


def test_an_image_in_a_table_of_videos_names_its_line(tmp_path: Path) -> None:
    touch(tmp_path, ["1.mp4"])
    still(tmp_path / "still.png")
    table = write_table(tmp_path, "file,label\n1.mp4,a\nstill.png,b\n")
    with pytest.raises(DataError, match=r"line 3: still.png is an image, not a video"):
        open_data(table)


def test_videos_inside_parquet_are_read(tmp_path: Path, encoded: bytes) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    videos = [{"bytes": encoded, "path": f"{i}.mp4"} for i in range(4)]
    table = arrow.table({"video": videos, "label": ["a", "b", "a", "b"]})
    parquet.write_table(table, tmp_path / "train-0.parquet")
    source = open_data(tmp_path)
    assert source.task.short_name == "video"
    data = source.load(STEPS)
    assert tuple(data.train.pixels.shape) == (4, 2, 4, 3, 16, 16)


# --- memory


@pytest.mark.parametrize("form", ["array", "list", "tensor", "data set", "items"])
def test_arrays_of_frames_are_videos(form: str) -> None:
    x = np.stack([moving_square(6, 16, 16, seed=i) for i in range(6)])
    y = np.arange(6) % 2
    tensors = torch.from_numpy(x).movedim(-1, 2), torch.from_numpy(y)
    data = {
        "array": (x, y), "list": ([*x[:, :5], x[0]], [*y, 0]), "tensor": tensors,
        "data set": torch.utils.data.TensorDataset(*tensors), "items": list(zip(x, y.tolist(), strict=True)),
    }[form]  # fmt: skip
    source = open_data({"train": data, "val": (x, y)}, reads="clips")
    assert (source.task.short_name, source.classes) == ("video", ("0", "1"))
    frames = source.splits["train"].pixels
    assert frames is not None
    assert torch.equal(frames[1], torch.from_numpy(x[1, : len(frames[1])]).movedim(-1, 1))
    assert tuple(source.load(STEPS).splits["val"].pixels.shape) == (6, 2, 4, 3, 16, 16)


def test_arrays_of_other_shapes_are_refused() -> None:
    x, y = np.zeros((4, 6, 8, 8, 3), np.uint8), [0, 1, 0, 1]
    for wrong, told in ((x.astype(np.float32), "video 0: must be uint8"), (x[..., :2], r"uint8 \(6, 8, 8, 2\)")):
        with pytest.raises(DataError, match=told):
            open_data((wrong, y))
    with pytest.raises(DataError, match="one label for each of 4 videos"):
        open_data((x, y[:3]))


# --- contents


def test_a_file_with_many_parts_is_read_once_and_parts_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, ["film.mp4"])
    write_frames(tmp_path / "frames", moving_square(3, 8, 8))
    rows = [f"film.mp4,{'ab'[i % 2]},{i},{i + 1}" for i in range(4)] + ["film.mp4,a,,", "frames,b,,", "frames,a,1,"]
    source = open_data(write_table(tmp_path, "\n".join(["file,label,start,end", *rows])))
    read: list[str] = []
    probe = type(source.manifest).probe
    monkeypatch.setattr(type(source.manifest), "probe", lambda self, name: [read.append(name), probe(self, name)][1])
    info = source.manifest.look_up(source.splits["train"].names)
    assert sorted(read) == [str(tmp_path / "film.mp4"), str(tmp_path / "frames")]
    assert len({bytes(row) for row in info.digests}) == 7
    assert source.manifest.contents(str(tmp_path / "film.mp4")) is None  # a film may have gigabytes


def test_a_changed_frame_changes_the_digest_of_its_folder(tmp_path: Path) -> None:
    for label in "ab":
        write_frames(tmp_path / label / "1", moving_square(3, 8, 8))

    def digests() -> list[bytes]:
        source = open_data(tmp_path, reads="clips")
        names = sorted(source.splits["train"].names)
        return [bytes(row) for row in source.manifest.look_up(names).digests]

    first, second = digests()
    assert first == second  # of equal names and contents, wherever they are
    still(tmp_path / "a" / "1" / "frame_2.png")
    changed, same = digests()
    assert (changed != first, same) == (True, second)
    os.rename(tmp_path / "a" / "1" / "frame_3.png", tmp_path / "a" / "1" / "frame_0.png")
    assert digests()[0] not in (first, changed)


def damaged(path: Path, contents: bytes, kind: int) -> None:
    """Write contents that no decoder can read to their end."""
    random = np.random.default_rng(kind)
    size = len(contents)
    if kind % 4 == 0:
        contents = contents[: size * (kind + 1) // 80]
    elif kind % 4 == 1:
        contents = random.bytes(size)
    elif kind % 4 == 2:
        contents = contents[:8] + random.bytes(64) + contents[72:]
    else:
        contents = bytes(size) if kind % 8 == 3 else b"\x1aE\xdf\xa3" + random.bytes(200)
    path.write_bytes(contents)


def test_forty_damaged_videos_are_unreadable(tmp_path: Path, encoded: bytes) -> None:
    for i in range(20):
        for label in CLASSES:
            folder = tmp_path / label
            folder.mkdir(exist_ok=True)
            (folder / f"good{i}.mp4").write_bytes(encoded)
            damaged(folder / f"bad{i}.mp4", encoded, 2 * i + CLASSES.index(label))
    source = open_for_training(tmp_path, val_share=0.2, reads="clips")
    with pytest.raises(DataError, match=r"40 of 80 videos are unreadable, more than the 1.0% allowed"):
        source.load(STEPS)
    data = source.load(STEPS, max_unreadable=0.5, for_random_clips=True)
    assert len(data.train) == 40
    assert {Path(each.path).name[:3] for each in data.unreadable} == {"bad"}
    assert all("\n" not in each.reason and each.reason.startswith(each.path) for each in data.unreadable)


def test_sound_alone_and_odd_files_are_told(tmp_path: Path, encoded: bytes) -> None:
    for label in CLASSES:
        write_sound(touch(tmp_path, [f"{label}/1.mp4"]) / label / "sound.mp4")
        (tmp_path / label / "1.mp4").write_bytes(encoded)
    data = open_data(tmp_path).load(STEPS, max_unreadable=0.5)
    assert [each.reason.rpartition(": ")[2] for each in data.unreadable] == ["has no video stream, only audio"] * 2


# --- real data


@pytest.mark.skipif(not (SHARED / "gestures_ego").is_dir(), reason="needs the shared data")
def test_the_table_of_gestures_lists_what_the_folder_has() -> None:
    folder, table = open_data(SHARED / "gestures_ego"), open_data(SHARED / "gestures_ego" / "labels.csv")
    assert (folder.classes, len(folder.classes)) == (table.classes, 11)
    assert sorted(folder.splits["train"].names) == sorted(table.splits["train"].names)
    assert len(folder.splits["train"]) == 143
    assert open_data(SHARED / "video_clips" / "labels.csv").task.short_name == "video"
