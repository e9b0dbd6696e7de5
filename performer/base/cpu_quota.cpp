// SPDX-License-Identifier: Apache-2.0
#include "performer/base/cpu_quota.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace performer {
namespace {

// The CPUs of a quota of so many microseconds in each period; 0: there is no quota.
double quota_of(const std::string& quota, const std::string& period) {
  const double microseconds = std::strtod(quota.c_str(), nullptr);  // "max" and "-1": none
  const double every = std::strtod(period.c_str(), nullptr);
  return microseconds > 0 && every > 0 ? microseconds / every : 0;
}

std::string first_line(const std::string& path) {
  std::ifstream stream(path);
  std::string line;
  std::getline(stream, line);
  return line;
}

// The quota in one folder of the control groups, version 2 (cpu.max: "QUOTA PERIOD") or 1.
double quota_in(const std::string& folder) {
  std::istringstream words(first_line(folder + "/cpu.max"));
  std::string quota, period;
  if (words >> quota >> period) return quota_of(quota, period);
  return quota_of(first_line(folder + "/cpu.cfs_quota_us"), first_line(folder + "/cpu.cfs_period_us"));
}

// Whether a list such as "cpuacct,cpu", whose order differs between systems, has the controller "cpu".
bool has_cpu(const std::string& controllers) {
  return ("," + controllers + ",").find(",cpu,") != std::string::npos;
}

}  // namespace

double cpu_quota(const std::string& root) {
  double smallest = 0;
  const auto look_in = [&](const std::string& folder) {
    const double quota = quota_in(folder);
    if (quota > 0 && (smallest == 0 || quota < smallest)) smallest = quota;
  };
  const std::string unified = root + "/sys/fs/cgroup", of_cpus = unified + "/cpu";
  std::ifstream stream(root + "/proc/self/cgroup");
  for (std::string line; std::getline(stream, line);) {  // "0::/PATH", or "4:cpu,cpuacct:/PATH"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    if (!controllers.empty() && !has_cpu(controllers)) continue;
    // Version 1 has a folder for each set of controllers, and a link "cpu" to that with the processors.
    for (std::string path = line.substr(second + 1); path.size() > 1; path.resize(path.rfind('/'))) {
      if (!path.starts_with('/')) break;
      if (controllers.empty()) {
        look_in(unified + path);
      } else {
        look_in(unified + "/" + controllers + path);
        look_in(of_cpus + path);
      }
    }
    if (!controllers.empty()) look_in(unified + "/" + controllers);
  }
  look_in(unified);
  look_in(of_cpus);
  return smallest;
}

int threads_within(double quota, int cpus) {
  if (quota <= 0 || quota >= cpus) return std::max(1, cpus);
  return std::max(1, static_cast<int>(std::ceil(quota)));
}

}  // namespace performer
