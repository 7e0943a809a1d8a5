"""Models behind any OpenAI-compatible server: vLLM, SGLang, ``transformers serve``, a vendor."""

from __future__ import annotations

import asyncio
import base64
import email.utils
import json
import logging
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from moodal.core.errors import MissingExtra
from moodal.explain.llm.limits import Budget, Pace
from moodal.explain.llm.question import Answer, Medium, Question, Unanswered, Unreachable
from moodal.explain.llm.settings import LLMSettings

log = logging.getLogger(__name__)

#: Seconds in which a server that is there accepts a connection and lists its models.
_CONNECT = 10.0
#: Most seconds that a server may ask to wait; one that wants more is taken at its word only so far.
_LONGEST_HOLD = 600.0
#: HTTP states after which the same request may succeed.
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
#: Words of a server that does not know how to hold an answer to a schema.
_SCHEMA_WORDS = ("response_format", "json_schema", "guided", "grammar", "structured")


class _Passing(Exception):
    """A fault after which the same request may succeed; ``wait``: seconds the server asked for."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class ServerBackend:
    """Asks a server. ``budget`` and ``pace`` may be shared with other backends of the same run."""

    def __init__(self, settings: LLMSettings, *, budget: Budget | None = None, pace: Pace | None = None) -> None:
        self.settings = settings
        self.budget = Budget() if budget is None else budget
        self.pace = Pace(settings.per_minute) if pace is None else pace
        self._key = _key(settings)
        self._schema = settings.schema != "none"
        self._client: Any = None
        self._create: Any = None

    async def __aenter__(self) -> "ServerBackend":
        """Connect, and see that the server is there and takes the key. Raises ``Unreachable``."""
        openai = _openai()
        # Our own retries count against the budget; a key that is not asked for must not be taken from the environment.
        self._client = openai.AsyncOpenAI(
            base_url=self.settings.base_url, api_key=self._key or "none", organization="", project="", max_retries=0,
            timeout=self.settings.timeout,
        )  # fmt: skip
        self._create = (
            self._client.chat.completions.with_raw_response.create
        )  # imported here, not while an answer is timed
        try:
            await self._look(openai)
        except BaseException:
            await self._client.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def _look(self, openai: Any) -> None:
        try:
            await self._client.models.list(timeout=_CONNECT)
        except openai.APIConnectionError as fault:
            raise self._absent(fault) from None
        except openai.APIStatusError as fault:
            if fault.status_code in (401, 403):
                raise self._refused(fault) from None
            log.debug("the list of models is not to be had (HTTP %s)", fault.status_code)
        except Exception as fault:  # not a list that the client understands: the question itself will tell
            log.debug("the list of models is not to be had (%s)", type(fault).__name__)

    async def ask(self, question: Question) -> Answer:
        """The answer, after as many tries as the settings allow. Raises ``Unanswered``, ``Unreachable``, ``BudgetSpent``."""
        started, reason = time.monotonic(), ""
        guess = question.tokens() + self._most(question)
        for tries in range(1, self.settings.retries + 2):
            await self.pace.turn()
            self.budget.take(guess)
            used = 0
            try:
                found = await self._request(question)
                answer = _answer(found, question, tries=tries, seconds=time.monotonic() - started)
                used = answer.asked_tokens + answer.answer_tokens
                return answer
            except _Passing as fault:
                reason = self._hidden(str(fault))
                log.debug("try %d: %s", tries, reason)
                if tries <= self.settings.retries:
                    await self._wait(tries, fault.wait)
            finally:
                self.budget.settle(guess, used)
        raise Unanswered(f"no answer after {self.settings.retries + 1} tries: {reason}")

    def _most(self, question: Question) -> int:
        return question.max_tokens or self.settings.max_tokens

    async def _wait(self, tries: int, wanted: float | None) -> None:
        """Back off: as long as the server asks, and everybody; else doubled each time, spread so that not all come at once."""
        if wanted is not None:
            self.pace.hold(min(wanted, _LONGEST_HOLD))
            return
        longest = min(self.settings.backoff * 2 ** (tries - 1), self.settings.longest_wait)
        await asyncio.sleep(longest * random.uniform(0.5, 1.0))

    async def _request(self, question: Question) -> Mapping[str, Any]:
        """One request: the body of the server's answer. Raises ``_Passing`` where another try may help."""
        openai = _openai()
        while True:
            held = question.schema is not None and self._schema
            try:
                async with asyncio.timeout(self.settings.timeout):  # the client's own is per piece: a drip never ends
                    raw = await self._create(**self._body(question, held=held))
                    return json.loads(raw.http_response.text)
            except (TimeoutError, openai.APITimeoutError):
                raise _Passing(f"nothing came within {self.settings.timeout:g} s") from None
            except openai.APIConnectionError as fault:
                raise _Passing(f"the connection failed ({_cause(fault)})") from None
            except (json.JSONDecodeError, RecursionError):
                raise _Passing("the server's answer is not JSON") from None
            except openai.APIStatusError as fault:
                if not (held and self._without_schema(fault)):
                    raise self._status(fault) from None
            except openai.OpenAIError as fault:
                raise _Passing(_cause(fault)) from None

    def _without_schema(self, fault: Any) -> bool:
        """Whether the server refused the schema, so that it is left out from now on."""
        words = _words(fault).lower()
        refused = fault.status_code in (400, 422, 501) and any(word in words for word in _SCHEMA_WORDS)
        if refused and self.settings.schema == "auto":
            log.info("the server takes no schema; answers are asked for in words alone")
            self._schema = False
            return True
        return False

    def _body(self, question: Question, *, held: bool) -> dict[str, Any]:
        settings = self.settings
        body: dict[str, Any] = {
            "model": settings.model,
            "messages": messages(question),
            "max_tokens": self._most(question),
            "temperature": settings.temperature,
        }
        if settings.seed is not None:
            body["seed"] = settings.seed
        if held:
            form = {"name": "answer", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
        if settings.extra:
            body["extra_body"] = dict(settings.extra)
        return body

    def _status(self, fault: Any) -> Exception:
        """What an HTTP state means: for another try, for this question, or for the whole run."""
        code, words = fault.status_code, self._hidden(_words(fault))
        if code in (401, 403):
            return self._refused(fault)
        if "insufficient_quota" in words:
            return Unreachable(f"The server has no quota left for this key ({words}); add some, or use another server.")
        if code in _PASSING:
            return _Passing(f"HTTP {code} ({words})", _asked_to_wait(fault.response.headers))
        if code == 404 or (code in (400, 422) and self._names_model(words)):
            return Unreachable(
                f"{self._place()} does not answer for model '{self.settings.model}' (HTTP {code}: {words}); "
                "check the model's name, and base_url, which usually ends in /v1."
            )
        return Unanswered(f"the server refused the question (HTTP {code}: {words})")

    def _names_model(self, words: str) -> bool:
        quoted = rf"['\"`]{re.escape(self.settings.model)}['\"`]"
        return "model_not_found" in words or re.search(quoted, words) is not None

    def _refused(self, fault: Any) -> Unreachable:
        which = f"the key in ${self.settings.key}" if self.settings.key else "a request without a key"
        return Unreachable(
            f"{self._place()} refused {which} (HTTP {fault.status_code}: {self._hidden(_words(fault))}); "
            "set key to the name of an environment variable that holds a valid one."
        )

    def _absent(self, fault: Exception) -> Unreachable:
        return Unreachable(
            f"No server answers at {self._place()} ({self._hidden(_cause(fault))}); start one there, or correct base_url."
        )

    def _place(self) -> str:
        """The address without what a user may have put into it as a secret."""
        scheme, _, rest = self.settings.base_url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"

    def _hidden(self, words: str) -> str:
        """``words`` without the key: servers like to repeat it, and they go to files and screens."""
        return words.replace(self._key, "***") if self._key else words


def messages(question: Question) -> list[dict[str, Any]]:
    """The question in the chat form of the protocol, media as data URIs."""
    asked: list[dict[str, Any]] = [{"role": "system", "content": question.system}]
    if all(isinstance(part, str) for part in question.parts):  # servers of text models may know no parts
        asked.append({"role": "user", "content": "\n".join(str(part) for part in question.parts)})
    else:
        asked.append({"role": "user", "content": [_part(part) for part in question.parts]})
    for answer, fault in question.earlier:
        asked += [{"role": "assistant", "content": answer}, {"role": "user", "content": fault}]
    return asked


def _part(part: str | Medium) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    data = base64.b64encode(part.data).decode("ascii")
    if part.kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    kind = f"{part.kind}_url"
    return {"type": kind, kind: {"url": f"data:{part.mime};base64,{data}"}}


def _answer(body: Any, question: Question, *, tries: int, seconds: float) -> Answer:
    """The answer in a server's body. Raises ``_Passing`` where it holds none: servers under load send such things."""
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise _Passing("the server's answer holds no message") from None
    if isinstance(text, Sequence) and not isinstance(text, str):  # some servers send parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    if not isinstance(text, str) and not isinstance(thought, str):
        raise _Passing("the server's answer holds no text")
    usage = body.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    asked, answered = counts.get("prompt_tokens"), counts.get("completion_tokens")
    text = text if isinstance(text, str) else ""
    spent, counted = (question.tokens(), len(text) // 4 + 1), False
    if isinstance(asked, int) and isinstance(answered, int):
        spent, counted = (asked, answered), True
    return Answer(
        text=text,
        reasoning=thought if isinstance(thought, str) else "",
        finish=str(choice.get("finish_reason") or ""),
        asked_tokens=spent[0],
        answer_tokens=spent[1],
        counted=counted,
        tries=tries,
        seconds=round(seconds, 3),
    )


def _openai() -> Any:
    try:
        import openai
    except ImportError:
        raise MissingExtra("openai", "llm") from None
    return openai


def _key(settings: LLMSettings) -> str:
    """The key in the environment variable that the settings name. Raises ``Unreachable`` if it is not set."""
    if not settings.key:
        return ""
    value = os.environ.get(settings.key, "").strip()
    if not value:
        raise Unreachable(
            f"The environment variable {settings.key}, named by key, is not set; put the server's key into it, "
            "or leave key empty for a server that needs none."
        )
    return value


def _asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds in Retry-After, which is a number or a date; None where there is none."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None


def _words(fault: Any) -> str:
    """What the server said, on one line."""
    body = fault.body
    for key in ("error", "message", "detail"):
        body = body.get(key, body) if isinstance(body, Mapping) else body
    text = " ".join(str(body or fault.message).split())
    code = fault.code if isinstance(fault.code, str) else ""
    return f"{code}: {text}"[:300] if code and code not in text else text[:300]


def _cause(fault: BaseException) -> str:
    """The innermost reason of a failed connection, on one line."""
    while fault.__cause__ is not None:
        fault = fault.__cause__
    return (" ".join(str(fault).split()) or type(fault).__name__)[:200]
