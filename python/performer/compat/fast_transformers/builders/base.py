# SPDX-License-Identifier: Apache-2.0
"""What builders share."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

_Builder = TypeVar("_Builder", bound="BaseBuilder")


def unknown_option(builder: object, name: str, known: Iterable[str]) -> AttributeError:
    """The error for an option that a builder does not have."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return AttributeError(f"unknown option {name!r} of {type(builder).__name__}{hint}")


class BaseBuilder:
    """An object whose attributes are options."""

    @classmethod
    def from_kwargs(cls: type[_Builder], **kwargs: Any) -> _Builder:
        """A builder with these options; raises ValueError for an unknown one unless strict=False is among them."""
        strict = kwargs.pop("strict", True)
        return cls.from_dictionary(kwargs, strict)

    @classmethod
    def from_namespace(cls: type[_Builder], args: argparse.Namespace, strict: bool = False) -> _Builder:
        """A builder with the options of a command line; unknown ones are passed over unless `strict`."""
        return cls.from_dictionary(vars(args), strict)

    @classmethod
    def from_dictionary(cls: type[_Builder], dictionary: Mapping[str, Any], strict: bool = True) -> _Builder:
        """A builder with these options; raises ValueError for an unknown one if `strict`."""
        builder = cls()
        for name, value in dictionary.items():
            try:
                setattr(builder, name, value)
            except AttributeError as error:
                if strict:
                    raise ValueError(str(error)) from None
        return builder
