"""Loads a checkpoint into an engine that scores pairs of texts.

These are models with a head of one label, and Qwen3-Reranker as its makers store it: a text model
whose score is how much more likely it finds `yes` than `no`.
"""

import time
from dataclasses import asdict

import structlog

from engine.contract.fingerprint import fingerprint
from engine.contract.host import Host
from engine.contract.resolved_config import MachineFacts
from engine.contract.score import Activation, PairsRequest, RerankerInfo
from engine.contract.status import Phase
from engine.contract.text_settings import TokenSettings
from engine.contract.worker_settings import WantedKind
from engine.embedding.embedders import CONFIG, LoadedEmbedder, load_embedder
from engine.embedding.loading import prepared_machine, shared_info, shared_limits
from engine.embedding.pairs import PairEngine, PairWork
from engine.embedding.whole_texts import WholeTextsLimits
from engine.errors import UnsupportedArchitecture
from engine.files.checkpoint_files import read_optional_json
from engine.models import qwen3
from engine.models.encoder_registry import encoder_family, read_head_form, supported_encoders
from engine.models.metadata_keys import MetadataKeys
from engine.models.pair_scorer import PairScorer, YesNoHead
from engine.models.score_head import HeadForm, ScoreHead
from engine.models.sentence_decoder import SentenceDecoder
from engine.models.sentence_encoder import SentenceEncoder
from engine.text.tokenizer import load_tokenizer
from engine.weights.loader import load_model_config
from engine.weights.safetensors import folder_headers, iter_tensors
from engine.weights.sentence_layout import SentenceLayout
from engine.weights.source import Checkpoint

_WITH_HEAD = "ForSequenceClassification"
_QWEN3_WITH_HEAD = f"Qwen3{_WITH_HEAD}"
_ACTIVATIONS: dict[str, Activation] = {"Sigmoid": "sigmoid", "Identity": "none"}
"""The activations by the names of PyTorch's classes."""
_COMPLAINT = (
    "a trial score failed: {reason}; the weights are damaged or overflow in their dtype; fetch the "
    "model again or set another dtype"
)

log = structlog.get_logger(__name__)


