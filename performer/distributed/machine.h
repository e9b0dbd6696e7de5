// SPDX-License-Identifier: Apache-2.0
// Which ranks run on one machine, so that one of them can open a file for all.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "performer/distributed/communicator.h"

namespace performer::distributed {

// Where a process runs, as other processes of the machine see it in /proc.
struct Place {
  // The same for processes that can reach each other: of one boot of one machine, one user, one namespace of
  // processes (containers have their own). 0: not known, so that the process counts as alone.
  uint64_t machine = 0;
  int64_t process = 0;  // its number in /proc
};
Place own_place();

// The ranks of one machine. Launchers' variables are not asked, as some do not tell: ranks are together where
// one can open the files of the other, which is tried. A rank that can open nobody's files is the first of a
// machine of its own.
class Machine {
 public:
  // All ranks together; returns on no rank before all have called it. Throws what Communicator throws.
  explicit Machine(Communicator& ranks, const Place& place = own_place());

  int ranks() const { return ranks_.size(); }  // of all machines
  bool is_first() const { return first_ == ranks_.rank(); }
  int first() const { return first_; }  // the lowest rank of this machine

  // All ranks together. The first rank of each machine gives a descriptor of a file that it holds open, or -1
  // for none, and keeps it; `own` of the others is not read. They get a descriptor of their own of that file,
  // open for reading, to close; nothing where there is none, as on the first rank. No name of the file is
  // needed, so that it may have none: then the system removes it with the last process that holds it. Throws
  // Error when a file cannot be opened, or is another one than the first rank's.
  std::optional<int> share(int own);

 private:
  std::optional<int> open_of_first(const at::Tensor& all, std::string& trouble) const;

  Communicator& ranks_;
  Place place_;
  int first_ = 0;
};

}  // namespace performer::distributed
