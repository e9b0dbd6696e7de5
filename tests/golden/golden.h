// SPDX-License-Identifier: Apache-2.0
// Recorded outputs of the reference systems ("golden-1" folders: an index.json and safetensors files) as
// tests.
//
//   golden::run_group("plm_schedule", [](golden::Group& group, const golden::Case& item) {
//     if (item.option<bool>("dtype16")) {
//       group.known_other(item, "why our result differs by design");
//       return;
//     }
//     group.expect(item, "lr", computed(item.tensor("steps")));
//   });
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "performer/models/safetensors.h"

namespace performer::golden {

inline constexpr const char* kMissing =
    "no recorded outputs: set PERFORMER_GOLDEN=DIR[:DIR...] to folders with an index.json of schema "
    "golden-1, or to "
    "their parent";

// One recorded output and how close a result must come: |a - b| <= atol + rtol |b|.
struct Output {
  std::string name;
  std::string float64_name;  // the same output of the reference run in double; "" when there is none
  bool exact = false;        // integers and masks: equal
  double atol32 = 0, rtol32 = 0;
  double atol64 = 0, rtol64 = 0;
  std::string only_where;  // condition on an input, "" for everywhere
  bool f32_unreliable = false;
};

struct Case {
  std::string id, group, function, folder;
  nlohmann::json options, entry;  // `entry`: the whole record of the index
  std::vector<std::string> inputs;
  std::map<std::string, Output> outputs;
  std::shared_ptr<const TensorFile> file;

  bool has(const std::string& name) const;
  // Input or output `name`, or its double version NAME64. Throws InputError when it is not there.
  at::Tensor tensor(const std::string& name) const;
  template <class T>
  T option(const std::string& name) const {
    return options.at(name).get<T>();
  }
};

// The small set in tests/golden/recorded, ../shared/golden beside the source tree when it is there, and the
// folders of PERFORMER_GOLDEN=DIR[:DIR...]; a folder without index.json stands for its subfolders. Throws
// InputError when PERFORMER_GOLDEN names a folder without any index.
std::vector<std::string> folders();
// The cases of one folder's index, of one group unless `group` is empty. Throws InputError for another schema
// or a missing tensor.
std::vector<Case> load_folder(const std::string& folder, const std::string& group = "");

// "" when `actual` agrees with output `name` of the case; else one line with the worst element. A float64
// result is held to the double tolerance, any other to the float32 one, both against the reference's double
// output where it exists.
std::string difference(const Case& item, const std::string& name, const at::Tensor& actual);

// The cases of one group in all folders, with a tally of what was compared. `system` ("keras",
// "performer-pytorch", ...) is part of what the cases name as their reference: systems share names of groups.
class Group {
 public:
  explicit Group(const std::string& name, const std::string& system = "");
  bool empty() const { return cases_.empty(); }
  const std::vector<Case>& cases() const { return cases_; }

  // A test failure unless difference() is "".
  void expect(const Case& item, const std::string& output, const at::Tensor& actual);
  // Declares that our result differs by a documented decision.
  void known_other(const Case& item, const std::string& reason);
  // Prints the tally; a test failure when a recorded output was neither compared nor declared.
  void finish() const;

 private:
  std::string name_;
  std::vector<Case> cases_;
  std::map<std::string, std::set<std::string>> compared_;  // outputs, by folder and id
  std::map<std::string, std::string> other_;
};

// Runs `body` on each case of a group; what it throws fails that case alone. Skips the test without
// recordings.
void run_group(const std::string& name, const std::string& system,
               const std::function<void(Group&, const Case&)>& body);
inline void run_group(const std::string& name, const std::function<void(Group&, const Case&)>& body) {
  run_group(name, "", body);
}

}  // namespace performer::golden
