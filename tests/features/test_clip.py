"""One clip to words, voice and face: what is absent says why, and only a file that gives nothing is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moodal.core.errors import MissingExtra, MoodalError
from moodal.core.spec import Regression
from moodal.data.corpus import CorpusFacts, FeatureRecipe
from moodal.data.extractors import EXTRACTORS
from moodal.features.clip import ClipExtractor, ClipSettings, ExtractedClip, Readers, from_recipes, to_corpus
from moodal.features.face import FaceTrack
from moodal.features.media import AudioFacts, Frame, Limits, MediaError, MediaFacts, Sound, VideoFacts
from moodal.features.openface import OpenFace, OpenFaceSettings
from moodal.features.words import Transcript, WordSettings

AUDIO = FeatureRecipe(name="heard", version="1", width=2, settings={"hop": 4000, "sample_rate": 8000})
VISION = FeatureRecipe(name="seen", version="1", width=3, settings={"hop": 0.2})
FACTS = CorpusFacts(
    name="folder", title="t", language="en", task=Regression(-1, 1), protocol="avec", source="s", licence="l"
)


class Hears:
    """Two steps a second: level and peak."""

    def recipe(self):
        return AUDIO

    def timed(self, wave):
        steps = wave[: len(wave) // 4000 * 4000].reshape(-1, 4000)
        return np.stack([steps.mean(1), steps.max(1)], 1).astype(np.float32), np.arange(len(steps)) / 2


class Sees:
    """The mean colour; a face where it is bright."""

    note = ""

    def recipe(self):
        return VISION

    def __call__(self, frames):
        shown = list(frames)
        values = np.array([frame.picture.mean((0, 1)) for frame in shown], np.float32).reshape(-1, 3)
        confidence = (values.mean(1) > 50).astype(float)
        faces, times = confidence.astype(int), np.array([frame.time for frame in shown])
        return FaceTrack(values, times, confidence, faces, self.note)


class Tape:
    """A clip of ``seconds`` in memory, with the four readers that files have; a reader's fault is raised by it."""

    def __init__(self, seconds=4.0, *, wave=0.5, bright=200.0, text="", absent=None, fault=None):
        self.seconds, self.wave, self.bright, self.text = seconds, wave, bright, text
        self.absent, self.fault, self.asked = absent or {}, fault or {}, {}

    def _ask(self, reader, given):
        self.asked[reader] = given
        if reader in self.fault:
            raise self.fault[reader]

    def probe(self, path, **given):
        self._ask("probe", given)
        audio = None if "audio" in self.absent else AudioFacts(8000, 1, "pcm", self.seconds)
        video = None if "vision" in self.absent else VideoFacts(8, 8, 0, 25.0, "h264", self.seconds, 100)
        return MediaFacts(path, self.seconds, "mp4", audio, video, 0, self.absent)

    def sound(self, path, *, rate, start, end, limits):
        self._ask(f"sound at {rate}", (start, end))
        length = (self.seconds if end is None else end) - start
        return Sound(np.full(round(length * rate), self.wave, np.float32), rate, start)

    def frames(self, path, *, rate, start, end, limits):
        self._ask("frames", rate)
        length = (self.seconds if end is None else end) - start
        for number in range(round(length * rate)):
            level = self.bright if number % 2 else 200.0 * (self.bright > 0)
            yield Frame(number / rate, np.full((8, 8, 3), level, np.uint8))

    def words(self, path, sound, *, settings, given, start, end):
        self._ask("words", (sound and sound.rate, settings.language, given))
        said = given or self.text
        words = tuple((word, float(place), place + 0.5) for place, word in enumerate(said.split()))
        return Transcript(said, words, "given" if given else "heard", "aligned" if said else "", "")

    def extractor(self, *, sees=None, **settings):
        readers = Readers(self.probe, self.sound, self.frames, self.words)
        return ClipExtractor(ClipSettings(**settings), audio=Hears(), vision=sees or Sees(), readers=readers)


