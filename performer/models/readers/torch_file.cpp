// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/torch_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <optional>

#include "performer/base/error.h"
#include "performer/base/files.h"
#include "performer/models/readers/byte_cursor.h"
#include "performer/models/readers/pickle.h"
#include "performer/models/readers/zip.h"

namespace performer {
namespace {

// A pickle of the number 0x1950a86a20f9469cfc6c, with which the old format begins.
constexpr std::array<unsigned char, 15> kMagic = {0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46,
                                                  0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, 0x2e};

bool is_old(std::span<const std::byte> bytes) {
  return bytes.size() >= kMagic.size() && std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) == 0;
}

LoadStorage no_storages(const std::string& source) {
  return [source](const StorageName&) -> at::Tensor {
    throw InputError(source + " is damaged: its first parts refer to tensors");
  };
}

// ARCHIVE/data.pkl and, for each storage, ARCHIVE/data/KEY.
StoredModel parse_zip(std::span<const std::byte> bytes, const std::string& source) {
  const ZipArchive archive(bytes, source);
  std::optional<std::string> folder;
  for (const auto& [name, entry] : archive.entries()) {
    check<InputError>(!name.ends_with("/constants.pkl"),
                      "{} is a TorchScript program, which holds code: save the state dictionary instead "
                      "(torch.save(model.state_dict(), ...))",
                      source);
    if (!folder && name.ends_with("/data.pkl")) folder = name.substr(0, name.size() - 8);
  }
  check<InputError>(folder.has_value(), "{} is a zip archive without data.pkl: torch.save() did not write it",
                    source);
  if (archive.entries().contains(*folder + "byteorder")) {
    const auto order = archive.read(*folder + "byteorder");
    const std::string_view text(reinterpret_cast<const char*>(order.data()), order.size());
    check<InputError>(text == "little", "{} has the byte order \"{}\"; only little is supported", source,
                      text);
  }
  std::map<std::string, at::Tensor> storages;
  const auto load = [&](const StorageName& name) {
    const auto found = storages.find(name.key);
    if (found != storages.end()) {
      check<InputError>(found->second.scalar_type() == name.type && found->second.numel() == name.count,
                        "{} is damaged: storage '{}' is named with two types or sizes", source, name.key);
      return found->second;
    }
    const auto data = archive.read(*folder + "data/" + name.key);
    return storages
        .emplace(name.key, tensor_of_bytes(data, {name.count}, name.type, "storage " + name.key, source))
        .first->second;
  };
  return read_pickle(archive.read(*folder + "data.pkl"), load, source);
}

// Pickles of the magic number, the version, the machine, the values and the keys of the storages, which then
// follow in this order: their number of elements in 8 bytes, and these.
StoredModel parse_old(std::span<const std::byte> bytes, const std::string& source) {
  size_t at = 0;
  const auto skip = [&] {
    size_t used = 0;
    const StoredModel part = read_pickle(bytes.subspan(at), no_storages(source), source, &used);
    at += used;
    return part;
  };
  skip();
  skip();
  const StoredModel machine = skip();
  const auto order = machine.scalars.find("little_endian");
  check<InputError>(order == machine.scalars.end() || order->second == Scalar(true),
                    "{} was written on a machine of another byte order; only little-endian files are "
                    "supported",
                    source);
  // Filled below: their data come last.
  std::map<std::string, at::Tensor> storages;
  uint64_t total = 0;
  const auto load = [&](const StorageName& name) {
    const auto found = storages.find(name.key);
    if (found != storages.end()) {
      check<InputError>(found->second.scalar_type() == name.type && found->second.numel() == name.count,
                        "{} is damaged: storage '{}' is named with two types or sizes", source, name.key);
      return found->second;
    }
    const uint64_t most = bytes.size() / at::elementSize(name.type);
    check<InputError>(
        static_cast<uint64_t>(name.count) <= most &&
            (total += static_cast<uint64_t>(name.count) * at::elementSize(name.type)) <= bytes.size(),
        "{} is damaged or truncated: its storages are larger than the file", source);
    return storages.emplace(name.key, at::zeros({name.count}, name.type)).first->second;
  };
  size_t used = 0;
  StoredModel stored = read_pickle(bytes.subspan(at), load, source, &used);
  at += used;
  const std::vector<std::string> keys = read_pickled_texts(bytes.subspan(at), source, &used);
  ByteCursor data(bytes.subspan(at + used), source);
  for (const std::string& key : keys) {
    const auto count = data.number<int64_t>("the size of a storage");
    const auto found = storages.find(key);
    check<InputError>(found != storages.end() && found->second.numel() == count,
                      "{} is damaged: storage '{}' has {} elements, which is not what its tensors say",
                      source, key, count);
    at::Tensor& storage = found->second;
    const auto filled = tensor_of_bytes(data.take(storage.nbytes(), "a storage"), {count},
                                        storage.scalar_type(), "storage " + key, source);
    storage.copy_(filled);
    storages.erase(found);
  }
  check<InputError>(storages.empty(), "{} is truncated: it has no data for storage '{}'", source,
                    storages.empty() ? "" : storages.begin()->first);
  return stored;
}

}  // namespace

bool is_torch_file(std::span<const std::byte> bytes) {
  return is_zip(bytes) || is_old(bytes);
}

StoredModel parse_torch_file(std::span<const std::byte> bytes, const std::string& source) {
  if (is_zip(bytes)) return parse_zip(bytes, source);
  check<InputError>(is_old(bytes),
                    "{} was not written by torch.save(): it is neither a zip archive nor of the "
                    "format before",
                    source);
  return parse_old(bytes, source);
}

StoredModel read_torch_file(const std::string& path) {
  const MappedFile file(path);
  return parse_torch_file({file.data(), file.size()}, path);
}

}  // namespace performer
