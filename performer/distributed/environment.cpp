// SPDX-License-Identifier: Apache-2.0
#include "performer/distributed/environment.h"

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "performer/base/error.h"
#include "performer/base/printable.h"

namespace performer::distributed {
namespace {

constexpr int kMostRanks = 1 << 20;
constexpr int kUsualPort = 29500;  // torchrun's
constexpr int kFirstPort = 20000, kPorts = 10000;

class Reader {
 public:
  explicit Reader(const Variables& get) : get_(get) {}

  std::optional<std::string> text(const char* name) const {
    const char* value = get_(name);
    return value == nullptr || *value == '\0' ? std::nullopt : std::optional<std::string>(value);
  }
  bool has(const char* name) const { return text(name).has_value(); }

  std::optional<int> number(const char* name, int least, int most) const {
    const auto found = text(name);
    if (!found) return std::nullopt;
    int value = 0;
    const auto [end, error] = std::from_chars(found->data(), found->data() + found->size(), value);
    check<UsageError>(
        error == std::errc() && end == found->data() + found->size() && value >= least && value <= most,
        "the environment variable {} must be a whole number from {} to {}, but is \"{}\"", name, least, most,
        shown(*found));
    return value;
  }

  int required(const char* name, const char* beside, int least, int most) const {
    const auto value = number(name, least, most);
    check<UsageError>(value.has_value(),
                      "the environment variable {} is missing, although {} is set: set both, or start the "
                      "ranks with torchrun, "
                      "mpirun, srun or --nproc",
                      name, beside);
    return *value;
  }