def test_a_whole_clip():
    tape = Tape(text="good day")
    clip = tape.extractor()(Path("a/clip.mp4"))
    assert (clip.id, clip.path, clip.seconds, clip.text) == ("clip", "a/clip.mp4", 4.0, "good day")
    assert clip.words == (("good", 0.0, 0.5), ("day", 1.0, 1.5)) and clip.text_source == "heard"
    assert clip.streams["audio"].shape == (8, 2) and clip.streams["vision"].shape == (20, 3)
    assert all(stream.dtype == np.float32 for stream in clip.streams.values())
    assert clip.times["audio"].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5] and clip.times["vision"][1] == 0.2
    assert not clip.absent and not clip.notes and clip.confidence.tolist() == [1.0] * 20
    assert set(clip.spent) == {"decode", "words", "audio", "vision"} and min(clip.spent.values()) >= 0
    assert tape.asked["frames"] == 5.0 and tape.asked["words"] == (16000, "en", None)


def test_a_span_a_given_text_and_a_language():
    tape = Tape()
    clip = tape.extractor()(Path("clip.mp4"), id="x", text="ja", start=1.0, end=3.0, language="de")
    assert (clip.id, clip.text, clip.text_source, clip.seconds) == ("x", "ja", "given", 2.0)
    assert clip.streams["audio"].shape == (4, 2) and clip.streams["vision"].shape == (10, 3)
    assert tape.asked["words"] == (16000, "de", "ja") and tape.asked["sound at 8000"] == (1.0, 3.0)
    assert tape.asked["probe"]["start"] == 1.0 and tape.asked["probe"]["end"] == 3.0


def test_only_what_is_asked_for_is_read():
    tape = Tape(text="yes")
    clip = tape.extractor()(Path("clip.mp4"), modalities=("vision",))
    assert set(clip.streams) == {"vision"} and set(tape.asked) == {"probe", "frames"} and not clip.absent
    tape = Tape(text="yes")
    clip = tape.extractor()(Path("clip.mp4"), modalities=("text",))
    assert not clip.streams and clip.text == "yes" and set(tape.asked) == {"probe", "sound at 16000", "words"}


@pytest.mark.parametrize(
    ("tape", "absent"),
    [
        (Tape(absent={"audio": "clip.mp4 has no sound."}), {"audio": "clip.mp4 has no sound.", "text": "There is no transcript, and there is no sound to hear words in."}),
        (Tape(text="yes", absent={"vision": "clip.mp4 has no pictures."}), {"vision": "clip.mp4 has no pictures."}),
        (Tape(text="yes", wave=0.0), {"audio": "The sound is silent: all of its 4.0 s are zero."}),
        (Tape(text="yes", bright=0.0), {"vision": "No frame of the video could be measured."}),
        (Tape(text="yes", fault={"frames": MediaError("The pictures are damaged.")}), {"vision": "The pictures are damaged."}),
        (Tape(text="yes", fault={"sound at 8000": MediaError("The sound is damaged.")}), {"audio": "The sound is damaged."}),
        (Tape(fault={"words": RuntimeError("decoder")}), {"text": "The text could not be measured (RuntimeError: decoder)."}),
        (Tape(), {"text": "There is no transcript, and no words were found."}),
        (Tape(0.3, text="yes"), {"audio": "No step of the sound could be measured."}),
    ],
    ids=["no sound", "no pictures", "silent", "dark", "damaged pictures", "damaged sound", "decoder", "no words", "short"],
)  # fmt: skip
def test_what_is_absent_says_why_and_costs_nothing_else(tape, absent):
    clip = tape.extractor()(Path("clip.mp4"))
    assert dict(clip.absent) == absent
    assert {m for m in ("audio", "vision") if m not in absent} == set(clip.streams) == set(clip.times)


