"""Models in this process, through transformers: by hub name or folder, frames as several pictures."""

from __future__ import annotations

import asyncio
import io
import time
from types import TracebackType
from typing import Any

from moodal.core.errors import MissingExtra
from moodal.explain.llm.limits import Budget
from moodal.explain.llm.question import Answer, Medium, Question, Unanswered, Unreachable
from moodal.explain.llm.settings import LLMSettings


class LocalBackend:
    """Answers with a model of this process, one question at a time.

    Any class that transformers lists for images and text, or for text alone (the second stage): Qwen2.5-VL, Qwen3-VL,
    Qwen-Omni, VideoLLaMA 3, InternVL, SmolVLM, LLaVA and others. torchvision is not needed: where a processor wants it
    for videos, it is built without that part, because frames are given as pictures.
    """

    def __init__(self, settings: LLMSettings, *, budget: Budget | None = None) -> None:
        self.settings = settings
        self.budget = Budget() if budget is None else budget
        self._model: Any = None
        self._processor: Any = None
        self._sees = False
        self._turn: asyncio.Lock | None = None

    async def __aenter__(self) -> "LocalBackend":
        """Load the model, once. Raises ``Unreachable`` if there is none, ``MissingExtra`` without transformers."""
        self._turn = asyncio.Lock()  # of this event loop
        if self._model is None:
            await asyncio.to_thread(self._load)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The model stays for the next run."""

    async def ask(self, question: Question) -> Answer:
        """The answer. Raises ``Unanswered`` where the model cannot take the question, and ``BudgetSpent``."""
        assert self._turn is not None, "ask inside 'async with'"
        guess = question.tokens() + (question.max_tokens or self.settings.max_tokens)
        async with self._turn:
            self.budget.take(guess)
            used = 0
            try:
                answer = await asyncio.to_thread(self._answer, question)
                used = answer.asked_tokens + answer.answer_tokens
            finally:
                self.budget.settle(guess, used)
        return answer

    def _load(self) -> None:
        try:
            import transformers
        except ImportError:
            raise MissingExtra("transformers", "text") from None
        name = self.settings.model
        try:
            config = transformers.AutoConfig.from_pretrained(name)
            kind = _model_class(transformers, config)
            self._sees = kind is not transformers.AutoModelForCausalLM
            self._processor = (
                _processor(transformers, name, config)
                if self._sees
                else transformers.AutoTokenizer.from_pretrained(name)
            )
            self._model = kind.from_pretrained(name, dtype=self.settings.dtype).eval()
            self._model.to(_device(self.settings.device))
        except (OSError, ValueError, KeyError, RuntimeError, ImportError) as fault:
            reason = next(iter(str(fault).strip().splitlines()), type(fault).__name__)
            raise Unreachable(
                f"The model '{name}' could not be loaded into this process ({reason[:300]}); give the folder of a downloaded "
                "model or a hub name that can be reached, or set base_url to ask a server."
            ) from fault

    def _answer(self, question: Question) -> Answer:
        import torch

        started = time.monotonic()
        try:
            inputs = self._inputs(question)
            with torch.inference_mode(), torch.random.fork_rng(enabled=self.settings.seed is not None):
                if self.settings.seed is not None:
                    torch.manual_seed(self.settings.seed)
                ids = self._model.generate(**inputs, **self._generation(question))
        except (ValueError, IndexError, RuntimeError) as fault:  # too many pictures, too long, out of memory
            reason = next(iter(str(fault).strip().splitlines()), type(fault).__name__)
            raise Unanswered(f"the model failed on this question ({reason[:300]})") from fault
        asked = int(inputs["input_ids"].shape[1])
        new = ids[0, asked:]
        decoder = self._processor.tokenizer if self._sees else self._processor
        most = question.max_tokens or self.settings.max_tokens
        return Answer(
            text=decoder.decode(new, skip_special_tokens=True),
            finish="length" if len(new) >= most else "stop",
            asked_tokens=asked,
            answer_tokens=len(new),
            seconds=round(time.monotonic() - started, 3),
        )

    def _inputs(self, question: Question) -> dict[str, Any]:
        """What the model takes, on its device and (pictures) in its precision."""
        made = self._processor.apply_chat_template(
            conversation(question, sees=self._sees), add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        device, dtype = self._model.device, self._model.dtype
        return {name: v.to(device, dtype) if v.is_floating_point() else v.to(device) for name, v in made.items()}

    def _generation(self, question: Question) -> dict[str, Any]:
        settings = self.settings
        chosen: dict[str, Any] = {
            "max_new_tokens": question.max_tokens or settings.max_tokens, "max_time": settings.timeout, **settings.extra
        }  # fmt: skip
        if settings.temperature > 0:
            return chosen | {"do_sample": True, "temperature": settings.temperature}
        return chosen | {"do_sample": False}


def conversation(question: Question, *, sees: bool) -> list[dict[str, Any]]:
    """The question as a chat template takes it: parts for models that see, plain text for those that do not."""

    def said(role: str, parts: tuple[str | Medium, ...]) -> dict[str, Any]:
        if not sees:
            return {"role": role, "content": "\n".join(part for part in parts if isinstance(part, str))}
        return {"role": role, "content": [_part(part) for part in parts]}

    turns = [said("system", (question.system,)), said("user", question.parts)]
    for answer, fault in question.earlier:
        turns += [said("assistant", (answer,)), said("user", (fault,))]
    return turns


def _part(part: str | Medium) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    from PIL import Image

    return {"type": "image", "image": Image.open(io.BytesIO(part.data)).convert("RGB")}


def _model_class(transformers: Any, config: Any) -> Any:
    """The automatic class that knows this configuration: for pictures and text, for several modalities, for text."""
    for name in ("AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
        kind = getattr(transformers, name, None)
        if kind is not None and type(config) in kind._model_mapping:
            return kind
    return transformers.AutoModelForCausalLM


def _processor(transformers: Any, name: str, config: Any) -> Any:
    """The processor; where it asks for torchvision, which is needed for videos alone, one without videos."""
    try:
        return transformers.AutoProcessor.from_pretrained(name)
    except ImportError as fault:
        if "torchvision" not in str(fault).lower():
            raise
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    kind = getattr(transformers, PROCESSOR_MAPPING_NAMES[config.model_type])

    class WithoutVideos(kind):  # type: ignore[misc, valid-type]
        """The same processor, of which the part for videos may be absent."""

        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    makers = {
        "image": transformers.AutoImageProcessor,
        "tokenizer": transformers.AutoTokenizer,
        "feature": transformers.AutoFeatureExtractor,
    }
    facts, _ = kind.get_processor_dict(name)
    parts = [
        next((maker.from_pretrained(name) for word, maker in makers.items() if word in part), None)
        for part in kind.get_attributes()
    ]
    return WithoutVideos.from_args_and_dict(parts, facts)


def _device(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
