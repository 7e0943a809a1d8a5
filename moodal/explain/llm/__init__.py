"""Explanations by language models: a video model describes a clip, a reasoning model checks it, every answer is kept.

``generate.explain_store`` and ``generate.explain_clip`` ask; ``join.join_explanations`` puts the texts into a corpus;
``judge`` has the model give the score itself, as a baseline. Without any of this the measured explainer stays the default.
"""
