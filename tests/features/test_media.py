"""Media of every kind: what is measured, when a picture is shown, when a sample sounds, and what happens to broken files."""

from __future__ import annotations

import itertools
import os

import media_files
import numpy as np
import pytest
from media_files import CODECS, mutate, shade, silent, state_duration, truncate, voice, write_clip

from moodal.core.errors import DataError, MoodalError
from moodal.features import container
from moodal.features.media import Limits, MediaError, Sound, probe, read_frames, read_sound, read_subtitles, resampled

RATE = 16000
VIDEO = [suffix for suffix, codecs in CODECS.items() if codecs[0]]


def loudest(sound: Sound) -> float:
    """When the loudest sample of a sound is, in seconds of the file."""
    return sound.start + float(np.abs(sound.wave).argmax()) / sound.rate


def click(seconds: float, at: float, rate: int = 48000) -> np.ndarray:
    """Silence with 10 ms of tone at ``at`` seconds, loudest in its middle."""
    time = np.arange(round(seconds * rate)) / rate - at
    return (0.8 * np.exp(-((time / 0.002) ** 2)) * np.cos(2 * np.pi * 1000 * time)).astype(np.float32)


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_is_measured_and_read(tmp_path, suffix):
    clip = write_clip(tmp_path / f"clip{suffix}", 1.0)
    facts = probe(clip)
    assert facts.seconds == pytest.approx(1.0, abs=0.08) and facts.audio is not None
    assert (facts.audio.rate, facts.audio.channels) == (48000, 1)
    sound = read_sound(clip)
    assert sound.wave.dtype == np.float32 and sound.seconds == pytest.approx(1.0, abs=0.08)
    assert sound.wave.std() == pytest.approx(voice(1.0).std(), rel=0.1)
    if suffix in VIDEO:
        assert facts.video is not None and not facts.absent
        assert (facts.video.width, facts.video.height, facts.video.frames) == (320, 240, 25)
        assert facts.video.rate == pytest.approx(25, rel=0.05)
        shown = list(read_frames(clip, rate=10))
        assert len(shown) in (10, 11) and all(frame.picture.shape == (240, 320, 3) for frame in shown)
        # In a transport stream and the like the pictures may start some hundredths after the sound.
        assert [shade(frame.picture) for frame in shown] == pytest.approx([frame.time for frame in shown], abs=0.12)
    else:
        assert facts.video is None and facts.absent["vision"] == f"clip{suffix} has no pictures."
        with pytest.raises(MediaError, match="has no pictures"):
            list(read_frames(clip))


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_upright(tmp_path, rotation):
    clip = write_clip(tmp_path / "clip.mp4", 0.2, size=(160, 96), rotation=rotation)
    facts = probe(clip).video
    frame = next(read_frames(clip, longest=None))
    sideways = rotation in (90, 270)
    assert facts is not None and facts.rotation == rotation
    assert (facts.width, facts.height) == ((96, 160) if sideways else (160, 96))
    assert frame.picture.shape == (facts.height, facts.width, 3)
    red = frame.picture[..., 0].astype(int) - frame.picture[..., 1] > 80
    down, right = np.argwhere(red).mean(axis=0) / red.shape
    # Turning clockwise takes the stored top left corner to the top right, the bottom right, the bottom left.
    assert (round(down), round(right)) == {0: (0, 0), 90: (0, 1), 180: (1, 1), 270: (1, 0)}[rotation]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_varying_rate_is_respected(tmp_path, suffix):
    times = [0.0, 0.04, 0.5, 0.52, 0.56, 1.4, 1.9]
    clip = write_clip(tmp_path / f"clip{suffix}", times=times)
    every = list(read_frames(clip))
    assert [frame.time for frame in every] == pytest.approx(times, abs=1e-3)
    assert [shade(frame.picture) for frame in every] == pytest.approx(times, abs=0.06)
    shown = list(read_frames(clip, rate=5))
    assert [frame.time for frame in shown] == pytest.approx(np.arange(10) / 5)
    latest = [max(time for time in times if time <= place + 1e-6) for place in np.arange(10) / 5]
    assert [shade(frame.picture) for frame in shown] == pytest.approx(latest, abs=0.06)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mpg", ".avi", ".ts"])
