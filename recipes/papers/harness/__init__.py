# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates the rows of the papers' experiments with the program `performer`; standard library only."""
