"""Captions from what BLIP's picture side says, by its own text decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST_TOKENS = 20


class BlipWriter:
    """Greedy decoding. Without the model's own vocabulary, token ids stand in for words."""

    def __init__(self, net: Any, vocabulary: Sequence[str] | None) -> None:
        self.decoder = net.text_decoder
        self.text: Any = net.config.text_config
        self.vocabulary = vocabulary

    def write(self, embedded: Tensor) -> list[str]:
        return [self._text(row) for row in self.tokens(embedded).tolist()]

    @torch.inference_mode()
    def tokens(self, embedded: Tensor) -> Tensor:
        begin = torch.full((len(embedded), 1), self.text.bos_token_id, device=embedded.device)
        tokens: Tensor = self.decoder.generate(
            input_ids=begin,
            eos_token_id=self.text.sep_token_id,
            pad_token_id=self.text.pad_token_id,
            encoder_hidden_states=embedded,
            encoder_attention_mask=self._all(embedded),
            do_sample=False,
            num_beams=1,
            max_new_tokens=MOST_TOKENS,
        )
        return tokens

    def logits(self, embedded: Tensor, tokens: Tensor) -> Tensor:
        said: Tensor = self.decoder(
            input_ids=tokens[:, :-1],
            encoder_hidden_states=embedded,
            encoder_attention_mask=self._all(embedded),
        ).logits
        return said

    def _all(self, embedded: Tensor) -> Tensor:
        return torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)

    def _text(self, tokens: Sequence[int]) -> str:
        silent = {self.text.bos_token_id, self.text.pad_token_id, self.text.sep_token_id}
        pieces = [self._piece(token) for token in tokens if token not in silent]
        return " ".join(pieces).replace(" ##", "")

    def _piece(self, token: int) -> str:
        known = self.vocabulary is not None and token < len(self.vocabulary)
        return self.vocabulary[token] if known and self.vocabulary is not None else f"token{token}"