def test_a_part_is_cut_by_time(tmp_path, suffix):
    clip = write_clip(tmp_path / f"clip{suffix}", 5.0, size=(96, 64), wave=click(5.0, 3.4))
    whole, part = read_sound(clip), read_sound(clip, start=3.1, end=3.9)
    assert loudest(part) == pytest.approx(loudest(whole), abs=0.002)
    assert loudest(whole) == pytest.approx(3.4, abs=0.06)  # the delay of the encoder, where the container lacks it
    assert part.start == 3.1 and part.seconds == pytest.approx(0.8, abs=1e-3)
    shown = list(read_frames(clip, rate=5, start=3.1, end=3.9))
    assert [frame.time for frame in shown] == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert [shade(frame.picture) for frame in shown] == pytest.approx([3.1, 3.3, 3.5, 3.7], abs=0.12)


def test_a_part_behind_the_end_is_empty_and_refused_by_the_probe(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 0.4)
    assert len(read_sound(clip, start=5.0, end=6.0).wave) == 0
    assert list(read_frames(clip, rate=5, start=5.0, end=6.0)) == []
    with pytest.raises(MediaError, match=r"lasts 0.40 s, and the part asked for starts at 5.00 s"):
        probe(clip, start=5.0)


def test_large_pictures_are_scaled_down_and_a_single_frame_is_one(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 0.04, size=(3840, 2160))
    facts = probe(clip)
    assert facts.video is not None and (facts.video.width, facts.video.height, facts.video.frames) == (3840, 2160, 1)
    (frame,) = read_frames(clip, rate=10)
    assert frame.picture.shape == (360, 640, 3) and frame.picture.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".mp4", ".wav"])
def test_channels_are_averaged_without_the_bass(tmp_path, suffix):
    wave = np.stack([voice(0.5) * level for level in (1.0, 0.5, 0.0, 8.0, 0.5, 0.5)])  # the fourth is the bass channel
    wave[3] = np.clip(wave[3], -1, 1)
    clip = write_clip(tmp_path / f"clip{suffix}", 0.5, channels=6, wave=wave)
    facts = probe(clip).audio
    assert facts is not None and facts.channels == 6
    assert read_sound(clip, rate=48000).wave.std() == pytest.approx(0.5 * voice(0.5).std(), rel=0.1)


def test_a_sound_keeps_its_form_at_another_rate(tmp_path):
    wave = click(1.0, 0.25)
    clip = write_clip(tmp_path / "clip.wav", wave=wave)
    sound = read_sound(clip, rate=RATE)
    assert len(sound.wave) == RATE and loudest(sound) == pytest.approx(0.25, abs=1e-3)
    again = resampled(Sound(wave, 48000, 0.0), RATE)
    np.testing.assert_allclose(again.wave, sound.wave, atol=2e-4)
    assert resampled(again, RATE) is again


def test_what_is_missing_says_so(tmp_path):
    mute = write_clip(tmp_path / "mute.mp4", 0.4, audio=False)
    facts = probe(mute)
    assert facts.audio is None and facts.video is not None and facts.absent == {"audio": "mute.mp4 has no sound."}
    with pytest.raises(MediaError, match="has no sound"):
        read_sound(mute)
    quiet = write_clip(tmp_path / "quiet.mp4", 0.4, wave=silent(0.4))
    assert probe(quiet).audio is not None and np.abs(read_sound(quiet).wave).max() < 1e-4


def test_a_wrong_extension_does_not_matter(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 0.4).rename(tmp_path / "clip.wav")
    facts = probe(clip)
    assert facts.container == "mov" and facts.video is not None and len(list(read_frames(clip, rate=10))) == 4


@pytest.mark.parametrize("claimed", [0.2, 3600.0])
def test_a_header_that_lies_about_the_duration_is_not_believed(tmp_path, claimed):
    clip = state_duration(write_clip(tmp_path / "clip.mp4", 2.0), claimed)
    facts = probe(clip)
    assert facts.seconds == pytest.approx(2.0, abs=0.05)
    assert len(list(read_frames(clip, rate=10))) == 20 and read_sound(clip).seconds == pytest.approx(2.0, abs=0.05)