def scores_pairs(checkpoint: Checkpoint, wanted: WantedKind) -> bool:
    """Whether the operator wants scores, or a folder's model has a head for them.

    Raises:
        CorruptFile: the folder's config.json is damaged.
    """
    if wanted != "auto":
        return wanted == "reranker"
    return _architecture(_keys(checkpoint)).endswith(_WITH_HEAD)


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: TokenSettings, host: Host
) -> tuple[PairEngine, RerankerInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: the checkpoint cannot be loaded; the message is fit for clients.
    """
    started_s = time.monotonic()
    machine = prepared_machine(intent, host)
    keys = _keys(checkpoint)
    activation = _activation(keys)
    architecture = _architecture(keys)
    if architecture.endswith(_WITH_HEAD):
        loaded, scorer = _load_with_head(checkpoint, keys, intent, machine, host)
    else:
        loaded, scorer = _load_text_model(checkpoint, intent, machine, host)
    limits = WholeTextsLimits(**shared_limits(loaded, intent))
    engine = PairEngine(PairWork(scorer, limits), limits)
    host.report(Phase.WARMING_UP)
    trial = [0] * min(8, limits.max_model_len)
    engine.try_out([PairsRequest(request_id="warm-up", model="", inputs=[trial])], _COMPLAINT)
    facts = {"activation": activation, "dtype": loaded.dtype, **asdict(limits)}
    log.info("reranker loaded", seconds=round(time.monotonic() - started_s, 1), **facts)
    info = shared_info(loaded, checkpoint, model_id)
    return engine, RerankerInfo(
        **info | {"architecture": architecture or loaded.architecture},
        activation=activation,
        has_prompt=isinstance(loaded.model, SentenceDecoder),
        config_hash=fingerprint((sorted(facts.items()), intent.deterministic)),
    )


def _load_with_head(
    checkpoint: Checkpoint,
    keys: MetadataKeys,
    intent: TokenSettings,
    machine: MachineFacts,
    host: Host,
) -> tuple[LoadedEmbedder, PairScorer]:
    form = _head_form(keys)
    last = folder_headers(checkpoint.path).get(f"{form.out}.weight")
    if last is not None and last.shape[0] != 1:
        raise UnsupportedArchitecture(
            f"the model's head has {last.shape[0]} labels; a reranker needs a head with one label, "
            f"whose number says how well two texts fit"
        )
    layout = SentenceLayout(pooling=form.pooling)
    config = None if encoder_family(keys) is not None else qwen3.read_json(keys)
    loaded = load_embedder(checkpoint, intent, machine, host, layout=layout, config=config)
    model, names = loaded.model, form.shapes(loaded.dimensions)
    tensors = {name: one for name, one in iter_tensors(checkpoint.path) if name in names}
    options = (model.encoder if isinstance(model, SentenceEncoder) else model.model).options
    return loaded, PairScorer(model, ScoreHead(form, tensors, loaded.dimensions, options))


def _head_form(keys: MetadataKeys) -> HeadForm:
    if encoder_family(keys) is not None:
        return read_head_form(keys)
    if _architecture(keys) != _QWEN3_WITH_HEAD:
        encoders = (name.removesuffix("Model") + _WITH_HEAD for name in supported_encoders())
        raise UnsupportedArchitecture(
            f"architecture {_architecture(keys)!r} is not a supported reranker; the supported ones "
            f"are {', '.join(encoders)} and {_QWEN3_WITH_HEAD}"
        )
    return HeadForm(pooling="last", out="score", out_bias=False)


def _load_text_model(
    checkpoint: Checkpoint, intent: TokenSettings, machine: MachineFacts, host: Host
) -> tuple[LoadedEmbedder, PairScorer]:
    config = load_model_config(checkpoint)
    if config.architecture != qwen3.ARCHITECTURE:
        raise UnsupportedArchitecture(
            f"kind is reranker, and {config.architecture} has no head that scores pairs; of models "
            f"without one, only Qwen3-Reranker ({qwen3.ARCHITECTURE}) is supported"
        )
    raw = load_tokenizer(checkpoint.path).raw
    yes, no = raw.token_to_id("yes"), raw.token_to_id("no")
    if yes is None or no is None:
        raise UnsupportedArchitecture(
            "kind is reranker, and the model's tokenizer has no tokens yes and no, by whose "
            "likelihood Qwen3-Reranker scores; use a Qwen3-Reranker"
        )
    layout = SentenceLayout(pooling="last")
    loaded = load_embedder(
        checkpoint, intent, machine, host, layout=layout, config=config, with_head=True
    )
    assert isinstance(loaded.model, SentenceDecoder)
    return loaded, PairScorer(loaded.model, YesNoHead(loaded.model.model, yes, no))


def _keys(checkpoint: Checkpoint) -> MetadataKeys:
    """The keys of a folder's config.json; none for a file."""
    values = read_optional_json(checkpoint.path / CONFIG) if checkpoint.layout == "folder" else {}
    return MetadataKeys(values, CONFIG)


def _architecture(keys: MetadataKeys) -> str:
    """The first of the stated architectures; empty if there is none."""
    names = keys.values.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _activation(keys: MetadataKeys) -> Activation:
    """What sentence-transformers applies to the number of a model with one label."""
    stated = keys.values.get("sentence_transformers")
    name = stated.get("activation_fn") if isinstance(stated, dict) else None
    name = name or keys.values.get("sbert_ce_default_activation_function") or "Sigmoid"
    found = _ACTIVATIONS.get(str(name).rpartition(".")[2])
    if found is None:
        raise UnsupportedArchitecture(
            f"config.json: the scores' activation is {name!r}; it must be one of "
            f"{', '.join(_ACTIVATIONS)}"
        )
    return found