 private:
  const Variables& get_;
};

void check_below(int value, const char* name, int bound, const char* bound_name) {
  check<UsageError>(value < bound, "the environment variables contradict each other: {} is {}, but {} is {}",
                    name, value, bound_name, bound);
}

void read_pair(const Reader& read, Environment& found, const char* rank, const char* size) {
  found.rank = read.required(rank, size, 0, kMostRanks);
  found.size = read.required(size, rank, 1, kMostRanks);
  check_below(found.rank, rank, found.size, size);
}

void read_local(const Reader& read, Environment& found, const char* rank, const char* size, const char* all) {
  found.local_rank = read.number(rank, 0, kMostRanks).value_or(0);
  found.local_size = read.number(size, 1, kMostRanks).value_or(found.local_rank + 1);
  check_below(found.local_rank, rank, found.local_size, size);
  check_below(found.local_size, size, found.size + 1, all);
}

// "2(x3),1": so many tasks on each node.
std::optional<int> tasks_on(const std::string& list, int node) {
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string item = list.substr(begin, end - begin);
    const int tasks = std::atoi(item.c_str());
    const size_t times = item.find("(x");
    node -= times == std::string::npos ? 1 : std::atoi(item.c_str() + times + 2);
    if (node < 0) return tasks > 0 ? std::optional<int>(tasks) : std::nullopt;
    begin = end + 1;
  }
  return std::nullopt;
}

void read_slurm(const Reader& read, Environment& found) {
  read_pair(read, found, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS");
  found.local_rank = read.number("SLURM_LOCALID", 0, kMostRanks).value_or(0);
  const auto node = read.number("SLURM_NODEID", 0, kMostRanks);
  const auto tasks = tasks_on(read.text("SLURM_STEP_TASKS_PER_NODE").value_or(""), node.value_or(0));
  found.local_size = tasks.value_or(found.local_rank + 1);
  check_below(found.local_rank, "SLURM_LOCALID", found.local_size,
              "the number of tasks in SLURM_STEP_TASKS_PER_NODE");
}

// Ranks and sizes, by the launcher that set them. Each also runs inside the next one: the ranks are the inner
// one's.
void read_ranks(const Reader& read, Environment& found) {
  if (read.has("RANK")) {
    found.launcher = "torchrun";
    read_pair(read, found, "RANK", "WORLD_SIZE");
    read_local(read, found, "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE");
  } else if (read.has("OMPI_COMM_WORLD_RANK") || read.has("OMPI_COMM_WORLD_SIZE")) {
    found.launcher = "mpirun";
    read_pair(read, found, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
    read_local(read, found, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE",
               "OMPI_COMM_WORLD_SIZE");
  } else if (read.has("PMI_RANK") || read.has("PMI_SIZE")) {
    found.launcher = "PMI";
    read_pair(read, found, "PMI_RANK", "PMI_SIZE");
    read_local(read, found, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "PMI_SIZE");
  } else if (read.has(
                 "SLURM_STEP_NUM_TASKS")) {  // a batch script without srun has no step, and is one process
    found.launcher = "srun";
    read_slurm(read, found);
  } else {
    check<UsageError>(!read.has("WORLD_SIZE"),
                      "the environment variable RANK is missing, although WORLD_SIZE is set: set both, or "
                      "start the ranks with "
                      "torchrun, mpirun, srun or --nproc");
  }
  const auto world = read.number("WORLD_SIZE", 1, kMostRanks);
  check<UsageError>(
      !world || *world == found.size,
      "the environment variables contradict each other: WORLD_SIZE is {}, but {} started {} ranks",
      world.value_or(0), found.launcher, found.size);
}

// A name that the ranks of a job share and other jobs do not, or "".
std::string job_name(const Reader& read) {
  const auto part = [&](const char* name) { return read.text(name).value_or(""); };
  if (read.has("SLURM_JOB_ID")) return part("SLURM_JOB_ID") + "." + part("SLURM_STEP_ID");
  if (read.has("PMIX_NAMESPACE")) return part("PMIX_NAMESPACE");
  return part("OMPI_MCA_ess_base_jobid");
}

int port_of(const std::string& job) {
  if (job.empty()) return kUsualPort;
  uint32_t hash = 2166136261u;  // FNV-1a
  for (const char character : job) hash = (hash ^ static_cast<unsigned char>(character)) * 16777619u;
  return kFirstPort + static_cast<int>(hash % kPorts);
}

void read_meeting_place(const Reader& read, Environment& found) {
  const bool torchrun = found.launcher == "torchrun";
  const auto address = read.text("MASTER_ADDR");
  const auto port = read.number("MASTER_PORT", 1, 65535);
  check<UsageError>(!torchrun || port,
                    "the environment variable MASTER_PORT is missing, although RANK is set: it is a free "
                    "port of the machine in "
                    "MASTER_ADDR");
  found.port = port ? *port : port_of(job_name(read));
  const auto hosts = read.text("SLURM_STEP_NODELIST");
  if (address) {
    found.address = *address;
  } else if (!torchrun && found.local_size == found.size) {
    found.address = "127.0.0.1";
  } else if (found.launcher == "srun" && hosts) {
    found.address = first_host(*hosts);
  } else {
    throw UsageError(
        "the environment variable MASTER_ADDR is missing: set it to the name or address of the machine on "
        "which rank 0 runs (with "
        "mpirun: -x MASTER_ADDR=HOST)");
  }
}

}  // namespace

std::string first_host(const std::string& list) {
  const size_t end = std::min(list.find(','), list.size()), bracket = list.find('[');
  if (bracket == std::string::npos || bracket > end) return list.substr(0, end);
  const size_t number = bracket + 1, close = list.find(']', number);
  const std::string digits = list.substr(number, list.find_first_of("-,]", number) - number);
  const size_t rest = close == std::string::npos ? list.size() : close + 1;
  return list.substr(0, bracket) + digits +
         list.substr(rest, std::min(list.find(',', rest), list.size()) - rest);
}

Environment read_environment(const Variables& get) {
  const Reader read(get);
  Environment found;
  read_ranks(read, found);
  if (const auto again = read.number("TORCHELASTIC_RESTART_COUNT", 0, kMostRanks)) found.attempt = *again;
  if (const auto again = read.number("SLURM_RESTART_COUNT", 0, kMostRanks);
      again && found.launcher == "srun") {
    found.attempt = *again;
  }
  if (found.size == 1) return found;
  read_meeting_place(read, found);
  found.agent_store =
      found.launcher == "torchrun" && read.text("TORCHELASTIC_USE_AGENT_STORE").value_or("") == "True";
  if (const auto socket = read.number("PERFORMER_LISTENER", 0, 1 << 20); socket && found.rank == 0)
    found.listener = *socket;
  return found;
}

Environment read_environment() {
  return read_environment([](const char* name) -> const char* { return std::getenv(name); });
}

}  // namespace performer::distributed