def test_a_file_cut_short_is_read_as_far_as_it_goes(tmp_path):
    clip = truncate(write_clip(tmp_path / "clip.mkv", 2.0), 0.6)
    facts = probe(clip)
    assert 0.5 < facts.seconds < 1.9
    assert read_sound(clip).seconds == pytest.approx(facts.audio.seconds, abs=0.05)
    assert list(read_frames(clip))[-1].time == pytest.approx(facts.video.seconds, abs=0.1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_part_is_found_where_the_index_is_of_no_use(tmp_path, suffix, monkeypatch):
    clip = write_clip(tmp_path / f"clip{suffix}", 5.0, size=(96, 64), wave=click(5.0, 3.4))
    right = loudest(read_sound(clip))
    if suffix == ".mkv":
        truncate(clip, 0.95)  # the index is at the end
    else:
        monkeypatch.setattr(container, "_seek", lambda opened, stream, time: opened.seek(4_500_000) is None)
    assert loudest(read_sound(clip, start=3.1, end=3.9)) == pytest.approx(right, abs=0.002)
    shown = list(read_frames(clip, rate=5, start=3.1, end=3.9))
    assert [shade(frame.picture) for frame in shown] == pytest.approx([3.1, 3.3, 3.5, 3.7], abs=0.12)


def test_damage_in_between_is_silence_and_does_not_move_what_follows(tmp_path):
    wave = voice(4.0)
    wave[: 3 * 48000] *= 0.1
    wave += click(4.0, 3.5)
    clip = write_clip(tmp_path / "clip.ts", video=False, wave=wave)
    before = loudest(read_sound(clip, start=3.2))
    content = bytearray(clip.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 2000] = bytes(2000)
    clip.write_bytes(bytes(content))
    assert before == pytest.approx(3.5, abs=0.03)
    assert loudest(read_sound(clip, start=3.2)) == pytest.approx(before, abs=0.002)
    assert read_sound(clip).seconds == pytest.approx(4.0, abs=0.1)


REFUSED = {
    "empty.mp4": (b"", "is empty (0 bytes)"),
    "page.mp4": (b"<!DOCTYPE html><html>not found</html>" * 9, "an HTML or XML page"),
    "picture.mp4": (b"\x89PNG\r\n\x1a\n" + bytes(99), "a PNG picture"),
    "pointer.wav": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n", "a playlist, which is not followed"),
    "concat.mp4": (b"ffconcat version 1.0\nfile other.mp4\n", "cannot be opened as video or sound"),
    "noise.mp4": (bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8)), "opened as video or sound|beyond use"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_clip_is_refused_with_a_sentence(tmp_path, name):
    content, said = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    write_clip(tmp_path / "other.mp4", 0.2)
    with pytest.raises(MediaError) as fault:
        probe(tmp_path / name)
    assert any(part in str(fault.value) for part in said.split("|")) and "\n" not in str(fault.value)


def test_files_that_are_not_there_or_not_files(tmp_path):
    with pytest.raises(MediaError, match="does not exist"):
        probe(tmp_path / "nothing.mp4")
    with pytest.raises(MediaError, match="is not a file"):
        probe(tmp_path)
    with pytest.raises(MediaError):
        probe(tmp_path / "a\0b.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(MediaError, match="is not a file"):  # opening it would wait for ever
        probe(tmp_path / "pipe.mp4")
    assert issubclass(MediaError, DataError)


def test_files_of_no_length(tmp_path):
    with pytest.raises(MediaError, match="length of zero"):
        probe(write_clip(tmp_path / "clip.wav", wave=silent(0)))
    with pytest.raises(MediaError, match="neither sound nor pictures"):
        probe(write_clip(tmp_path / "clip.mp4", 0.2, audio=False, times=()))


def test_limits(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", 2.0)
    with pytest.raises(MediaError, match="lasts 2 s, and at most 1 s are read"):
        probe(clip, limits=Limits(seconds=1.0))
    assert probe(clip, start=0.5, end=1.4, limits=Limits(seconds=1.0)).seconds == pytest.approx(2.0, abs=0.05)
    with pytest.raises(MediaError, match="bytes, and at most 1000 are read"):
        probe(clip, limits=Limits(bytes=1000))
    small = Limits(pixels=320 * 240 - 1)
    facts = probe(clip, limits=small)
    assert facts.video is None and "76800 pixels" in facts.absent["vision"] and facts.audio is not None
    assert list(read_frames(clip, limits=small)) == []
    assert len(list(read_frames(clip, rate=10, limits=Limits(seconds=1.0)))) == 10
    assert read_sound(clip, limits=Limits(seconds=1.0)).seconds == pytest.approx(1.0, abs=0.01)
    assert len(list(read_frames(clip, limits=Limits(seconds=1.0, rate=5)))) <= 6


def test_time_stamps_that_jump_or_start_anew():
    class Here:
        start_time, duration = 0, 10_000_000

    class At:
        time_base = 1

        def __init__(self, pts: float | None) -> None:
            self.pts = pts

    clock = container.Clock(Here(), step=1.0, longest=600.0)
    stamps = [0, 1, 9999, 3, 3.5, None, 0, 1, 2]
    assert [clock(At(pts)) for pts in stamps] == [0, 1, 2, 3, 3.5, 4.5, 5.5, 6.5, 7.5]
    assert all(container.Clock(Here(), step=1.0, longest=600.0)(At(pts)) == 0 for pts in (10**15, -(10**15)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_subtitle_streams(tmp_path, suffix):
    cues = [(0.2, 1.0, "<i>Hello</i> there"), (1.1, 1.9, "good &amp; bad\nthing")]
    clip = write_clip(tmp_path / f"clip{suffix}", subtitles=cues)
    assert probe(clip).subtitles == 1
    found = read_subtitles(clip)
    assert [cue.text for cue in found] == ["Hello there", "good & bad thing"]
    assert [(cue.start, cue.end) for cue in found] == [pytest.approx(cue[:2], abs=1e-3) for cue in cues]
    assert read_subtitles(write_clip(tmp_path / "without.mp4", 0.2)) == []


def test_a_cover_is_no_video(tmp_path):
    import av

    song = write_clip(tmp_path / "plain.mp3", 0.5)
    picture = av.VideoFrame.from_ndarray(media_files.picture(0.0), format="rgb24")
    with av.open(str(song)) as source, av.open(str(tmp_path / "song.mp3"), "w") as target:
        sound = target.add_stream_from_template(source.streams.audio[0])
        cover = target.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 320, 240, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        target.mux(cover.encode(picture))
        target.mux(cover.encode(None))
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = sound
                target.mux(packet)
    with av.open(str(tmp_path / "song.mp3")) as made:
        assert [stream.type for stream in made.streams] == ["audio", "video"]
    facts = probe(tmp_path / "song.mp3")
    assert facts.video is None and facts.audio is not None


@pytest.mark.parametrize("suffix", CODECS)
def test_broken_files_lead_to_sentences_only(tmp_path, suffix):
    """Bytes flipped and files cut: every reader ends, with finite bounded values or a MediaError of one line."""
    whole = write_clip(tmp_path / f"whole{suffix}", 0.6, size=(96, 64)).read_bytes()
    clip = tmp_path / f"clip{suffix}"
    readers = (
        probe,
        read_sound,
        read_subtitles,
        lambda path: list(read_frames(path, rate=10)),
        lambda path: read_sound(path, start=0.2, end=0.4),
    )
    worked = 0
    for seed, (flips, keep) in itertools.product(range(4), ((1, 0), (30, 0), (200, 300))):
        clip.write_bytes(whole)
        mutate(clip, seed, flips=flips, keep=min(keep, len(whole) // 2))
        if seed % 2:
            truncate(clip, 0.3 + 0.6 * seed / 4)
        for reader in readers:
            try:
                found = reader(clip)
            except MediaError as fault:
                assert "\n" not in str(fault) and str(clip.name) in str(fault)
                continue
            worked += 1
            if isinstance(found, Sound):
                assert np.isfinite(found.wave).all() and np.abs(found.wave).max(initial=0) <= 1
                assert found.seconds <= 600
    assert worked > 12 or suffix == ".ogg"  # so short an .ogg is one page with one check sum


def test_a_rate_of_pictures_must_be_one(tmp_path):
    with pytest.raises(MoodalError, match="rate is 0"):
        list(read_frames(write_clip(tmp_path / "clip.mp4", 0.2), rate=0))
