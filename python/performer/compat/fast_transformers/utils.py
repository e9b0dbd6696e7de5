# SPDX-License-Identifier: Apache-2.0
"""Sharing weights between transformers of whole sequences and recurrent ones."""

from torch import nn


def make_mirror(src_module: nn.Module, dst_module: nn.Module) -> None:
    """Gives `dst_module` the parameters of `src_module` themselves, so that training one trains both.

    Buffers, such as the omega of random feature maps, are not shared.
    """
    for name, parameter in src_module.named_parameters():
        owner, _, last = name.rpartition(".")
        setattr(dst_module.get_submodule(owner), last, parameter)
