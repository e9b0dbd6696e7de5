// SPDX-License-Identifier: Apache-2.0
// A library to preload (LD_PRELOAD) that lets one call of the file system fail, for tests/reliability/run.
//
// Counted are calls that change something below the folder PERFORMER_FAIL_UNDER: open for writing, write,
// fsync, rename, truncate and temporary files. The call number PERFORMER_FAIL_CALL (from 1) fails with the
// error PERFORMER_FAIL_ERROR (a number of errno.h). At exit the number of counted calls is written to the
// file PERFORMER_FAIL_COUNT.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>

namespace {

template <class F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

struct Plan {
  const char* under = getenv("PERFORMER_FAIL_UNDER");
  const char* count = getenv("PERFORMER_FAIL_COUNT");
  long call = getenv("PERFORMER_FAIL_CALL") ? atol(getenv("PERFORMER_FAIL_CALL")) : 0;
  int error = getenv("PERFORMER_FAIL_ERROR") ? atoi(getenv("PERFORMER_FAIL_ERROR")) : EIO;
  std::atomic<long> seen{0};

  ~Plan() {
    if (count == nullptr) return;
    const int descriptor =
        next<int(const char*, int, ...)>("open")(count, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    char text[32];
    const int size = snprintf(text, sizeof(text), "%ld\n", seen.load());
    [[maybe_unused]] const ssize_t done =
        next<ssize_t(int, const void*, size_t)>("write")(descriptor, text, size);
  }
};

Plan& plan() {
  static Plan all;
  return all;
}

bool below(const char* path) {
  if (plan().under == nullptr || path == nullptr) return false;
  char whole[PATH_MAX];
  if (path[0] != '/' && getcwd(whole, sizeof(whole)) != nullptr) {
    strncat(whole, "/", sizeof(whole) - strlen(whole) - 1);
    strncat(whole, path, sizeof(whole) - strlen(whole) - 1);
    path = whole;
  }
  return strncmp(path, plan().under, strlen(plan().under)) == 0;
}

bool below(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size < 0) return false;
  path[size] = 0;
  return below(path);
}

// Whether this call is the one that fails.
template <class Place>
bool fails(Place place) {
  const int saved = errno;
  const bool counted = below(place);
  errno = saved;
  if (!counted || ++plan().seen != plan().call) return false;
  errno = plan().error;
  return true;
}

bool writes(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT) != 0;
}

int open_with(const char* name, const char* path, int flags, mode_t mode) {
  if (writes(flags) && fails(path)) return -1;
  return next<int(const char*, int, ...)>(name)(path, flags, mode);
}

FILE* fopen_with(const char* name, const char* path, const char* mode) {
  if (strpbrk(mode, "wa+") != nullptr && fails(path)) return nullptr;
  return next<FILE*(const char*, const char*)>(name)(path, mode);
}

mode_t mode_of(int flags, va_list list) {
  return (flags & O_CREAT) != 0 ? va_arg(list, mode_t) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return open_with("open", path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_of(flags, list);
  va_end(list);
  return open_with("open64", path, flags, mode);
}
FILE* fopen(const char* path, const char* mode) {
  return fopen_with("fopen", path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
  return fopen_with("fopen64", path, mode);
}
int mkostemp(char* path, int flags) {
  return fails(static_cast<const char*>(path)) ? -1 : next<int(char*, int)>("mkostemp")(path, flags);
}
int mkostemp64(char* path, int flags) {
  return fails(static_cast<const char*>(path)) ? -1 : next<int(char*, int)>("mkostemp64")(path, flags);
}
ssize_t write(int descriptor, const void* data, size_t size) {
  return fails(descriptor) ? -1 : next<ssize_t(int, const void*, size_t)>("write")(descriptor, data, size);
}
ssize_t writev(int descriptor, const iovec* parts, int count) {
  return fails(descriptor) ? -1 : next<ssize_t(int, const iovec*, int)>("writev")(descriptor, parts, count);
}
int fsync(int descriptor) {
  return fails(descriptor) ? -1 : next<int(int)>("fsync")(descriptor);
}
int ftruncate(int descriptor, off_t size) {
  return fails(descriptor) ? -1 : next<int(int, off_t)>("ftruncate")(descriptor, size);
}
int ftruncate64(int descriptor, off64_t size) {
  return fails(descriptor) ? -1 : next<int(int, off64_t)>("ftruncate64")(descriptor, size);
}
int truncate(const char* path, off_t size) {
  return fails(path) ? -1 : next<int(const char*, off_t)>("truncate")(path, size);
}
int truncate64(const char* path, off64_t size) {
  return fails(path) ? -1 : next<int(const char*, off64_t)>("truncate64")(path, size);
}
int rename(const char* from, const char* to) {
  return fails(to) ? -1 : next<int(const char*, const char*)>("rename")(from, to);
}

}  // extern "C"
