# SPDX-License-Identifier: Apache-2.0
"""Copied as sitecustomize.py beside the installation of pytorch-fast-transformers, whose setup.py compiles CUDA
sources where it finds nvcc: it must not find one, so that its CPU extensions alone are compiled."""
import subprocess

real_call = subprocess.call


def call(command, *rest, **named):
    if command == ["nvcc"]:
        raise FileNotFoundError("nvcc is hidden from this installation")
    return real_call(command, *rest, **named)


subprocess.call = call
