# SPDX-License-Identifier: Apache-2.0
"""An encoder and a decoder that reads it."""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from performer.compat.performer_pytorch.autoregressive_wrapper import AutoregressiveWrapper
from performer.compat.performer_pytorch.performer_pytorch import PerformerLM


class PerformerEncDec(nn.Module):
    """An encoder and a decoder that reads it; arguments with the prefixes enc_ and dec_."""

    def __init__(
        self, dim: int, ignore_index: int = 0, pad_value: int = 0, tie_token_embeds: bool = False, **kwargs: Any
    ) -> None:
        super().__init__()
        shared = {"dim": dim, "no_projection": kwargs.pop("no_projection", False)}
        enc = {name[4:]: value for name, value in kwargs.items() if name.startswith("enc_")}
        dec = {name[4:]: value for name, value in kwargs.items() if name.startswith("dec_")}
        unknown = [name for name in kwargs if name[:4] not in ("enc_", "dec_")]
        if unknown:
            warnings.warn(
                f"PerformerEncDec ignores {', '.join(unknown)}, as performer-pytorch does: arguments of the two models "
                "begin with enc_ or dec_, and tie_token_embeds ties their embeddings",
                stacklevel=2,
            )
        if "dim" in enc or "dim" in dec:
            raise ValueError("PerformerEncDec has one dim for both models, found enc_dim or dec_dim: give dim")
        dec |= {"causal": True, "cross_attend": True}
        self.enc = PerformerLM(**{**shared, **enc})
        decoder = PerformerLM(**{**shared, **dec})
        if tie_token_embeds:
            self.enc.token_emb = decoder.token_emb
        self.dec = AutoregressiveWrapper(decoder, ignore_index=ignore_index, pad_value=pad_value)

    @torch.no_grad()
    def generate(
        self,
        seq_in: Tensor,
        seq_out_start: Tensor,
        seq_len: int,
        enc_mask: Tensor | None = None,
        dec_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Samples seq_len tokens given a source."""
        encodings = self.enc(seq_in, mask=enc_mask, return_encodings=True)
        if dec_mask is not None:
            kwargs["mask"] = dec_mask
        return self.dec.generate(seq_out_start, seq_len, context=encodings, context_mask=enc_mask, **kwargs)

    def forward(
        self,
        seq_in: Tensor,
        seq_out: Tensor,
        enc_mask: Tensor | None = None,
        dec_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The decoder's loss."""
        encodings = self.enc(seq_in, mask=enc_mask, return_encodings=True)
        return cast(Tensor, self.dec(seq_out, context=encodings, mask=dec_mask, context_mask=enc_mask, **kwargs))
