// SPDX-License-Identifier: Apache-2.0
// The stack machine of a pickle. Private to readers/.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "performer/models/readers/byte_cursor.h"
#include "performer/models/readers/pickle.h"

namespace performer::pickle {

// Values refer to each other by number: a pickle may refer to what it made before.
using Ref = uint32_t;

struct Value {
  // type: a class or function by its name. object: an instance with attributes. storage: what tensors lie in.
  enum class Kind { none, boolean, integer, real, text, sequence, dict, type, object, tensor, storage };
  Kind kind = Kind::none;
  int64_t integer = 0;  // boolean too
  double real = 0;
  std::string text = {};        // of a text; the name of a type
  std::vector<Ref> items = {};  // of a sequence; of a dict and an object keys and values by turns
  at::Tensor tensor = {};       // of a tensor or storage
};

class Machine {
 public:
  Machine(std::span<const std::byte> bytes, const LoadStorage& load, const std::string& source)
      : cursor_(bytes, source), load_(load) {}

  Ref run();  // to the end of the pickle: its root
  size_t used() const { return cursor_.at(); }
  const Value& at(Ref ref) const { return values_[ref]; }

 private:
  using Kind = Value::Kind;
  Ref add(Value value);
  void push(Value value) { stack_.push_back(add(std::move(value))); }
  void push_integer(int64_t value) { push({.kind = Kind::integer, .integer = value}); }
  void push_text(std::string_view text) { push({.kind = Kind::text, .text = std::string(text)}); }
  Ref pop();
  Value& top();
  std::vector<Ref> pop_to_mark();
  const Value& expect(Ref ref, Kind kind, const char* what) const;
  std::vector<int64_t> integers(Ref ref, const char* what) const;

  bool execute(uint8_t opcode);  // false: STOP
  bool execute_number(uint8_t opcode);
  bool execute_text(uint8_t opcode);
  bool execute_container(uint8_t opcode);
  bool execute_memo(uint8_t opcode);
  void push_tuple(size_t count);
  void push_long(uint64_t size);
  void push_global(std::string_view module, std::string_view name);
  void remember(uint32_t place);
  void recall(uint32_t place);
  void put_pairs(std::vector<Ref> pairs);
  void append(const std::vector<Ref>& items);
  void call();   // REDUCE and NEWOBJ
  void build();  // BUILD
  void load_storage();
  at::Tensor make_tensor(const Value& arguments) const;
  std::string line();  // of the text opcodes

  ByteCursor cursor_;
  const LoadStorage& load_;
  std::deque<Value> values_;  // stay where they are
  std::vector<Ref> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, Ref> memo_;
};

}  // namespace performer::pickle
