"""A model's tokenizer from its files, without transformers and so without torch.

In: a folder with tokenizer.json (and tokenizer_config.json, special_tokens_map.json, chat
templates). Out: a `FileTokenizer` with the few members that inspecting, auditing, rendering and
showing need. transformers imports torch with its tokenizer classes, which takes seconds and
gigabytes that a question about a template is not worth.

The surprise: tokenizer_config.json may hold added tokens and special flags that tokenizer.json
does not, and a chat template may stand in four places; all are read as transformers reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smollora.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece*.model"),
    *("vocab.json", "vocab.txt", "*.tiktoken", "tekken.json"),
)
"""Any of them holds a vocabulary; transformers makes an empty tokenizer where there is none."""
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class FileTokenizer:
    """What `tokenizers` makes of a folder's files, under the names that transformers gives it."""

    is_fast = True

    def __init__(self, backend: Tokenizer, settings: Mapping[str, Any], template: Any) -> None:
        """Args: tokenizer.json loaded; tokenizer_config.json's values; one chat template, several
        by name, or None.
        """
        self.backend_tokenizer = backend
        self.settings = settings
        self.chat_template: str | dict[str, str] | None = template

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text; nothing is added unless asked for."""
        ids: list[int] = self.backend_tokenizer.encode(
            text, add_special_tokens=add_special_tokens
        ).ids
        return ids

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        ids = list(token_ids)
        text: str = self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of a token; None for text that is none."""
        found: int | None = self.backend_tokenizer.token_to_id(tokens)
        return found

    def get_added_vocab(self) -> dict[str, int]:
        """Added tokens and their ids."""
        return {t.content: i for i, t in self.backend_tokenizer.get_added_tokens_decoder().items()}

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_tokens_map(self) -> dict[str, str]:
        """`eos_token` and its kind, as far as they are set."""
        named = {name: _text_of(self.settings.get(name)) for name in SPECIAL_NAMES}
        return {name: text for name, text in named.items() if text}

    @cached_property
    def all_special_ids(self) -> list[int]:
        """Ids of the tokens that servers leave out of the text."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        flagged = [token_id for token_id, token in added.items() if token.special]
        named = [self.convert_tokens_to_ids(text) for text in self.special_tokens_map.values()]
        return list(dict.fromkeys([*flagged, *(i for i in named if i is not None)]))

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text; None if there is none."""
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The token that ends a turn."""
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """Its id."""
        return None if self.eos_token is None else self.convert_tokens_to_ids(self.eos_token)

    @property
    def pad_token_id(self) -> int | None:
        """The id of the padding token; None if there is none."""
        text = self.special_tokens_map.get("pad_token")
        return None if text is None else self.convert_tokens_to_ids(text)


def load_tokenizer_files(folder: Path) -> FileTokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: no tokenizer.json there, or one that cannot be read.
    """
    from tokenizers import AddedToken, Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise without_tokenizer(folder)
    try:
        backend = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(
            f"{path} cannot be read: {str(error).splitlines()[0][:200]}", "fetch the model again"
        ) from error
    settings = {
        **read_json_object(folder / "special_tokens_map.json"),
        **read_json_object(folder / "tokenizer_config.json"),
    }
    listed = settings.get("added_tokens_decoder")
    listed = listed if isinstance(listed, dict) else {}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    fields = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if entry["content"] not in known:
            flags = {name: entry[name] for name in fields if name in entry}
            backend.add_tokens([AddedToken(entry["content"], **flags)])
    return FileTokenizer(backend, settings, read_chat_template(folder, settings))


def vocabularies(folder: Path) -> list[str]:
    """Names of the files there that hold a vocabulary, in whatever form."""
    return sorted({path.name for name in TOKENIZER_FILES for path in folder.glob(name)})


def without_tokenizer(folder: Path) -> ModelError:
    """What to say of a folder that lacks tokenizer.json."""
    others = vocabularies(folder)
    if others:
        return ModelError(
            f"{folder} holds no tokenizer.json, only {', '.join(others)}",
            "write one where the tokenizer's own library is installed: AutoTokenizer"
            ".from_pretrained(FOLDER).save_pretrained(FOLDER)",
        )
    return ModelError(
        f"{folder} holds no tokenizer.json: nothing there says how text becomes token ids",
        "copy tokenizer.json and tokenizer_config.json into it from the model it was made of",
    )


def read_chat_template(folder: Path, settings: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template of a folder: one, several by name, or None.

    A chat_template.jinja stands above tokenizer_config.json, as in transformers; further names are
    files of `additional_chat_templates/` or entries of a list.
    """
    said = settings.get("chat_template")
    named: dict[str, str] = {}
    if isinstance(said, str):
        named["default"] = said
    elif isinstance(said, list):
        try:
            named = {str(entry["name"]): str(entry["template"]) for entry in said}
        except (TypeError, KeyError) as error:
            raise ModelError(
                "chat_template in tokenizer_config.json is neither text nor a list of"
                " {name, template}",
                "write the template to chat_template.jinja",
            ) from error
    legacy = read_json_object(folder / "chat_template.json").get("chat_template")
    if isinstance(legacy, str):
        named["default"] = legacy
    files = [("default", folder / "chat_template.jinja")]
    files += [(p.stem, p) for p in sorted(folder.glob("additional_chat_templates/*.jinja"))]
    for name, path in files:
        if path.is_file():
            try:
                named[name] = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError as error:
                raise ModelError(f"{path} is not UTF-8", "save it as UTF-8") from error
    if set(named) <= {"default"}:
        return named.get("default")
    return named


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of settings; empty where there is none.

    Raises:
        ModelError: it is not a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {error}", "fetch the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object", "fetch the model again")
    return value


def _text_of(token: Any) -> str | None:
    """A special token as its text: files hold text, or an object with `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None
