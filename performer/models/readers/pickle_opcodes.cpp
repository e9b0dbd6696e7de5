// SPDX-License-Identifier: Apache-2.0
// What each opcode of a pickle does, and its tree as names and values.
#include <fmt/format.h>

#include <algorithm>

#include "performer/base/error.h"
#include "performer/models/readers/pickle_machine.h"

namespace performer {
namespace pickle {

std::string Machine::line() {
  std::string text;
  for (char letter = cursor_.number<char>("a line of a pickle"); letter != '\n';
       letter = cursor_.number<char>("a line of a pickle"))
    text += letter;
  return text;
}

// A whole number of up to 8 bytes in two's complement.
void Machine::push_long(uint64_t size) {
  const auto bytes = cursor_.take(size, "a number of a pickle");
  // The magic number of the old format is longer; the number itself is not needed.
  if (size > 8) return push({.kind = Kind::text, .text = "a long number"});
  uint64_t value = size > 0 && (bytes[size - 1] & std::byte{0x80}) != std::byte{} ? ~uint64_t{0} : 0;
  for (size_t i = size; i-- > 0;) value = (value << 8) | static_cast<uint64_t>(bytes[i]);
  push_integer(static_cast<int64_t>(value));
}

bool Machine::execute_number(uint8_t opcode) {
  const char* what = "a number of a pickle";
  switch (opcode) {
    case 'N':
      push({});
      return true;
    case 0x88:
    case 0x89:
      push({.kind = Kind::boolean, .integer = opcode == 0x88 ? 1 : 0});
      return true;
    case 'J':
      push_integer(cursor_.number<int32_t>(what));
      return true;
    case 'K':
      push_integer(cursor_.number<uint8_t>(what));
      return true;
    case 'M':
      push_integer(cursor_.number<uint16_t>(what));
      return true;
    case 0x8a:
      push_long(cursor_.number<uint8_t>(what));
      return true;
    case 'G':
      push({.kind = Kind::real, .real = cursor_.number<double>(what, /*reversed=*/true)});
      return true;
    default:
      return false;
  }
}

bool Machine::execute_text(uint8_t opcode) {
  const char* what = "a text of a pickle";
  switch (opcode) {
    case 'X':
    case 'T':
    case 'B':
      push_text(cursor_.text(cursor_.number<uint32_t>(what), what));
      return true;
    case 'U':
    case 'C':
    case 0x8c:
      push_text(cursor_.text(cursor_.number<uint8_t>(what), what));
      return true;
    case 0x8d:
      push_text(cursor_.text(cursor_.number<uint64_t>(what), what));
      return true;
    case 'c': {
      const std::string module = line();
      push_global(module, line());
      return true;
    }
    case 0x93: {
      const Value name = values_[pop()], module = values_[pop()];
      push_global(module.text, name.text);
      return true;
    }
    default:
      return false;
  }
}

bool Machine::execute_container(uint8_t opcode) {
  switch (opcode) {
    case '(':
      marks_.push_back(stack_.size());
      return true;
    case '}':
      push({.kind = Kind::dict});
      return true;
    case ']':
    case ')':
    case 0x8f:
      push({.kind = Kind::sequence});
      return true;
    case 't':
    case 'l':
    case 0x91:
      push({.kind = Kind::sequence, .items = pop_to_mark()});
      return true;
    case 0x85:
    case 0x86:
    case 0x87:
      push_tuple(opcode - 0x84U);
      return true;
    case 'a': {
      const Ref item = pop();
      append({item});
      return true;
    }
    case 'e':
    case 0x90:
      append(pop_to_mark());
      return true;
    case 's': {
      const Ref value = pop(), key = pop();
      put_pairs({key, value});
      return true;
    }
    case 'u':
      put_pairs(pop_to_mark());
      return true;
    default:
      return false;
  }
}

bool Machine::execute_memo(uint8_t opcode) {
  const char* what = "a reference of a pickle";
  switch (opcode) {
    case 'q':
      remember(cursor_.number<uint8_t>(what));
      return true;
    case 'r':
      remember(cursor_.number<uint32_t>(what));
      return true;
    case 0x94:
      remember(static_cast<uint32_t>(memo_.size()));
      return true;
    case 'h':
      recall(cursor_.number<uint8_t>(what));
      return true;
    case 'j':
      recall(cursor_.number<uint32_t>(what));
      return true;
    default:
      return false;
  }
}

bool Machine::execute(uint8_t opcode) {
  if (execute_number(opcode) || execute_text(opcode) || execute_container(opcode) || execute_memo(opcode))
    return true;
  switch (opcode) {
    case 0x80:
      cursor_.take(1, "the protocol of a pickle");
      return true;
    case 0x95:  // a frame: its size says nothing new
      cursor_.take(8, "a frame of a pickle");
      return true;
    case 'Q':
      load_storage();
      return true;
    case 'R':
    case 0x81:
      call();
      return true;
    case 'b':
      build();
      return true;
    case '0':
      pop();
      return true;
    case '.':
      return false;
    default:
      throw InputError(fmt::format(
          "{} is no file of weights, or damaged: its pickle has the opcode 0x{:02x} at byte {}, which plain "
          "data and tensors do not need",
          cursor_.source(), opcode, cursor_.at() - 1));
  }
}

Ref Machine::run() {
  while (execute(cursor_.number<uint8_t>("a pickle"))) {
  }
  return pop();
}

}  // namespace pickle

namespace {

using pickle::Machine;
using pickle::Ref;
using pickle::Value;

constexpr int kDeepestPickle = 64;
constexpr size_t kMostNames = size_t{1} << 21;  // a value may be reached by many names

class Naming {
 public:
  Naming(const Machine& machine, const std::string& source) : machine_(machine), source_(source) {}

