"""Models on disk: load a shipped model, a folder or a hub model; save one whole or not at all."""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from distillkit.errors import UserError

log = logging.getLogger(__name__)

SHIPPED_FOLDER = Path(__file__).parent / "checkpoints"
SHIPPED = (
    "front-desk-teacher",
    "front-desk-student",
    "front-desk-student-labels",
    "front-desk-student-small",
    "front-desk-student-small-labels",
    "front-desk-student-large",
    "front-desk-student-large-labels",
)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_CHECKPOINT_FILE = re.compile(
    r".*\.(safetensors|bin|jinja|model)(\.index\.json)?|((generation_)?config|manifest)\.json"
    r"|README\.md"
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab)\.json|merges\.txt"
)


def load_model(name: str | os.PathLike[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for use: float32, in evaluation mode, with its tokenizer.

    A language model, a masked language model or a classifier, as its config.json says.

    Args:
        name: a shipped model (``front-desk-teacher``, …), a local folder, or a hub name.

    Raises:
        UserError: in one sentence, when the folder is missing, is no checkpoint, is damaged or
            lacks its tokenizer, or when the hub has no such model or cannot be reached.
    """
    source, local_only = _located(name)
    with _quiet():
        source, local_only = _checked(source, local_only)
        model = _load_weights(source, local_only)
        tokenizer = _load_tokenizer(source, local_only)
    embeddings: Any = model.get_input_embeddings()
    if len(tokenizer) > (rows := embeddings.weight.shape[0]):
        raise UserError(
            f"{source}: the tokenizer has {len(tokenizer):,} tokens and the model {rows:,} rows "
            "for them; they do not belong together"
        )
    return model.eval(), tokenizer


def classifier_from(
    name: str | os.PathLike[str], labels: Sequence[str], *, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An encoder with a new, untrained head, to be trained on `labels`: float32, and its tokenizer.

    The body is what the folder or the hub's checkpoint has; the head is random, by `seed`. To use a
    classifier that is trained, take `load_model`, which refuses one whose head is missing.

    Raises UserError as `load_model` does.
    """
    source, local_only = _located(name)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                source,
                dtype=torch.float32,
                id2label=dict(enumerate(labels)),
                label2id={label: number for number, label in enumerate(labels)},
                ignore_mismatched_sizes=True,  # a head for other labels is replaced
                local_files_only=local_only,
            )
        except Exception as error:
            raise _loading_error(source, "model", error) from error
        return model, _load_tokenizer(source, local_only)


def _located(name: str | os.PathLike[str]) -> tuple[str, bool]:
    """Where a checkpoint is, and whether nothing needs to be asked of the hub."""
    shipped = SHIPPED_FOLDER / str(name)
    local = shipped if str(name) in SHIPPED else Path(name).expanduser()
    from_hub = not (local.exists() or str(name) in SHIPPED or _looks_like_path(str(name)))
    source = str(name) if from_hub else str(local)
    if not from_hub:
        _check_folder(local)
    with _quiet():
        return source, not from_hub or _is_cached(source)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or "\\" in name


def _is_cached(name: str) -> bool:
    """Whether a hub model is in the local cache, whole; if not, whether the hub can give it."""
    with contextlib.suppress(OSError, ValueError):
        folder = Path(snapshot_download(name, local_files_only=True))
        if any((folder / file).exists() for file in _WEIGHT_FILES):
            return True
    try:
        HfApi().model_info(name, timeout=10)  # asked once; a download would try six times
    except Exception as error:
        raise _loading_error(name, "model", error) from error
    return False


def _check_folder(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; expected a checkpoint or a hub name")
    if not folder.is_dir():
        raise UserError(f"{folder} is a file; expected the folder of a checkpoint")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no checkpoint: it has no config.json")
    if not any((folder / file).is_file() for file in _WEIGHT_FILES):
        raise UserError(f"{folder} is no checkpoint: it has no model.safetensors")
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer files: save the tokenizer there as well")
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        try:
            if (folder / file).is_file():
                content = json.loads((folder / file).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{folder / file} is damaged: it is not JSON") from error
        if not isinstance(content, dict):
            raise UserError(f"{folder / file} is damaged: it holds no JSON object")


def _checked(source: str, local_only: bool) -> tuple[str, bool]:
    """Where to read the weights; a model that we quantized is fetched whole, and its seal checked.

    The room that writes that form is imported where a model is in it, and then it loads as others.
    """
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local_only)
    except Exception as error:
        raise _loading_error(source, "model", error) from error
    if not _quantized_by_us(config):
        return source, local_only
    from distillkit.quantization.files import check_seal

    folder = source if Path(source).is_dir() else snapshot_download(source)
    check_seal(folder)
    return str(folder), True


def _quantized_by_us(config: Any) -> bool:
    words: Any = getattr(config, "quantization_config", None)
    words = words.to_dict() if hasattr(words, "to_dict") else words
    return isinstance(words, dict) and words.get("quant_method") == "distillkit"


def _load_weights(source: str, local_only: bool) -> PreTrainedModel:
    try:
        loaded: Any = _class_of(source, local_only).from_pretrained(
            source,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported, and refused below in a sentence of ours
            local_files_only=local_only,
        )
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{source}: the weights are damaged or cut off ({error})") from error
    except Exception as error:
        raise _loading_error(source, "model", error) from error
    model, report = loaded
    _check_weights(source, model, report)
    return model


def _class_of(source: str, local_only: bool) -> Any:
    """Which of transformers' classes reads a checkpoint: it says what it was saved from."""
    config = AutoConfig.from_pretrained(source, local_files_only=local_only)
    names = tuple(config.architectures or ())
    if any(name.endswith("ForSequenceClassification") for name in names):
        return AutoModelForSequenceClassification
    masked = any(name.endswith("ForMaskedLM") for name in names)
    return AutoModelForMaskedLM if masked and not config.is_decoder else AutoModelForCausalLM


def _check_weights(source: str, model: PreTrainedModel, report: dict[str, Any]) -> None:
    """Refuse what transformers would fill with random numbers, and what is no number."""
    for what, key in (("lack", "missing_keys"), ("have in another shape", "mismatched_keys")):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report[key])
        if names:
            raise UserError(
                f"{source}: the weights {what} {len(names)} of the tensors that config.json asks "
                f"for ({names[0]}{', …' if len(names) > 1 else ''}); they do not belong together"
            )
    if unused := sorted(report["unexpected_keys"]):
        log.warning(
            "%s: %s tensors that config.json does not ask for are left out (%s, …)",
            source,
            len(unused),
            unused[0],
        )
    for name, parameter in model.named_parameters():
        plain = type(parameter) is torch.nn.Parameter  # torchao's integers answer few questions
        if not torch.isfinite(parameter if plain else parameter.dequantize()).all():
            raise UserError(f"{source}: the weights are damaged: {name} holds NaN or infinity")


def _load_tokenizer(source: str, local_only: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_only)
    except Exception as error:
        raise _loading_error(source, "tokenizer", error) from error
    if not len(tokenizer):
        raise UserError(f"{source}: its tokenizer is empty; are the tokenizer files missing?")
    return tokenizer


def _loading_error(source: str, what: str, error: Exception) -> UserError:
    """One sentence for whatever transformers, the hub's client or the file system raised."""
    chain: BaseException | None = error
    names = []
    while chain is not None:
        names.append(type(chain).__name__)
        chain = chain.__cause__ or chain.__context__
    reason = " ".join(str(error).split())
    if not reason or not isinstance(error, OSError | ValueError | RuntimeError):
        reason = f"{type(error).__name__} {reason}".strip()
    reason = reason if len(reason) <= 200 else reason[:200].rsplit(" ", 1)[0] + " …"
    if Path(source).exists():
        return UserError(f"{source}: the {what} cannot be loaded: {reason}")
    if any(re.search("Offline|Connect|Timeout|LocalEntryNotFound", name) for name in names):
        return UserError(
            f"{source} is no local folder, and the hub cannot be reached: give a folder, or a "
            f"shipped name ({', '.join(SHIPPED)}), or connect to the network"
        )
    return UserError(f"{source} is no local folder, and the hub gives no such {what}: {reason}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back transformers' progress bars and tables: what matters is raised as one sentence."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


# --- Save ---------------------------------------------------------------------------------------


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    card: str | None = None,
) -> Path:
    """Save a checkpoint whole or not at all: it is written aside and then renamed.

    A checkpoint that is already there is replaced; other files in its folder stay.

    Args:
        card: the text of the model card (``README.md``).

    Raises:
        UserError: the disk is full or read-only, or ``folder`` is a file, or a folder with things
            in it that is no checkpoint.
    """
    target = Path(folder).expanduser().resolve()
    if target.is_file():
        raise UserError(f"{target} is a file; expected a folder to save the model in")
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise UserError(f"{target} holds other things than a checkpoint: choose another folder")
    aside: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        with _quiet():
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        if _quantized_by_us(model.config):
            from distillkit.quantization.files import seal

            seal(aside)
        if card is not None:
            (aside / "README.md").write_text(card, encoding="utf-8")
        aside.chmod(0o755)
        take_place(target, aside, lambda entry: not _CHECKPOINT_FILE.fullmatch(entry.name))
    except (OSError, SafetensorError) as error:
        raise saving_error(target, error) from error
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    return target


def take_place(
    target: Path, new: Path, keep: Callable[[Path], object] = lambda entry: False
) -> None:
    """Put the folder ``new`` in the place of ``target``, which is put back if that fails.

    keep: which entries of the old folder stay, where the new one has none of that name.
    """
    if not target.exists():
        os.rename(new, target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(old, target)
        raise
    for entry in old.iterdir():
        if keep(entry) and not (target / entry.name).exists():
            os.rename(entry, target / entry.name)
    shutil.rmtree(old, ignore_errors=True)


def saving_error(target: Path, error: Exception) -> UserError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full:
        return UserError(f"no space left on the disk to save {target}: free some and save again")
    return UserError(f"{target} cannot be written: {error}")
