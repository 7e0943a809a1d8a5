"""How metrics and modalities are written in tables and plots, and in which order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moodal.bench.tables import Better, Column

#: metric key -> title, better direction, decimals, scale.
_METRICS: Mapping[str, tuple[str, Better, int, float]] = {
    "mae": ("MAE", "low", 3, 1.0),
    "corr": ("Corr", "high", 3, 1.0),
    "acc2_has0": ("Acc-2 has0 %", "high", 2, 100.0),
    "acc2_non0": ("Acc-2 non0 %", "high", 2, 100.0),
    "f1_has0": ("F1 has0 %", "high", 2, 100.0),
    "f1_non0": ("F1 non0 %", "high", 2, 100.0),
    "acc2_zero_negative": ("Acc-2 zero neg. %", "high", 2, 100.0),
    "f1_zero_negative": ("F1 zero neg. %", "high", 2, 100.0),
    "acc2": ("Acc-2 %", "high", 2, 100.0),
    "f1": ("F1 %", "high", 2, 100.0),
    "acc3": ("Acc-3 %", "high", 2, 100.0),
    "acc5": ("Acc-5 %", "high", 2, 100.0),
    "acc7": ("Acc-7 %", "high", 2, 100.0),
    "rmse": ("RMSE", "low", 3, 1.0),
    "ccc": ("CCC", "high", 3, 1.0),
    "accuracy": ("Accuracy %", "high", 2, 100.0),
    "uar": ("UAR %", "high", 2, 100.0),
    "weighted_f1": ("Weighted F1 %", "high", 2, 100.0),
    "macro_f1": ("Macro F1 %", "high", 2, 100.0),
    "ece": ("ECE %", "low", 2, 100.0),
    "f1_3": ("F1 3 classes %", "high", 2, 100.0),
    "rank1": ("Rank-1 %", "high", 2, 100.0),
    "rank10": ("Rank-10 %", "high", 2, 100.0),
    "rank20": ("Rank-20 %", "high", 2, 100.0),
    "map": ("mAP %", "high", 2, 100.0),
    "minp": ("mINP %", "high", 2, 100.0),
    "indoor_rank1": ("Rank-1 indoor %", "high", 2, 100.0),
    "indoor_rank10": ("Rank-10 indoor %", "high", 2, 100.0),
    "indoor_rank20": ("Rank-20 indoor %", "high", 2, 100.0),
    "indoor_map": ("mAP indoor %", "high", 2, 100.0),
    "indoor_minp": ("mINP indoor %", "high", 2, 100.0),
    "thermal_rank1": ("Rank-1 thermal queries %", "high", 2, 100.0),
    "thermal_rank10": ("Rank-10 thermal queries %", "high", 2, 100.0),
    "thermal_rank20": ("Rank-20 thermal queries %", "high", 2, 100.0),
    "thermal_map": ("mAP thermal queries %", "high", 2, 100.0),
    "thermal_minp": ("mINP thermal queries %", "high", 2, 100.0),
    "loss": ("Loss", "low", 3, 1.0),
}


def known_metric(key: str) -> bool:
    """Whether ``key`` has a title here."""
    return key in _METRICS


def metric_column(key: str, *, prefix: str = "", marked: bool = True) -> Column:
    """The column of a metric; an unknown one is shown by its key, with no best value marked."""
    title, better, decimals, scale = _METRICS.get(key, (key, None, 3, 1.0))
    return Column(f"{prefix}{key}", title, better if marked else None, decimals, scale)


def ordered(keys: Iterable[str]) -> list[str]:
    """Metrics in the order of tables; unknown ones last, by name."""
    places = {key: place for place, key in enumerate(_METRICS)}
    return sorted(set(keys), key=lambda key: (places.get(key, len(places)), key))
