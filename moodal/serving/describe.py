"""The description of ``/predict`` for OpenAPI, and a page that shows the whole interface without loading anything."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from moodal.core.spec import MODALITIES

_ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
_EVIDENCE = {"type": "boolean", "default": True, "description": "Whether to predict without each modality too."}
_CLIP = {
    "type": "object",
    "required": ["clip"],
    "properties": {
        "clip": {"type": "string", "format": "binary", "description": "A video or sound file."},
        "text": {"type": "string", "description": "What is said, if you know it; otherwise it is recognised."},
        "start": {"type": "number", "description": "Seconds into the file.", "default": 0},
        "end": {"type": "number", "description": "Seconds into the file; the end of it if absent."},
        "evidence": _EVIDENCE,
    },
}
_JSON = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "features": {
            "type": "object",
            "description": "Steps by modality, each a list of as many numbers as /health says; what is absent is masked.",
            "properties": {m: _ROWS for m in MODALITIES},
        },
        "evidence": _EVIDENCE,
        "id": {"type": "string", "description": "Comes back with the answer."},
    },
}
_ERRORS = {
    "400": "The body is damaged.",
    "403": "A browser sent this for a page of another site.",
    "408": "The upload did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is of another type.",
    "422": "The clip, text or features cannot be used: too long, not media, wrong widths, nothing to read.",
    "429": "As much is waiting as may wait; Retry-After says when to try again.",
    "503": "The decoder is starting, or the server is stopping.",
    "504": "The time for a request ran out.",
}
_FAULT = {"type": "object", "properties": {"kind": {"type": "string"}, "error": {"type": "string"}}}


def _answer(meaning: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


#: What FastAPI cannot know: the two bodies that ``/predict`` takes and its answers.
PREDICT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": {"schema": _CLIP}, "application/json": {"schema": _JSON}},
    },
    "responses": {
        "200": _answer("The prediction; for a clip with its time line.", {"type": "object"}),
        **{status: _answer(meaning, _FAULT) for status, meaning in _ERRORS.items()},
    },
}


def docs_page(schema: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI ``schema``, every text of it escaped."""
    parts = [
        _section(method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    title = html.escape(f"{schema['info']['title']} {schema['info']['version']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}: interface</title><link rel="stylesheet" href="/style.css"></head><body class="docs"><main>'
        f"<h1>{title}</h1><p>{html.escape(schema['info'].get('description', ''))} "
        '<a href="/">The page</a> · <a href="/openapi.json">openapi.json</a></p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _section(method: str, path: str, operation: Mapping[str, Any]) -> str:
    head = f"<h2><code>{html.escape(method.upper())} {html.escape(path)}</code></h2>"
    head += f"<p>{html.escape(operation.get('summary', ''))}</p>"
    bodies = [
        f"<h3>{html.escape(kind)}</h3>{_fields(body['schema'])}{_example(path, kind)}"
        for kind, body in operation.get("requestBody", {}).get("content", {}).items()
    ]
    rows = [
        f"<tr><td>{html.escape(status)}</td><td>{html.escape(answer['description'])}</td></tr>"
        for status, answer in operation.get("responses", {}).items()
    ]
    table = f"<h3>Answers</h3><table><tbody>{''.join(rows)}</tbody></table>" if len(rows) > 1 else ""
    return f"<section>{head}{''.join(bodies)}{table}</section>"


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    rows = []
    for name, field in schema.get("properties", {}).items():
        kind = "file" if field.get("format") == "binary" else field["type"]
        must = "required" if name in needed else ""
        told = html.escape(field.get("description", ""))
        rows.append(f"<tr><td><code>{html.escape(name)}</code></td><td>{kind}</td><td>{must}</td><td>{told}</td></tr>")
    head = "<thead><tr><th>field</th><th>type</th><th></th><th>meaning</th></tr></thead>"
    return f"<table>{head}<tbody>{''.join(rows)}</tbody></table>"


def _example(path: str, kind: str) -> str:
    if kind == "multipart/form-data":
        call = f"curl -F clip=@clip.mp4 http://localhost:8000{path}"
    else:
        body = json.dumps({"text": "I did not expect that"})
        call = f"curl -H 'Content-Type: {kind}' -d '{body}' http://localhost:8000{path}"
    return f"<pre>{html.escape(call)}</pre>"
