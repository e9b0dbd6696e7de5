// SPDX-License-Identifier: Apache-2.0
// Settings of the address sanitizer that all fuzz entries share.

// Call stacks of allocations are not recorded, and little freed memory is kept apart: recording costs most of
// the time of entries that throw. Run an input that was found with ASAN_OPTIONS=malloc_context_size=30.
// Symbols that the shared library of ops and the program both have are meant to be the same.
extern "C" const char* __asan_default_options() {
  return "malloc_context_size=0:quarantine_size_mb=16:detect_odr_violation=0";
}
