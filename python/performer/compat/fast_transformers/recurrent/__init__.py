# SPDX-License-Identifier: Apache-2.0
"""Recurrent forms, under the module names that they have in fast-transformers."""