  void name(Ref ref, const std::string& name, int depth) {
    check<InputError>(
        depth <= kDeepestPickle && ++names_ <= kMostNames,
        "{} is damaged: its values are nested more than {} deep, or refer to each other without "
        "end",
        source_, kDeepestPickle);
    const Value& value = machine_.at(ref);
    switch (value.kind) {
      case Value::Kind::tensor:
        stored.tensors[name] = value.tensor;
        break;
      case Value::Kind::boolean:
        stored.scalars[name] = value.integer != 0;
        break;
      case Value::Kind::integer:
        stored.scalars[name] = value.integer;
        break;
      case Value::Kind::real:
        stored.scalars[name] = value.real;
        break;
      case Value::Kind::text:
        stored.scalars[name] = value.text;
        break;
      case Value::Kind::dict:
      case Value::Kind::object:
        for (size_t i = 0; i + 1 < value.items.size(); i += 2) {
          const Value& key = machine_.at(value.items[i]);
          const std::string part = key.kind == Value::Kind::integer ? std::to_string(key.integer) : key.text;
          this->name(value.items[i + 1], name.empty() ? part : name + "." + part, depth + 1);
        }
        break;
      case Value::Kind::sequence:
        for (size_t i = 0; i < value.items.size(); ++i)
          this->name(value.items[i], fmt::format("{}{}{}", name, name.empty() ? "" : ".", i), depth + 1);
        break;
      case Value::Kind::none:
      case Value::Kind::type:
      case Value::Kind::storage:
        break;
    }
  }

  StoredModel stored;

 private:
  const Machine& machine_;
  const std::string& source_;
  size_t names_ = 0;
};

}  // namespace

StoredModel read_pickle(std::span<const std::byte> bytes, const LoadStorage& load, const std::string& source,
                        size_t* used) {
  Machine machine(bytes, load, source);
  const Ref root = machine.run();
  if (used != nullptr) *used = machine.used();
  Naming naming(machine, source);
  naming.name(root, "", 0);
  return std::move(naming.stored);
}

std::vector<std::string> read_pickled_texts(std::span<const std::byte> bytes, const std::string& source,
                                            size_t* used) {
  const LoadStorage none = [&](const StorageName&) -> at::Tensor {
    throw InputError(fmt::format("{} is damaged: a list of names refers to a storage", source));
  };
  Machine machine(bytes, none, source);
  const Value& root = machine.at(machine.run());
  *used = machine.used();
  std::vector<std::string> texts;
  check<InputError>(root.kind == Value::Kind::sequence, "{} is damaged: expected a list of names", source);
  for (const Ref item : root.items) {
    check<InputError>(machine.at(item).kind == Value::Kind::text, "{} is damaged: expected a list of names",
                      source);
    texts.push_back(machine.at(item).text);
  }
  return texts;
}

}  // namespace performer
