"""Encodes prompts with a CLIP text encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from engine.contract.draw import PromptSyntax
from engine.diffusion.prompt import emphasis
from engine.diffusion.prompt.chunks import Chunk, split_chunks
from engine.diffusion.prompt.fragments import Blend, Break, Fragment
from engine.diffusion.prompt.syntax import parse_prompt
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True, eq=False)
class ClipStates:
    """The states of one prompt.

    Attributes:
        states: `[1, L·chunks, D]` in the encoder's dtype, L the encoder's length (77).
        pooled: `[1, P]` of the first chunk, never weighted; for a blend, the blend of its parts.
        num_tokens: the number of the prompt's own tokens.
    """

    states: torch.Tensor
    pooled: torch.Tensor
    num_tokens: int


class ClipPromptEncoder:
    """One CLIP text encoder with its tokenizer.

    Chunks are encoded one at a time: the same text has the same bits in any batch, and a plain
    prompt of one chunk has those of diffusers' `encode_prompt`.

    Args:
        final_norm: whether to apply the final norm to an earlier layer's states, too (SD 1 and 2);
            SDXL and SD 3 do not.
        default_skip: the number of layers left out at `clip_skip` 0: 1 for SDXL and SD 3.

    Attributes:
        model: the text encoder.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        text_encoder: CLIPTextModel | CLIPTextModelWithProjection,
        *,
        final_norm: bool,
        default_skip: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self.model = self._encoder = text_encoder
        self._final_norm = final_norm
        self._default_skip = default_skip
        self._length = min(
            int(tokenizer.model_max_length), int(text_encoder.config.max_position_embeddings)
        )

    def encode(self, prompt: PromptText) -> ClipStates:
        """The states of one prompt, in as many chunks as it needs.

        Raises:
            InvalidParameter: `clip_skip` leaves no layer, or the prompt cannot be read
                (`parse_prompt`) or is too long (`split_chunks`).
        """
        skip = self._skip(prompt.clip_skip)
        pieces = parse_prompt(prompt.text, prompt.syntax)
        with torch.no_grad():
            if isinstance(pieces[0], Blend):
                return self._encode_blend(pieces[0], prompt.syntax, skip)
            unblended = [piece for piece in pieces if not isinstance(piece, Blend)]
            return self._encode_pieces(unblended, prompt.syntax, skip)

    def _encode_pieces(
        self, pieces: Sequence[Fragment | Break], syntax: PromptSyntax, skip: int
    ) -> ClipStates:
        chunks = split_chunks(self._tokenize, pieces, capacity=self._length - 2, syntax=syntax)
        plain = [self._run(chunk, skip) for chunk in chunks]
        weighted = [
            self._weigh(chunk, states, syntax, skip)
            for chunk, (states, _) in zip(chunks, plain, strict=True)
        ]
        states = torch.cat(weighted, dim=1) if len(weighted) > 1 else weighted[0]
        return ClipStates(states, plain[0][1], sum(map(len, chunks)))

    def _encode_blend(self, blend: Blend, syntax: PromptSyntax, skip: int) -> ClipStates:
        """The weighted sum of a blend's parts; shorter parts are extended with empty chunks."""
        parts = [self._encode_pieces(part, syntax, skip) for part in blend.parts]
        length = max(part.states.shape[1] for part in parts)
        empty = self._run(Chunk(), skip)[0]
        filled = [
            torch.cat([s.states, *[empty] * ((length - s.states.shape[1]) // self._length)], dim=1)
            for s in parts
        ]
        return ClipStates(
            _weighted_sum(filled, blend.weights),
            _weighted_sum([part.pooled for part in parts], blend.weights),
            sum(part.num_tokens for part in parts),
        )

    def _weigh(
        self, chunk: Chunk, states: torch.Tensor, syntax: PromptSyntax, skip: int
    ) -> torch.Tensor:
        if not chunk.is_weighted:
            return states
        padding = self._length - 1 - len(chunk)
        weights = torch.tensor([1.0, *chunk.weights, *[1.0] * padding], device=states.device)
        if syntax is PromptSyntax.A1111:
            return emphasis.scale_keeping_mean(states.float(), weights).to(states.dtype)
        empty = self._run(Chunk(), skip)[0].float()
        moved = emphasis.move_from_empty(states.float(), empty, weights)
        if syntax is PromptSyntax.COMPEL:
            lowered = {
                fragment: weight
                for fragment, weight in zip(chunk.fragments, chunk.weights, strict=True)
                if weight < 1.0
            }
            without = [
                emphasis.move_from_empty(
                    self._run(chunk, skip, without=fragment)[0].float(), empty, weights
                )
                for fragment in lowered
            ]
            moved = emphasis.blend_without(moved, without, list(lowered.values()))
        return moved.to(states.dtype)

    def _run(
        self, chunk: Chunk, skip: int, *, without: int | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The states `[1, L, D]` and pooled state `[1, P]` of a chunk, with one fragment masked out
        if asked."""
        padding = self._length - 2 - len(chunk)
        token_ids = [
            self._tokenizer.bos_token_id,
            *chunk.token_ids,
            self._tokenizer.eos_token_id,
            *[self._tokenizer.pad_token_id] * padding,
        ]
        wants_layers = skip > 0 or not self._final_norm
        output = self._encoder(
            torch.tensor([token_ids], device=self._encoder.device),
            attention_mask=self._attention_mask(chunk, padding, without),
            output_hidden_states=wants_layers,
            return_dict=True,
        )
        states = output.hidden_states[-(skip + 1)] if wants_layers else output.last_hidden_state
        if wants_layers and self._final_norm:
            states = self._norm()(states)
        pooled = output.text_embeds if "text_embeds" in output else output.pooler_output
        return states.to(self._encoder.dtype), pooled.to(self._encoder.dtype)

    def _attention_mask(
        self, chunk: Chunk, padding: int, without: int | None
    ) -> torch.Tensor | None:
        """The mask of a chunk. Encoders see padding unless their config says otherwise
        (`use_attention_mask`)."""
        sees_padding = not getattr(self._encoder.config, "use_attention_mask", False)
        if sees_padding and without is None:
            return None
        kept = [int(fragment != without) for fragment in chunk.fragments]
        mask = [1, *kept, 1, *[int(sees_padding)] * padding]
        return torch.tensor([mask], device=self._encoder.device)

    def _norm(self) -> Any:
        # In transformers 5 the text model is a single class; older saved classes still wrap it.
        return getattr(self._encoder, "text_model", self._encoder).final_layer_norm

    def _tokenize(self, text: str) -> list[int]:
        token_ids: list[int] = self._tokenizer(
            text, add_special_tokens=False, truncation=False, padding=False, verbose=False
        )["input_ids"]
        return token_ids

    def _skip(self, clip_skip: int) -> int:
        limit = int(self._encoder.config.num_hidden_layers) - 1 - self._default_skip
        if not 0 <= clip_skip <= limit:
            raise InvalidParameter(
                f"clip_skip is {clip_skip}; this model's text encoder allows 0 to {limit}",
                param="clip_skip",
            )
        return clip_skip + self._default_skip


def _weighted_sum(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    total = sum(
        (t.float() * weight for t, weight in zip(tensors[1:], weights[1:], strict=True)),
        tensors[0].float() * weights[0],
    )
    return total.to(tensors[0].dtype)
