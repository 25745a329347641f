"""Prunes a model for a domain: measures, chooses, writes, and measures what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.draft import open_draft
from mobilemoe.data.sources import Document
from mobilemoe.data.stream import cut_document
from mobilemoe.errors import CheckpointError
from mobilemoe.evaluate.compare.bits_per_byte import Score, check_window, encode_document, score_document, targets_of
from mobilemoe.files import atomic_folder, check_writable, refuse_existing
from mobilemoe.load import Model, load
from mobilemoe.progress import tell
from mobilemoe.prune.card import CARD, pruned_card, read_card
from mobilemoe.prune.choice import best_experts, check_experts, merge_into_nearest
from mobilemoe.prune.result import Measured, Pruned
from mobilemoe.prune.texts import PIECE_CHARS, Text, read_texts, split_texts
from mobilemoe.prune.use import measure_use
from mobilemoe.prune.write import assignment, write_pruned
from mobilemoe.quant.export import learnt_scales

MOST_TOKENS = 2**16  # that choose the experts; their hidden states are in memory
MOST_MEASURED = 2**15  # tokens of the held-out text, and of each other domain
WINDOW = 1024  # tokens that are computed together, or the model's context if it is shorter
HELD_OUT = "the text's held-out part"


def prune(
    source: Path,
    target: Path,
    texts: Sequence[Path],
    experts: int,
    *,
    others: Sequence[Path] = (),
    merge: bool = False,
) -> Pruned:
    """Writes the model in folder `source` with `experts` routed experts a layer as the folder `target`, for a domain.

    `texts` are files and folders of the domain: nine tenths choose the experts, and one tenth measures the bits per
    byte before and after, as do the `others`, texts of other domains. Those experts stay that add most to the hidden
    states (`Use.added_LE`); with `merge` the others are averaged into them. The model card says how it was made, and
    has that of the source below. A draft head goes along: it changes no text. INT4 models are measured by the native
    engine, BF16 models by PyTorch. UsageError for a number of experts that cannot be, DataError for texts,
    CheckpointError for a folder that exists or weights that are not whole, MissingExtraError for `merge` without SciPy.
    """
    refuse_existing(target, CheckpointError)
    check_writable(target)
    card = read_card(source)
    if merge:
        assignment()
    with Checkpoint.open(source) as checkpoint:
        config = checkpoint.config
        check_experts(config, experts, source.name)
        check_window(config.max_position_embeddings, config.max_position_embeddings)
        if (draft := open_draft(source, config)) is not None:
            draft.close()
        if learnt_scales(source):
            raise CheckpointError(
                f"{source} was trained with scales of its own for INT4, which would be lost: `mobilemoe quantize` it "
                "first, and prune the result"
            )
        split = split_texts([text.document for text in read_texts(texts)])
        measured = [Text(HELD_OUT, document) for document in split.held_out]
        measured += [
            Text(text.domain, piece)
            for path in others
            for text in read_texts([path])
            for piece in cut_document(text.document, PIECE_CHARS)
        ]
        model = _load(source)
        before = _measure(model, checkpoint, measured)
        use = measure_use(checkpoint, windows_of_texts(model, split.chosen_by), distances=merge)
        del model
        kept_LN = best_experts(use.added_LE, experts)
        with atomic_folder(target, CheckpointError) as part:  # so that it appears with its own card, or not at all
            made = part / target.name
            write_pruned(checkpoint, made, kept_LN, merge_into_nearest(use, kept_LN) if merge else None)
            with Checkpoint.open(made) as result:
                found = Pruned(target, kept_LN, use, before, _measure(_load(made), result, measured))
                configs = config, result.config
            (made / CARD).write_text(pruned_card(card, source, made, configs, texts, found, merged=merge), "utf-8")
            for path in made.iterdir():
                path.rename(part / path.name)
            made.rmdir()
    return found


def windows_of_texts(model: Model, documents: Sequence[Document]) -> list[list[int]]:
    """The ids of the documents in windows that each begin a text, up to MOST_TOKENS of them."""
    window, tokens = _window(model), 0
    windows: list[list[int]] = []
    for document in documents:
        ids, _ = encode_document(model, document.key, document)
        for targets in targets_of(ids, window):
            if windows and tokens + 1 + len(targets) > MOST_TOKENS:
                return windows
            windows.append([ids[0], *targets])
            tokens += 1 + len(targets)
    return windows


def measure_texts(model: Model, texts: Sequence[Text]) -> dict[str, Score]:
    """The scores of the first MOST_MEASURED tokens or so of each domain."""
    found: dict[str, Score] = {}
    window = _window(model)
    for done, text in enumerate(texts):
        tell(done, len(texts), "texts measured")
        sums = found.setdefault(text.domain, Score())
        if sums.tokens < MOST_MEASURED:
            sums.add(score_document(model, text.document.key, text.document, window))
    return found


def _measure(model: Model, checkpoint: Checkpoint, texts: Sequence[Text]) -> Measured:
    return Measured(sum(path.stat().st_size for path in checkpoint.files), measure_texts(model, texts))


def _window(model: Model) -> int:
    return min(WINDOW, model.context)


def _load(folder: Path) -> Model:
    with Checkpoint.open(folder) as checkpoint:
        return load(folder, backend="native" if checkpoint.config.is_quantized else "torch")
