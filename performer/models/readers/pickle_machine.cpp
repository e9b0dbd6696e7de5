// SPDX-License-Identifier: Apache-2.0
#include "performer/models/readers/pickle_machine.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <optional>

#include "performer/base/error.h"

namespace performer::pickle {
namespace {

constexpr size_t kMostValues = size_t{1} << 21;

struct StorageType {
  const char* name;
  at::ScalarType type;
};
constexpr StorageType kStorages[] = {
    {"torch.FloatStorage", at::kFloat}, {"torch.DoubleStorage", at::kDouble},
    {"torch.HalfStorage", at::kHalf},   {"torch.BFloat16Storage", at::kBFloat16},
    {"torch.LongStorage", at::kLong},   {"torch.IntStorage", at::kInt},
    {"torch.ShortStorage", at::kShort}, {"torch.CharStorage", at::kChar},
    {"torch.ByteStorage", at::kByte},   {"torch.BoolStorage", at::kBool}};

std::optional<at::ScalarType> storage_type(const std::string& name) {
  for (const auto& row : kStorages) {
    if (name == row.name) return row.type;
  }
  return std::nullopt;
}

// What a call of a class or function gives; nothing of it is run.
enum class Made { dict, sequence, text, namespace_, tensor, tensor_of_parameter, nothing };
struct Callable {
  const char* name;
  Made made;
};
constexpr Callable kCallables[] = {
    {"torch._utils._rebuild_tensor_v2", Made::tensor},
    {"torch._utils._rebuild_tensor", Made::tensor},
    {"torch._utils._rebuild_parameter", Made::tensor_of_parameter},
    {"collections.OrderedDict", Made::dict},
    {"argparse.Namespace", Made::namespace_},
    {"torch.Size", Made::sequence},
    {"builtins.set", Made::sequence},
    {"builtins.frozenset", Made::sequence},
    {"__builtin__.set", Made::sequence},
    {"__builtin__.frozenset", Made::sequence},
    {"_codecs.encode", Made::text},
    {"torch.device", Made::text},
    // Numbers of numpy that stand beside weights, such as a best loss; their values are not read.
    {"numpy.core.multiarray.scalar", Made::nothing},
    {"numpy._core.multiarray.scalar", Made::nothing},
    {"numpy.dtype", Made::nothing}};

std::optional<Made> made_by(const std::string& name) {
  for (const Callable& row : kCallables) {
    if (name == row.name) return row.made;
  }
  return std::nullopt;
}

constexpr std::array kNumberTypes = {"torch.float32", "torch.float64", "torch.float16", "torch.bfloat16",
                                     "torch.int64",   "torch.int32",   "torch.int16",   "torch.int8",
                                     "torch.uint8",   "torch.bool"};

bool is_known(const std::string& name) {
  return storage_type(name) || made_by(name) ||
         std::find(kNumberTypes.begin(), kNumberTypes.end(), name) != kNumberTypes.end();
}

}  // namespace

Ref Machine::add(Value value) {
  check<InputError>(values_.size() < kMostValues,
                    "{}: its pickle has more than {} values, which no file of weights needs",
                    cursor_.source(), kMostValues);
  values_.push_back(std::move(value));
  return static_cast<Ref>(values_.size() - 1);
}

Ref Machine::pop() {
  check<InputError>(!stack_.empty() && (marks_.empty() || stack_.size() > marks_.back()),
                    "{} is damaged: its pickle takes a value that is not there, before byte {}",
                    cursor_.source(), cursor_.at());
  const Ref ref = stack_.back();
  stack_.pop_back();
  return ref;
}

Value& Machine::top() {
  const Ref ref = pop();
  stack_.push_back(ref);
  return values_[ref];
}

std::vector<Ref> Machine::pop_to_mark() {
  check<InputError>(!marks_.empty(),
                    "{} is damaged: its pickle ends a list that it did not begin, before byte {}",
                    cursor_.source(), cursor_.at());
  const std::vector<Ref> items(stack_.begin() + static_cast<std::ptrdiff_t>(marks_.back()), stack_.end());
  stack_.resize(marks_.back());
  marks_.pop_back();
  return items;
}

const Value& Machine::expect(Ref ref, Kind kind, const char* what) const {
  check<InputError>(values_[ref].kind == kind,
                    "{} is damaged: {} of a tensor is of another type than expected", cursor_.source(), what);
  return values_[ref];
}

std::vector<int64_t> Machine::integers(Ref ref, const char* what) const {
  std::vector<int64_t> numbers;
  for (const Ref item : expect(ref, Kind::sequence, what).items)
    numbers.push_back(expect(item, Kind::integer, what).integer);
  return numbers;
}

void Machine::remember(uint32_t place) {
  top();
  memo_[place] = stack_.back();
}

void Machine::recall(uint32_t place) {
  const auto found = memo_.find(place);
  check<InputError>(found != memo_.end(),
                    "{} is damaged: its pickle refers to value {}, which it did not make", cursor_.source(),
                    place);
  stack_.push_back(found->second);
}

void Machine::put_pairs(std::vector<Ref> pairs) {
  Value& dict = top();
  check<InputError>(dict.kind == Kind::dict && pairs.size() % 2 == 0,
                    "{} is damaged: its pickle sets items of what is no dictionary", cursor_.source());
  dict.items.insert(dict.items.end(), pairs.begin(), pairs.end());
}

void Machine::append(const std::vector<Ref>& items) {
  Value& list = top();
  check<InputError>(list.kind == Kind::sequence, "{} is damaged: its pickle appends to what is no list",
                    cursor_.source());
  list.items.insert(list.items.end(), items.begin(), items.end());
}

void Machine::push_tuple(size_t count) {
  Value tuple{.kind = Kind::sequence};
  for (size_t i = 0; i < count; ++i) tuple.items.push_back(pop());
  std::reverse(tuple.items.begin(), tuple.items.end());
  push(std::move(tuple));
}

void Machine::push_global(std::string_view module, std::string_view name) {
  const std::string full = fmt::format("{}.{}", module, name);
  check<InputError>(is_known(full),
                    "{}: its pickle asks for {}, which is no plain data or tensor; nothing of a file is run. "
                    "Save the state dictionary alone (torch.save(model.state_dict(), ...)), or safetensors",
                    cursor_.source(), shown(full));
  push({.kind = Kind::type, .text = full});
}

void Machine::call() {
  const Value arguments = values_[pop()];
  const Value callee = values_[pop()];
  const auto made = callee.kind == Kind::type ? made_by(callee.text) : std::nullopt;
  check<InputError>(made && arguments.kind == Kind::sequence,
                    "{} is damaged: its pickle calls {}, which is no function of plain data",
                    cursor_.source(), callee.kind == Kind::type ? callee.text : "a value");
  const auto first = [&](Kind kind) -> const Value& {
    check<InputError>(!arguments.items.empty(), "{} is damaged: its pickle calls {} without arguments",
                      cursor_.source(), callee.text);
    return expect(arguments.items[0], kind, callee.text.c_str());
  };
  switch (*made) {
    case Made::tensor:
      return push({.kind = Kind::tensor, .tensor = make_tensor(arguments)});
    case Made::tensor_of_parameter:
      return push({.kind = Kind::tensor, .tensor = first(Kind::tensor).tensor});
    case Made::text:
      return push_text(first(Kind::text).text);
    case Made::namespace_:
      return push({.kind = Kind::object});
    case Made::nothing:
      return push({});
    case Made::sequence: {
      Value copy{.kind = Kind::sequence};
      if (!arguments.items.empty()) copy.items = first(Kind::sequence).items;
      return push(std::move(copy));
    }
    case Made::dict:
      break;
  }
  Value dict{.kind = Kind::dict};
  if (!arguments.items.empty()) {
    for (const Ref pair : first(Kind::sequence).items) {
      const Value& both = expect(pair, Kind::sequence, "an item");
      check<InputError>(both.items.size() == 2, "{} is damaged: an item of a dictionary is no pair",
                        cursor_.source());
      dict.items.insert(dict.items.end(), both.items.begin(), both.items.end());
    }
  }
  push(std::move(dict));
}

// A state that only objects have: dictionaries (state_dict's metadata) and tensors go without it.
void Machine::build() {
  const Value state = values_[pop()];
  Value& target = top();
  if (target.kind != Kind::object) return;
  check<InputError>(state.kind == Kind::dict, "{} is damaged: the attributes of an object are no dictionary",
                    cursor_.source());
  target.items.insert(target.items.end(), state.items.begin(), state.items.end());
}

// ('storage', type, key, device, count) and in the old format a sixth element, which is None.
void Machine::load_storage() {
  const Value id = values_[pop()];
  const char* what = "the storage";
  check<InputError>(id.kind == Kind::sequence && id.items.size() >= 5 &&
                        expect(id.items[0], Kind::text, what).text == "storage",
                    "{} is damaged: its pickle refers to something outside that is no storage",
                    cursor_.source());
  check<InputError>(id.items.size() == 5 || values_[id.items[5]].kind == Kind::none,
                    "{}: a storage is a part of another one, as only very old versions of PyTorch wrote it: "
                    "save it again with a newer one",
                    cursor_.source());
  const auto type = storage_type(expect(id.items[1], Kind::type, what).text);
  check<InputError>(type.has_value(), "{}: storages of {} are not supported", cursor_.source(),
                    values_[id.items[1]].text);
  const StorageName name{*type, expect(id.items[2], Kind::text, what).text,
                         expect(id.items[4], Kind::integer, what).integer};
  check<InputError>(name.count >= 0, "{} is damaged: a storage of {} elements", cursor_.source(), name.count);
  push({.kind = Kind::storage, .tensor = load_(name)});
}

// (storage, offset, size, stride, ...)
at::Tensor Machine::make_tensor(const Value& arguments) const {
  check<InputError>(arguments.items.size() >= 4,
                    "{} is damaged: a tensor has {} arguments, expected 4 or more", cursor_.source(),
                    arguments.items.size());
  const at::Tensor& storage = expect(arguments.items[0], Kind::storage, "the storage").tensor;
  const int64_t offset = expect(arguments.items[1], Kind::integer, "the offset").integer;
  const std::vector<int64_t> size = integers(arguments.items[2], "the size"),
                             stride = integers(arguments.items[3], "the stride");
  bool fits = size.size() == stride.size() && size.size() <= 64 && offset >= 0 && offset <= storage.numel();
  int64_t last = offset, count = 1;  // the last element that is read, and how many there are
  const bool empty = std::find(size.begin(), size.end(), 0) != size.end();
  for (size_t i = 0; fits && i < size.size(); ++i) {
    int64_t span = 0;
    fits = size[i] >= 0 && stride[i] >= 0 &&
           !__builtin_mul_overflow(std::max<int64_t>(size[i] - 1, 0), stride[i], &span) &&
           !__builtin_add_overflow(last, span, &last) &&
           !__builtin_mul_overflow(count, std::max<int64_t>(size[i], 1), &count);
  }
  // An expanded tensor of more elements than its storage would take memory that no file paid for.
  fits = fits && (empty || (last < storage.numel() && count <= storage.numel()));
  check<InputError>(fits,
                    "{} is damaged: a tensor of size [{}] and stride [{}] from element {} does not fit its "
                    "storage of {}",
                    cursor_.source(), fmt::join(size, ", "), fmt::join(stride, ", "), offset,
                    storage.numel());
  if (empty) return at::empty(size, storage.options());
  return storage.as_strided(size, stride, offset);
}

}  // namespace performer::pickle
