// SPDX-License-Identifier: Apache-2.0
// How much of the processors a container or a batch system leaves to this process.
#pragma once

#include <string>

namespace performer {

// The smallest CPU quota of this process's control group and of those around it, in processors (1.5: one and
// a half), of control groups of version 2 or 1; 0: there is none. `root` stands before /proc and /sys: tests
// give a folder of their own.
double cpu_quota(const std::string& root = "");

// How many threads keep so many processors busy under a quota (0: none): the quota rounded up, from 1 to
// `cpus`.
int threads_within(double quota, int cpus);

}  // namespace performer
