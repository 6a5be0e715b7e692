"""Text to token ids, from any local Hugging Face folder or a vocabulary trained on the corpus."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Int32

from medclip_jax.reports.people import may_name_someone, without_people
from medclip_jax.reports.wordpiece import SPECIAL_TOKENS, learn_pieces

if TYPE_CHECKING:
    import tokenizers

_LOG = logging.getLogger(__name__)
# What the two families of text encoders call the same thing, BERT's name first.
_SPECIAL_NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>"),
    "sep": ("[SEP]", "</s>", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}
# Cut differently by tokenizers of one vocabulary that treat case, accents, figures or signs differently.
_PROBE = "No Pericardial-effusion; café-au-lait NODULE of 12.5 mm, s/p CABG (2019)."
_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "vocab.json")


class Tokenizer:
    """Turns texts into a padded matrix of token ids: ``[CLS] ... [SEP] [PAD] ...``.

    A text that does not fit is cut before its ``[SEP]`` and counted, or refused, as `overflow` says. The
    counts are those of this object: a data worker that holds a copy counts for itself.

    Attributes:
        vocabulary_size: number of token ids.
        pad, cls, sep, mask: ids of the special tokens.
        limit: most tokens its text encoder takes as the folder says, or None.
        encoded: texts encoded so far.
        truncated: how many of them were cut.
        longest: tokens of the longest text so far, special tokens included.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special: dict[str, int],
        *,
        limit: int | None = None,
        overflow: Literal["truncate", "error"] = "truncate",
    ):
        if overflow not in ("truncate", "error"):
            raise ValueError(f"overflow must be 'truncate' or 'error', not {overflow!r}")
        # Folders carry padding and truncation of their own (MiniLM: 128 tokens), which would cut unseen.
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.vocabulary_size = backend.get_vocab_size(with_added_tokens=True)
        self.pad, self.cls, self.sep, self.mask = (special[name] for name in ("pad", "cls", "sep", "mask"))
        self.limit = limit
        self.overflow = overflow
        self.encoded = 0
        self.truncated = 0
        self.longest = 0

    def __call__(self, texts: Sequence[str], length: int) -> Int32[np.ndarray, "B L"]:
        """Encode a batch.

        Args:
            texts: B texts; an empty one becomes ``[CLS] [SEP]``.
            length: L, tokens per text, special tokens included.

        Returns:
            (B, L) ids, padded with `pad`.

        Raises:
            ValueError: `length` below 3 or above `limit`; a text that does not fit if ``overflow="error"``.
            TypeError: `texts` is one string instead of a list.
        """
        if isinstance(texts, str):
            raise TypeError("tokenizer(texts, length) takes a list of texts; wrap a single one: [text]")
        if length < 3:
            raise ValueError(
                f"length {length} leaves no room for a word between [CLS] and [SEP]; use at least 3"
            )
        if self.limit is not None and length > self.limit:
            raise ValueError(
                f"length {length} exceeds the {self.limit} positions of this text encoder; set the text "
                f"length to at most {self.limit}"
            )
        ids = np.full((len(texts), length), self.pad, np.int32)
        cut = 0
        for row, encoding in enumerate(self._backend.encode_batch_fast(list(texts))):
            tokens = encoding.ids
            self.longest = max(self.longest, len(tokens))
            if len(tokens) > length:
                if self.overflow == "error":
                    raise ValueError(
                        f"text {row} of the batch has {len(tokens)} tokens but the length is {length}: raise "
                        f"the text length, give a shorter section of the report (for instance its "
                        f'impression), or allow cutting with overflow="truncate"'
                    )
                cut += 1
                tokens = [*tokens[: length - 1], self.sep]
            ids[row, : len(tokens)] = tokens
        if cut and not self.truncated:
            _LOG.warning(
                "a text of %d tokens was cut to %d; raise the text length or use a shorter section if this "
                "happens often (counted in Tokenizer.truncated, later cuts are not logged)",
                self.longest,
                length,
            )
        self.encoded += len(texts)
        self.truncated += cut
        return ids

    def starts(self, text: str, length: int) -> Int32[np.ndarray, " L"]:
        """Character at which each token of a text begins.

        Args:
            text: one text.
            length: L, as given to `__call__`.

        Returns:
            (L,) by the tokens that ``self([text], length)`` gives; -1 on special tokens and padding.
        """
        encoding = self._backend.encode(text)
        starts = np.full(length, -1, np.int32)
        places = list(zip(encoding.offsets, encoding.special_tokens_mask, strict=True))
        # A text that is cut ends in [SEP], which takes the place of its last token.
        kept = len(places) if len(places) <= length else length - 1
        for index, ((start, _), special) in enumerate(places[:kept]):
            if not special:
                starts[index] = start
        return starts

    @property
    def vocabulary(self) -> dict[str, int]:
        """Every word piece and special token with its id."""
        return self._backend.get_vocab(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """A hash of what the ids mean and of how texts are cut; the same wherever the folder lies."""
        ids = self._backend.encode(_PROBE).ids
        special = [self.pad, self.cls, self.sep, self.mask]
        content = json.dumps([sorted(self.vocabulary.items()), special, ids])
        return hashlib.sha256(content.encode()).hexdigest()

    def summary(self) -> str:
        """One line on how many texts were cut, for logs and reports."""
        share = self.truncated / self.encoded if self.encoded else 0.0
        cut = f"{self.truncated} of {self.encoded} texts ({share:.1%}) were cut"
        return f"{cut}; the longest had {self.longest} tokens"

    def decode(self, ids: Iterable[int]) -> str:
        """Text of one row of ids, special tokens left out."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=True)

    def save(self, folder: str | Path) -> None:
        """Write it as a Hugging Face folder that holds nothing but the tokenizer.

        Of the folder that it was read from, no path stays, nor any padding and truncation (MiniLM's: 128).

        Args:
            folder: receives ``tokenizer.json``, the two settings files and, where BERT's rules and that list
                are all there is to it, ``vocab.txt``.
        """
        folder = Path(folder)
        tokens = {f"{name}_token": self._backend.id_to_token(getattr(self, name)) for name in _SPECIAL_NAMES}
        content = json.loads(self._backend.to_str())
        settings: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if _is_bert(content) and sorted(vocabulary.values()) == list(range(len(vocabulary))):
            lowercase = content["normalizer"]["lowercase"]
            settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase}
            lines = "".join(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get))
            (folder / "vocab.txt").write_text(lines, encoding="utf-8")
        if unknown := content["model"].get("unk_token"):
            tokens["unk_token"] = unknown
        if self.limit is not None:
            settings["model_max_length"] = self.limit
        self._backend.save(str(folder / "tokenizer.json"))
        for name, entries in ("tokenizer_config", settings | tokens), ("special_tokens_map", tokens):
            (folder / f"{name}.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included, nothing cut: what `length` would have to be."""
        return [len(encoding.ids) for encoding in self._backend.encode_batch_fast(list(texts))]


def load_tokenizer(folder: str | Path, *, overflow: Literal["truncate", "error"] = "truncate") -> Tokenizer:
    """Read the tokenizer of a local Hugging Face folder. Never goes to the network.

    Takes ``tokenizer.json`` where there is one, else builds BERT's WordPiece from ``vocab.txt``, else asks
    `transformers` for whatever the folder describes.

    Args:
        folder: folder with one of those files.
        overflow: what happens to a text that does not fit: "truncate" (counted) or "error".

    Raises:
        FileNotFoundError: no such folder, or no tokenizer in it.
        ValueError: a damaged file, or one without padding, class, separator and mask tokens.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no tokenizer folder at {folder}: give a local Hugging Face folder (`hf download MODEL "
            f"--local-dir DIR` fetches one) or the tokenizer folder that `medclip prepare` writes"
        )
    if not any((folder / name).exists() for name in _FILES):
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(_FILES)}: it is not a tokenizer folder. Copy the tokenizer "
            f"files of the text encoder into it, or train a vocabulary with `train_wordpiece`"
        )
    config = _read_json(folder / "tokenizer_config.json")
    try:
        backend = _backend(folder, config)
    except Exception as error:  # the Rust side raises bare Exception
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({error}); the file is damaged or of an unknown kind: "
            f"copy it again from its source"
        ) from error
    named = {**_read_json(folder / "special_tokens_map.json"), **config}
    special = {}
    for key, defaults in _SPECIAL_NAMES.items():
        given = named.get(f"{key}_token")
        given = given.get("content") if isinstance(given, dict) else given
        ids = [backend.token_to_id(token) for token in (given, *defaults) if token]
        found = [token for token in ids if token is not None]
        if not found:
            raise ValueError(
                f"the tokenizer in {folder} has no {key} token; set {key}_token in its tokenizer_config.json "
                f"to a token of its vocabulary"
            )
        special[key] = found[0]
    limit = config.get("model_max_length")
    # transformers writes 1e30 where nothing is known.
    limit = int(limit) if isinstance(limit, int | float) and limit < 1e6 else None
    return Tokenizer(backend, special, limit=limit, overflow=overflow)


def train_wordpiece(
    texts: Iterable[str],
    folder: str | Path,
    size: int = 8192,
    *,
    lowercase: bool = True,
    minimum_count: int = 2,
    patients: Iterable[Hashable] | None = None,
    minimum_patients: int = 1,
) -> Tokenizer:
    """Learn a WordPiece vocabulary from the corpus and write it as a Hugging Face folder.

    The same texts give the same files on every run, in any order of the texts.

    The vocabulary is passed on with every model. So that no patient's name is in it, a word of patients'
    texts is learned only if the texts of `minimum_patients` patients hold it, outside of the contexts in
    which reports name people (`medclip_jax.reports.people`). From all other words only the letters are
    taken.

    Args:
        texts: reports, statements, prompts: whatever will be encoded.
        folder: receives ``tokenizer.json``, ``vocab.txt`` and the two settings files; made if missing.
        size: entries at most, special tokens included.
        lowercase: fold case and strip accents, as uncased BERT does.
        minimum_count: pairs seen less often are not merged.
        patients: whose each text is, None for a text that is nobody's; default: all are nobody's.
        minimum_patients: in whose texts a word must stand.

    Returns:
        The tokenizer, as `load_tokenizer(folder)` would give it.

    Raises:
        ValueError: the texts hold no word.
    """
    from tokenizers import normalizers, pre_tokenizers

    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    splitter = pre_tokenizers.BertPreTokenizer()

    def split(text: str) -> list[str]:
        return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]

    words: Counter[str] = Counter()
    spelled: set[str] = set()
    public: set[str] = set()
    owners: defaultdict[str, set[Hashable]] = defaultdict(set)
    for text, patient in zip(texts, itertools.repeat(None) if patients is None else patients, strict=False):
        if patient is None:
            found = split(text)
            public.update(found)
        else:
            spelled.update(split(text))
            found = [word for word in split(without_people(text)) if not may_name_someone(word)]
            for word in found:
                if len(owners[word]) < minimum_patients:
                    owners[word].add(patient)
        words.update(found)
    if not words and not spelled:
        raise ValueError("no text to learn a vocabulary from: every report is empty; check the report column")
    learned = {
        word: count
        for word, count in words.items()
        if word in public or len(owners[word]) >= minimum_patients
    }
    vocabulary = learn_pieces(learned, size, minimum_count, spelled)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    backend = _wordpiece({token: index for index, token in enumerate(vocabulary)}, lowercase=lowercase)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8")
    names = {f"{key}_token": defaults[0] for key, defaults in _SPECIAL_NAMES.items()} | {"unk_token": "[UNK]"}
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lowercase, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
    return load_tokenizer(folder)


def _read_json(path: Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy it again from its source") from error


def _backend(folder: Path, config: dict) -> tokenizers.Tokenizer:
    if (folder / "tokenizer.json").exists():
        import tokenizers

        return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    if (folder / "vocab.txt").exists():
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
        vocabulary = {token: index for index, token in enumerate(lines)}
        return _wordpiece(vocabulary, lowercase=bool(config.get("do_lower_case", True)))
    from transformers import AutoTokenizer  # slow to import, and needed only for unusual folders

    return AutoTokenizer.from_pretrained(str(folder), local_files_only=True).backend_tokenizer


def _is_bert(content: dict) -> bool:
    """Whether a tokenizer.json describes what `_wordpiece` builds, up to case and accents."""
    model, normalizer = content["model"], content["normalizer"] or {}
    added = [token["content"] for token in content["added_tokens"]]
    return (
        (model["type"], model.get("continuing_subword_prefix")) == ("WordPiece", "##")
        and model.get("unk_token") == "[UNK]"
        and normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and (content["pre_tokenizer"] or {}).get("type") == "BertPreTokenizer"
        and set(added) <= set(SPECIAL_TOKENS)
    )


def _wordpiece(vocabulary: dict[str, int], *, lowercase: bool) -> tokenizers.Tokenizer:
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import Tokenizer as Backend

    missing = [token for token in SPECIAL_TOKENS if token not in vocabulary]
    if missing:
        raise ValueError(f"vocab.txt lacks {', '.join(missing)}")
    backend = Backend(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return backend
