"""Config and tokenizer of a Hugging Face folder, as transformers' AutoConfig and AutoTokenizer read them.

Neither needs torch; importing them takes two seconds, and only sources of this kind pay for it. Nothing is looked up on
the network, and no code of a repository is run: what asks for its own code is refused.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from lingregions.models.json_object import read_object

_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model", "tekken.json")


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Give the library without its advice on the error stream: that there is no torch, and what it thinks of rope."""
    before = os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS")
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
    try:
        import transformers

        level = transformers.logging.get_verbosity()
        transformers.logging.set_verbosity_error()
        try:
            yield transformers
        finally:
            transformers.logging.set_verbosity(level)
    finally:
        if before is None:
            del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
        else:
            os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = before


def complete_config(folder: Path, raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config.json with what its model type implies written out, and without keys of generation and training.

    A model type that the library does not know is returned as it is, and so are sizes that the file lacks: a default
    would describe another model. Of a model that wraps a text model with others it is that of the text model, whose
    sizes may be left to the library.

    Raises:
      ValueError: a value that the library refuses.
    """
    with _quiet() as transformers:
        from huggingface_hub.errors import StrictDataclassClassValidationError

        kind = raw.get("model_type")
        if not isinstance(kind, str | None):
            raise ValueError(f"{folder / 'config.json'}: model_type is {kind!r}, not a name")
        if kind not in list(transformers.CONFIG_MAPPING):
            return dict(raw)
        try:
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except MemoryError:
            raise
        except StrictDataclassClassValidationError:
            return dict(raw)  # of sizes that do not divide: the family's own parser knows whether they need to
        except Exception as error:  # its own classes, and whatever arithmetic with broken sizes raises
            raise ValueError(f"{folder / 'config.json'}: transformers refuses it ({_line(error)})") from error
    if "text_config" in raw:
        wrapped: dict[str, Any] = config.get_text_config().to_dict()
        return wrapped
    complete: dict[str, Any] = config.to_dict()
    return {key: value for key, value in complete.items() if key in raw or key not in _SIZES}


def read_tokenizer(folder: Path) -> tuple[tokenizers.Tokenizer, int | None, int | None, bool]:
    """Return the backend of a folder's tokenizer, the ids of bos and eos, and whether texts begin with bos.

    Raises:
      FileNotFoundError: the folder has no tokenizer.
      ValueError: files that cannot be read, no backend of the `tokenizers` library, or a package that is missing.
    """
    files = [file for file in _TOKENIZERS if (folder / file).is_file()]
    if not files:
        raise FileNotFoundError(f"{folder}: no tokenizer.json; copy the tokenizer files of the model into the folder")
    settings = [
        read_object(folder / file) if (folder / file).is_file() else {}
        for file in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
    ]
    if files[0] == "tokenizer.model" and importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            f"{folder}: tokenizer.model without tokenizer.json is read with sentencepiece, which is not installed: "
            "pip install 'lingregions[sentencepiece]'"
        )
    try:
        auto, starts = _auto_tokenizer(folder, settings[0])
    except MemoryError:
        raise
    except Exception as error:  # the libraries raise bare Exception, and all that broken files lead to
        raise ValueError(f"{folder / files[0]}: not a tokenizer that transformers can read ({_line(error)})") from error
    backend = getattr(auto, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ValueError(
            f"{folder / files[0]}: transformers reads it as {type(auto).__name__}, which is not of the `tokenizers` "
            "library; give a folder with a tokenizer.json"
        )
    if backend.post_processor is not None and not auto.num_special_tokens_to_add():
        # The library puts one that does nothing; without it an exported tokenizer has the fingerprint that it had.
        backend.post_processor = None
    text = (folder / files[0]).read_text("utf-8") if files[0] == "tokenizer.json" else None
    bos, eos = (_special(auto, backend, settings, kind, folder, text) for kind in ("bos", "eos"))
    adds_bos = settings[0].get("add_bos_token")
    if adds_bos is None:
        adds_bos = starts == [bos]
    return backend, bos, eos, bool(adds_bos) and bos is not None


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the float32 logits [T, V] that transformers gives for one document, int32 [1, T]; needs torch."""
    with _quiet() as transformers:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype="float32", trust_remote_code=False, local_files_only=True
        )
        ids = transformers.BatchEncoding({"input_ids": tokens.astype(np.int64)}, tensor_type="pt")
        found: np.ndarray = model.eval().requires_grad_(False)(**ids, use_cache=False).logits[0].numpy()
    return found


def _auto_tokenizer(folder: Path, settings: Mapping[str, Any]) -> tuple[Any, list[int]]:
    """Return the library's tokenizer, and the first of the ids that it gives to a text."""
    # The library takes a token that is an object only where that names its class.
    plain: dict[str, Any] = {key: value["content"] for key, value in settings.items() if _is_token(key, value)}
    with _quiet() as transformers:
        from huggingface_hub.errors import StrictDataclassClassValidationError

        def load(**others: Any) -> Any:
            return transformers.AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True, **plain, **others
            )

        try:
            auto = load()
        except StrictDataclassClassValidationError:  # of config.json, as in `complete_config`
            auto = load(config=transformers.PreTrainedConfig())
        return auto, auto.encode("a")[:1]


def _is_token(key: str, value: Any) -> bool:
    return key.endswith("_token") and isinstance(value, dict) and isinstance(value.get("content"), str)


def _special(
    auto: Any, backend: tokenizers.Tokenizer, settings: list[dict[str, Any]], kind: str, folder: Path, text: str | None
) -> int | None:
    """Return the id of "bos" or "eos": by token in the tokenizer's files, else by id in the model's."""
    token = getattr(auto, f"{kind}_token")
    if token:
        index = backend.token_to_id(token)
        # The library adds a token that the file lacks, with an id of its own choice.
        if index is None or (text is not None and token not in text and repr(token)[1:-1] not in text):
            raise ValueError(f"{folder}: the {kind} token {token!r} is not in tokenizer.json")
        return int(index)
    if any(f"{kind}_token" in each for each in settings[:2]):
        return None  # null or empty: the tokenizer is said to have none
    for each in settings[2:]:
        index = each.get(f"{kind}_token_id")
        index = index[0] if isinstance(index, list) and index else index
        if index is not None:
            if not isinstance(index, int):
                raise ValueError(f"{folder}: {kind}_token_id is {index!r}, not an id")
            return index
    return None


def _line(error: Exception) -> str:
    """Return the message of an exception on one line of moderate length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 300 else f"{text[:300]}..."
