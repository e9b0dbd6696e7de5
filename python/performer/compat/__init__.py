# SPDX-License-Identifier: Apache-2.0
"""Drop-ins: other packages' classes with their arguments, state-dict names and numbers."""
