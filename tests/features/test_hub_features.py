"""Encoders in the Hugging Face layout, tiny and random: steps and their times, layers, pieces, faces, and what may be wrong."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from drawn_face import blank, draw_face

from moodal.core.errors import MoodalError
from moodal.data.extractors import EXTRACTORS, MediaFile
from moodal.features.frames import Frame
from moodal.features.hub import HubVision, HubVisionSettings, SpeechSettings, Wav2Vec2, Wav2Vec2Settings

transformers = pytest.importorskip("transformers")
RATE, HOP, FIELD = 16000, 80, 85  # of the tiny models: strides 5, 4, 4 and kernels 10, 4, 4
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
CONVOLUTIONS = {"conv_dim": (8, 8, 8), "conv_stride": (5, 4, 4), "conv_kernel": (10, 4, 4), "num_feat_extract_layers": 3,
                "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 8}  # fmt: skip
PICTURES = {"image_size": 32, "patch_size": 8}
SPEECH = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert", "wavlm": "WavLM"}


def save(model, folder, processor=None):
    model.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    import torch

    folders = {}
    for name, prefix in SPEECH.items():
        torch.manual_seed(1)
        model = getattr(transformers, f"{prefix}Model")(
            getattr(transformers, f"{prefix}Config")(**SIZES, **CONVOLUTIONS)
        )
        folders[name] = save(model, tmp_path_factory.mktemp(name), {"sampling_rate": RATE, "do_normalize": True})
    return folders


@pytest.fixture(scope="module")
def sight(tmp_path_factory):
    import torch

    torch.manual_seed(1)
    words = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    words |= {"bos_token_id": 1, "eos_token_id": 2}
    models = {
        "vit": transformers.ViTModel(transformers.ViTConfig(**SIZES, **PICTURES)),
        "dinov2": transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, **PICTURES)),
        "clip": transformers.CLIPModel(transformers.CLIPConfig(text_config=words, vision_config=SIZES | PICTURES)),
    }
    cut = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processors = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}},
        "dinov2": {"image_processor_type": "BitImageProcessor", **cut},
        "clip": {"image_processor_type": "CLIPImageProcessor", **cut},
    }
    return {name: save(model, tmp_path_factory.mktemp(name), processors[name]) for name, model in models.items()}


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


def hear(folder, **settings) -> Wav2Vec2:
    return Wav2Vec2(Wav2Vec2Settings(model=str(folder), **settings))


@pytest.mark.parametrize("name", SPEECH)
def test_speech_encoders_give_the_states_of_the_model_itself(speech, name):
    import torch

    cls = EXTRACTORS[name]
    extractor = cls(cls.Config(model=str(speech[name]), layer=1))
    wave = noise(0.5)
    values, times = extractor.timed(wave)
    assert values.shape == (1 + (len(wave) - FIELD) // HOP, 16) and values.dtype == np.float32
    np.testing.assert_allclose(np.diff(times), HOP / RATE)
    assert times[0] == pytest.approx(FIELD / 2 / RATE)
    model = getattr(transformers, f"{SPEECH[name]}Model").from_pretrained(speech[name]).eval()
    standard = torch.from_numpy((wave - wave.mean()) / wave.std())[None]
    with torch.inference_mode():
        expected = model(standard, output_hidden_states=True).hidden_states[1][0]
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-4)


def test_the_recipe_holds_what_the_model_is_and_makes_it_again(speech):
    made = hear(speech["wav2vec2"])
    recipe = made.recipe()
    assert recipe.width == 16 and recipe.settings["hop"] == HOP and recipe.settings["sample_rate"] == RATE
    assert recipe.settings["revision"].startswith("sha256:")
    again = Wav2Vec2(Wav2Vec2.Config(**recipe.settings))
    assert again.recipe() == recipe
    np.testing.assert_array_equal(again(noise(0.3)), made(noise(0.3)))


def test_pieces_join_without_a_gap(speech):
    wave = noise(2.5)
    whole, pieces = hear(speech["wav2vec2"]).timed(wave), hear(speech["wav2vec2"], seconds=1).timed(wave)
    np.testing.assert_allclose(pieces[1], whole[1])
    assert pieces[0].shape == whole[0].shape


def test_no_sound_and_hardly_any_sound(speech):
    extractor = hear(speech["wav2vec2"])
    assert extractor(np.zeros(0, np.float32)).shape == extractor(np.zeros(RATE, np.float32)).shape == (0, 16)
    assert extractor(noise(0.002)).shape == (1, 16)


def test_sound_files_are_read_and_kept_like_those_of_other_extractors(speech, tmp_path):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", noise(0.3), RATE)
    extractor = hear(speech["wav2vec2"])
    rows = extractor.extract([MediaFile(tmp_path / "a.wav")], tmp_path / "cache", workers=2)
    np.testing.assert_allclose(rows[0], extractor(noise(0.3)), atol=1e-2)


def test_an_encoder_of_another_family_is_a_sentence(speech, sight):
    with pytest.raises(MoodalError, match="is of the type 'hubert'; expected wav2vec2"):
        hear(speech["hubert"])
    with pytest.raises(MoodalError, match="is of the type 'wavlm'; expected vit or clip"):
        HubVision(HubVisionSettings(model=str(speech["wavlm"])))


def test_other_weights_than_those_of_the_recipe_are_refused(speech, tmp_path):
    import torch

    recipe = hear(speech["wav2vec2"]).recipe()
    torch.manual_seed(2)
    config = transformers.Wav2Vec2Config(**SIZES, **CONVOLUTIONS)
    other = save(transformers.Wav2Vec2Model(config), tmp_path / "other")
    with pytest.raises(MoodalError, match=r"has the weights sha256:.* were asked for"):
        Wav2Vec2(Wav2Vec2Settings(**{**recipe.settings, "model": str(other)}))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"layer": 3}, "has 2; give -3 to 2"),
        ({"hop": 320}, "hop is 320, and encoder"),
        ({"seconds": 0}, "seconds is 0"),
    ],
)
def test_settings_that_the_model_does_not_have_are_sentences(speech, settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        hear(speech["wav2vec2"], **settings)


def test_no_name_absent_and_damaged_encoders_are_sentences(speech, tmp_path):
    with pytest.raises(MoodalError, match="no model is named"):
        SpeechSettings()
    for name, sentence in (("somebody/some-encoder", "hub did not give it"), ("not a name", "neither a folder nor")):
        with pytest.raises(MoodalError, match=sentence):
            hear(name)
    with pytest.raises(MoodalError, match=r"has no model\.safetensors"):
        hear(tmp_path)
    folder = shutil.copytree(speech["wav2vec2"], tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(MoodalError, match="cannot be loaded"):
        hear(folder)(noise(0.1))


def film(pictures) -> list[Frame]:
    return [Frame(0.1 * step, picture) for step, picture in enumerate(pictures)]


def see(folder, **settings) -> HubVision:
    return HubVision(HubVisionSettings(model=str(folder), **settings))


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip"])
def test_image_encoders_see_whole_frames(sight, name):
    pictures = np.random.default_rng(0).integers(0, 256, (20, 40, 60, 3), dtype=np.uint8)
    extractor = see(sight[name], region="frame")
    track = extractor(film(pictures))
    assert track.values.shape == (20, 16) == (20, extractor.recipe().width) and track.stream()[0].shape == (20, 16)
    np.testing.assert_allclose(track.values[17], extractor.encode(pictures[17:18])[0], atol=1e-5)
    first = see(sight[name], region="frame", pooling="first")(film(pictures))
    assert not np.allclose(first.values, track.values, atol=1e-3)
    assert HubVision(HubVision.Config(**extractor.recipe().settings)).recipe() == extractor.recipe()


def test_the_main_speakers_face_is_cut_out(sight):
    pytest.importorskip("mediapipe")

    def frame(step: int, wall) -> np.ndarray:
        both = draw_face(draw_face(wall, (470, 150), 45), (160 + step, 150), 60, gap=0.12 * (step % 2))
        return both if step != 3 else wall

    extractor = see(sight["vit"])
    track = extractor(film(frame(step, blank(640, 360)) for step in range(8)))
    assert track.confidence[3] == 0 and "no face in" in track.note and "the main speaker was followed" in track.note
    other = extractor(film(frame(step, np.full((360, 640, 3), 40, np.uint8)) for step in range(8)))
    found = (track.confidence > 0) & (other.confidence > 0)
    assert found.sum() >= 6
    # The wall is another one and the face the same: cut-outs resemble each other more than whole frames do.
    whole = [see(sight["vit"], region="frame")(film([frame(0, wall)])).values[0] for wall in
             (blank(640, 360), np.full((360, 640, 3), 40, np.uint8))]  # fmt: skip
    assert np.abs(track.values - other.values)[found].mean() < np.abs(whole[0] - whole[1]).mean()


def test_nobody_and_nothing_to_see(sight):
    pytest.importorskip("mediapipe")
    track = see(sight["vit"])(film([blank(120, 90)] * 2))
    assert track.values.shape == (2, 16) and track.note == "no face in any of 2 frames"
    assert see(sight["vit"], region="frame")([]).note == "no frame in the video"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"region": "mouth"}, "region is 'mouth'"), ({"pooling": "max"}, "pooling is 'max'"), ({"hop": 0}, "hop is 0")],
)
def test_impossible_settings_are_sentences(settings, sentence):
    with pytest.raises(MoodalError, match=sentence):
        HubVisionSettings(model="x", **settings)