def test_a_file_that_gives_nothing_is_refused_with_all_reasons():
    with pytest.raises(
        MediaError, match=r"clip.mp4 holds nothing to read: The sound is silent.*no words were.*No frame"
    ):
        Tape(wave=0.0, bright=0.0).extractor()(Path("clip.mp4"))
    with pytest.raises(MediaError, match="broken"):
        Tape(fault={"probe": MediaError("broken")}).extractor()(Path("clip.mp4"), text="given")


def test_reasons_are_one_line_and_name_no_folder():
    fault = MediaError("/some/place/clip.mp4 is damaged\nat byte 7; use /some/place/other.mp4")
    clip = Tape(text="yes", fault={"frames": fault}).extractor()(Path("/some/place/clip.mp4"))
    assert clip.absent == {"vision": "clip.mp4 is damaged at byte 7; use other.mp4."}


@pytest.mark.parametrize("reader", ["words", "frames", "sound at 8000"])
def test_a_missing_package_or_a_mistake_of_ours_is_not_hidden(reader):
    with pytest.raises(MissingExtra):
        Tape(fault={reader: MissingExtra("x", "y")}).extractor()(Path("clip.mp4"))
    with pytest.raises(KeyError):
        Tape(fault={reader: KeyError("ours")}).extractor()(Path("clip.mp4"))


def test_frames_without_a_face_are_left_out_and_notes_are_kept():
    sees = Sees()
    sees.note = "no face in 10 of 20 frames"
    clip = Tape(text="yes", bright=1.0).extractor(sees=sees)(Path("clip.mp4"))
    assert clip.streams["vision"].shape == (10, 3) and clip.times["vision"].tolist()[:2] == [0.0, 0.4]
    assert clip.confidence.tolist() == [1.0] * 10 and clip.notes == ("No face in 10 of 20 frames.",)


def test_steps_that_are_not_finite_are_left_out():
    class Odd(Hears):
        def timed(self, wave):
            values, times = super().timed(wave)
            values[1] = np.nan
            return values, times

    tape = Tape(text="yes")
    readers = Readers(tape.probe, tape.sound, tape.frames, tape.words)
    clip = ClipExtractor(ClipSettings(), audio=Odd(), vision=Sees(), readers=readers)(Path("clip.mp4"))
    assert clip.times["audio"].tolist() == [0, 1, 1.5, 2, 2.5, 3, 3.5] and np.isfinite(clip.streams["audio"]).all()
    assert clip.notes == ("1 of 8 steps of audio are not finite and left out.",)


def test_settings_choose_extractors_and_faults_of_them_are_told():
    made = ClipExtractor(ClipSettings(frame_rate=5.0, audio_settings={"hop": 512}))
    assert made.recipes["audio"].settings["hop"] == 512 and made.recipes["vision"].settings["hop"] == 0.2
    assert set(ClipExtractor(ClipSettings(vision="none")).recipes) == {"audio"}
    for wrong, sentence in (
        ({"audio": "librosa_34"}, "did you mean 'librosa_33'"),
        ({"audio": "face_mesh"}, "extractor face_mesh is for vision and was given for audio"),
        ({"audio_settings": {"hopp": 1}}, "extractor librosa_33 has no setting hopp; it has sample_rate"),
        ({"frame_rate": 0}, "frame_rate is 0"),
    ):
        with pytest.raises(MoodalError, match=sentence):
            ClipExtractor(ClipSettings(**wrong))


def test_recipes_rebuild_the_extractors_that_made_them():
    first = ClipExtractor(ClipSettings(frame_rate=5.0, audio_settings={"hop": 512}))
    again = from_recipes(first.recipes, words=WordSettings(recogniser="none"), limits=Limits(seconds=9.0))
    assert again.recipes == first.recipes and not again.unmade
    assert again.settings.words.recogniser == "none" and again.settings.limits.seconds == 9.0
    assert from_recipes({"audio": first.recipes["audio"]}).vision is None


