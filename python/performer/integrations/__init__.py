# SPDX-License-Identifier: Apache-2.0
"""The package in other libraries' terms; each module needs its library."""
