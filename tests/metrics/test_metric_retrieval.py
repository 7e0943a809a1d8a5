"""Ranking by hand: CMC, mAP and mINP, what is hidden, and the two protocols of RGB-infrared re-identification."""

from __future__ import annotations

import numpy as np
import pytest

from moodal.metrics import PROTOCOLS, MetricError, score
from moodal.metrics.retrieval import distances, mean_scores, rank_gallery, regdb_scores, sysu, sysu_lists, sysu_scores


def test_a_ranking_by_hand():
    # query 1 meets 2, 1, 3, 1 in this order: matches at ranks 2 and 4; query 3 is right at once
    distance = [[0.2, 0.1, 0.3, 0.4], [0.9, 0.8, 0.1, 0.7]]
    found = rank_gallery(distance, query=[1, 3], gallery=[1, 2, 3, 1])
    assert found.cmc.tolist() == [0.5, 1.0, 1.0, 1.0]
    assert found.map == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)
    assert found.minp == pytest.approx((2 / 4 + 1) / 2)


def test_an_identity_counts_once_in_cmc_and_every_time_in_map():
    distance = [[0.1, 0.2, 0.3, 0.4]]
    plain = rank_gallery(distance, query=[5], gallery=[7, 7, 5, 5])
    once = rank_gallery(distance, query=[5], gallery=[7, 7, 5, 5], by_identity=True)
    assert plain.cmc.tolist() == [0, 0, 1, 1] and once.cmc.tolist() == [0, 1]
    assert plain.map == once.map == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_hidden_pictures_are_not_there_and_queries_without_a_match_are_skipped():
    distance = [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]
    hidden = [[True, False, False], [False, False, True]]
    found = rank_gallery(distance, query=[1, 3], gallery=[1, 1, 3], hidden=hidden, by_identity=True)
    assert found.cmc.tolist() == [1, 1] and found.map == 1  # the second query's only match is hidden
    with pytest.raises(MetricError, match="No query has its identity in the gallery"):
        rank_gallery(distance, query=[8, 9], gallery=[1, 1, 3])
    with pytest.raises(MetricError, match=r"distance has shape \(2, 3\), expected \(1, 3\)"):
        rank_gallery(distance, query=[1], gallery=[1, 1, 3])


def test_a_query_of_camera_three_does_not_see_camera_two():
    """Cameras 2 and 3 stand in one place; camera 6 sees them all."""
    identity = np.array([1, 1, 2, 1, 1])
    camera = np.array([2, 1, 1, 3, 6])
    embedding = np.array([[0.0], [3.0], [1.0], [0.0], [0.0]])
    lists = sysu_lists(identity, camera=camera, place=np.zeros(5, int))
    assert camera[lists.gallery].tolist() == [1, 1, 2] and camera[lists.query].tolist() == [3, 6]
    (trial,) = sysu(embedding, identity, camera=camera, place=np.zeros((5, 1), int))
    # camera 3: person 2 at distance 1 comes before person 1 at 3; camera 6: the near picture of person 1 is there
    assert trial.cmc.tolist() == [0.5, 1.0] and trial.map == pytest.approx((1 / 2 + (1 / 1 + 2 / 3) / 2) / 2)


def grid(persons: int, each: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(identity, camera, places of ten trials) of people before all six cameras."""
    identity, camera, number = (part.ravel() for part in np.mgrid[0:persons, 1:7, 0:each])
    draw = np.random.default_rng(0)
    places = np.stack([(number + draw.integers(each)) % each for _ in range(10)], axis=1)
    return identity, camera, places


def test_indoor_has_two_cameras_and_more_shots_more_pictures():
    identity, camera, places = grid(4)
    for mode, cameras in (("all", {1, 2, 4, 5}), ("indoor", {1, 2})):
        for shots in (1, 2):
            lists = sysu_lists(identity, camera=camera, place=places[:, 0], mode=mode, shots=shots)
            assert set(camera[lists.gallery]) == cameras and len(lists.gallery) == 4 * len(cameras) * shots
            assert len(lists.query) == 4 * 2 * 3  # every infrared picture asks


def test_random_embeddings_find_one_in_so_many_people():
    """Rank-1 near 1/96, by identity; on RegDB near 1/206."""
    identity, camera, places = grid(96)
    draw = np.random.default_rng(1)
    found = sysu_scores(draw.standard_normal((len(identity), 16)), identity, camera=camera, place=places)
    assert found["rank1"] == pytest.approx(1 / 96, abs=0.01) and found["rank10"] == pytest.approx(10 / 96, abs=0.03)
    who, infrared = np.repeat(np.arange(206), 4), np.tile([0, 0, 1, 1], 206)
    found = regdb_scores(draw.standard_normal((len(who), 16)), who, infrared=infrared)
    assert found["rank1"] == pytest.approx(1 / 206, abs=0.012) and found["thermal_rank1"] == pytest.approx(
        1 / 206, abs=0.012
    )


@pytest.mark.parametrize("name", ["sysu", "regdb"])
def test_protocols_are_complete_and_a_perfect_embedding_is_perfect(name):
    identity, camera, places = grid(25)
    columns = {"camera": camera, "place": places, "infrared": np.isin(camera, (3, 6)).astype(int)}
    found = score(name, np.eye(25)[identity], identity, columns=columns)
    assert tuple(found) == PROTOCOLS[name].keys and all(value == 1 for value in found.values())
    assert set(PROTOCOLS[name].better.values()) == {"higher"} and PROTOCOLS[name].selection == "map"
    with pytest.raises(MetricError, match=r"needs .* of each row; pass columns="):
        score(name, np.eye(25)[identity], identity)


def test_unlabelled_rows_are_left_out_with_their_columns():
    identity, camera, places = grid(5)
    draw = np.random.default_rng(2)
    embedding, columns = draw.standard_normal((len(identity), 4)), {"camera": camera, "place": places}
    kept = identity != 4
    part = {key: column[kept] for key, column in columns.items()}
    assert score("sysu", embedding, identity, kept, columns=columns) == score(
        "sysu", embedding[kept], identity[kept], columns=part
    )


def test_distances_are_euclidean_and_means_are_over_trials():
    draw = np.random.default_rng(3)
    a, b = draw.standard_normal((4, 3)), draw.standard_normal((5, 3))
    np.testing.assert_allclose(distances(a, b), np.linalg.norm(a[:, None] - b[None], axis=2), atol=1e-12)
    assert mean_scores([{"map": 0.2, "rank1": 0.0}, {"map": 0.4, "rank1": 1.0}]) == pytest.approx(
        {"map": 0.3, "rank1": 0.5}
    )