def test_recipes_that_nothing_makes_are_absent_from_every_clip(monkeypatch):
    face, heard = EXTRACTORS["face_mesh"](), EXTRACTORS["librosa_33"]()
    corpus_made = FeatureRecipe(name="openface_au35", version="1", width=35)
    made = from_recipes({"audio": heard.recipe(), "vision": corpus_made})
    assert made.unmade == {
        "vision": "No extractor here makes openface_au35, on which vision was trained; it came with its corpus."
    }
    older = SimpleNamespace(**{**vars(face.recipe()), "version": "0"})
    assert "version 0, and this is version" in from_recipes({"vision": FeatureRecipe(**vars(older))}).unmade["vision"]
    other = FeatureRecipe(**{**vars(heard.recipe()), "width": 34})
    assert "librosa_33 here differs from what audio was trained on" in from_recipes({"audio": other}).unmade["audio"]
    wrong = FeatureRecipe(**{**vars(heard.recipe()), "settings": {"mels": 3}})
    assert "cannot be made as it was for training: mels is 3" in from_recipes({"audio": wrong}).unmade["audio"]
    tape = Tape(text="yes")
    readers = Readers(tape.probe, tape.sound, tape.frames, tape.words)
    clip = ClipExtractor(ClipSettings(vision="none"), audio=Hears(), readers=readers, unmade=made.unmade)(Path("c.mp4"))
    assert set(clip.streams) == {"audio"} and clip.absent == made.unmade


def test_clips_become_a_corpus():
    heard = ExtractedClip(
        id="a", path="a.mp4", seconds=1.0, text="yes", words=(("yes", 0.0, 1.0),), text_source="given",
        streams={"audio": np.ones((3, 2), np.float32)}, absent={"vision": "No face."},
    )  # fmt: skip
    other = ExtractedClip(id="b", path="b.mp4", seconds=1.0, absent={"text": "No words.", "audio": "No sound."})
    raw = to_corpus(
        [heard, other], FACTS, {"audio": AUDIO, "vision": VISION}, splits=["train", "test"], labels=[0.5, None],
        groups=["ann", "ben"], notes=[{"file": "a.mp4"}, {}],
    )  # fmt: skip
    assert [clip.label for clip in raw.clips] == [0.5, None] and [clip.group for clip in raw.clips] == ["ann", "ben"]
    assert raw.clips[0].notes == {"file": "a.mp4", "text_source": "given", "no_vision": "No face."}
    assert raw.clips[1].notes == {"no_text": "No words.", "no_audio": "No sound."}
    assert set(raw.streams) == set(raw.recipes) == {"audio"} and raw.streams["audio"].lengths.tolist() == [3, 0]


def test_a_table_beside_the_clip_stands_for_its_pictures(tmp_path):
    columns = ["frame", "timestamp", "confidence", "success", *EXTRACTORS["openface"]().recipe().channels]
    rows = [[n, n / 10, 1, 1, *[n] * 43] for n in range(41)]
    lines = [",".join(columns), *(",".join(map(str, row)) for row in rows)]
    (tmp_path / "clip.csv").write_text("\n".join(lines))
    tape = Tape(absent={"vision": "clip.wav has no pictures."}, text="hello")
    extractor = tape.extractor(sees=OpenFace(OpenFaceSettings(hop=0.1)))
    found = extractor(tmp_path / "clip.wav", start=1.0, end=3.0)
    np.testing.assert_array_equal(found.streams["vision"][:, 0], np.arange(10, 30))
    np.testing.assert_allclose(found.times["vision"], np.arange(20) / 10, atol=1e-9)
    assert "frames" not in tape.asked and "vision" not in found.absent
    without = extractor(tmp_path / "other.wav", start=1.0, end=3.0)
    assert without.absent["vision"].startswith("other.csv, OpenFace's table of other.wav, is not there")
